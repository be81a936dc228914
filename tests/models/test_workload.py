"""What the workload's inputs are worth is told by heads that differ in nothing else."""

import pytest

pytest.importorskip("torch", reason="torch is installed by `make train` alone")

from synthetic import make_run

from las.forecast.heuristic import HeuristicForecaster
from models import workload
from models.baselines import BaseRate
from models.features import INPUTS
from models.train import HALVES


def test_the_half_without_them_reads_all_numbers_but_theirs():
    for half in HALVES:
        whole, rest = half.reads(), workload.reads_without(half, workload.WORKLOAD)
        assert int((whole - rest).sum()) == 14 * len(workload.WORKLOAD)
        assert bool((rest <= whole).all())
        assert workload.reads_without(half, ()).equal(whole)
    assert set(workload.WORKLOAD) < {name for name, _ in INPUTS}


def test_the_table_tells_means_and_by_how_much_those_with_it_are_ahead(monkeypatch):
    """The rule stands in for the head with them, the base rate for the one without."""
    runs = [make_run(number, fault=number % 4 < 3) for number in range(8)]
    fitted = []

    def fit(training, rows, seed, reads):
        assert len(rows) == len(training)
        left_out = reads.keywords["left_out"]
        fitted.append((seed, tuple(left_out)))
        return BaseRate(0.1) if left_out else HeuristicForecaster()

    monkeypatch.setattr(workload, "describe_run", lambda run, describe, random: run)
    monkeypatch.setattr(workload, "fit_on_two_thirds", fit)
    table = workload.compare(runs, seeds=2)
    assert fitted == [(seed, left) for seed in (1, 2) for left in ((), workload.WORKLOAD)]
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in table.splitlines()}
    with_it, without, ahead = rows["average_precision"]
    assert float(with_it) > float(without)
    point = float(ahead.split()[0])
    assert point == pytest.approx(float(with_it) - float(without), abs=0.01)
    assert rows["brier"][2].strip("| ") == ""
