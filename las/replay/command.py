"""`las replay`: from what was asked on a command line to a table, JSON and pictures."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from las.core.judgement import Rules
from las.replay import report
from las.replay.fleet import Model
from las.replay.histories import DataMissing
from las.replay.run import ANTICIPATE, NOTHING, REACT, Options, Outcome
from las.replay.sources import DAY_S, Source, read
from las.replay.sweep import Work, cores, sweep
from peerd.cli.output import Format, print_document

HORIZONS_S = {"1h": 3_600, "1d": DAY_S, "7d": 7 * DAY_S}
PREDICTORS = ("history", "decayed")
# limit: values of one option that a sweep tries.
VALUES_MAX = 20


class BadQuestion(Exception):
    """What was asked cannot be answered; the message is one line with advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of the command, as they were typed."""

    history: str
    data: Path
    predictor: str
    horizon: str
    days: int
    thresholds: str
    at_risk_shares: str
    weights: str
    bytes_per_node: float
    copy_bytes_per_s: float
    jobs: int
    seed: int
    plot: Path | None
    output: str


def run(asked: Asked) -> list[Outcome]:
    """Replay what was asked for and print it. Raises `BadQuestion`."""
    _check(asked)
    runs = _runs(asked)
    try:
        if asked.plot is not None:
            # Before what takes minutes, and would be lost.
            report.require_plots(asked.plot)
        source = Source(name=asked.history, data=asked.data, seed=asked.seed)
        history = read(source)
        end_s = min(history.split_s + asked.days * DAY_S, int(history.until_s.max()))
        work = Work(
            source=source,
            predictor=asked.predictor,
            horizon_s=HORIZONS_S[asked.horizon],
            begin_s=history.split_s,
            end_s=end_s,
        )
        outcomes = _swept(work, runs, asked.jobs or cores())
        if asked.plot is not None:
            report.plot(asked.plot, outcomes)
    except (DataMissing, ValueError) as error:
        raise BadQuestion(str(error)) from error
    except OSError as error:
        raise BadQuestion(f"{asked.plot or asked.data}: {error.strerror or error}") from error
    except BrokenProcessPool as error:
        raise BadQuestion(
            "a process ended by itself, likely for want of memory: --jobs 1"
        ) from error
    output = Format(asked.output)
    if output is Format.TABLE:
        _print(outcomes)
    else:
        print_document(output, [each.as_dict() for each in outcomes])
    return outcomes


def _check(asked: Asked) -> None:
    for what, given, known in (
        ("--predictor", asked.predictor, PREDICTORS),
        ("--horizon", asked.horizon, tuple(HORIZONS_S)),
        ("--output", asked.output, tuple(Format)),
    ):
        if given not in known:
            raise BadQuestion(f"{what} is {given!r}: expected {' or '.join(known)}")


def _values(option: str, text: str, low: float, high: float) -> list[float]:
    try:
        values = [float(each) for each in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= each <= high for each in values):
        raise BadQuestion(f"{option} is {text!r}: expected numbers from {low:g} to {high:g}")
    if len(values) > VALUES_MAX:
        raise BadQuestion(f"{option} has {len(values)} values, at most {VALUES_MAX} are tried")
    return values


def _runs(asked: Asked) -> list[Options]:
    model = Model(bytes_per_node=int(asked.bytes_per_node), copy_bytes_per_s=asked.copy_bytes_per_s)
    tried = itertools.product(
        _values("--threshold", asked.thresholds, 0.001, 1.0),
        _values("--at-risk", asked.at_risk_shares, 0.0001, 1.0),
        _values("--weight", asked.weights, 0.0, 1e6),
    )
    return [
        Options(way=NOTHING, model=replace(model, react=False)),
        Options(way=REACT, model=model),
        *(
            Options(
                way=ANTICIPATE,
                model=model,
                rules=Rules(
                    threshold=threshold,
                    consecutive=1,  # a round is hours
                    at_risk_share_max=share,
                    exposure_cost=weight,
                    shadows_max=1_000_000,
                ),
            )
            for threshold, share, weight in tried
        ),
    ]


def _swept(work: Work, runs: list[Options], jobs: int) -> list[Outcome]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{len(runs)} replays on {min(jobs, len(runs))} cores", total=1.0)
        return sweep(work, runs, jobs=jobs, told=lambda share: bar.update(task, completed=share))


def _print(outcomes: list[Outcome]) -> None:
    first = outcomes[0]
    table = Table(box=None, pad_edge=False, show_edge=False)
    for number, name in enumerate(report.HEADER):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in report.rows(outcomes):
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 220)
    console.print(f"{first.nodes} nodes, {first.days:.0f} days, {first.failures} failures")
    console.print(table)
