"""What smartctl says, and what becomes of it when it says nothing useful."""

import json
import time
from pathlib import Path

import pytest

from peerd.daemon.telemetry import smart
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.daemon.telemetry.smart import SmartReader, device_of, smart_values

SATA = {
    "smart_status": {"passed": True},
    "temperature": {"current": 34},
    "ata_smart_attributes": {
        "table": [
            {"id": 5, "name": "Reallocated_Sector_Ct", "raw": {"value": 8, "string": "8"}},
            {"id": 187, "raw": {"value": (7 << 32) + 2}},
            {"id": 197, "raw": {"value": 1}},
            {"id": 9, "raw": {"value": 12_000}},
        ]
    },
}
NVME = {
    "smart_status": {"passed": True},
    "temperature": {"current": 51},
    "nvme_smart_health_information_log": {
        "critical_warning": 4,
        "available_spare": 97,
        "percentage_used": 3,
        "media_errors": 12,
    },
}


def test_both_kinds_of_disks_are_read():
    assert smart_values(SATA) == {
        "disk_smart_failed_share": 0.0,
        "disk_temperature_celsius": 34.0,
        "disk_reallocated_sectors": 8.0,
        "disk_pending_sectors": 1.0,
        "disk_media_errors": 2.0,
    }
    assert smart_values(NVME) == {
        "disk_smart_failed_share": 1.0,
        "disk_temperature_celsius": 51.0,
        "disk_media_errors": 12.0,
        "disk_wear_share": pytest.approx(0.03),
        "disk_spare_share": pytest.approx(0.97),
    }
    assert set(smart_values(SATA)) | set(smart_values(NVME)) <= set(TELEMETRY_SCHEMA.names)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"smart_status": {"passed": "yes"}, "temperature": 7},
        {"temperature": {"current": True}},
        {"ata_smart_attributes": {"table": [1, {"id": "5"}, {"id": 5, "raw": {"value": -1}}]}},
        {"nvme_smart_health_information_log": {"critical_warning": "no"}},
    ],
)
def test_another_form_is_missing(answer):
    assert smart_values(answer) == {}


@pytest.fixture
def smartctl(tmp_path, monkeypatch):
    """A program of that name, first on the PATH, that does what the test writes."""

    def write(script: str) -> None:
        program = tmp_path / "smartctl"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(smart, "device_of", lambda directory: Path("/dev/null"))

    return write


def asked(directory: Path) -> SmartReader:
    reader = SmartReader(directory)
    reader._values = reader._ask()
    return reader


def test_the_program_is_run_and_its_answer_read(tmp_path, smartctl):
    smartctl(f"echo '{json.dumps(SATA)}'")
    reader = SmartReader(tmp_path)
    reader.start()
    deadline = time.monotonic() + 30
    while not reader.values and time.monotonic() < deadline:
        time.sleep(0.01)
    reader.stop()
    assert reader.values["disk_temperature_celsius"] == 34.0
    assert not reader._thread.is_alive()


@pytest.mark.parametrize("script", ["exit 1", "echo no JSON", "yes", "echo '{'"])
def test_what_is_no_answer_is_missing(tmp_path, smartctl, script):
    smartctl(script)
    assert asked(tmp_path).values == {}


def test_one_that_hangs_is_ended(tmp_path, smartctl, monkeypatch):
    smartctl("exec sleep 60")
    monkeypatch.setattr(smart, "RUN_TIMEOUT_S", 0.1)
    began = time.monotonic()
    assert asked(tmp_path).values == {}
    assert time.monotonic() - began < 30


def test_without_the_program_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    reader = SmartReader(tmp_path)
    reader.start()
    assert not reader._thread.is_alive()
    reader.stop()
    assert reader.values == {}


def test_a_directory_without_a_disk_has_none():
    assert device_of(Path("/proc")) is None
    assert device_of(Path("/nowhere")) is None
