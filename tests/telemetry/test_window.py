"""The peer's two minutes, the recording, and the exporter."""

import json

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from peerd.daemon.telemetry.collector import Sample
from peerd.daemon.telemetry.exporter import TelemetryExporter
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.daemon.telemetry.window import (
    Recorder,
    RecordingUnreadable,
    Window,
    read_recording,
)


def sample(tick_ms, value=1.0):
    values = np.full(len(TELEMETRY_SCHEMA), value, dtype=np.float32)
    return Sample(sequence=tick_ms, tick_ms=tick_ms, wall_ms=tick_ms + 7, values=values)


def test_the_window_keeps_the_newest():
    window = Window(capacity=3)
    assert window.latest() is None
    for tick_ms in (1, 2, 3, 4):
        window.add(sample(tick_ms))
    assert [s.tick_ms for s in window.since(-1)] == [2, 3, 4]
    assert [s.tick_ms for s in window.since(3)] == [4]
    assert window.latest().tick_ms == 4


def test_a_recording_reads_back_and_is_continued(tmp_path):
    path = tmp_path / "samples"
    for ticks in ((1, 2), (3,)):
        recorder = Recorder(path)
        for tick_ms in ticks:
            recorder.add(sample(tick_ms, value=tick_ms * 0.5))
        recorder.close()
    recording = read_recording(path)
    assert recording.names == TELEMETRY_SCHEMA.names
    assert recording.tick_ms.tolist() == [1, 2, 3]
    assert recording.wall_ms.tolist() == [8, 9, 10]
    assert recording.values[:, 0].tolist() == [0.5, 1.0, 1.5]


def test_a_torn_last_row_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "samples"
    recorder = Recorder(path)
    recorder.add(sample(1))
    recorder.add(sample(2))
    recorder.close()
    path.write_bytes(path.read_bytes()[:-9])
    assert read_recording(path).tick_ms.tolist() == [1]
    recorder = Recorder(path)
    recorder.add(sample(3))
    recorder.close()
    assert read_recording(path).tick_ms.tolist() == [1, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json\n",
        b"[]\n",
        b'{"metrics": 3, "schema_version": 1}\n',
        json.dumps({"metrics": [], "schema_version": 1}).encode() + b"\n",
        json.dumps({"metrics": [], "schema_version": TELEMETRY_SCHEMA.version}).encode(),
    ],
)
def test_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "samples"
    path.write_bytes(content)
    with pytest.raises(RecordingUnreadable):
        read_recording(path)


def test_a_foreign_file_is_not_written_to(tmp_path):
    path = tmp_path / "samples"
    path.write_bytes(b"precious\n")
    with pytest.raises(RecordingUnreadable):
        Recorder(path)
    assert path.read_bytes() == b"precious\n"


def test_the_exporter_offers_the_newest_sample_and_leaves_out_what_is_missing():
    window = Window()
    registry = CollectorRegistry()
    registry.register(TelemetryExporter(window.latest))
    assert generate_latest(registry) == b""
    newest = sample(1)
    newest.values[TELEMETRY_SCHEMA.positions["swap_used_share"]] = np.nan
    window.add(newest)
    text = generate_latest(registry).decode()
    assert "\npeerd_commit_latency_ms_p99 1.0\n" in text
    assert "peerd_swap_used_share" not in text
    assert "\npeerd_sample_age_seconds " in text
    # All but the missing one, and the sample's age.
    assert text.count("# HELP") == len(TELEMETRY_SCHEMA)
