"""Partitions and slow links: what goes wrong on a network, whoever is on it."""

import random

from peerd.testing.sim.network import Link, Network
from peerd.testing.sim.world import World


class NetworkFaults:
    """Strikes when it is told to, and mends it a while later."""

    def __init__(self, world: World, network: Network) -> None:
        self._world = world
        self._rng: random.Random = world.rng
        self._network = network

    def partition(self) -> None:
        """A link, a node or half of the cluster is cut off, one way or both ways."""
        rng, names = self._rng, sorted({name for pair in self._network.links for name in pair})
        if not names:
            return
        kind = rng.choice(("link", "link", "node", "half"))
        if kind == "link":
            one, other = ({name} for name in rng.sample(names, 2))
        else:
            size = 1 if kind == "node" else len(names) // 2
            one = set(rng.sample(names, size))
            other = set(names) - one
        one_way = rng.random() < 0.4
        links = [
            link
            for (sender, receiver), link in self._network.links.items()
            if (sender in one and receiver in other)
            or (not one_way and sender in other and receiver in one)
        ]
        way = "from" if one_way else "and"
        self._world.tell(
            f"fault: {' '.join(sorted(other))} cannot hear {way} {' '.join(sorted(one))}"
        )
        self._network.cut(links)
        self._world.clock.later(rng.choice((50, 300, 900, 2_500)), self._network.mend, links)

    def slow_link(self) -> None:
        """A link takes long."""
        if not self._network.links:
            return
        link = self._rng.choice(list(self._network.links.values()))
        link.slow_ms = self._rng.choice((20, 100, 400))
        self._world.clock.later(self._rng.choice((200, 1_000)), self._fast, link)

    def _fast(self, link: Link) -> None:
        link.slow_ms = 0
