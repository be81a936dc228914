"""`make bench`: the project's bars, measured, as a table, a picture and a report.

    python -m tests.bench.table [--rounds 5] [--seconds 2] [--only one,many] [--quick]

Two throw-away clusters of three peers and one LAS node live side by side, one in plaintext on
loopback and one with mutual TLS, and take the same work in turn, round after round; a figure is the
median of its rounds. What else runs on the machine shows in every figure, so the disk's own flush
and the machine's load stand beside them. `docs/benchmarks.md` says what each case is.

Records have 256 B. Logs have two copies, and both have flushed before an append is acknowledged;
but for the case `copies`, which has three copies and waits for two, and is run once.

A figure below its bar is told, and is no failure: bars are for a machine that is left alone.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from peerd.bench.appending import AppendJob
from peerd.bench.clusters import throw_away
from peerd.bench.runs import AppendResult, run_appends, run_reads
from peerd.client.blocking import connect
from peerd.grpc_core import EXPERIMENTS
from tests.bench import bench_workers
from tests.bench.table_picture import Row, picture

RECORD_BYTES = 256
BULK_RECORDS = 1000
READ_RECORDS = 200_000
FOLLOWED_PER_S = 500.0
PEERS = 3
# Before small clients are counted: 64 of them shake hands, and a young Node runs slowly.
WARM_S = 3.0
PLAIN, TLS = "plaintext", "mTLS"
Values = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table: `bar` is what must be reached, `aim` what is wanted."""

    name: str
    title: str
    unit: str
    bar: float | None = None
    aim: float | None = None
    less_is_better: bool = False

    def reaches(self, value: float, mark: float) -> bool:
        """Whether `value` is as good as `mark`."""
        return value <= mark if self.less_is_better else value >= mark

    def verdict(self, value: float) -> str:
        """In words."""
        if self.bar is None:
            return ""
        if self.aim is not None and self.reaches(value, self.aim):
            return "aim"
        return "bar" if self.reaches(value, self.bar) else "below"


def _ms(name: str, title: str, bar: float | None = None, aim: float | None = None) -> Figure:
    return Figure(name=name, title=title, unit="ms", bar=bar, aim=aim, less_is_better=True)


def _rate(
    name: str, title: str, bar: float | None = None, aim: float | None = None, what: str = "appends"
) -> Figure:
    return Figure(name=name, title=title, unit=f"{what}/s", bar=bar, aim=aim)


def _cost(name: str, title: str, unit: str, bar: float, aim: float | None = None) -> Figure:
    return Figure(name=name, title=title, unit=unit, bar=bar, aim=aim, less_is_better=True)


