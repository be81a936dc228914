"""A model gets another calibration from a fleet's own data, or is refused and not written."""

import json
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from typer.testing import CliRunner

from las.forecast.contract import ModelRefused, to_metadata
from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import ForecastModel
from las.forecast.trial import tried
from las.training.cli import train_app
from las.training.onnx_edit import recalibrated
from las.training.recalibrate import (
    FitRefused,
    Slice,
    Why,
    applied,
    ask,
    fit,
    recalibrate,
)
from las.training.windows import BadData, WindowWriter, read_moments
from tests.forecast.made_models import hardware_model, incident_model

# Says 0.5 of a calm node and 0.99 of a slow one: far from what happens here.
LOUD = incident_model("loud-1", weight=0.1)


def test_the_fleet_decides_what_a_probability_means(moments):
    made = recalibrate(LOUD, moments(), newest_share=0.25)
    assert made.model_id.startswith("loud-1+")
    model = ForecastModel.from_bytes(made.content)
    (fresh,) = moments(1, sick=0.5, nodes=100, seed=2)
    told = model.predict(fresh.windows).p_10_min
    slow = fresh.windows[:, -1].max(axis=1) > 10.0
    assert told[slow].mean() == pytest.approx(0.3, abs=0.08)
    assert told[~slow].mean() < 0.02
    for each in made.judged:
        assert each.loss < each.loss_before
        assert each.brier < each.brier_before
    assert model.contract.training_data != tried(LOUD).contract.training_data
    again = recalibrate(LOUD, moments(), newest_share=0.25)
    assert again.content == made.content  # nothing by chance


def test_the_shipped_model_is_recalibrated_in_its_own_graph(moments):
    content = SHIPPED_MODEL.read_bytes()
    before = ForecastModel.from_bytes(content)
    identity = recalibrated(content, (1.0, 1.0), (0.0, 0.0), to_metadata(before.contract))
    after = ForecastModel.from_bytes(identity)
    (some,) = moments(1, nodes=200, sick=0.5)
    noise = np.random.default_rng(3).lognormal(0.0, 2.0, some.windows.shape).astype(np.float32)
    for windows in (some.windows, noise):
        wanted, told = before.predict(windows), after.predict(windows)
        assert np.abs(wanted.probabilities - told.probabilities).max() < 1e-5
    twice = recalibrated(identity, (1.0, 2.0), (0.5, -9.0), to_metadata(after.contract))
    with pytest.raises(ModelRefused, match="fails its self-test"):
        tried(twice)  # its own words are those of the calibration before


def test_a_fleet_that_changed_is_the_gate_s_business(moments):
    # What was said of slow nodes was far from true, and is true now: the newest slice says so.
    data = moments(sick=1.0, fail=0.05, later_fail=0.99)
    with pytest.raises(FitRefused) as refused:
        recalibrate(LOUD, data, newest_share=0.25)
    assert refused.value.why is Why.WORSE
    assert "worse than the model that it comes of" in str(refused.value)


def test_too_few_failures_say_nothing(moments):
    for data in ([], moments(20, fail=0.0), moments(later_fail=0.0)):
        with pytest.raises(FitRefused) as refused:
            recalibrate(LOUD, data, newest_share=0.25)
        assert refused.value.why is Why.TOO_FEW_FAILURES


def test_what_nobody_knows_counts_for_neither(moments):
    data = moments()
    for moment in data:
        failed = moment.labels[:, 0] == 1
        moment.labels[~failed] = -1
    with pytest.raises(FitRefused, match="and not all"):
        recalibrate(LOUD, data, newest_share=0.25)


def test_weights_count_as_repetitions():
    odds = np.array([-2.0, -1.0, 0.0, 1.0, 2.0] * 8)
    truth = (np.arange(40) % 5 > 2).astype(np.float64)
    truth[::7] = 1.0
    probability = 1.0 / (1.0 + np.exp(-odds))
    weight = np.where(np.arange(40) < 20, 2.0, 1.0)
    once = fit(Slice(probability=probability, truth=truth, weight=weight))
    many = np.concatenate([np.arange(40), np.arange(20)])
    repeated = fit(
        Slice(probability=probability[many], truth=truth[many], weight=np.ones(len(many)))
    )
    assert once == pytest.approx(repeated, abs=1e-6)
    assert applied(probability, 1.0, 0.0) == pytest.approx(probability)


def test_a_few_failures_move_it_a_little():
    probability = np.array([0.2, 0.8])
    slope, intercept = fit(
        Slice(probability=probability, truth=np.array([0.0, 1.0]), weight=np.ones(2))
    )
    assert 0.9 < slope < 1.3
    assert abs(intercept) < 0.2


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, bytes(range(256)), LOUD[: len(LOUD) // 2], hardware_model()]
)
def test_what_is_no_incident_model_is_refused(content, moments):
    with pytest.raises(ModelRefused):
        recalibrate(content, moments(10), newest_share=0.25)


