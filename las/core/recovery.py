"""Where a fenced segment ended (docs/protocol.md §4.2, step 2). Pure: answers in, a decision out.

Why it is right. Let n voters and `acks` = a belong to e, and k of them have answered the fence.

- *Nothing acknowledged is lost.* An acknowledged batch is durable on `a` voters of e. At most n − k
  of these are silent, so at least a − (n − k) answers contain it, and the (a − (n − k))-th largest
  end among the answers lies above it. That rank must exist: a − (n − k) ≥ 1, or k ≥ n − a + 1.
- *Nothing is acknowledged later.* Each answer is a promise of f: its store acknowledges nothing of
  e or e′ any more. The n − k ≤ a − 1 silent ones are too few to acknowledge anything.
- *e′.* If any answer adopted e′ at X then P had stopped in e and X was its commit offset: e ended
  there, whatever the answers of e say, and e′ is recovered by the same rule. If none did and
  k′ ≥ n′ − a′ + 1, at most a′ − 1 of its voters can have adopted it: it never acknowledged
  anything, and never will.
- *A split shard* needs no answers. Its segments are closed: nothing in them was acknowledged or
  will be, so that nothing can be lost and nobody need be stopped. Nor does a segment of nobody's,
  which a restore begins with: no process was ever told of it (`las.core.restored`).

Rules kept (each is a mutant of the formal model): `fence-quorum`, `x-min`, `x-ignores-silent`,
`end-without-epoch`, `adoption-ignored`, `prepared-not-fenced`, `old-answers-counted`,
`non-voters-counted`, `lost-store-same-id`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from las.core.commands import HaltShard, RecoveredSegment
from peerd.core.ids import NO_EPOCH, Epoch, Offset, ReplicaId
from peerd.core.shard_map import Plan, Segment, Shard

_ZERO = Offset(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochAnswer:
    """What a store has of one epoch. If it did not adopt it, the offsets mean nothing."""

    adopted: bool = False
    begin: Offset = _ZERO
    end: Offset = _ZERO
    commit: Offset = _ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One store's durable answer to `Promise(f, e, e′)`.

    `promised` is f, or a higher epoch: then the store promised nothing to f and the answer counts
    for nothing.
    """

    replica: ReplicaId
    promised: Epoch
    open: EpochAnswer = EpochAnswer()
    prepared: EpochAnswer = EpochAnswer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Too few answers: an acknowledged batch could be on the silent stores.

    `lacking` are voters that have not answered; `need` more of them are needed, of e or of e′.
    """

    lacking: tuple[ReplicaId, ...]
    need: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """e ends like `ended`; e′ like `ended_prepared`, or it is dead (or was not prepared)."""

    ended: RecoveredSegment
    ended_prepared: RecoveredSegment | None = None

    @property
    def begin(self) -> Offset:
        """Where the fence's own segment begins."""
        return (self.ended_prepared or self.ended).end

    @property
    def sources(self) -> frozenset[ReplicaId]:
        """Stores that have everything up to `begin` of the segment that ended last."""
        return frozenset((self.ended_prepared or self.ended).holders)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """The answers cannot all be true: a store is broken or the LAS lost its past.

    The shard is to be halted: going on would be a guess. `promised` is the epoch above the fence
    that was met, if that is what is wrong.
    """

    replica: ReplicaId
    why: str
    promised: Epoch = NO_EPOCH

    def halt(self, shard: Shard) -> HaltShard:
        """The command that stops all changes of `shard`, if the committed map agrees."""
        return HaltShard(
            shard=shard.shard,
            epoch=self.promised or shard.fence,
            node=self.replica.peer,
            why=self.why,
            fence=NO_EPOCH if self.promised else shard.fence,
        )


Decision = Wait | Recovered | Contradiction


def voters_to_ask(shard: Shard) -> tuple[ReplicaId, ...]:
    """The voters of e, and of e′ if one is prepared (`prepared-not-fenced`)."""
    if shard.open.plan.is_nobodys:
        return ()
    prepared = () if shard.prepared is None else shard.prepared.plan.voters
    return tuple(sorted({*shard.open.plan.voters, *prepared}))


