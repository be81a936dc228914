"""A model is believed only when it keeps its contract; its answers are checked each time."""

import json
from dataclasses import replace

import numpy as np
import pytest
from onnx_bytes import newest_sample_model

from las.forecast.answer import NODES_MAX, WindowsUnfit
from las.forecast.contract import (
    HORIZONS_S,
    MODEL_BYTES_MAX,
    ModelContract,
    ModelRefused,
    SelfTest,
    from_metadata,
    to_metadata,
)
from las.forecast.heuristic import HeuristicForecaster
from las.forecast.load import SHIPPED_MODEL, load_forecaster
from las.forecast.model import ForecastModel
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA, TelemetrySchema

WINDOW = 40
FEATURES = ("commit_latency_ms_p99", "commit_stalls_per_s", "machine_identity")
# p(10 min) = sigmoid(0.1 * latency - ...): no bias in this graph, so p is 0.5 at zero.
WEIGHTS = ((0.1, 0.2), (1.0, 1.0), (0.0, 0.0))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def contract(**changes):
    windows = np.zeros((2, WINDOW, 3), dtype=np.float32)
    windows[1, -1, 0] = 10.0
    expected = sigmoid(windows[:, -1] @ np.array(WEIGHTS)).astype(np.float32)
    whole = ModelContract(
        model_id="test-1",
        schema_version=TELEMETRY_SCHEMA.version,
        features=FEATURES,
        window=WINDOW,
        period_ms=1000,
        samples_min=5,
        horizons_s=HORIZONS_S,
        base_rates=(0.01, 0.02),
        training_data="0" * 64,
        figures={"auroc": 0.9},
        self_test=SelfTest(windows=windows, expected=expected),
    )
    return replace(whole, **changes)


def write(path, *, metadata=None, weights=WEIGHTS, **options):
    path.write_bytes(newest_sample_model(WINDOW, weights, metadata or {}, **options))
    return path


@pytest.fixture
def model(tmp_path):
    return ForecastModel.load(write(tmp_path / "m.onnx", metadata=to_metadata(contract())))


def fleet(nodes, latency=1.0):
    windows = np.full((nodes, WINDOW, len(TELEMETRY_SCHEMA)), 0.0, dtype=np.float32)
    windows[:, :, TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]] = latency
    return windows


def test_metadata_reads_back_as_written():
    wanted = contract()
    told = from_metadata(to_metadata(wanted))
    assert replace(told, self_test=wanted.self_test) == wanted
    assert np.array_equal(told.self_test.windows, wanted.self_test.windows)
    assert np.array_equal(told.self_test.expected, wanted.self_test.expected)


def test_a_model_of_an_earlier_telemetry_is_taken_by_its_names(tmp_path):
    last = max(TELEMETRY_SCHEMA.positions[name] for name in FEATURES)
    earlier = TelemetrySchema(TELEMETRY_SCHEMA.metrics[: last + 1]).version
    made = to_metadata(contract(schema_version=earlier))
    ForecastModel.load(write(tmp_path / "m.onnx", metadata=made))
    # A metric that the earlier telemetry did not have cannot be what the model was trained on.
    older = TelemetrySchema(TELEMETRY_SCHEMA.metrics[:last]).version
    with pytest.raises(ModelRefused, match="not collected"):
        ForecastModel.load(
            write(tmp_path / "n.onnx", metadata=to_metadata(contract(schema_version=older)))
        )


def test_a_good_file_answers_by_its_graph_from_schema_columns(model):
    windows = fleet(3)
    windows[1, -1, TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]] = 30.0
    forecast = model.predict(windows)
    assert forecast.model_id == "test-1"
    assert forecast.calibrated
    assert forecast.p_10_min == pytest.approx(sigmoid(np.array([0.1, 3.0, 0.1])), abs=1e-6)
    assert forecast.p_1_h == pytest.approx(sigmoid(np.array([0.2, 6.0, 0.2])), abs=1e-6)
    assert forecast.known.all()


def test_the_same_windows_give_the_same_answer(model):
    windows = np.random.default_rng(1).normal(size=(50, WINDOW, len(TELEMETRY_SCHEMA)))
    windows = np.abs(windows).astype(np.float32)
    first = model.predict(windows).probabilities
    assert all(np.array_equal(first, model.predict(windows).probabilities) for _ in range(3))


def test_an_empty_fleet_is_answered(model):
    assert model.predict(fleet(0)).probabilities.shape == (0, 2)


def test_a_node_of_which_too_little_was_seen_gets_the_base_rate(model):
    windows = fleet(2)
    windows[1, : WINDOW - 4] = np.nan
    forecast = model.predict(windows)
    assert forecast.known.tolist() == [True, False]
    assert forecast.probabilities[1] == pytest.approx([0.01, 0.02])


