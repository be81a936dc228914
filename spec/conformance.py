"""Compares the acceptor of real runs with the model, on every transition of small bounds.

    python spec/conformance.py [--deep] [--only TEXT]     (part of `make spec`)

The model prints each reachable state with its transitions (`--edges`). From state to state the
acceptor follows them: what the model can do it must accept, and of all other actions that these
bounds could name it must refuse each one. Where two ways lead to one state of the model, what the
acceptor knows must be the same, too. So within the bounds the two are the same machine, and the
acceptor's guards have no other bounds.

What the model leaves out for its own sake is not asked of the acceptor (`_is_followed`): more
actions of a kind than the bounds have, a crash that changes nothing, a read that would be right, an
acknowledgement of what was acknowledged. After a store was lost the acceptor counts its copies,
as the map's list of holders does, and the model does not: then such answers are not compared.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import check

from peerd.testing.acceptor import actions, planning
from peerd.testing.acceptor.state import (
    NONE,
    Batch,
    EpochState,
    Plan,
    State,
    Status,
)

# name, bounds. Each runs in the variant as-built, which the acceptor restates.
CASES = [
    ("unplanned 2/2", f"-o 1 -r 2 -s 0 -f 1 -R -g {check.TWO_ALL}"),
    ("unplanned, two offsets", "-p 2 -o 2 -r 2 -s 0 -f 1 -c 0 -R -g 0:01::2,1:01::1"),
    ("unplanned 3/2, reads", "-o 1 -s 0 -f 1 -c 0 -g 0:012::2,1:12::2"),
    ("two fences", "-p 2 -o 1 -r 1 -s 0 -f 2 -c 0 -R -g 0:01::2,1:01::1"),
    ("kept tails and readers", f"-o 1 -r 1 -s 0 -f 1 -c 0 -x -k -R -g {check.THREE}"),
    ("planned and unplanned", "-p 2 -o 1 -r 1 -s 1 -f 1 -c 0 -R -g 0:01::2"),
    ("planned, two offsets", "-p 2 -o 2 -r 2 -s 1 -f 0 -c 0 -R -g 0:01::2,1:01::1"),
    ("a primary without a vote", "-o 1 -r 1 -s 1 -f 0 -R -g 0:01:2:2,0:12:0:2"),
    ("a lost store", f"-o 1 -r 1 -s 0 -f 1 -l 1 -c 0 -x -k -R -g {check.TWO}"),
    ("a split", "-p 2 -o 1 -r 1 -s 1 -f 0 -R -g 0:01::2,0:01::2!,1:01::2!"),
    ("a split and a fence", "-p 2 -o 1 -r 1 -s 1 -f 1 -c 0 -R -g 0:0::1,1:1::1!,1:1::1"),
]
DEEP = [
    ("planned and unplanned 2/2", f"-o 1 -r 1 -s 1 -f 1 -R -g {check.TWO}"),
    ("planned and unplanned, two plans", "-p 2 -o 1 -r 1 -s 1 -f 1 -c 0 -R -g 0:01::2,1:01::2"),
    ("planned and unplanned, a crash", "-p 2 -o 1 -r 1 -s 1 -f 1 -R -g 0:01::2,1:01::2"),
    ("two switches", f"-o 1 -r 2 -s 2 -f 0 -R -g {check.TWO}"),
    ("unplanned 2/2, two fences", f"-o 1 -r 2 -s 0 -f 2 -c 0 -R -g {check.TWO}"),
    (
        "a split that a fence undoes",
        "-p 2 -o 1 -r 1 -s 1 -f 1 -c 0 -R -g 0:0:1:1,1:01::1!,1:1::1,1:1::1!",
    ),
    ("a split, a crash and a fence", f"-p 3 -o 1 -r 1 -s 1 -f 1 -R -g {check.SPLIT}"),
    ("kept tails, planned too", f"-o 1 -r 1 -s 1 -f 1 -c 0 -x -k -R -g {check.TWO}"),
    ("kept tails, two fences", f"-o 1 -r 1 -s 0 -f 2 -c 0 -x -k -R -g {check.THREE}"),
]

Action = tuple[str | int, ...]
"""The name of an action and its parameters, as the model's label gives them."""

