"""Recordings: what is written is read, labels say what happened, windows end where they should."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import make_run

from models.dataset import RecordingRefused, read_run, read_runs, training_hash, write_run
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA


def test_a_run_reads_back_as_written(tmp_path):
    run = make_run(3)
    write_run(tmp_path / "run-003.parquet", run)
    told = read_run(tmp_path / "run-003.parquet")
    assert told.truth == run.truth
    assert np.array_equal(told.values, run.values, equal_nan=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run-003.parquet"]


def test_runs_come_by_number(tmp_path):
    for number in (11, 2, 5):
        write_run(tmp_path / f"run-{number:03}.parquet", make_run(number, seconds=20))
    assert [run.truth.number for run in read_runs(tmp_path)] == [2, 5, 11]


def test_an_empty_directory_is_refused_with_advice(tmp_path):
    with pytest.raises(RecordingRefused, match="make lab"):
        read_runs(tmp_path)


def test_a_file_without_truth_is_refused(tmp_path):
    path = tmp_path / "run-001.parquet"
    pq.write_table(pa.table({"peer": [1]}), path)
    with pytest.raises(RecordingRefused, match="no ground truth"):
        read_run(path)


def test_a_recording_that_lacks_a_metric_is_refused_by_its_name(tmp_path):
    path = tmp_path / "run-001.parquet"
    write_run(path, make_run(1, seconds=20))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["load_per_core"]), path)
    with pytest.raises(RecordingRefused, match="load_per_core"):
        read_run(path)


def test_labels_are_1_between_onset_and_stop_within_the_horizon_and_unknown_after_it():
    run = make_run(1, seconds=120)
    node = run.truth.nodes[0]
    assert (node.onset_s, node.stop_s) == (40.0, 110.0)
    labels = run.labels(600.0)
    assert labels[0, 39] == 0.0
    assert (labels[0, 40:110] == 1.0).all()
    assert np.isnan(labels[0, 110:]).all()
    assert (labels[1:] == 0.0).all()
    near = run.labels(20.0)
    assert near[0, 89] == 0.0
    assert near[0, 90] == 1.0


def test_a_node_that_stops_without_an_onset_was_never_foreseeable():
    run = make_run(1, seconds=120)
    nodes = [replace(run.truth.nodes[0], onset_s=None), *run.truth.nodes[1:]]
    sudden = replace(run, truth=replace(run.truth, nodes=nodes))
    assert np.nansum(sudden.labels(600.0)[0]) == 0.0


def test_an_abrupt_stop_was_never_foreseeable():
    run = make_run(1, seconds=120)
    nodes = [replace(run.truth.nodes[0], kind="disk_failure"), *run.truth.nodes[1:]]
    sudden = replace(run, truth=replace(run.truth, nodes=nodes))
    labels = sudden.labels(600.0)
    assert np.nansum(labels[0]) == 0.0
    assert np.isnan(labels[0, 110:]).all()


def test_a_run_without_a_kind_tells_nothing_of_its_peers_and_all_of_the_others():
    run = make_run(1, seconds=120)
    rest = run.without("storage_delay")
    assert np.isnan(rest.values[0]).all()
    assert np.isnan(rest.labels(600.0)[0]).all()
    assert np.array_equal(rest.values[1:], run.values[1:], equal_nan=True)
    assert np.array_equal(rest.labels(600.0)[1:], run.labels(600.0)[1:])
    untouched = run.without("pauses")
    assert np.array_equal(untouched.values, run.values, equal_nan=True)
    assert untouched.truth == run.truth


def test_windows_end_with_the_asked_second_and_begin_with_gaps():
    run = make_run(1, seconds=60)
    at = TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]
    early = run.windows(9, 40)
    assert early.shape == (5, 40, len(TELEMETRY_SCHEMA))
    assert np.isnan(early[:, :30]).all()
    assert np.array_equal(early[:, 30:, at], run.values[:, :10, at])
    late = run.windows(59, 40)
    assert np.array_equal(late[:, :, at], run.values[:, 20:60, at], equal_nan=True)


def test_every_third_run_is_held_out():
    held_out = [n for n in range(9) if make_run(n, seconds=20).truth.held_out]
    assert held_out == [2, 5, 8]


def test_the_hash_follows_values_and_truth_but_not_the_order():
    runs = [make_run(1, seconds=20), make_run(2, seconds=20)]
    assert training_hash(runs) == training_hash(runs[::-1])
    changed = replace(runs[0], values=runs[0].values * np.float32(1.001))
    assert training_hash(runs) != training_hash([changed, runs[1]])
    renamed = replace(runs[0], truth=replace(runs[0].truth, seed=9))
    assert training_hash(runs) != training_hash([renamed, runs[1]])