FIGURES = (
    _ms("one.p50", "1 in flight, p50", 1.9, 1.0),
    _rate("some.rate", "64 in flight", 20e3, 40e3),
    _rate("many.rate", "256 in flight", 65e3, 100e3),
    _ms("many.p99", "256 in flight, p99", 12.0),
    _rate("bulk.rate", "batches of 1,000", 500e3, 900e3, "records"),
    _ms("copies.one.p50", "3 copies: 1 in flight, p50"),
    _rate("copies.some.rate", "3 copies: 64 in flight"),
    _rate("copies.many.rate", "3 copies: 256 in flight"),
    _ms("copies.many.p99", "3 copies: 256 in flight, p99"),
    _rate("copies.bulk.rate", "3 copies: batches of 1,000", 330e3, what="records"),
    _rate("small.rate", "64 grpc-js clients", 3.5e3, 7e3),
    _cost("small.primary", "CPU of worker and sequencer", "µs/append", 220.0),
    _cost("small.shadow", "CPU of the shadow", "µs/append", 60.0),
    _rate("read.batches", "read as batches", 1e6, 2e6, "records"),
    _rate("read.objects", "read as objects", 300e3, 600e3, "records"),
    _ms("read.follow", "acknowledged to seen, p99", 5.0, 2.0),
    *(
        _cost(f"tls.{case}", f"mTLS takes, {title}", "%", 30.0, 15.0)
        for case, title in (
            ("some", "64 in flight"),
            ("many", "256 in flight"),
            ("bulk", "batches of 1,000"),
        )
    ),
)
APPENDS = {"one": (1, 1), "some": (64, 1), "many": (256, 1), "bulk": (8, BULK_RECORDS)}
"""Appends in flight, and records of each."""
CASES = (*APPENDS, "copies", "small", "read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run found."""

    case: str
    security: str
    values: Values
    details: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The median of a figure over its runs."""

    figure: Figure
    security: str
    median: float
    values: list[float]


# ------------------------------------------------------------------------------ the cases


def append_values(case: str, result: AppendResult) -> Values:
    """The figures of a run of appends."""
    latencies = result.counts.latencies
    if case == "one":
        return {"one.p50": latencies.percentile_ms(50)}
    if case == "bulk":
        return {"bulk.rate": result.records_per_s}
    values = {f"{case}.rate": result.appends_per_s}
    if case == "many":
        values["many.p99"] = latencies.percentile_ms(99)
    return values


class Bench:
    """The clusters, and what runs on them."""

    def __init__(self, configs: dict[str, Path], seconds: float, tell: Callable[[str], None]):
        self._configs = configs
        self._seconds = seconds
        self._tell = tell
        self._logs: set[tuple[str, str]] = set()

    def round(self, cases: Sequence[str], *, once: bool) -> Iterator[Run]:
        """Each case on each cluster in turn. `once`: what is not run in every round, too."""
        for case in cases:
            if case in APPENDS:
                for security in self._configs:
                    yield self._appends(case, security, copies=2)
            elif case == "copies" and once:
                for append, security in ((a, s) for a in APPENDS for s in self._configs):
                    yield self._appends(append, security, copies=3)
            elif case == "read":
                for security in self._configs:
                    yield self._reads(security)
            elif case == "small":
                yield small_clients(self._seconds)

    def _log(self, security: str, name: str, copies: int) -> str:
        if (security, name) not in self._logs:
            with connect(credentials=self._configs[security]) as client:
                client.create_log(name, shards=1, copies=copies, acks=2)
            self._logs.add((security, name))
        return str(self._configs[security])

    def _appends(self, case: str, security: str, *, copies: int) -> Run:
        name = f"{case}-{copies}"
        in_flight, batch = APPENDS[case]
        self._tell(f"{case}, {copies} copies, {security}")
        job = AppendJob(
            config=self._log(security, name, copies),
            log=name,
            size=RECORD_BYTES,
            batch=batch,
            keys=0,
            in_flight=in_flight,
            rate_per_s=None,
            duration_s=self._seconds,
        )
        result = run_appends(job, 1, lambda _: None)
        values = append_values(case, result)
        if copies == 3:
            case = "copies"
            values = {f"copies.{figure}": value for figure, value in values.items()}
        return Run(case=case, security=security, values=values, details=result.as_json())

    def _reads(self, security: str) -> Run:
        self._tell(f"read, {security}")
        result = run_reads(
            self._log(security, "read-2", 2),
            "read-2",
            records=READ_RECORDS,
            size=RECORD_BYTES,
            rate_per_s=FOLLOWED_PER_S,
            duration_s=self._seconds,
            cold=False,
            told=lambda _: None,
        )
        values = {
            "read.batches": result.batches.records_per_s,
            "read.objects": result.objects.records_per_s,
            "read.follow": result.follow.latencies.percentile_ms(99),
        }
        return Run(case="read", security=security, values=values, details=result.as_json())


def small_clients(seconds: float) -> Run:
    """64 clients of another language, each with one append under way, through one worker."""
    directory = bench_workers.ROOT / "build" / "bench"
    arguments = argparse.Namespace(
        dir=directory, clients=64, seconds=seconds, warm_s=WARM_S, size=RECORD_BYTES, stream=False
    )
    result = bench_workers.run(arguments, 1, bench_workers.grpc_js(directory))
    values = {
        "small.rate": result.appends_per_s,
        "small.primary": result.workers_us + result.sequencer_us,
        "small.shadow": result.shadow_us,
    }
    return Run(case="small", security=TLS, values=values, details=asdict(result))


# ------------------------------------------------------------------------------ the report


def medians(runs: Iterable[Run]) -> list[Measured]:
    """Of each figure in each kind of cluster, in the order of `FIGURES`."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for name, value in run.values.items():
            found.setdefault((name, run.security), []).append(value)
    for case in APPENDS:
        plain, tls = found.get((f"{case}.rate", PLAIN)), found.get((f"{case}.rate", TLS))
        if plain and tls:
            # Of each round by itself: its runs stand side by side in time.
            pairs = zip(plain, tls, strict=False)
            found[f"tls.{case}", TLS] = [100.0 * (1.0 - b / a) for a, b in pairs if a]
    return [
        Measured(
            figure=figure,
            security=security,
            median=statistics.median(found[figure.name, security]),
            values=found[figure.name, security],
        )
        for figure in FIGURES
        for security in (PLAIN, TLS)
        if found.get((figure.name, security))
    ]


def number(value: float | None) -> str:
    """As a reader likes it."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def shown(measured: Sequence[Measured]) -> str:
    """The table."""
    row = "{:<32} {:<10} {:>12} {:>12} {:>12}  {:<10} {}\n"
    text = row.format("case", "security", "median", "bar", "aim", "unit", "reached")
    for one in measured:
        figure = one.figure
        text += row.format(
            *(figure.title, one.security, number(one.median), number(figure.bar)),
            *(number(figure.aim), figure.unit, figure.verdict(one.median)),
        )
    return text


def report(measured: Sequence[Measured], runs: Sequence[Run], machine: object) -> dict[str, object]:
    """All that was found, for `report.json`."""
    return {
        "machine": machine,
        "figures": [
            asdict(one.figure)
            | {
                "security": one.security,
                "median": one.median,
                "values": one.values,
                "reached": one.figure.verdict(one.median),
            }
            for one in measured
        ],
        "runs": [asdict(run) for run in runs],
    }


def machine_now(runs: Sequence[Run]) -> dict[str, object]:
    """What the figures must be read beside."""
    disks = [
        disk
        for run in runs
        if isinstance(run.details, dict)
        and isinstance(disk := run.details.get("disk_fdatasync_ms"), dict)
    ]
    told = {key: statistics.median(disk[key] for disk in disks) for key in ("p50", "p99") if disks}
    return {
        "cores": os.cpu_count(),
        "load_average_1_min": round(os.getloadavg()[0], 1),
        "disk_fdatasync_ms": told or None,
        "python": sys.version.split()[0],
    }


# ------------------------------------------------------------------------------ the program


@contextmanager
def clusters(cases: Sequence[str]) -> Iterator[dict[str, Path]]:
    """The configurations of the two clusters; none for cases that have clusters of their own."""
    if set(cases) <= {"small"}:
        yield {}
        return
    with throw_away(PEERS, tls=False) as plain, throw_away(PEERS) as tls:
        yield {PLAIN: plain.peerctl_toml, TLS: tls.peerctl_toml}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Measure the project's bars.")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, each run")
    parser.add_argument("--only", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="one round of half seconds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where results go")
    options = parser.parse_args(arguments)
    options.only = [case for case in options.only.split(",") if case]
    unknown = [case for case in options.only if case not in CASES]
    if unknown:
        parser.error(f"--only: {', '.join(unknown)}: choose from {', '.join(CASES)}")
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write `report.json` and `report.svg`, and print the table."""
    options = parsed(arguments)
    # For the client processes, as `peerctl bench` asks of them.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
    began_s = time.monotonic()

    def tell(what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_s:5.0f} s  {what}\n")

    runs: list[Run] = []
    with clusters(options.only) as configs:
        bench = Bench(configs, options.seconds, tell)
        for number_of_round in range(options.rounds):
            runs += bench.round(options.only, once=number_of_round == 0)
    machine = machine_now(runs)
    measured = medians(runs)
    options.out.mkdir(parents=True, exist_ok=True)
    whole = json.dumps(report(measured, runs, machine), indent=1)
    (options.out / "report.json").write_text(whole + "\n", "utf-8")
    rows = [
        Row(
            title=f"{one.figure.title}, {one.security}",
            value=f"{number(one.median)} {one.figure.unit}",
            of_bar=_of_bar(one.figure, one.median),
            aim_of_bar=None if one.figure.aim is None else _of_bar(one.figure, one.figure.aim),
        )
        for one in measured
        if one.figure.bar is not None
    ]
    (options.out / "report.svg").write_text(picture(rows, json.dumps(machine)), "utf-8")
    sys.stdout.write(shown(measured) + f"measured beside: {json.dumps(machine)}\n")
    sys.stdout.write(f"all runs: {options.out}/report.json, as a picture: report.svg\n")


def _of_bar(figure: Figure, value: float) -> float:
    """How good a value is: 1 is the bar, more is better."""
    assert figure.bar is not None
    better, worse = (figure.bar, value) if figure.less_is_better else (value, figure.bar)
    return better / worse if worse > 0 else float("inf")


if __name__ == "__main__":
    main()