READ = "read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a case allows, from its arguments."""

    peers: int
    offsets: int
    records: int
    prepares: int
    fences: int
    plans: tuple[tuple[int, frozenset[int], frozenset[int], int, bool], ...]
    has_reads: bool
    has_fetches: bool
    has_readers: bool

    @staticmethod
    def of(arguments: str) -> "Bounds":
        """The bounds in a case's arguments; those of the model where nothing is said."""
        words = arguments.split()
        given = dict(zip(words, [*words[1:], ""], strict=True))

        def number(option: str, default: int) -> int:
            return int(given.get(option, default))

        return Bounds(
            peers=number("-p", 3),
            offsets=number("-o", 2),
            records=number("-r", 2),
            prepares=number("-s", 1),
            fences=number("-f", 1),
            plans=tuple(map(_plan, given["-g"].split(","))),
            has_reads="-R" not in words,
            has_fetches="-x" in words,
            has_readers="-k" in words,
        )

    @property
    def epochs(self) -> int:
        """How many epochs can be drawn."""
        return max(3, 1 + self.prepares + self.fences)


def _plan(text: str) -> tuple[int, frozenset[int], frozenset[int], int, bool]:
    primary, voters, others, acks = text.rstrip("!").split(":")
    voting = frozenset(map(int, voters))
    return int(primary), voting, voting | set(map(int, others)), int(acks), text.endswith("!")


# ---------------------------------------------------------------------------------- the acceptor
@dataclass(slots=True)
class World:
    """The acceptor's state, and what the model counts besides: lives, and what was answered."""

    state: State
    bounds: Bounds
    lives: tuple[int, ...]
    answered: frozenset[int] = frozenset()
    child_acked: bool = False
    split_said: frozenset[int] = frozenset()
    plans: dict[int, int] = field(default_factory=dict)

    def fork(self) -> "World":
        """An independent copy."""
        return World(
            self.state.fork(),
            self.bounds,
            self.lives,
            self.answered,
            self.child_acked,
            self.split_said,
            dict(self.plans),
        )

    def process(self, peer: int) -> str:
        """The process that runs on a peer's store now."""
        return f"p{peer}.{self.lives[peer]}"

    def plan(self, number: int) -> Plan:
        """A plan of the list, naming the primary's process of now."""
        primary, voters, replicas, acks, closed = self.bounds.plans[number]
        return Plan(
            self.process(primary),
            f"p{primary}",
            frozenset(f"p{each}" for each in voters),
            frozenset(f"p{each}" for each in replicas),
            acks,
            closed,
        )


def first_world(bounds: Bounds) -> World:
    """Epoch 1 is open, begun, and adopted by its replicas: where the model begins."""
    world = World(State(), bounds, (0,) * bounds.peers)
    state = world.state
    for peer in range(bounds.peers):
        actions.boot(state, world.process(peer), f"p{peer}")
    plan = world.plan(0)
    world.plans[1] = 0
    broken = planning.create(state, 1, plan)
    broken = broken or actions.become_primary(state, world.process(bounds.plans[0][0]), 1, 0)
    for store in sorted(map(str, plan.replicas)):
        broken = broken or actions.adopt(state, store, 1, 0)
    if broken:
        raise SystemExit(f"the acceptor refuses the first state: {broken}")
    return world


def _order(w: World, p: int, r: int, o: int, e: int) -> str:
    return actions.order(w.state, w.process(p), e, Batch(o, o + 1, r, r))


def _acknowledge(w: World, p: int, r: int, o: int, e: int) -> str:
    broken = actions.acknowledge(w.state, w.process(p), e, o, r)
    return broken or _answer(w, o)


def _answer(w: World, o: int) -> str:
    w.answered |= {o}
    return ""


def _answer_retry(w: World, p: int, role: int, *batch: int) -> str:
    r, o, e = batch
    if w.state.roles.get(w.process(p)) != role:
        return "another role"
    return actions.answer_retry(w.state, w.process(p), e, o, r) or _answer(w, o)


def _serve(w: World, p: int, r: int, o: int, e: int) -> str:
    batch = w.state.epochs[e].log.get(o)
    if batch is None or batch.record != r:
        return "another record"
    return actions.serve(w.state, f"p{p}", e, o) or _answer(w, o)


def _decline(w: World, p: int, e2: int) -> str:
    return actions.decline(w.state, w.process(p), e2)


