"""What kind of run a seed is a seed of.

| mode | what runs |
| --- | --- |
| `register` | a whole cluster, whose LAS nodes agree by a linearizable register |
| `cluster` | the same, whose LAS nodes agree by the real Raft |
| `alone` | the LAS group alone, as the real Raft, with clients of its own |

A seed of one mode says nothing of another.
"""

from collections.abc import Callable
from typing import Protocol

from peerd.testing.sim.clock import Clock
from peerd.testing.sim.options import Options, drawn, drawn_group, drawn_raft
from peerd.testing.sim.raft.alone import GroupSimulation
from peerd.testing.sim.simulation import Simulation
from peerd.testing.sim.world import OnStory, World
from peerd.testing.trace import OnRecord

MODES = ("register", "cluster", "alone")
REGISTER = "register"


class Run(Protocol):
    """One run, of whatever mode."""

    world: World
    clock: Clock

    @property
    def events(self) -> int:
        """Deliveries, disk completions, client operations and crashes so far."""

    def run(self) -> None:
        """Break things, heal them, check. Raises `BrokenPromise`."""


def options_of(mode: str, seed: int) -> Options:
    """What kind of run a seed of this mode is."""
    return {"register": drawn, "cluster": drawn_raft, "alone": drawn_group}[mode](seed)


def made(
    mode: str,
    seed: int,
    options: Options,
    *,
    on_record: OnRecord | None = None,
    on_member: Callable[[object], None] | None = None,
    on_story: OnStory | None = None,
) -> Run:
    """A run that has not begun. `on_record` hears of peers and the map, `on_member` of the LAS."""
    if mode == "alone":
        return GroupSimulation(seed, options, on_member, on_story)
    return Simulation(seed, options, on_record, on_story, on_member)
