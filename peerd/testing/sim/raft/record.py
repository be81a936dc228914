"""The trace of a group: what came out of each step of each member, and who began and ended.

Frames are in it as bytes; so two runs with one hash are one run.
"""

from collections.abc import Callable
from dataclasses import dataclass

from las.raft.member import Step
from peerd.testing.sim.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A member's step set something free, or changed what it knows."""

    at_ms: int
    name: str
    term: int
    leader: str
    commit_index: int
    applied_index: int
    frames: tuple[tuple[str, str, bytes], ...]
    """Receiver, kind and content of each."""
    outcomes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A process began or ended."""

    at_ms: int
    name: str
    what: str


MemberRecord = Stepped | Changed
OnMember = Callable[[MemberRecord], None]
"""Gets each record when it happens."""


class Recorder:
    """Makes records of what a group does."""

    def __init__(self, world: World, on_record: OnMember) -> None:
        self._world = world
        self._on_record = on_record
        self._known: dict[str, tuple[object, ...]] = {}

    def stepped(self, name: str, step: Step) -> None:
        """A step's result leaves a member."""
        status = step.status
        known = (status.term, status.leader, status.commit_index, status.applied_index)
        if not step.frames and not step.outcomes and self._known.get(name) == known:
            return
        self._known[name] = known
        self._on_record(
            Stepped(
                at_ms=self._world.clock.now,
                name=name,
                term=status.term,
                leader=status.leader or "",
                commit_index=status.commit_index,
                applied_index=status.applied_index,
                frames=tuple(
                    (
                        peer,
                        frame.WhichOneof("body") or "",
                        frame.SerializeToString(deterministic=True),
                    )
                    for peer, frame in step.frames
                ),
                outcomes=tuple(str(outcome) for _, outcome in step.outcomes),
            )
        )

    def changed(self, name: str, what: str) -> None:
        """A process began or ended."""
        self._on_record(Changed(at_ms=self._world.clock.now, name=name, what=what))