def _switch(w: World, p: int, e: int, e2: int, x: int) -> str:
    if w.state.roles.get(w.process(p)) != e:
        return "another role"
    return actions.switch(w.state, w.process(p), e2, x)


def _get_tail(w: World, p: int, e: int) -> str:
    return actions.get_tail(w.state, w.process(p), e, READ)


def _confirm(w: World, p: int, e: int) -> str:
    if READ not in w.state.reads or w.state.reads[READ].epoch != e:
        return "another read"
    return actions.confirm_epoch(w.state, f"p{p}", READ)


def _become_primary(w: World, p: int, e: int, x: int) -> str:
    return actions.become_primary(w.state, w.process(p), e, x)


def _adopt(w: World, p: int, e: int, x: int) -> str:
    return actions.adopt(w.state, f"p{p}", e, x)


def _replicate(w: World, p: int, r: int, o: int, e: int) -> str:
    return actions.replicate(w.state, f"p{p}", e, Batch(o, o + 1, r, r))


def _promise(w: World, p: int, f: int) -> str:
    entry = w.state.epochs.get(f)
    if entry is None:
        return "no such epoch"
    return actions.promise(w.state, f"p{p}", f, entry.view_open, entry.view_prepared)


def _crash(w: World, p: int) -> str:
    broken = actions.crash(w.state, w.process(p))
    if not broken:
        w.lives = (*w.lives[:p], w.lives[p] + 1, *w.lives[p + 1 :])
        broken = actions.boot(w.state, w.process(p), f"p{p}")
    return broken


def _lose(w: World, p: int) -> str:
    return actions.lose_store(w.state, f"p{p}")


def _learn_open(w: World, p: int, e: int) -> str:
    return actions.learn_open(w.state, f"p{p}", e)


def _drop_tail(w: World, p: int, e: int) -> str:
    first, last = w.state.store(f"p{p}").segments.get(e, (0, 0))
    entry = w.state.epochs[e]
    keeps = max(first, entry.end) if entry.status is Status.SEALED else first
    return "nothing to drop" if last <= keeps else actions.drop_tail(w.state, f"p{p}", e, keeps)


def _fetch(w: World, p: int, o: int, e: int, opened: int) -> str:
    batch = w.state.epochs[e].log.get(o) or Batch(o, o + 1, 0, 0)
    return actions.fetch(w.state, f"p{p}", e, opened, batch)


def _prepare(w: World, e: int, e2: int, number: int) -> str:
    broken = planning.prepare_segment(w.state, e, e2, w.plan(number))
    if not broken:
        w.plans[e2] = number
    return broken


def _fence(w: World, f: int, e: int, e2: int) -> str:
    return planning.fence_segment(w.state, f, e, e2)


def _segment_opened(w: World, e2: int, x: int) -> str:
    return planning.segment_opened(w.state, e2, x)


def _withdraw(w: World, e2: int) -> str:
    return planning.withdraw_segment(w.state, e2)


def _open_segment(w: World, f: int, *ends: int) -> str:
    x, recovered, y, number = ends
    if not recovered and x != y:
        return "the next segment begins where the last ends"
    broken = planning.open_segment(w.state, f, w.plan(number), x, y if recovered else None)
    if not broken:
        w.plans[f] = number
    return broken


def _answer_split(w: World, p: int, role: int, r: int) -> str:
    if w.state.roles.get(w.process(p)) != role:
        return "another role"
    broken = actions.answer_split(w.state, w.process(p), r)
    if not broken:
        w.split_said |= {r}
    return broken


def _child_acks(w: World) -> str:
    if w.state.split is None:
        return "a child begins with the commit of the split"
    w.child_acked = True
    return ""


TAKEN: dict[str, Callable[..., str]] = {
    "order": _order,
    "acknowledge": _acknowledge,
    "answer_retry": _answer_retry,
    "decline": _decline,
    "switch": _switch,
    "get_tail": _get_tail,
    "become_primary": _become_primary,
    "adopt": _adopt,
    "replicate": _replicate,
    "promise": _promise,
    "confirm_epoch": _confirm,
    "crash": _crash,
    "lose_store": _lose,
    "learn_open": _learn_open,
    "drop_tail": _drop_tail,
    "fetch": _fetch,
    "prepare_segment": _prepare,
    "fence_segment": _fence,
    "segment_opened": _segment_opened,
    "withdraw_segment": _withdraw,
    "open_segment": _open_segment,
    "answer_split": _answer_split,
    "child_acks": _child_acks,
    "serve": _serve,
}