def decide(shard: Shard, answers: Iterable[Answer]) -> Decision:
    """What follows from `answers` to the standing fence of `shard`, in any order.

    Counted are answers of voters with the store ids of the map that promised exactly this fence;
    the last one of a store stands. More answers never make a decision invalid: what was decided
    with fewer stays true, since answers are frozen.
    """
    asked = set(voters_to_ask(shard))
    counted: dict[ReplicaId, Answer] = {}
    for answer in answers:
        if answer.replica not in asked or shard.fence == NO_EPOCH:
            continue
        if answer.promised > shard.fence:
            why = f"it promised {answer.promised}, above the fence {shard.fence}"
            return Contradiction(replica=answer.replica, why=why, promised=answer.promised)
        if answer.promised == shard.fence:
            counted[answer.replica] = answer
    for answer in counted.values():
        if wrong := _contradiction(shard, answer):
            return Contradiction(replica=answer.replica, why=wrong)
    begins = {
        answer.prepared.begin: answer.replica
        for answer in counted.values()
        if shard.prepared is not None and answer.prepared.adopted
    }
    if shard.open.plan.is_nobodys:
        return _recover_closed(shard)
    if shard.is_split:
        return _recover_closed(shard)
    if len(begins) > 1:
        why = f"the prepared segment was adopted at {sorted(begins)}, at more than one offset"
        return Contradiction(replica=begins[max(begins)], why=why)
    decision: Decision
    if shard.prepared is not None and begins:
        decision = _recover_prepared(shard, shard.prepared, next(iter(begins)), counted)
    else:
        decision = _recover_open(shard, counted)
    if isinstance(decision, Recovered):
        return _missing_commit(decision, counted) or decision
    return decision


def _recover_closed(shard: Shard) -> Recovered:
    """A shard that is split (§4.3): "Once it is committed, a fence needs no answers … e ends at X
    where it began, e′ is dead". (spec mutant `split-prepared-not-asked`) So does what is nobody's.
    """
    begin = shard.open.begin or _ZERO
    return Recovered(ended=RecoveredSegment(end=begin, known_commit=begin, holders=()))


def _recover_open(shard: Shard, counted: Mapping[ReplicaId, Answer]) -> Wait | Recovered:
    """Nobody is known to have adopted e′: e is recovered, and e′ is dead."""
    need = _lacking_answers(shard.open.plan, counted)
    if shard.prepared is not None:
        need = max(need, _lacking_answers(shard.prepared.plan, counted))
    if need > 0:
        return _wait(shard, counted, need)
    begin = shard.open.begin or _ZERO
    ended = _ended(shard.open.plan, begin, {each: answer.open for each, answer in counted.items()})
    return Recovered(ended=ended)


def _recover_prepared(
    shard: Shard, prepared: Segment, begin: Offset, counted: Mapping[ReplicaId, Answer]
) -> Wait | Recovered:
    """Somebody adopted e′ at `begin`: e ended there, committed, and e′ is recovered."""
    need = _lacking_answers(prepared.plan, counted)
    if need > 0:
        return _wait(shard, counted, need)
    ended = RecoveredSegment(
        end=begin,
        known_commit=begin,
        holders=tuple(
            sorted(
                each
                for each, answer in counted.items()
                if each in shard.open.plan.replicas
                and answer.open.adopted
                and answer.open.end >= begin
            )
        ),
    )
    ended_prepared = _ended(
        prepared.plan, begin, {each: answer.prepared for each, answer in counted.items()}
    )
    return Recovered(ended=ended, ended_prepared=ended_prepared)


def _lacking_answers(plan: Plan, counted: Mapping[ReplicaId, Answer]) -> int:
    """How many answers of voters are missing to n − a + 1 (`fence-quorum`); never below 0."""
    answered = sum(voter in counted for voter in plan.voters)
    return max(0, len(plan.voters) - plan.acks + 1 - answered)


def _ended(plan: Plan, begin: Offset, answers: Mapping[ReplicaId, EpochAnswer]) -> RecoveredSegment:
    """The rule: the segment ends at the (a − (n − k))-th largest end among the k answers.

    A voter that has not adopted the epoch counts with its begin, whatever older tail it has
    (`end-without-epoch`).
    """
    voters = {voter: answers[voter] for voter in plan.voters if voter in answers}
    ends = sorted(
        (answer.end if answer.adopted else begin for answer in voters.values()), reverse=True
    )
    silent = len(plan.voters) - len(voters)
    end = ends[plan.acks - silent - 1]
    commits = [answer.commit for answer in voters.values() if answer.adopted]
    return RecoveredSegment(
        end=end,
        known_commit=max([begin, *commits]),
        holders=tuple(
            sorted(
                each
                for each, answer in answers.items()
                if each in plan.replicas and answer.adopted and answer.end >= end
            )
        ),
    )


