"""Replays of recorded outages: the same planner and judgement, in virtual time."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from las.core.history import Cause, Outage
from las.core.judgement import Rules
from las.daemon.cli import app
from las.forecast.history_inputs import HistoryIndex, Place
from las.replay import report
from las.replay.fleet import Model, VirtualFleet
from las.replay.histories import DataMissing, History
from las.replay.predictors import DecayedCount, HistoryHead, Nobody, Remembered
from las.replay.run import ANTICIPATE, NOTHING, REACT, Options, replay
from las.replay.shielding import Mirroring, Ratio, ratio, shield
from las.replay.sources import Source, of_outages, read, synthetic
from peerd.core.ids import NodeName

DAY_S = 86_400
HOUR_S = 3_600
PLACES = [Place(f"n{number}", f"h{number}", f"r{number % 3}", 0) for number in range(12)]
N1 = NodeName("n1")
SMALL = Model(bytes_per_node=3 * 10**9, copy_bytes_per_s=1e6)
"""A shard of 1 GB, copied in 1,000 s."""


def fleet(**changes):
    return VirtualFleet(PLACES, Model(**{**SMALL.__dict__, **changes}) if changes else SMALL, 0)


@pytest.fixture
def small():
    return VirtualFleet(PLACES, SMALL, 0)


# ---------------------------------------------------------------------------------- the fleet
def test_a_failure_that_is_reacted_to_costs_failovers_and_copies(small):
    led = small.stake(N1).led
    held = sum(
        N1 in {each.peer for each in entry.shard.sealed[0].holders}
        for entry in small.state.shards.values()
    )
    small.down(N1, 100, failed=True)
    assert small.stake(N1).voting == 0
    small.advance(100 + 600 + 50_000)
    small.up(N1, 60_000)
    tally = small.end(70_000)
    assert tally.failures == 1
    assert tally.unavailable_s == 2.0 * led
    assert tally.copied_bytes == held * SMALL.bytes_per_shard
    # Short until the copy, which begins after the delay, is there.
    assert tally.short_byte_s >= held * SMALL.bytes_per_shard * 1_600
    assert all(len(e.shard.sealed[0].holders) == 3 for e in small.state.shards.values())


def test_a_node_that_is_back_before_the_repair_costs_no_copy(small):
    small.down(N1, 100, failed=True)
    small.up(N1, 400)
    tally = small.end(10_000)
    assert tally.copied_bytes == 0
    assert tally.short_byte_s == pytest.approx(
        300 * SMALL.bytes_per_shard * len(list(small._index.shards_of(N1)))
    )


def test_with_nobody_who_reacts_shards_wait_for_their_node():
    still = VirtualFleet(PLACES, Model(**_fields(SMALL), react=False), 0)
    led = still.stake(N1).led
    still.down(N1, 100, failed=True)
    still.up(N1, 400)
    assert still.end(1_000).unavailable_s == 300 * led


def _fields(model):
    return {name: getattr(model, name) for name in Model.__dataclass_fields__ if name != "react"}


def test_a_foreseen_failure_costs_neither_pause_nor_copy(small):
    small.set_at_risk(N1, 0, at_risk=True)
    small.advance(40_000)
    small.down(N1, 40_000, failed=True)
    tally = small.end(50_000)
    assert (tally.shielded, tally.expendable, tally.unavailable_s) == (1, 1, 0.0)
    assert tally.short_byte_s == 0.0
    assert tally.extra_byte_s > 0.0


def test_a_failure_before_the_copies_are_there_is_shielded_and_not_expendable(small):
    small.set_at_risk(N1, 0, at_risk=True)
    small.down(N1, 500, failed=True)
    tally = small.end(600)
    assert (tally.shielded, tally.expendable, tally.unavailable_s) == (1, 0, 0.0)


def test_copies_go_when_the_danger_is_over(small):
    small.set_at_risk(N1, 0, at_risk=True)
    small.advance(40_000)
    small.set_at_risk(N1, 40_000, at_risk=False)
    assert all(len(e.shard.sealed[0].holders) == 3 for e in small.state.shards.values())


def test_a_fleet_larger_than_one_log_may_be_is_replayed():
    places = [Place(f"n{number}", f"h{number}", f"r{number % 40}", 0) for number in range(600)]
    large = VirtualFleet(places, SMALL, 0)
    assert len(large.state.shards) == 600
    assert all(large.stake(NodeName(place.node)).voting for place in places)


# ---------------------------------------------------------------------------------- predictors
def outage(node, begin_s, end_s=None, cause=Cause.HARDWARE):
    return Outage(node, node, "", begin_s, begin_s + HOUR_S if end_s is None else end_s, cause)


def history(outages, places=None, until_s=100 * DAY_S, split_s=30 * DAY_S):
    places = PLACES if places is None else places
    return History(
        name="test",
        outages=outages,
        places=places,
        until_s=np.full(len(places), until_s),
        split_s=split_s,
    )


LEMON = history([outage("n1", day * DAY_S) for day in range(1, 90)])
"""n1 fails each day, nobody else ever does."""


def test_predictors_know_nothing_of_the_future():
    late = history([outage("n1", 50 * DAY_S)])
    for make in (DecayedCount, HistoryHead):
        whole = make(HistoryIndex(late.outages, late.places))
        before = make(HistoryIndex([], late.places))
        assert np.array_equal(whole.at(49 * DAY_S), before.at(49 * DAY_S))
        assert not np.array_equal(whole.at(51 * DAY_S), before.at(51 * DAY_S))


@pytest.mark.parametrize("make", [DecayedCount, HistoryHead])
def test_a_lemon_is_the_riskiest(make):
    found = Remembered(make(HistoryIndex(LEMON.outages, LEMON.places))).at(40 * DAY_S)
    assert found.argmax() == 1
    assert found.min() >= 0.0
    assert found.max() <= 1.0


# ---------------------------------------------------------------------------------- replays
def run(way, **rules):
    index = HistoryIndex(LEMON.outages, LEMON.places)
    return replay(
        LEMON,
        DecayedCount(index),
        Options(
            way=way,
            rules=Rules(consecutive=1, **rules),
            model=Model(**_fields(SMALL), react=way != NOTHING),
        ),
        begin_s=LEMON.split_s,
        end_s=60 * DAY_S,
        progress=lambda _: None,
    )


def test_anticipation_beats_reaction_beats_nothing():
    nothing, react, foreseen = run(NOTHING), run(REACT), run(ANTICIPATE, exposure_cost=64)
    assert nothing.failures == react.failures == foreseen.failures == 30
    assert nothing.unavailable_s > react.unavailable_s > foreseen.unavailable_s
    assert nothing.short_record_s > react.short_record_s > foreseen.short_record_s
    assert foreseen.expendable >= 28
    assert foreseen == run(ANTICIPATE, exposure_cost=64)
    rows = report.rows([nothing, react, foreseen])
    assert rows[2][0] == "anticipate"
    assert all(len(row) == len(report.HEADER) for row in rows)


def test_a_line_that_nobody_reaches_is_reaction_only():
    assert run(ANTICIPATE, exposure_cost=0.5).short_record_s == run(REACT).short_record_s


# ---------------------------------------------------------------------------------- mirroring
def mirrored(predictor, **mirroring):
    options = Mirroring(share=0.1, bytes_per_node=10**9, copy_bytes_per_s=1e6, **mirroring)
    everybody = np.ones(len(PLACES), dtype=np.bool_)
    begin_s, end_s = LEMON.split_s, 60 * DAY_S
    return shield(LEMON, predictor, everybody, options, begin_s=begin_s, end_s=end_s)


def test_a_lemon_is_mirrored_when_it_fails_again():
    found = mirrored(DecayedCount(HistoryIndex(LEMON.outages, LEMON.places)))
    assert len(found.rows) == 30
    assert found.share >= 29 / 30
    assert mirrored(Nobody(len(PLACES))).share == 0.0


def test_a_ratio_is_of_the_same_failures():
    ours = mirrored(DecayedCount(HistoryIndex(LEMON.outages, LEMON.places)))
    found = ratio(ours, ours)
    assert found == Ratio(value=1.0, low=1.0, high=1.0)


# ---------------------------------------------------------------------------------- sources
def test_a_made_up_history_is_the_same_each_time():
    first, second = synthetic(50, 30, 1), synthetic(50, 30, 1)
    assert first.outages == second.outages
    assert first.outages != synthetic(50, 30, 2).outages


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "is no history"),
        ("lanl-failures", "name the folder of the data sets"),
        ("missing.csv", "cannot be read"),
        ("synthetic:2x10", "3 to 20000 nodes"),
    ],
)
def test_what_is_no_history_is_said(name, words, tmp_path):
    with pytest.raises(DataMissing, match=words):
        read(Source(name=name, data=tmp_path))
    with pytest.raises(DataMissing, match="nothing to replay"):
        of_outages("mine", [])


# ---------------------------------------------------------------------------------- the command
def command(*arguments):
    return CliRunner().invoke(app, ["replay", *arguments])


def test_ones_own_history_as_json(tmp_path):
    path = tmp_path / "mine.csv"
    rows = [
        f"n{number % 8},{number * 20_000},{number * 20_000 + 900},disk" for number in range(1, 60)
    ]
    path.write_text("node,begin,end,cause\n" + "\n".join(rows) + "\n")
    done = command(str(path), "--predictor", "decayed", "--jobs", "1", "-o", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    as_yaml = command(str(path), "--predictor", "decayed", "--jobs", "1", "-o", "yaml")
    assert yaml.safe_load(as_yaml.stdout) == found
    assert [each["way"] for each in found[:3]] == ["nothing", "react only", "anticipate"]
    assert len(found) == 5
    assert {each["nodes"] for each in found} == {8}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "is no history"),
        (("synthetic:20x5", "--predictor", "magic"), "--predictor is 'magic': expected history or"),
        (("synthetic:20x5", "--at-risk", "7"), "--at-risk is '7': expected numbers from"),
        (("synthetic:20x5", "--weight", "soon"), "--weight is 'soon'"),
        (("synthetic:20x5", "--horizon", "2h"), "--horizon is '2h'"),
        (("synthetic:20x5", "-o", "xml"), "--output is 'xml'"),
    ],
)
def test_mistakes_are_one_line(arguments, words):
    done = command(*arguments)
    assert done.exit_code != 0
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_a_plot_without_the_library_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    asked = ["replay", "synthetic:5x2", "--plot", str(tmp_path / "replay.svg")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code != 0
    assert "pip install 'peerd[plot]'" in done.stderr
    assert not (tmp_path / "replay.svg").exists()


def test_where_no_plot_can_be_written_nothing_is_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr("las.replay.command.sweep", lambda *_, **__: pytest.fail("it was replayed"))
    for place in (tmp_path / "nowhere" / "replay.svg", tmp_path):
        done = CliRunner().invoke(app, ["replay", "synthetic:5x2", "--plot", str(place)])
        assert (done.exit_code, "no file can be written there" in done.stderr) == (2, True)


def test_numbers_without_an_end_are_refused():
    for option in ("--bytes-per-node", "--copy-bytes-per-s"):
        for value in ("inf", "nan", "1e300"):
            assert (
                CliRunner().invoke(app, ["replay", "synthetic:5x2", option, value]).exit_code == 2
            )


@pytest.mark.timeout(240)
def test_ctrl_c_ends_every_process_of_a_sweep_without_a_word(tmp_path):
    """To the whole group, as a terminal sends it; years of a large fleet would take minutes."""
    words = ["replay", "synthetic:300x3650", "--weight", "4,8,16", "--jobs", "2"]
    asked = [sys.executable, "-c", "from las.daemon.cli import main; main()", *words]
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen(asked, stdout=said, stderr=said, start_new_session=True)
        try:
            group = psutil.Process(running.pid)
            while len(workers := group.children(recursive=True)) < 3:
                assert running.poll() is None
            os.killpg(running.pid, signal.SIGINT)
            assert running.wait(100) == 130
            assert not psutil.wait_procs(workers, timeout=60)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert (tmp_path / "said").read_text() == ""