# How the model words each of them.
WORDS: list[tuple[str, str]] = [
    ("order", r"p(\d) orders record (\d) at offset (\d) of epoch (\d)"),
    ("acknowledge", r"p(\d) acknowledges record (\d) at offset (\d) of epoch (\d)"),
    (
        "answer_retry",
        r"p(\d) \(epoch (\d)\) answers a retry of record (\d): offset (\d) of epoch (\d)",
    ),
    ("decline", r"p(\d) declines epoch (\d)"),
    ("switch", r"p(\d) stops in epoch (\d), sends Begin\((\d), X=(\d)\)"),
    ("get_tail", r"p(\d) \(epoch (\d)\) gets GetTail\(linearizable\), its commit offset is stale"),
    ("become_primary", r"p(\d) begins epoch (\d) at (\d) as primary"),
    ("adopt", r"p(\d) adopts epoch (\d) at (\d)"),
    ("replicate", r"p(\d) stores record (\d) at offset (\d) of epoch (\d), durable"),
    ("promise", r"p(\d) promises (\d): end \d(?:, adopted e')?"),
    ("confirm_epoch", r"p(\d) confirms that it promised nothing above (\d)"),
    ("crash", r"p(\d) crashes and restarts"),
    ("lose_store", r"p(\d) loses its data directory"),
    ("learn_open", r"p(\d) learns that epoch (\d) is open"),
    ("drop_tail", r"p(\d) learns the map and drops its tail of epoch (\d)"),
    ("fetch", r"p(\d) fetches offset (\d) of sealed epoch (\d), knows that (\d) was open"),
    (
        "prepare_segment",
        r"LAS: PrepareSegment\((\d) -> (\d)\), primary .*, plan (\d)(?:, closed.*)?",
    ),
    ("fence_segment", r"LAS: fence with epoch (\d), sees open (\d) prepared (\d)"),
    ("segment_opened", r"LAS: SegmentOpened\((\d), X=(\d)\)"),
    ("withdraw_segment", r"LAS: withdraws prepared (\d)"),
    (
        "open_segment",
        r"LAS: OpenSegment\((\d)\) .* ends \d at (\d)( \(e' recovered\))?, begins at (\d), .*(\d)",
    ),
    ("answer_split", r"p(\d) \(epoch (\d)\) answers a retry of record (\d) with SPLIT"),
    ("child_acks", r"a child shard acknowledges a batch"),
    ("serve", r"p(\d) serves a reader record (\d) at offset (\d) of epoch (\d)"),
]
PATTERNS = [(name, re.compile(pattern)) for name, pattern in WORDS]


def action_of(label: str) -> Action:
    """The action that the model's label names."""
    for name, pattern in PATTERNS:
        if found := pattern.fullmatch(label):
            groups = found.groups("")
            return name, *(int(each) if each.isdigit() else int(bool(each)) for each in groups)
    raise SystemExit(f"the model's label is not known here: {label}")


# ---------------------------------------------------------------------------------- the universe
def universe(bounds: Bounds, drawn: int) -> Iterator[Action]:
    """Every action that the bounds can name, of the epochs that were drawn and the next one."""
    peers, records = range(bounds.peers), range(1, bounds.records + 1)
    offsets, ends = range(bounds.offsets), range(bounds.offsets + 1)
    epochs = range(1, min(drawn + 2, 2 + bounds.prepares + bounds.fences))
    for p in peers:
        yield "crash", p
        yield "lose_store", p
        for e in epochs:
            yield from (("decline", p, e), ("promise", p, e), ("learn_open", p, e))
            yield from (("get_tail", p, e), ("confirm_epoch", p, e), ("drop_tail", p, e))
            for x in ends:
                yield from (("become_primary", p, e, x), ("adopt", p, e, x))
                yield from (("switch", p, e, e2, x) for e2 in epochs)
            for o in offsets:
                yield from (("fetch", p, o, e, n) for n in epochs)
            for r in records:
                yield "answer_split", p, e, r
                for o in offsets:
                    yield from (("order", p, r, o, e), ("acknowledge", p, r, o, e))
                    yield from (("replicate", p, r, o, e), ("serve", p, r, o, e))
                    yield from (("answer_retry", p, e, r, o, i) for i in epochs)
    yield ("child_acks",)
    for e in epochs:
        yield "withdraw_segment", e
        yield from (("segment_opened", e, x) for x in ends)
        for e2 in (NONE, *epochs):
            yield from (("fence_segment", f, e, e2) for f in epochs)
            yield from (("prepare_segment", e, e2, c) for c in range(len(bounds.plans)))
        for x in ends:
            for y in ends:
                for c in range(len(bounds.plans)):
                    yield from (("open_segment", e, x, 0, y, c), ("open_segment", e, x, 1, y, c))


