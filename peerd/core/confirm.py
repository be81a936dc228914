"""The linearizable tail: rounds of `ConfirmEpoch` at a primary (docs/protocol.md §7, G12).

Why an answer is true: whoever acknowledges in a later epoch than e needs a fence, or the end of a
recovery, that n − a + 1 voters of e promised; "any `acks` voters meet any fence of n − a + 1; fewer
do not". A voter that says, after the request came in, that it promised nothing above e, proves that
no such fence was complete then. So all that was acknowledged before the request came is of e or
older, and lies below the commit offset of e that is read after the request came (spec mutant
`read-quorum`).

Invariants:
- A request is served by a round that began after it came in, and by no older one.
- What is answered survives what an acknowledged batch survives (G12): below it no kept tail lies
  that is not known to be on `acks` stores (spec mutant `tail-covers-kept`). A request waits for
  that.
- At most one question is under way to each voter; requests that wait share a round.

Must not: answer for a process that is not primary any more; `Primary` ends with `refuse_all`.
"""

from dataclasses import dataclass

from peerd.core import refusals
from peerd.core.effects import Effects, Send, TailAnswered
from peerd.core.errors import Refusal
from peerd.core.events import EpochConfirmed, TailAsked
from peerd.core.ids import Epoch, Offset, ReplicaId, RequestId, Tick
from peerd.core.limits import TAIL_WAITERS_MAX
from peerd.core.messages import ConfirmEpoch
from peerd.core.shard_map import Plan
from peerd.core.situation import Situation


@dataclass(slots=True)
class _Waiter:
    """One request; `tail` is set once a round has confirmed it."""

    request: RequestId
    asked_at: Tick
    tail: Offset | None = None


class TailRounds:
    """The requests for a linearizable tail of one primary."""

    def __init__(self, situation: Situation, epoch: Epoch, plan: Plan) -> None:
        self._s = situation
        self._epoch = epoch
        self._plan = plan
        self._round = 0
        self._commit = Offset(0)
        self._next: list[_Waiter] = []
        self._asking: list[_Waiter] = []
        self._confirmed: set[ReplicaId] = set()
        self._stable: list[_Waiter] = []
        self._under_way: dict[ReplicaId, Tick] = {}

    # -------------------------------------------------------------- requests and rounds
    def ask(self, event: TailAsked, commit: Offset, out: Effects) -> None:
        """A request: "**after** the request came in it starts a round of `ConfirmEpoch` to the
        voters and reads its commit offset". One that comes while a round runs waits for the next.
        """
        if len(self._next) + len(self._asking) + len(self._stable) >= TAIL_WAITERS_MAX:
            refusal = refusals.overloaded("too many requests wait for a linearizable tail")
            out.reply.append(TailAnswered(request=event.request, refusal=refusal))
            return
        self._next.append(_Waiter(event.request, event.now))
        self._begin_round(commit, out)

    def _begin_round(self, commit: Offset, out: Effects) -> None:
        if self._asking or not self._next:
            return
        self._round += 1
        self._asking, self._next = self._next, []
        self._commit = commit
        self._confirmed = set()
        self._ask_voters(out)
        self._end_round(commit, out)

    def _ask_voters(self, out: Effects) -> None:
        """Ask who has not confirmed; a voter that owes an answer gets the question after it."""
        now = self._s.now
        question = ConfirmEpoch(shard=self._s.shard, epoch=self._epoch, round=self._round)
        for voter in self._plan.voters:
            if voter == self._s.me.replica or voter in self._confirmed:
                continue
            asked_at = self._under_way.get(voter)
            if asked_at is None or now - asked_at >= self._s.limits.repeat_ms:
                self._under_way[voter] = now
                out.send.append(Send(to=voter, message=question))

    def confirmed(self, event: EpochConfirmed, commit: Offset, out: Effects) -> None:
        """A voter's answer; "an older round serves nobody"."""
        if event.epoch != self._epoch or event.sender not in self._plan.voters:
            return
        self._under_way.pop(event.sender, None)
        if event.round == self._round and event.promised <= self._epoch:
            self._confirmed.add(event.sender)
            self._end_round(commit, out)
        if self._asking:
            self._ask_voters(out)

    def _end_round(self, commit: Offset, out: Effects) -> None:
        """The round is over "when `acks` voters (itself counted if it votes) have answered this
        round that they promised nothing above e". The own promise counts from the moment at which
        it is queued for the store.
        """
        own = self._s.me.replica in self._plan.voters
        if self._s.promised > self._epoch or not self._asking:
            return
        if len(self._confirmed) + own < self._plan.acks:
            return
        for waiter in self._asking:
            waiter.tail = self._commit
        self._stable += self._asking
        self._asking = []
        self.map_learned(out)
        self._begin_round(commit, out)

    def map_learned(self, out: Effects) -> None:
        """Answer what a round has confirmed and no unsafe kept tail lies below (G12)."""
        unstable = self._s.unstable_from
        waiting, self._stable = self._stable, []
        for waiter in waiting:
            tail = waiter.tail
            if tail is None or (unstable is not None and unstable < tail):
                self._stable.append(waiter)
                continue
            out.reply.append(TailAnswered(request=waiter.request, epoch=self._epoch, tail=tail))

    # -------------------------------------------------------------- time and the end
    def tick(self, commit: Offset, out: Effects) -> None:
        """Ask again who is silent; refuse who has waited too long, which another try may cure."""
        oldest = self._s.now - self._s.limits.tail_timeout_ms
        for waiters in (self._next, self._asking, self._stable):
            for waiter in [each for each in waiters if each.asked_at <= oldest]:
                waiters.remove(waiter)
                refusal = refusals.tail_not_confirmed(self._plan.acks)
                out.reply.append(TailAnswered(request=waiter.request, refusal=refusal))
        if self._asking:
            self._ask_voters(out)
        else:
            self._begin_round(commit, out)

    def wake_in_ms(self) -> int | None:
        """When the next tick is due, counted from the last `now`."""
        waits = self._next or self._asking or self._stable
        return self._s.limits.repeat_ms if waits else None

    def refuse_all(self, refusal: Refusal, out: Effects) -> None:
        """This primary is over: "and it is still primary" holds no more."""
        for waiter in (*self._next, *self._asking, *self._stable):
            out.reply.append(TailAnswered(request=waiter.request, refusal=refusal))
        self._next, self._asking, self._stable = [], [], []

    def continue_in(self, successor: "TailRounds", commit: Offset, out: Effects) -> None:
        """The same process goes on in the next epoch: a round of that epoch serves them."""
        waiting = [*self._stable, *self._asking, *self._next]
        self._next, self._asking, self._stable = [], [], []
        for waiter in waiting:
            waiter.tail = None
        successor._next = waiting
        successor._begin_round(commit, out)
