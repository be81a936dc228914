"""When faults strike: each kind at a rate of its own, until the world is troubled no more."""

import random
from collections.abc import Callable, Mapping
from typing import Self

from peerd.testing.sim.world import World


class Striker:
    """What all sets of faults share; a subclass has the faults themselves."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng: random.Random = world.rng
        self.quiet = False
        """Nothing strikes for a while."""

    def start(self, kinds: Mapping[str, Callable[[Self], None]]) -> None:
        """From now on. `kinds`: the option that is a fault's rate a second, and what it does."""
        for name, strike in kinds.items():
            rate = getattr(self._world.options, name)
            if rate > 0:
                self._next((rate, strike))

    def _next(self, kind: tuple[float, Callable[[Self], None]]) -> None:
        delay_ms = int(self._rng.expovariate(kind[0]) * 1_000) + 1
        self._world.clock.later(delay_ms, self._strike, kind)

    def _strike(self, kind: tuple[float, Callable[[Self], None]]) -> None:
        if self._world.troubled:
            if not self.quiet:
                self._world.faults += 1
                kind[1](self)
            self._next(kind)

    def _tell(self, text: str) -> None:
        self._world.tell(f"fault: {text}")