_AT_AN_OFFSET = {"acknowledge": 3, "answer_retry": 4, "serve": 3}
"""Which parameter is the offset, of the actions that the model follows once for each."""


def _is_followed(world: World, action: Action) -> bool:
    """Whether the model would follow the action if its guard allowed it; see the module."""
    name, state, bounds = action[0], world.state, world.bounds
    drawn = state.epochs
    lost = any(not store.alive for store in state.stores.values())
    if name in {"crash", "lose_store"}:
        return False
    if name in {"drop_tail", "fetch", "serve", "answer_retry"} and action[-1] not in drawn:
        return False
    if name == "fetch":
        return bounds.has_fetches and action[3] in drawn and not lost
    if name in {"answer_retry", "serve"}:
        wanted = bounds.has_fetches if name == "answer_retry" else bounds.has_readers
        return wanted and not lost and action[_AT_AN_OFFSET[str(name)]] not in world.answered
    return _is_asked(world, action)


def _is_asked(world: World, action: Action) -> bool:
    """The same for actions that concern no copy of a batch."""
    name, state, bounds = action[0], world.state, world.bounds
    if name == "answer_split":
        return action[3] in state.places and action[3] not in world.split_said
    if name == "order":
        return action[2] in {1, *state.places, *(int(str(r)) + 1 for r in state.places)}
    if name == "get_tail":
        entry = state.epochs.get(int(action[2]))
        known = entry.acknowledged if entry is not None else 0
        is_stale = known < max(world.answered, default=-1) + 1
        return bounds.has_reads and not state.reads and is_stale
    if name == "confirm_epoch":
        read = state.reads.get(READ)
        is_asked = read is not None and state.roles.get(read.process) == read.epoch
        return is_asked and f"p{action[1]}" not in state.reads[READ].confirmed
    if name == "learn_open":
        return state.store(f"p{action[1]}").promised < int(action[2])
    if name == "child_acks":
        return not world.child_acked
    return _has_room(world, action)


def _has_room(world: World, action: Action) -> bool:
    """The same for what the LAS does: the bounds count its plans and fences."""
    name, drawn, bounds = str(action[0]), world.state.epochs, world.bounds
    prepares = sum(entry.view_prepared == number for number, entry in drawn.items())
    if name == "prepare_segment":
        room = prepares < bounds.prepares and len(drawn) < bounds.epochs
        return room and _fits(world, action, name)
    if name == "fence_segment":
        return len(drawn) - 1 - prepares < bounds.fences and len(drawn) < bounds.epochs
    return name != "open_segment" or _fits(world, action, name)


def _fits(world: World, action: Action, name: str) -> bool:
    """Whether a plan is one that the model's LAS would take: its primary's store is not lost."""
    primary = world.bounds.plans[int(action[-1])][0]
    if name == "prepare_segment" and int(action[2]) > world.state.drawn + 1:
        return False
    return world.state.store(f"p{primary}").alive


# ---------------------------------------------------------------------------------- the essence
def essence(world: World) -> tuple[object, ...]:
    """What of the acceptor's state any guard can still read: the model's `normalize`."""
    state = world.state
    stores = tuple(_store_essence(world, p) for p in range(world.bounds.peers))
    epochs = tuple(
        _epoch_essence(world, number, entry) for number, entry in sorted(state.epochs.items())
    )
    reads = tuple(
        (str(read.process).split(".")[0], read.epoch, tuple(sorted(map(str, read.confirmed))))
        for read in state.reads.values()
    )
    counted = (world.answered, world.child_acked, world.split_said)
    return stores, epochs, reads, state.open, state.prepared, state.split, counted