@pytest.mark.parametrize("content", [b"\xff" * 40, bytes(range(256)), LOUD[: len(LOUD) // 2]])
def test_what_is_no_file_of_fields_is_refused(content):
    with pytest.raises(ModelRefused, match="no ONNX model"):
        recalibrated(content, (1.0,), (0.0,), {})


# ---------------------------------------------------------------------------------- files
def write(path, moments):
    with WindowWriter(path) as writer:
        for moment in moments:
            writer.write(moment)
    return path


def test_windows_survive_their_file(tmp_path, moments):
    made = moments(2, nodes=3)
    made[0].labels[1] = -1
    made[1].windows[0, 5] = np.nan
    path = write(tmp_path / "fleet.parquet", made)
    for wanted, told in zip(made, read_moments([path]), strict=True):
        assert (told.at_s, told.nodes, told.weight) == (wanted.at_s, wanted.nodes, 1.0)
        np.testing.assert_array_equal(told.windows, wanted.windows)
        np.testing.assert_array_equal(told.labels, wanted.labels)
    loud = ForecastModel.from_bytes(LOUD)
    assert ask(loud, read_moments([path])).digest == ask(loud, made).digest


def test_a_file_is_whole_or_not_there(tmp_path, moments):
    path = tmp_path / "fleet.parquet"
    broken = replace(moments(1)[0], windows=np.zeros((1, 1, 1), dtype=np.float32))
    with pytest.raises(IndexError):
        write(path, [moments(1)[0], broken])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadData, match="cannot be written"):
        write(tmp_path / "nowhere" / "fleet.parquet", [])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "other.parquet"
    path.write_bytes(content)
    with pytest.raises(BadData, match="is no file of"):
        list(read_moments([path]))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("moment", pyarrow.nulls, "a moment None with"),
        ("weight", lambda count: pyarrow.array([-1.0] * count, pyarrow.float32()), "weight -1.0"),
        ("weight", lambda count: pyarrow.array(["much"] * count), "weight 'much'"),
        ("fails_within_600s", lambda count: pyarrow.array([7] * count), "neither 0 nor 1"),
        ("fails_within_600s", lambda count: pyarrow.array(["a"] * count), "is no file of"),
        ("commit_latency_ms_p99", lambda count: pyarrow.array([[1]] * count), "is no file of"),
    ],
)
def test_a_column_of_another_kind_is_refused(tmp_path, moments, column, values, says):
    path = write(tmp_path / "fleet.parquet", moments(1))
    table = pyarrow.parquet.read_table(path)
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, column, values(len(table)))
    pyarrow.parquet.write_table(changed, path)
    with pytest.raises(BadData, match=says):
        list(read_moments([path]))


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path, moments):
    place = tmp_path / "fleet.parquet"
    (place / "it is a directory").mkdir(parents=True)
    with pytest.raises(BadData, match="cannot be written"):
        write(place, moments(1))
    assert [each.name for each in tmp_path.iterdir()] == ["fleet.parquet"]


def test_the_command_writes_a_model_or_says_why_not(tmp_path, moments):
    loud, out = tmp_path / "loud.onnx", tmp_path / "new.onnx"
    loud.write_bytes(LOUD)
    good = write(tmp_path / "good.parquet", moments(60))
    few = write(tmp_path / "few.parquet", moments(20, fail=0.0))

    def run(*words):
        return CliRunner().invoke(train_app, ["fit", *map(str, words), "--model", str(loud)])

    refused = run(few, "--out", out, "-o", "json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["refused"] == "too_few_failures"
    assert not out.exists()
    done = run(good, "--out", out, "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model_id"] == tried(out.read_bytes()).contract.model_id
    assert yaml.safe_load(run(good, "--out", out, "-o", "yaml").stdout) == json.loads(done.stdout)
    assert yaml.safe_load(run(few, "--out", out, "-o", "yaml").stdout)["refused"]
    told = run(good, "--out", out)
    assert f"las model install {out}" in told.stdout
    (tmp_path / "place").mkdir()
    for place in (tmp_path / "place", tmp_path / "nowhere" / "new.onnx"):
        placed = run(good, "--out", place)
        assert (placed.exit_code, len(placed.stderr.splitlines())) == (2, 1)
    assert not list(tmp_path.glob(".*"))
    lost = run(tmp_path / "lost.parquet", "--out", out)
    assert (lost.exit_code, "is no file of" in lost.stderr) == (2, True)
