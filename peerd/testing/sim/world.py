"""What every part of a run shares: time, chance, the options, and who is told what happens.

Everything that is random is drawn from `rng`, in the order in which things happen; so a seed is a
run. Whether somebody listens (`on_record`, `on_story`) changes nothing of it.
"""

import random
from collections.abc import Callable

from peerd.core.ids import ShardId
from peerd.testing.sim.checkers import Checks
from peerd.testing.sim.clock import Clock
from peerd.testing.sim.options import Options
from peerd.testing.trace import OnRecord

OnStory = Callable[[int, str], None]
"""Gets virtual milliseconds and one line that a person reads."""


class World:
    """See the module. `events` counts deliveries, disk completions, client operations, crashes."""

    def __init__(
        self,
        seed: int,
        options: Options,
        on_record: OnRecord | None = None,
        on_story: OnStory | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.random = self.rng.random
        self.options = options
        self.limits = options.limits
        self.clock = Clock()
        self.checks: dict[ShardId, Checks] = {}
        self.on_record = on_record
        self.events = 0
        self.faults = 0
        self.troubled = True
        """Whether faults still happen; False from the healing on."""
        self._on_story = on_story

    def tell(self, text: str) -> None:
        """One line of the story."""
        if self._on_story is not None:
            self._on_story(self.clock.now, text)

    @property
    def has_listener(self) -> bool:
        """Whether the story is worth being made."""
        return self._on_story is not None

    def draws(self, probability: float) -> bool:
        """Whether something of this probability happens now; never once all is healed."""
        return self.troubled and probability > 0 and self.random() < probability