def _store_essence(world: World, peer: int) -> tuple[object, ...]:
    store = world.state.store(f"p{peer}")
    if not store.alive:
        return ("lost",)
    role = world.state.roles[world.process(peer)]
    return store.promised, store.adopted, role, tuple(sorted(store.segments.items()))


def _epoch_essence(world: World, number: int, entry: EpochState) -> tuple[object, ...]:
    plan, state = entry.plan, world.state
    may_start = plan is not None and plan.primary in state.lives and not entry.begun
    orders = may_start or (plan is not None and state.roles.get(plan.primary) == number)
    log = tuple((base, batch.record) for base, batch in sorted(entry.log.items()))
    answers = entry.status is Status.RESERVED and entry.view_open == state.open
    return (
        entry.status,
        world.plans.get(number),
        (entry.begin, entry.end, entry.begun, entry.view_open, entry.view_prepared),
        (entry.switched, entry.x if may_start else None, may_start),
        log,
        (entry.assigned, entry.acknowledged) if orders and not may_start else None,
        tuple(sorted((str(k), v) for k, v in entry.reported.items())) if orders else None,
        tuple(sorted((str(k), v) for k, v in entry.answers.items() if answers)),
    )


# ---------------------------------------------------------------------------------- the comparison
def compare(lines: Iterator[str], bounds: Bounds) -> tuple[str, int, int, int]:
    """(what differs, or nothing; states; transitions accepted; actions refused)."""
    worlds = {0: first_world(bounds)}
    essences = {0: essence(worlds[0])}
    everything = [list(universe(bounds, drawn)) for drawn in range(bounds.epochs + 1)]
    accepted = refused = 0
    for number, edges in _states(lines):
        world = worlds.pop(number)
        enabled = dict(edges)
        for action, target in enabled.items():
            after = world.fork()
            if broken := TAKEN[str(action[0])](after, *action[1:]):
                return f"the model allows {action}, the acceptor says: {broken}", 0, 0, 0
            accepted += 1
            known, reached = essences.get(target), essence(after)
            if known is None:
                essences[target] = reached
                worlds[target] = after
            elif known != reached:
                return f"two ways to state {target}: {known} and {reached}", 0, 0, 0
        for action in everything[world.state.drawn]:
            if action in enabled or not _is_followed(world, action):
                continue
            if not TAKEN[str(action[0])](world, *action[1:]):
                return f"the acceptor accepts {action}, the model forbids it", 0, 0, 0
            refused += 1
    return "", len(essences), accepted, refused


def _states(lines: Iterator[str]) -> Iterator[tuple[int, list[tuple[Action, int]]]]:
    """Each state that has transitions, in order, with them."""
    actions_of: dict[str, Action] = {}
    current, edges = -1, []
    for line in lines:
        words = line.rstrip("\n").split("\t")
        if len(words) != 3:
            if not line.startswith("HOLDS"):
                raise SystemExit(f"the model does not hold: {line}")
            continue
        if int(words[0]) != current:
            if edges:
                yield current, edges
            current, edges = int(words[0]), []
        label = words[1]
        if label not in actions_of:
            actions_of[label] = action_of(label)
        edges.append((actions_of[label], int(words[2])))
    if edges:
        yield current, edges


def main() -> int:
    """Compares in each case; 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deep", action="store_true", help="wider bounds")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    options = parser.parse_args()
    failures, started = 0, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in CASES + (DEEP if options.deep else []):
            if options.only not in name:
                continue
            began = time.process_time()
            binary = check.build(folder, arguments)
            command = [binary, *arguments.split(), "-m", "as-built", "-q", "--edges"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as model:
                differs, states, accepted, refused = compare(model.stdout, Bounds.of(arguments))
                if differs:
                    model.kill()
            failures += bool(differs)
            text = differs or (
                f"states {states} | accepted {accepted} | refused {refused} | "
                f"{time.process_time() - began:.1f} s"
            )
            print(f"{'FAIL' if differs else 'ok  '} conformance: {name:<46} {text}", flush=True)
    print(f"{failures or 'nothing'} differs, {time.process_time() - started:.0f} s of CPU")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
