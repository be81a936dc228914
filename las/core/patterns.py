"""What a history of failures shows: who fails, why, how old, how often again, and who together.

Counts of what is written down, and no model: a node that never failed is not in a history, so
nothing here is a rate per node. Outages by an operator's wish are counted apart and left out of
everything else.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from las.core.history import Outage

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
REPEAT_WINDOWS_S = (HOUR_S, DAY_S, 7 * DAY_S, 30 * DAY_S)
AGES_S = (("< 1 d", DAY_S), ("< 7 d", 7 * DAY_S), ("< 30 d", 30 * DAY_S), ("< 1 y", 365 * DAY_S))
"""Upper bounds of the ages by which failures are counted; above the last they are old."""
TOGETHER_S = 300
"""Failures of different hosts that begin so soon one after the other count as together."""

# limit: hosts, racks and groups that are listed, the most frequent or newest.
LISTED_MAX = 10
# limit: nodes named of one group.
NAMED_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Failures that have something in common; the median length is None while all go on."""

    name: str
    failures: int
    length_s_median: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Of `failures` after which the history goes on for `window_s`, how many were followed by
    another one of the same node within it.
    """

    window_s: int
    failures: int
    repeated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Failures of two or more hosts together. `rack` is that of all of them, else empty."""

    begin_s: int
    nodes: tuple[str, ...]
    nodes_total: int
    rack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """See the module's docstring. Tallies have the most frequent first, groups the newest.

    `by_age` counts by the time for which there had been such a node; "unknown" where nobody said.
    """

    failures: int
    wished: int
    going_on: int
    begin_s: int
    end_s: int
    by_cause: tuple[Tally, ...]
    by_host: tuple[Tally, ...]
    by_rack: tuple[Tally, ...]
    by_age: tuple[Tally, ...]
    repeats: tuple[Repeats, ...]
    together: tuple[Group, ...]
    groups: int
    failures_together: int


def patterns(outages: Sequence[Outage]) -> Patterns:
    """What `outages`, the oldest first, show. A tenth of a second for as many as are kept."""
    failures = [outage for outage in outages if outage.is_failure]
    groups = _groups(failures)
    return Patterns(
        failures=len(failures),
        wished=len(outages) - len(failures),
        going_on=sum(outage.end_s is None for outage in outages),
        begin_s=outages[0].begin_s if outages else 0,
        end_s=max((each.end_s or each.begin_s for each in outages), default=0),
        by_cause=_tallies(failures, lambda outage: outage.cause.value),
        by_host=_tallies(failures, lambda outage: outage.host or outage.node)[:LISTED_MAX],
        by_rack=_tallies(failures, lambda outage: outage.rack or "unknown")[:LISTED_MAX],
        by_age=_by_age(failures),
        repeats=_repeats(failures),
        together=tuple(_told(group) for group in reversed(groups[-LISTED_MAX:])),
        groups=len(groups),
        failures_together=sum(len(group) for group in groups),
    )


def _tallies(failures: Iterable[Outage], key: Callable[[Outage], str]) -> tuple[Tally, ...]:
    found: dict[str, list[Outage]] = defaultdict(list)
    for outage in failures:
        found[key(outage)].append(outage)
    tallies = [
        Tally(name=name, failures=len(those), length_s_median=_median_length(those))
        for name, those in found.items()
    ]
    return tuple(sorted(tallies, key=lambda tally: (-tally.failures, tally.name)))


def _median_length(failures: Iterable[Outage]) -> int | None:
    lengths = sorted(length for each in failures if (length := each.length_s) is not None)
    return lengths[len(lengths) // 2] if lengths else None


def _by_age(failures: Iterable[Outage]) -> tuple[Tally, ...]:
    def age(outage: Outage) -> str:
        if outage.age_s is None:
            return "unknown"
        return next((name for name, below in AGES_S if outage.age_s < below), "older")

    tallies = {tally.name: tally for tally in _tallies(failures, age)}
    order = [*(name for name, _ in AGES_S), "older", "unknown"]
    return tuple(tallies[name] for name in order if name in tallies)


def _repeats(failures: Sequence[Outage]) -> tuple[Repeats, ...]:
    """A failure near the end of the history had no time to be followed and is not counted."""
    if not failures:
        return ()
    newest_s = failures[-1].begin_s
    begins: dict[str, list[int]] = defaultdict(list)
    for outage in failures:
        begins[outage.node].append(outage.begin_s)
    seen: Counter[int] = Counter()
    repeated: Counter[int] = Counter()
    for times in begins.values():
        for begin_s, next_s in zip(times, [*times[1:], None], strict=True):
            for window_s in REPEAT_WINDOWS_S:
                if begin_s + window_s <= newest_s:
                    seen[window_s] += 1
                    repeated[window_s] += next_s is not None and next_s - begin_s <= window_s
    return tuple(
        Repeats(window_s=window_s, failures=seen[window_s], repeated=repeated[window_s])
        for window_s in REPEAT_WINDOWS_S
    )


def _groups(failures: Sequence[Outage]) -> list[list[Outage]]:
    """Runs of failures each within `TOGETHER_S` of the one before, of at least two hosts."""
    runs: list[list[Outage]] = []
    for outage in failures:
        if runs and outage.begin_s - runs[-1][-1].begin_s <= TOGETHER_S:
            runs[-1].append(outage)
        else:
            runs.append([outage])
    return [run for run in runs if len({outage.host or outage.node for outage in run}) > 1]


def _told(group: Sequence[Outage]) -> Group:
    nodes = sorted({outage.node for outage in group})
    racks = {outage.rack for outage in group}
    return Group(
        begin_s=group[0].begin_s,
        nodes=tuple(nodes[:NAMED_MAX]),
        nodes_total=len(nodes),
        rack=racks.pop() if len(racks) == 1 else "",
    )
