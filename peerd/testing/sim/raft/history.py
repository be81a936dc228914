"""What a group has agreed on, and what it promised to whom: the checkers of the second mode.

| promise | how it is looked at |
| --- | --- |
| one leader in a term | who sends a leader's frame |
| one vote of a member in a term | who sends a vote or asks for one, in any life or directory |
| who lost his directory does not vote | nobody sends such a frame before his rejoin is done |
| one order of commands, none lost | the n-th command that any member applies is the same for all |
| exactly once | no command is applied at two positions, none after a later one of its client |
| equal states | the result at each position; the state at some, at each restore and in the end |
| equal logs | the log's index at which a position is reached is the same for all |
| acknowledged is committed | an answer is that of the command's position |
| refused is refused | a command of which every attempt was refused is never applied |
| linearizable | what was shown before a command or barrier was given is below it |

A client gives each command once or again with the same id, and no two commands have equal texts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from las.core.state import ClusterState
from las.raft.member import Step
from peerd.testing.sim.checkers.base import broken

STATES_EVERY = 16
"""States are compared at each position of this kind: it takes as long as ten commands."""
LEADERS_FRAMES = frozenset({"append_entries", "snapshot_chunk"})
CANDIDATES_FRAMES = frozenset({"request_vote"})


@dataclass(slots=True)
class Agreed:
    """What was applied first at a position; everybody else has to follow."""

    command: str
    result: str
    state: ClusterState


class History:
    """See the module. Positions count from 1; 0 is the empty state."""

    def __init__(self, *, unique: bool, on_agreed: Callable[[Agreed], None] | None = None) -> None:
        """`unique`: no two commands have equal texts, so that a second application shows.
        `on_agreed` is told of each command when it is applied for the first time.
        """
        self.agreed: list[Agreed] = []
        self.shown = 0
        """The highest position that somebody outside has heard of."""
        self.finding: BaseException | None = None
        """What a member's own machine tripped over: the member takes it for a defect of its own."""
        self._unique = unique
        self._on_agreed = on_agreed
        self._positions: dict[str, int] = {}
        self._indexes: dict[int, int] = {}
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._refused: set[str] = set()
        self._given: dict[str, tuple[str, int]] = {}
        self._last: dict[str, int] = {}

    # ------------------------------------------------------------------ members
    def applied(
        self, name: str, position: int, command: str, result: str, state: ClusterState
    ) -> None:
        """A member has applied a command."""
        if position > len(self.agreed) + 1:
            broken("one order", f"{name} applies {position} after {len(self.agreed)}")
        if position == len(self.agreed) + 1:
            self._agree(Agreed(command, result, state), name)
            return
        agreed = self.agreed[position - 1]
        if (agreed.command, agreed.result) != (command, result):
            broken(
                "one order",
                f"{name} applies {command} as number {position} with {result}, "
                f"it was {agreed.command} with {agreed.result}",
            )
        if position % STATES_EVERY == 0:
            self._compare(name, position, state)

    def _agree(self, agreed: Agreed, name: str) -> None:
        self.agreed.append(agreed)
        position, command = len(self.agreed), agreed.command
        if self._on_agreed is not None:
            self._on_agreed(agreed)
        if not self._unique:
            return
        if command in self._positions:
            broken("exactly once", f"{name} applies {command} as number {position} once more")
        client, sequence = self._given[command]
        if sequence <= self._last.get(client, 0):
            broken("exactly once", f"{name} applies {command} of {client} after a later one")
        self._last[client] = sequence
        if command in self._refused:
            broken("refused is refused", f"{name} applies {command}, which was refused")
        self._positions[command] = position

    def restored(self, name: str, position: int, state: ClusterState) -> None:
        """A member has its state from a snapshot."""
        if position > len(self.agreed):
            broken("one order", f"{name} restores {position}, only {len(self.agreed)} are agreed")
        self._compare(name, position, state)

    def _compare(self, name: str, position: int, state: ClusterState) -> None:
        if position and state != self.agreed[position - 1].state:
            broken("equal states", f"{name} has another state after {position} commands")

    def compare(self, name: str, position: int, state: ClusterState) -> None:
        """In the end: the member has all, and it is equal."""
        if position != len(self.agreed):
            broken("none lost", f"{name} has {position} of {len(self.agreed)} commands")
        self._compare(name, position, state)

    def stepped(self, name: str, position: int, step: Step) -> None:
        """Frames and status of a step, as they leave."""
        index = step.status.applied_index
        if self._indexes.setdefault(index, position) != position:
            text = f"{name} has applied {position} commands at index {index}"
            broken("equal logs", f"{text}, others {self._indexes[index]}")
        for peer, frame in step.frames:
            kind = frame.WhichOneof("body")
            if kind in LEADERS_FRAMES:
                leader = self._leaders.setdefault(frame.term, name)
                if leader != name:
                    broken("one leader", f"{leader} and {name} both lead term {frame.term}")
            elif kind in CANDIDATES_FRAMES:
                self._voted(name, frame.term, name, voting=step.status.voting)
            elif kind == "vote_granted":
                self._voted(name, frame.term, peer, voting=step.status.voting)

    def _voted(self, name: str, term: int, candidate: str, *, voting: bool) -> None:
        if not voting:
            broken("no vote", f"{name} lost its directory and votes for {candidate} in {term}")
        first = self._votes.setdefault((name, term), candidate)
        if first != candidate:
            broken("one vote", f"{name} votes for {first} and for {candidate} in term {term}")

    # ------------------------------------------------------------------ clients
    def given(self, command: str, client: str, sequence: int) -> None:
        """A client begins to give a command."""
        self._given[command] = (client, sequence)

    def acknowledged(self, command: str, result: str, above: int) -> None:
        """A client has the result of a command that it gave when `above` was shown."""
        position = self._positions.get(command)
        if position is None:
            broken("acknowledged is committed", f"{command} was answered and nobody applied it")
        agreed = self.agreed[position - 1]
        if agreed.result != result:
            broken("exactly once", f"{command} was answered {result}, it came to {agreed.result}")
        if position <= above:
            broken("linearizable", f"{command} is number {position}, {above} was shown before")
        self.shown = max(self.shown, position)

    def read(self, name: str, position: int, at_least: int) -> None:
        """A client has read a member's state after a barrier that it gave at `at_least`."""
        if position < at_least:
            text = f"{name} shows {position} commands, {at_least} were shown before"
            broken("linearizable", text)
        self.shown = max(self.shown, position)

    def refused(self, command: str) -> None:
        """Every attempt to give a command was refused for certain."""
        if command in self._positions:
            broken("refused is refused", f"{command} is number {self._positions[command]}")
        self._refused.add(command)
