"""Pre-vote: nobody stands for election before a majority says that it hears no leader, too.

The library stands as soon as its own timer runs out, with a new term that deposes a leader whom
everybody else hears. Here the timer is held when it runs out (set to infinity) and the others are
asked; only a majority of grants within one round lets it run out for the library.

Invariants:
- Advice only: no term, vote or log changes by asking or answering, so safety never rests on it.
- A member that has no vote (see `las.raft.rejoin`) never stands.
- A member grants only if it votes at all, does not lead, has heard no leader for the shortest
  election timeout, and the asking one's log is not behind its own.
- Whatever resets the library's timer (a leader's frame, a vote given) ends the asking.

Must not: count votes.
"""

import math
import random
from collections.abc import Callable

from las.internal.v1 import raft_pb2
from las.raft.journal import Journal
from las.raft.library import ReplicatedText, private, set_private

# A round is asked again after about this long: a grant can be missing because its giver heard the
# dead leader a little later than we did.
ROUND_INTERVAL_S = 0.1


class PreVote:
    """Holds and releases the library's election timer; owned by the raft thread."""

    def __init__(
        self,
        *,
        library: ReplicatedText,
        journal: Journal,
        others: tuple[str, ...],
        shortest_timeout_s: float,
        rng: random.Random,
        clock: Callable[[], float],
        may_vote: Callable[[], bool],
        send: Callable[[str, raft_pb2.RaftFrame], None],
        enforced: bool,
    ) -> None:
        """`enforced` is False only in a test that wants to see what happens then."""
        self._enforced = enforced
        self._library = library
        self._journal = journal
        self._others = others
        self._shortest_timeout_s = shortest_timeout_s
        self._rng = rng
        self._clock = clock
        self._may_vote = may_vote
        self._send = send
        self._asking = False
        self._round = 0
        self._next_round_at = 0.0
        self._grants: set[str] = set()
        # A process that has just started may be about to hear its leader.
        self._leader_heard_at = clock()

    def leader_heard(self) -> None:
        """Notes a frame of a leader of the current term."""
        self._leader_heard_at = self._clock()

    def before_tick(self) -> None:
        """Holds the timer if it has run out, asks, and releases it once a majority granted."""
        now = self._clock()
        if self._library._isLeader():
            self._asking = False
            return
        deadline = private(self._library, "raftElectionDeadline")
        held = deadline == math.inf
        if not held and deadline > now:
            self._asking = False
            return
        if not self._may_vote():
            self._asking = False
            set_private(self._library, "raftElectionDeadline", math.inf)
            return
        if not self._enforced:
            return
        set_private(self._library, "raftElectionDeadline", math.inf)
        if not self._asking or now >= self._next_round_at:
            self._ask(now)
        if (1 + len(self._grants)) * 2 > 1 + len(self._others):
            self._asking = False
            set_private(self._library, "raftElectionDeadline", -math.inf)

    def _ask(self, now: float) -> None:
        self._asking = True
        self._round += 1
        self._grants.clear()
        self._next_round_at = now + ROUND_INTERVAL_S * self._rng.uniform(0.75, 1.25)
        last = self._journal.last()
        for peer in self._others:
            question = raft_pb2.PreVote(
                round=self._round, last_log_index=last.index, last_log_term=last.term
            )
            self._send(peer, raft_pb2.RaftFrame(pre_vote=question))

    def answer(self, peer: str, question: raft_pb2.PreVote) -> None:
        """Answers another member's question."""
        last = self._journal.last()
        granted = (
            self._may_vote()
            and not self._library._isLeader()
            and self._clock() - self._leader_heard_at >= self._shortest_timeout_s
            and (question.last_log_term, question.last_log_index) >= (last.term, last.index)
        )
        reply = raft_pb2.PreVoteReply(round=question.round, granted=granted)
        self._send(peer, raft_pb2.RaftFrame(pre_vote_reply=reply))

    def take_reply(self, peer: str, reply: raft_pb2.PreVoteReply) -> None:
        """Counts a grant of the current round, once per member."""
        if self._asking and reply.granted and reply.round == self._round:
            self._grants.add(peer)