def _missing_commit(
    decision: Recovered, counted: Mapping[ReplicaId, Answer]
) -> Contradiction | None:
    """A commit offset that was heard above the end: a store lost what it had acknowledged."""
    for replica, answer in counted.items():
        for told, ended in (
            (answer.open, decision.ended),
            (answer.prepared, decision.ended_prepared),
        ):
            if ended is not None and told.adopted and told.commit > ended.end:
                why = f"it heard {told.commit} committed, but the segment would end at {ended.end}"
                return Contradiction(replica=replica, why=why)
    return None


def _wait(shard: Shard, counted: Mapping[ReplicaId, Answer], need: int) -> Wait:
    lacking = tuple(each for each in voters_to_ask(shard) if each not in counted)
    return Wait(lacking=lacking, need=need)


def _contradiction(shard: Shard, answer: Answer) -> str:
    """Why one answer cannot be true; empty if it can."""
    begin = shard.open.begin or _ZERO
    if answer.open.adopted and answer.open.begin != begin:
        return f"it began epoch {shard.open.epoch} at {answer.open.begin}, the map says {begin}"
    if shard.prepared is None:
        return ""
    if answer.prepared.adopted and answer.prepared.begin < begin:
        return f"it began epoch {shard.prepared.epoch} at {answer.prepared.begin}, below {begin}"
    return ""


# ---------------------------------------------------------------------------------- with a gap
def decide_with_gap(shard: Shard, answers: Iterable[Answer]) -> Recovered | Contradiction:
    """What is left when a person gives up the voters that did not answer (§4.2, G10).

    Everything that an answer has is kept: e ends at the largest end among them, or at X if one of
    them adopted e′ there, and then e′ at the largest end of those. What lies beyond may have been
    acknowledged: `RecoverWithGap` says that it is lost. Only where e′ may have begun unseen, no
    more of e is kept than is known to be committed.
    """
    given = tuple(answers)
    decision = decide(shard, given)
    if not isinstance(decision, Wait):
        return decision
    told = [each for each in given if each.promised == shard.fence]
    told = [each for each in told if each.replica in voters_to_ask(shard)]
    # What is trimmed was committed, whoever is left to say so.
    begin = max(shard.open.begin or _ZERO, shard.trimmed_to)
    adopted = {each.replica: each.prepared for each in told if each.prepared.adopted}
    opened = {each.replica: each.open for each in told if each.open.adopted}
    if not adopted:
        if shard.prepared is not None and _may_have_begun(shard.prepared, told):
            return Recovered(ended=_what_was_committed(begin, opened))
        return Recovered(ended=_what_is_left(begin, opened))
    x = next(iter(adopted.values())).begin
    holders = tuple(sorted(each for each, state in opened.items() if state.end >= x))
    return Recovered(
        ended=RecoveredSegment(end=x, known_commit=x, holders=holders),
        ended_prepared=_what_is_left(x, adopted),
    )


def _may_have_begun(prepared: Segment, told: Iterable[Answer]) -> bool:
    """Whether e′, which no answer adopted, may have acknowledged something all the same."""
    return _lacking_answers(prepared.plan, {each.replica: each for each in told}) > 0


def _what_was_committed(begin: Offset, states: Mapping[ReplicaId, EpochAnswer]) -> RecoveredSegment:
    """The segment up to the highest commit offset that was heard: no X lies below it, since X is
    the commit offset of the primary that stopped. Beyond it e′ may have put, and acknowledged,
    another record where `states` have one of e (G2).
    """
    commit = max([begin, *(state.commit for state in states.values())])
    holders = sorted(each for each, state in states.items() if state.end >= commit)
    return RecoveredSegment(end=commit, known_commit=commit, holders=tuple(holders))


def _what_is_left(begin: Offset, states: Mapping[ReplicaId, EpochAnswer]) -> RecoveredSegment:
    """The segment up to the largest end of `states`. All of it is kept for good: nothing beyond it
    will be found, so there is no other history that it could contradict.
    """
    end = max([begin, *(state.end for state in states.values())])
    commit = max([begin, *(min(state.commit, end) for state in states.values())])
    holders = sorted(each for each, state in states.items() if state.end >= end)
    return RecoveredSegment(end=end, known_commit=commit, holders=tuple(holders))
