"""A data directory and its one storage writer: group commit over all shards, and what can go wrong.

The writer takes what is queued when it is free, and makes all of it durable at once, later; what
comes meanwhile waits for the next transaction, as `peerd.storage.writer` does. A transaction is
there wholly or not at all, also after a crash in the middle of it; whether it is, nobody was told.

Faults: slow, hung, full (batches are not taken, promises and adoptions are: the disk reserve), a
failed fsync (the process ends; whether the transaction survived is chance), a flipped bit.
"""

from collections.abc import Callable

from peerd.core.check import InvariantViolation
from peerd.core.durable import Outcome, StoredShard, StoreOperation
from peerd.core.ids import ProcessId, ShardId
from peerd.testing import trace
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.store import SimStore
from peerd.testing.sim.world import World

COMMIT_MS = (1, 1, 1, 2, 2, 3, 5, 12)
"""How long a transaction usually takes."""
SLOW_FACTOR = 30

OnWritten = Callable[[list[Outcome]], None]


class Disk:
    """One data directory. It outlives processes; `attach` gives it the one that runs on it."""

    def __init__(self, world: World) -> None:
        self.shards: dict[ShardId, SimStore] = {}
        self.full = False
        self.slow_until = 0
        self.hung_until = 0
        self.fails_next = False
        self._world = world
        self._queue: list[StoreOperation] = []
        self._writing: list[StoreOperation] = []
        self._busy = False
        self._life = 0
        self._process: ProcessId | None = None
        self._on_written: OnWritten | None = None
        self._on_failed: Callable[[], None] | None = None

    def add_shard(self, shard: ShardId) -> None:
        """Room for a shard; the checkers see all stores from the beginning on."""
        store = self.shards[shard] = SimStore(shard)
        self._world.checks[shard].book.stores.append(store)

    def state(self, shard: ShardId) -> StoredShard:
        """What is durable of a shard."""
        return self.shards[shard].state

    def attach(
        self, process: ProcessId, on_written: OnWritten, on_failed: Callable[[], None]
    ) -> None:
        """A process opened the directory: it hears outcomes, or that the disk has failed."""
        self._process = process
        self._on_written = on_written
        self._on_failed = on_failed

    # -------------------------------------------------------------- writing
    def submit(self, operation: StoreOperation) -> None:
        """Queue one operation."""
        self._queue.append(operation)
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        self._writing, self._queue = self._queue, []
        world = self._world
        delay_ms = COMMIT_MS[int(world.random() * len(COMMIT_MS))]
        if world.clock.now < self.slow_until:
            delay_ms *= SLOW_FACTOR
        world.clock.later(delay_ms, self._commit, self._life)

    def _commit(self, life: int) -> None:
        if life != self._life:
            return
        clock = self._world.clock
        if self.hung_until > clock.now:
            clock.at(self.hung_until, self._commit, life)
            return
        if self.fails_next:
            self._fail()
            return
        operations, self._writing = self._writing, []
        self._busy = False
        outcomes = self.apply(operations)
        if self._queue:
            self._begin()
        if self._on_written is not None:
            self._on_written(outcomes)

    def apply(self, operations: list[StoreOperation]) -> list[Outcome]:
        """Make one transaction durable; the outcomes in order."""
        try:
            if len(operations) == 1:
                operation = operations[0]
                store = self.shards[operation.shard]
                before = store.state
                outcomes = [store.write(operation)]
                self._committed(store, before, outcomes)
                return outcomes
            parts: dict[ShardId, tuple[SimStore, StoredShard, list[Outcome]]] = {}
            outcomes = []
            for operation in operations:
                store = self.shards[operation.shard]
                part = parts.get(operation.shard)
                if part is None:
                    part = parts[operation.shard] = (store, store.state, [])
                outcome = store.write(operation)
                part[2].append(outcome)
                outcomes.append(outcome)
        except InvariantViolation as violation:
            raise BrokenPromise(f"invariant: the store stops: {violation}") from violation
        for store, before, some in parts.values():
            self._committed(store, before, some)
        return outcomes

    def _committed(self, store: SimStore, before: StoredShard, outcomes: list[Outcome]) -> None:
        world, shard = self._world, store.state.shard
        if world.on_record is not None and self._process is not None:
            record = trace.Stored(world.clock.now, self._process, shard, tuple(outcomes))
            world.on_record(record)
        world.checks[shard].stored(store, before, outcomes)

    # -------------------------------------------------------------- ends
    def _fail(self) -> None:
        """§6: "A peer whose fsync fails never retries it"; the process must end."""
        self.fails_next = False
        if self._on_failed is not None:
            self._on_failed()

    def crash(self) -> None:
        """The process is gone. What was being written is there or not; what waited is not."""
        writing, self._writing = self._writing, []
        self._queue.clear()
        if writing and self._world.random() < 0.5:
            self.apply(writing)
        self._life += 1
        self._busy = False
        self._process = None
        self._on_written = None
        self._on_failed = None
