"""What the acceptor knows: the model's state (spec/replication.cpp, `struct State`), unbounded.

Names stand for what they stand for in the model: a store is a data directory, a process is one
life of a peer on its store, an epoch is a plan. Any hashable value may name a store or a process.

Two things are simpler here than in the model, and say the same:
- An epoch is begun once, by one process, which gives each offset once. So one log per epoch tells
  what lies at every offset of it, and a store's part is the range [begin, end) of that log; each
  batch is compared with the log when it is stored.
- What a primary has acknowledged is one number per epoch, since it acknowledges in order.
"""

from collections.abc import Hashable
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

Store = Hashable
Process = Hashable

NONE = 0
"""No epoch: nothing adopted, nothing prepared, primary of nothing."""


class Status(Enum):
    """What the committed map says of an epoch."""

    RESERVED = "drawn for a fence"
    PREPARED = "prepared"
    OPEN = "open"
    SEALED = "sealed"
    DEAD = "dead"


class Switched(Enum):
    """What the old primary did about a prepared epoch."""

    NOT_YET = "not yet"
    BEGIN_SENT = "sent Begin"
    DECLINED = "declined"


@dataclass(frozen=True, slots=True)
class Plan:
    """Who does what in an epoch. `store` is the primary's own, which may vote or not; `closed`: it
    takes no batch, since the shard is split.
    """

    primary: Process
    store: Store
    voters: frozenset[Store]
    replicas: frozenset[Store]
    acks: int
    closed: bool = False


class Batch(NamedTuple):
    """What lies at [base, end). `record` is who sent it (the same for a retry), `content` is all
    that two copies must have in common. A copy need not say who sent it.
    """

    base: int
    end: int
    record: Hashable
    content: Hashable


@dataclass(frozen=True, slots=True)
class Answer:
    """A store's answer to a fence: its end in e (e's begin if it has nothing of e), and the begin
    and end in e′ if it adopted e′.
    """

    end: int
    adopted_next: bool = False
    next_begin: int = 0
    next_end: int = 0


@dataclass(slots=True)
class StoreState:
    """Durable state of a store: per epoch the range [begin, end) of its log."""

    alive: bool = True
    promised: int = NONE
    adopted: int = NONE
    segments: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class EpochState:
    """One epoch: what the map says, what its primary did, what stores reported in it.

    `view_open` and `view_prepared` are what its author saw when it was drawn. `parent` is the epoch
    that ends where this one begins. `end` means something once sealed, `x` once Begin was sent.
    `was_open`: the map showed it open, which it never does of what recovery seals at once.
    """

    status: Status
    plan: Plan | None = None
    begin: int = 0
    end: int = 0
    begun: bool = False
    was_open: bool = False
    view_open: int = NONE
    view_prepared: int = NONE
    parent: int = NONE
    switched: Switched = Switched.NOT_YET
    x: int = 0
    log: dict[int, Batch] = field(default_factory=dict)
    assigned: int = 0
    acknowledged: int = 0
    reported: dict[Store, int] = field(default_factory=dict)
    answers: dict[Store, Answer] = field(default_factory=dict)


@dataclass(slots=True)
class Read:
    """A linearizable read of the tail that waits: which voters have confirmed it since it came in.

    `floor` is what its primary had acknowledged when it came in.
    """

    process: Process
    epoch: int
    floor: int
    confirmed: set[Store] = field(default_factory=set)


@dataclass(slots=True)
class State:
    """The whole of one shard. `roles` has the processes that live, with the epoch that each orders.

    `places` tells where each record was ever ordered; `split` is the X of a committed split.
    """

    stores: dict[Store, StoreState] = field(default_factory=dict)
    lives: dict[Process, Store] = field(default_factory=dict)
    roles: dict[Process, int] = field(default_factory=dict)
    epochs: dict[int, EpochState] = field(default_factory=dict)
    open: int = NONE
    prepared: int = NONE
    drawn: int = NONE
    split: int | None = None
    places: dict[Hashable, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    reads: dict[Hashable, Read] = field(default_factory=dict)

    def store(self, name: Store) -> StoreState:
        """The store of that name; a new one has promised nothing and has nothing."""
        found = self.stores.get(name)
        if found is None:
            found = self.stores[name] = StoreState()
        return found

    def fork(self) -> "State":
        """An independent copy, for a search that goes on in several ways."""
        other = State(
            lives=dict(self.lives),
            roles=dict(self.roles),
            open=self.open,
            prepared=self.prepared,
            drawn=self.drawn,
            split=self.split,
            places=dict(self.places),
        )
        for name, store in self.stores.items():
            twin = other.stores[name] = copy(store)
            twin.segments = dict(store.segments)
        for number, epoch in self.epochs.items():
            again = other.epochs[number] = copy(epoch)
            again.log = dict(epoch.log)
            again.reported = dict(epoch.reported)
            again.answers = dict(epoch.answers)
        for key, read in self.reads.items():
            other.reads[key] = Read(read.process, read.epoch, read.floor, set(read.confirmed))
        return other

    # -------------------------------------------------------------- words of the guards
    def holds(self, name: Store, epoch: int, batch: Batch) -> bool:
        """Whether the store has the batch of that epoch; a lost store is asked for what it had."""
        segment = self.stores[name].segments.get(epoch)
        return segment is not None and segment[0] <= batch.base and batch.end <= segment[1]

    def copies(self, epoch: int, batch: Batch) -> int:
        """How many stores have the batch, or had it when they were lost."""
        return sum(self.holds(name, epoch, batch) for name in self.stores)

    def is_whole(self, name: Store, epoch: int) -> bool:
        """Whether the store has all of a sealed epoch."""
        sealed = self.epochs[epoch]
        if sealed.begin == sealed.end:
            return True
        segment = self.store(name).segments.get(epoch)
        return segment is not None and segment[0] <= sealed.begin and sealed.end <= segment[1]

    def committed(self, epoch: int) -> int:
        """The `acks`-th largest end that voters reported in the epoch, at least its begin."""
        entry = self.epochs[epoch]
        plan = entry.plan
        if plan is None:
            return entry.begin
        reported = entry.reported
        ends = sorted((reported.get(voter, 0) for voter in plan.voters), reverse=True)
        return max(entry.begin, ends[plan.acks - 1])

    def place_in(self, epoch: int, record: Hashable) -> tuple[int, int] | None:
        """(epoch, base) of the record in the log up to the end of `epoch`: the producer table."""
        for home, base in self.places.get(record, ()):
            if home == epoch or self.leads_to(home, base, epoch):
                return home, base
        return None

    def leads_to(self, home: int, base: int, epoch: int) -> bool:
        """Whether what lies at `base` of `home` is in the log on which `epoch` goes on."""
        while epoch > home:
            child = self.epochs[epoch]
            if child.parent == home:
                return base < child.begin
            epoch = child.parent
        return False