REFUSED = {
    "no id": {"peerd.model_id": '""'},
    "another format": {"peerd.format": "2"},
    "another telemetry": {"peerd.schema_version": "7"},
    "unknown metric": {
        "peerd.features": '["moon_phase_share", "commit_stalls_per_s", "machine_identity"]'
    },
    "other horizons": {"peerd.horizons_s": "[600, 7200]"},
    "no window": {"peerd.window": "0"},
    "another window": {"peerd.window": "41"},
    "endless window": {"peerd.window": "1000000000"},
    "more samples wanted than there are": {"peerd.samples_min": "41"},
    "base rate above 1": {"peerd.base_rates": "[0.5, 1.5]"},
    "base rate that falls": {"peerd.base_rates": "[0.5, 0.4]"},
    "base rate that is none": {"peerd.base_rates": "[NaN, 0.4]"},
    "a truth value for a number": {"peerd.window": "true"},
    "figures that are no table": {"peerd.figures": "[]"},
    "text that is not JSON": {"peerd.figures": "{"},
    "self-test that is no base64": {"peerd.self_test_windows": '"%"'},
    "self-test that does not unpack": {"peerd.self_test_windows": '"AAAA"'},
    "self-test without answer": {"peerd.self_test_expected": "[]"},
    "self-test of another answer": {"peerd.self_test_expected": "[[0.5, 0.5], [0.5, 0.5]]"},
    "self-test of NaN": {"peerd.self_test_expected": "[[0.5, 0.5], [0.5, NaN]]"},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_breaks_the_contract_is_refused(tmp_path, change):
    path = write(tmp_path / "m.onnx", metadata=to_metadata(contract()) | change)
    with pytest.raises(ModelRefused, match=str(path)):
        ForecastModel.load(path)


@pytest.mark.parametrize("key", to_metadata(contract()))
def test_a_file_that_lacks_a_key_is_refused_by_its_name(tmp_path, key):
    metadata = to_metadata(contract())
    del metadata[key]
    with pytest.raises(ModelRefused, match=key):
        ForecastModel.load(write(tmp_path / "m.onnx", metadata=metadata))


def test_a_graph_with_another_input_is_refused(tmp_path):
    path = write(tmp_path / "m.onnx", metadata=to_metadata(contract()), input_name="x")
    with pytest.raises(ModelRefused, match="one input windows"):
        ForecastModel.load(path)


def test_a_graph_with_another_number_of_horizons_is_refused(tmp_path):
    weights = tuple((w[0],) for w in WEIGHTS)
    path = write(tmp_path / "m.onnx", metadata=to_metadata(contract()), weights=weights)
    with pytest.raises(ModelRefused, match="shape"):
        ForecastModel.load(path)


def test_a_graph_whose_probability_falls_with_the_horizon_is_refused(tmp_path):
    falling = ((0.2, 0.1), (1.0, 1.0), (0.0, 0.0))
    with pytest.raises(ModelRefused, match="longer horizon"):
        ForecastModel.load(
            write(tmp_path / "m.onnx", metadata=to_metadata(contract()), weights=falling)
        )


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x08" + b"\xff" * 40])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelRefused):
        ForecastModel.load(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = newest_sample_model(WINDOW, WEIGHTS, to_metadata(contract()))
    path = tmp_path / "m.onnx"
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelRefused):
            ForecastModel.load(path)


def test_a_file_beyond_the_bound_is_refused_unread(tmp_path):
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(MODEL_BYTES_MAX + 1)
    with pytest.raises(ModelRefused, match="larger"):
        ForecastModel.load(path)


def test_an_answer_of_nan_is_refused_at_the_moment_it_is_given(model):
    windows = fleet(2)
    windows[1, -1, TELEMETRY_SCHEMA.positions["commit_stalls_per_s"]] = np.nan
    with pytest.raises(ModelRefused, match="NaN"):
        model.predict(windows)


@pytest.mark.parametrize(
    "windows",
    [
        fleet(1).astype(np.float64),
        fleet(1)[:, 1:],
        fleet(1)[:, :, 1:],
        fleet(1)[0],
        np.zeros((NODES_MAX + 1, WINDOW, len(TELEMETRY_SCHEMA)), dtype=np.float32),
    ],
    ids=["dtype", "window", "metrics", "dimensions", "nodes"],
)
def test_windows_of_another_shape_are_the_callers_fault(model, windows):
    with pytest.raises(WindowsUnfit):
        model.predict(windows)
    with pytest.raises(WindowsUnfit):
        model.reasons(windows, 0)


def test_reasons_name_the_input_that_moved_and_by_how_much(model):
    windows = fleet(3, latency=2.0)
    windows[1, -10:, TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]] = 62.0
    reasons = model.reasons(windows, 1)
    assert [reason.metric for reason in reasons] == ["commit_latency_ms_p99"]
    assert reasons[0].text == "fsync p99 ×31 (62 ms)"
    assert reasons[0].weight == pytest.approx(1.0)


def test_reasons_come_strongest_first(model):
    windows = fleet(1, latency=2.0)
    windows[0, -10:, TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]] = 12.0
    windows[0, -10:, TELEMETRY_SCHEMA.positions["commit_stalls_per_s"]] = 4.0
    reasons = model.reasons(windows, 0)
    assert [reason.text for reason in reasons] == ["commit stalls 4/s", "fsync p99 ×6 (12 ms)"]
    assert sum(reason.weight for reason in reasons) == pytest.approx(1.0)
    assert len(model.reasons(windows, 0, count=1)) == 1


def test_a_calm_node_has_no_reasons(model):
    assert model.reasons(fleet(2), 1) == ()


def test_a_refused_model_leaves_the_rule_in_charge_and_says_so(tmp_path):
    path = write(tmp_path / "m.onnx", metadata={})
    forecaster, line = load_forecaster(path)
    assert isinstance(forecaster, HeuristicForecaster)
    assert str(path) in line
    assert "stands in" in line
    assert "\n" not in line


def test_a_missing_model_leaves_the_rule_in_charge(tmp_path):
    forecaster, line = load_forecaster(tmp_path / "none.onnx")
    assert forecaster.model_id == "heuristic"
    assert "none.onnx" in line


def test_a_good_model_needs_no_words(tmp_path):
    path = write(tmp_path / "m.onnx", metadata=to_metadata(contract()))
    forecaster, line = load_forecaster(path)
    assert (forecaster.model_id, line) == ("test-1", "")
    assert json.loads(to_metadata(contract())["peerd.figures"]) == {"auroc": 0.9}
    assert SHIPPED_MODEL.parent.name == "shipped"
