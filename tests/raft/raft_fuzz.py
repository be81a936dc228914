"""Random schedules against the guarded library: crashes, power cuts, lost disks, cuts, reordering.

What is checked after every event:
- a term has one leader;
- all members apply the same commands in the same order, and none twice;
- an acknowledged command is at the position that its submitter was told;
- a barrier that passed at a member saw everything that was acknowledged before it was asked for.

And at the end, with everything healed: all members hold the same, and a new command goes through.

`python tests/raft/raft_fuzz.py 500 [first seed]` runs many; each failure names its seed.
"""

import contextlib
import random
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pysyncobj.syncobj
from raft_simulation import CLUSTER, CLUSTER_ID, Clock, Cluster

from las.raft.guard import ALL_GUARDS
from las.raft.member import Timing
from las.raft.store import rejoin_directory

STEPS = 500
HEALING_ROUNDS = 400


class Violation(AssertionError):
    """A promise was broken; the message says which."""


class Fuzz:
    """One schedule. Everything follows from the seed."""

    def __init__(self, seed, clock, root, guards=ALL_GUARDS, *, disasters=True):
        self.random = random.Random(seed)
        self.disasters = disasters
        timing = Timing(
            election_timeout_s=(0.4, 1.4),
            leader_fallback_s=2.0,
            compaction_entries=self.random.choice([5, 20, 10**9]),
            compaction_interval_s=10**9,
        )
        size = 5 if seed % 3 == 0 else 3
        self.clock = clock
        self.cluster = FreeCluster(size, clock, root, guards=guards, timing=timing, seed=seed)
        self.down = set()
        self.rejoining = set()
        self.leaders = {}
        self.applied = {}
        self.acknowledged = {}
        self.given = 0
        self.retries = []
        self.barriers = {}
        self.seen_acks = 0

    def run(self):
        # Small pieces, so that few commands make many messages.
        pieces = {
            "las.raft.guard.FRAME_BYTES_MAX": self.random.choice([60, 200, 10**6]),
            "las.raft.transfer.CHUNK_BYTES": self.random.choice([64, 300, 10**6]),
        }
        with contextlib.ExitStack() as stack:
            for target, value in pieces.items():
                stack.enter_context(mock.patch(target, value))
            stack.callback(self.end)
            for _ in range(STEPS):
                self.event()()
                self.check()
            self.heal()
        return len(self.acknowledged)

    def end(self):
        for name in list(self.cluster.nodes):
            self.cluster.kill(name)

    def event(self):
        draw = self.random.random()
        table = [
            (0.30, self.tick),
            (0.72, self.deliver),
            (0.80, self.some_talk),
            (0.88, self.submit),
            (0.90, self.barrier),
            (0.93, self.change_link),
            (0.95, self.crash),
            (0.96, self.compact),
            (0.98, self.come_back),
            (0.983, self.lose_disk),
            (1.0, self.connect_all),
        ]
        return next(action for bound, action in table if draw < bound)

    # -- events

    def tick(self):
        self.clock.now += self.random.choice([0.0, 0.01, 0.06, 0.3])
        if self.cluster.nodes:
            self.cluster.tick(self.random.choice(sorted(self.cluster.nodes)))

    def deliver(self):
        queues = self.cluster.network.queues
        waiting = [
            pair for pair in sorted(queues) if queues[pair] and pair[1] in self.cluster.nodes
        ]
        if waiting:
            count = self.random.choice([1, 1, 2, 5, None])
            self.cluster.deliver(*self.random.choice(waiting), count)

    def some_talk(self):
        """A random part of the members talks for a moment: otherwise little is ever agreed."""
        names = sorted(self.cluster.nodes)
        names = self.random.sample(names, self.random.randint(0, len(names)))
        for _ in range(self.random.choice([1, 2, 6])):
            self.clock.now += 0.05
            for source in names:
                self.cluster.tick(source)
                for target in names:
                    if source != target:
                        self.cluster.deliver(source, target)

    def submit(self):
        leaders = self.cluster.leaders()
        if not leaders:
            return
        name = self.random.choice(leaders)
        for _ in range(self.random.choice([1, 1, 3, 8])):
            if self.retries and self.random.random() < 0.5:
                item = self.retries.pop()
            else:
                self.given += 1
                item = f"c{self.given}"
            # Each command is a client of its own, so that any of them can be given again.
            self.cluster.submit(name, item, command_id=(item, 1))

    def barrier(self):
        leaders = self.cluster.leaders()
        if leaders:
            name = self.random.choice(leaders)
            self.barriers[self.cluster.barrier(name)] = set(self.acknowledged)

    def change_link(self):
        first, second = self.random.sample(self.cluster.names, 2)
        if self.random.random() < 0.5:
            # Sometimes what was on its way on the old connection still arrives.
            self.cluster.cut(first, second, drop=self.random.random() < 0.6)
        else:
            self.cluster.connect(first, second)

    def crash(self):
        if len(self.cluster.nodes) < 2:
            return
        name = self.random.choice(sorted(self.cluster.nodes))
        if self.random.random() < 0.5:
            self.cluster.kill(name, drop=self.random.random() < 0.6)
        else:
            self.cluster.cut_power(name, torn_bytes=self.random.choice([0, 0, 1, 7, 30, 10**6]))
        self.down.add(name)

    def compact(self):
        if self.cluster.nodes:
            self.cluster.compact(self.random.choice(sorted(self.cluster.nodes)))

    def come_back(self):
        if self.down:
            name = self.random.choice(sorted(self.down))
            self.start(name)

    def lose_disk(self):
        """At most one member at a time is without its memory; more would be a real loss."""
        if not self.disasters or not self.down or self.rejoining:
            return
        name = self.random.choice(sorted(self.down))
        shutil.rmtree(self.cluster.root / name)
        rejoin_directory(
            self.cluster.root / name,
            CLUSTER,
            name,
            self.cluster.names,
            cluster_id=CLUSTER_ID,
            disk=self.cluster.disk(name),
        )
        self.rejoining.add(name)
        self.start(name)

    def connect_all(self):
        for first in self.cluster.names:
            for second in self.cluster.names:
                if first < second:
                    self.cluster.connect(first, second)

    def start(self, name):
        self.down.discard(name)
        self.cluster.start(name)
        for other in sorted(self.cluster.nodes):
            if other != name:
                self.cluster.connect(name, other)

    # -- promises

    def check(self):
        cluster = self.cluster
        if cluster.failures:
            raise Violation(f"a member stopped itself: {cluster.failures}")
        self.rejoining = {
            name
            for name in self.rejoining
            if name not in cluster.nodes or not cluster.nodes[name].status().voting
        }
        for name in cluster.nodes:
            if cluster.leads(name):
                term = cluster.term(name)
                if self.leaders.setdefault(term, name) != name:
                    raise Violation(f"{name} and {self.leaders[term]} both lead term {term}")
            items = cluster.machines[name].items
            for position, item in enumerate(items):
                if self.applied.setdefault(position, item) != item:
                    raise Violation(f"{name} has {item} at {position}, {self.applied[position]}")
            if len(set(items)) != len(items):
                raise Violation(f"{name} applied a command twice")
        self.check_outcomes()

    def check_outcomes(self):
        cluster = self.cluster
        for _, item, result, reason in cluster.acks[self.seen_acks :]:
            if reason == "SUCCESS":
                position = int(result) - 1
                if self.acknowledged.setdefault(item, position) != position:
                    raise Violation(f"{item} was acknowledged at two positions")
                if self.applied.get(position) != item:
                    raise Violation(f"{item} was acknowledged at {position} and is not there")
            elif item is not None:
                self.retries.append(item)
        self.seen_acks = len(cluster.acks)
        for name, token in cluster.barriers:
            before = self.barriers.pop(token)
            if name in cluster.nodes and not before <= set(cluster.machines[name].items):
                raise Violation(f"a barrier passed at {name} and did not see what came before it")
        cluster.barriers.clear()

    # -- the end

    def heal(self):
        for name in sorted(self.down):
            self.start(name)
        self.connect_all()
        cluster = self.cluster
        final = False
        for round_number in range(HEALING_ROUNDS):
            self.clock.now += 0.03
            order = sorted(cluster.nodes)
            self.random.shuffle(order)
            for name in order:
                cluster.tick(name)
            for source in order:
                for target in order:
                    if source != target:
                        cluster.deliver(source, target)
            self.check()
            if round_number > HEALING_ROUNDS // 2 and not final and cluster.leaders():
                cluster.submit(cluster.leaders()[-1], "final", command_id=("final", 1))
                final = True
        states = [cluster.items(name) for name in cluster.names]
        if any(state != states[0] for state in states):
            raise Violation(f"not converged: {[len(state) for state in states]}")
        if "final" not in states[0]:
            raise Violation("nobody takes commands after everything was healed")
        for item, position in self.acknowledged.items():
            if states[0][position : position + 1] != [item]:
                raise Violation(f"acknowledged {item} is lost")


class FreeCluster(Cluster):
    """A cluster whose members stand for election by themselves."""

    def hold(self, *names):
        pass


def main():
    count = int(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    acknowledged = violations = 0
    for seed in range(first, first + count):
        clock = Clock()
        pysyncobj.syncobj.monotonicTime = clock
        directory = Path(tempfile.mkdtemp(prefix="raft-fuzz-"))
        try:
            acknowledged += Fuzz(seed, clock, directory).run()
        except Exception as error:  # noqa: BLE001  whatever it is, the seed is named
            violations += 1
            sys.stderr.write(f"seed {seed}: {error!r}\n")
        finally:
            shutil.rmtree(directory)
    sys.stdout.write(f"{count} schedules, {acknowledged} acknowledged, {violations} violations\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
