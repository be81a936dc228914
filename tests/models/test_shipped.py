"""The shipped model on the recordings that were kept from its training, and on what it promises."""

import time

import numpy as np
import pytest

from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import BATCH_NODES, ForecastModel
from models.dataset import RECORDINGS, read_runs, training_hash
from models.evaluate import judged_by_all
from models.judge import figures
from models.lab import kinds
from models.made_up import called_after, healthy_hosts, seconds_until_called, slowed
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

AT = TELEMETRY_SCHEMA.positions
FAULTS = {"storage_delay", "pauses", "memory_leak"}


@pytest.fixture(scope="module")
def model():
    return ForecastModel.load(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def recordings():
    return read_runs(RECORDINGS)


@pytest.fixture(scope="module")
def runs(recordings):
    """Those in which all peers shared one host; apart from those in rooms, which are harder."""
    return [run for run in recordings if not run.truth.in_rooms]


@pytest.fixture(scope="module")
def judged(runs):
    return judged_by_all(SHIPPED_MODEL, [run for run in runs if run.truth.held_out])


@pytest.fixture(scope="module")
def judged_in_rooms(recordings):
    runs = [run for run in recordings if run.truth.held_out and run.truth.in_rooms]
    return judged_by_all(SHIPPED_MODEL, runs)


def test_it_was_trained_on_the_recordings_that_are_here(model, recordings):
    training = [run for run in recordings if not run.truth.held_out]
    assert model.contract.training_data == training_hash(training)


def test_the_recordings_are_as_many_as_the_card_promises(recordings):
    nodes = [node for run in recordings for node in run.truth.nodes]
    assert len(nodes) >= 60
    faults = {node.kind for node in nodes if node.stop_s is not None}
    assert faults == {*FAULTS, *kinds.GRADUAL, *kinds.ABRUPT}
    for kind in kinds.GRADUAL:
        assert sum(node.kind == kind for node in nodes) >= 3
    assert {node.kind for node in nodes} - faults >= {"slow_stable", "slow_step", "slow_spell"}


def test_its_figures_are_those_that_it_carries(model, recordings):
    held_out = [run for run in recordings if run.truth.held_out]
    told = figures(judged_by_all(SHIPPED_MODEL, held_out)["model"])
    for name, value in model.contract.figures.items():
        assert told[name] == pytest.approx(value, abs=0.01), name


def test_its_card_stands_beside_it_and_names_it(model):
    card = SHIPPED_MODEL.with_suffix(".md").read_text()
    assert model.model_id in card
    assert model.contract.training_data in card


def test_it_beats_the_rule_and_the_base_rate(judged):
    model, rule, base_rate = (figures(judged[name]) for name in ("model", "rule", "base rate"))
    assert model["average_precision"] > rule["average_precision"] + 0.1
    assert model["auroc"] > rule["auroc"] + 0.1
    assert model["precision"] > rule["precision"]
    assert model["foreseen_share"] >= rule["foreseen_share"]
    assert model["brier"] < 0.7 * base_rate["brier"]


def test_in_rooms_it_shields_more_and_cries_less_than_the_rule(judged_in_rooms):
    model, rule = (figures(judged_in_rooms[name]) for name in ("model", "rule"))
    assert model["average_precision"] > rule["average_precision"] + 0.4
    assert model["shielded_share"] > rule["shielded_share"] + 0.2
    assert model["false_alarms_per_node_hour"] < rule["false_alarms_per_node_hour"] / 4.0


def test_it_calls_no_look_alike_of_the_held_out_runs(judged):
    events = [event for run in judged["model"] for event in run.events]
    look_alikes = [e for e in events if e.node.kind not in {"healthy", *FAULTS}]
    assert len(look_alikes) >= 20
    assert [e for e in look_alikes if e.called_s is not None] == []
    calm = [e.called_s is not None for e in events if e.node.kind == "healthy"]
    assert sum(calm) / len(calm) <= 0.05


def test_it_foresees_every_fault_of_the_held_out_runs(judged):
    faults = [e for run in judged["model"] for e in run.events if e.is_fault]
    assert {e.node.kind for e in faults} == FAULTS
    assert all(e.foreseen for e in faults)


@pytest.mark.parametrize("onset", [30, 60])
def test_a_disk_that_grows_slow_within_a_quarter_minute_is_called_soon_after(model, runs, onset):
    """Made up: only the commits get slower, so it has less to go by than with a real disk."""
    seconds = seconds_until_called(model, runs, onset)
    assert np.median(seconds) <= 17
    assert np.quantile(seconds, 0.8, method="lower") < 20


def test_one_stall_of_a_second_is_not_called(model, runs):
    stall = np.zeros(30, dtype=np.float32)
    stall[3] = 1000.0
    for run, row in healthy_hosts(runs):
        called = called_after(model, slowed(run, row, 60, stall), 60, 90)
        assert not called[:, row].any(), f"run {run.truth.number}"


def test_the_order_of_the_nodes_does_not_matter(model, runs):
    windows = runs[0].windows(60, model.window)
    forward = model.predict(windows).probabilities
    backward = model.predict(windows[::-1].copy()).probabilities[::-1]
    assert np.allclose(forward, backward, atol=1e-5)


def test_nodes_of_other_machines_do_not_matter(model, runs):
    windows = runs[0].windows(60, model.window)
    strangers = runs[1].windows(60, model.window)
    strangers[:, :, AT["machine_identity"]] = 5.0
    alone = model.predict(windows).probabilities
    together = model.predict(np.concatenate([windows, strangers])).probabilities[: len(windows)]
    assert np.allclose(alone, together, atol=1e-5)


def test_peers_of_one_machine_are_judged_together_wherever_they_stand(model, runs):
    """More than one batch, of machines that do not fill it evenly, in and out of order."""
    windows = runs[0].windows(60, model.window)[:3]
    assert BATCH_NODES % len(windows)
    alone = model.predict(windows).probabilities
    machines = 2 * BATCH_NODES // len(windows) + 7
    fleet = np.tile(windows, (machines, 1, 1))
    numbers = np.repeat(np.arange(machines, dtype=np.float32), len(windows))
    fleet[:, :, AT["machine_identity"]] = numbers[:, None]
    wanted = np.tile(alone, (machines, 1))
    for order in (np.arange(len(fleet)), np.random.default_rng(0).permutation(len(fleet))):
        told = model.predict(fleet[order]).probabilities
        assert np.allclose(told, wanted[order], atol=1e-5)


def test_windows_that_are_a_slice_of_longer_ones_are_judged_alike(model, runs):
    """As the LAS keeps them; more than one batch, and of every third node too little was seen."""
    windows = np.tile(runs[0].windows(60, model.window), (BATCH_NODES // 4, 1, 1))
    windows[:, :, AT["machine_identity"]] = np.arange(len(windows), dtype=np.float32)[:, None]
    windows[::3, :-3] = np.nan
    longer = np.full((len(windows), 2 * model.window, windows.shape[2]), np.nan, dtype=np.float32)
    longer[:, 7 : 7 + model.window] = windows
    told, wanted = model.predict(longer[:, 7 : 7 + model.window]), model.predict(windows)
    assert np.array_equal(told.probabilities, wanted.probabilities)
    assert told.known.tolist() == wanted.known.tolist()
    assert told.known.tolist() == [row % 3 > 0 for row in range(len(windows))]


def test_a_silent_fleet_gets_the_base_rate(model):
    windows = np.full((3, model.window, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)
    forecast = model.predict(windows)
    assert not forecast.known.any()
    assert np.allclose(forecast.probabilities, model.contract.base_rates)


def test_a_sick_node_gets_reasons_in_words(model, runs):
    run, row = next(healthy_hosts(runs))
    delay_ms = np.linspace(1.0, 180.0, 20, dtype=np.float32)
    windows = slowed(run, row, 60, delay_ms).windows(79, model.window)
    reasons = model.reasons(windows, row)
    assert reasons
    assert any(reason.metric.startswith("commit_") for reason in reasons)
    assert any("×" in reason.text or "÷" in reason.text for reason in reasons)


def test_a_large_fleet_is_judged_in_a_fraction_of_the_interval(model, runs):
    nodes = 2_000
    windows = np.tile(runs[0].windows(60, model.window), (nodes // 5, 1, 1))
    windows[:, :, AT["machine_identity"]] = (np.arange(nodes) // 4).astype(np.float32)[:, None]
    model.predict(windows)
    took_s = []
    for _ in range(5):
        begun_s = time.process_time()
        model.predict(windows)
        took_s.append(time.process_time() - begun_s)
    # 10,000 nodes in half of the one-second interval. What others do on the machine costs processor
    # time, too, since caches are shared: the best round is the model's own.
    assert min(took_s) < 0.1
