"""`peerctl bench`, short: the figures are not judged, their form and the errors are."""

import json
import os
import subprocess
import sys

import pytest

from peerd.client.blocking import connect

# A test starts several processes, each of which takes seconds on a busy machine; what they measure
# has its own bounds.
pytestmark = pytest.mark.timeout(300)


def peerctl_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "peerd.cli.peerctl", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )


@pytest.mark.parametrize("load", [("--in-flight", "4"), ("--rate", "50", "--keys", "3")])
def test_append_tells_exactly_what_programs_rely_on(cluster, load):
    done = peerctl_bench(
        *("append", "--duration", "0.3", "--clients", "2", "--batch", "2", "--size", "100"),
        *("-c", str(cluster.peerctl_toml), "-o", "json", *load),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told) == [
        *("appends_per_s", "mb_per_s", "latency_ms", "errors", "longest_pause_ms", "cpu_s"),
        "disk_fdatasync_ms",
    ]
    assert list(told["latency_ms"]) == ["p50", "p99", "p999", "max"]
    assert list(told["cpu_s"]) == ["client", "servers"]
    assert list(told["disk_fdatasync_ms"]) == ["p50", "p99"]
    assert told["errors"] == 0
    assert told["cpu_s"]["servers"] > 0
    with connect(credentials=cluster.peerctl_toml) as client:
        assert sum(tail.committed for tail in client.tail("bench")) > 0


def test_append_speaks_to_people(cluster):
    done = peerctl_bench("append", "--duration", "0.2", "-c", str(cluster.peerctl_toml))
    assert done.returncode == 0, done.stderr
    assert "64 in flight, 1 × 256 B" in done.stdout
    assert "the disk by itself: 4 KiB write + fdatasync p50" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--rate", "5", "--in-flight", "5"), 2, "choose one"),
        (("--log", "Not A Log"), 1, "log"),
        (("--batch", "9", "--size", "16777216"), 1, "bytes of records in one append"),
        (("--dev", "2"), 2, "leave --config out"),
        (("--no-tls",), 2, "--no-tls is for --dev"),
        (("--copies", "9", "--log", "many"), 1, "copies"),
    ],
)
def test_bad_input_is_told_in_one_line(cluster, arguments, status, says):
    done = peerctl_bench("append", "-c", str(cluster.peerctl_toml), *arguments)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_read_tells_batches_objects_and_following(cluster):
    done = peerctl_bench(
        *("read", "--records", "3000", "--size", "64", "--duration", "0.2", "--rate", "100"),
        *("-c", str(cluster.peerctl_toml), "-o", "json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told) == ["batches", "objects", "follow_ms", "not_seen", "disk_fdatasync_ms"]
    for how in ("batches", "objects"):
        assert list(told[how]) == ["records_per_s", "mb_per_s", "cpu_us_per_record"]
        assert told[how]["records_per_s"] > 0
    assert told["not_seen"] == 0
    assert told["follow_ms"]["p50"] is not None


@pytest.mark.parametrize(
    "kind", ["planned", "kill", "stop", pytest.param("host-off", marks=pytest.mark.root)]
)
def test_failover_rounds_lose_nothing(kind):
    done = peerctl_bench(
        *("failover", "--kind", kind, "--rounds", "1", "--rate", "50", "--las", "1", "-o", "json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told) == ["pauses_ms", "errors", "lost", "disk_fdatasync_ms"]
    assert len(told["pauses_ms"]) == 1
    assert told["pauses_ms"][0] > 0
    assert (told["errors"], told["lost"]) == (0, 0)


def test_failover_needs_a_kind():
    done = peerctl_bench("failover", "--kind", "fire")
    assert done.returncode == 2
    assert "planned" in done.stderr


def test_the_table_of_all_bars_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.table", "--quick", "--only", "one", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 in flight, p50") == 2
    told = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [figure["name"] for figure in told["figures"]] == ["one.p50", "one.p50"]
    assert all(run["details"]["errors"] == 0 for run in told["runs"])
    assert told["machine"]["disk_fdatasync_ms"]["p50"] > 0
    assert (tmp_path / "report.svg").read_text("utf-8").startswith("<svg")
