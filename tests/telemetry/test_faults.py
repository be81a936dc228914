"""Faults end as they should, and do what they say."""

import errno
import subprocess
import sys
import threading
import time

import psutil
import pytest

from peerd.testing.faults import (
    DutyCycle,
    FaultFile,
    Faults,
    FaultsFileInvalid,
    Ramp,
    StorageFaults,
    drive_delay,
    read_faults,
)


class Time:
    """A clock that only sleeping moves, and a list of what to do at which moment."""

    def __init__(self):
        self.now_s = 1000.0
        self.at = []

    def clock(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        while self.at and self.at[0][0] <= self.now_s:
            self.at.pop(0)[1]()


@pytest.fixture
def machine(tmp_path):
    moment = Time()
    file = FaultFile(tmp_path / "faults.json")
    return moment, file, StorageFaults(file.path, clock=moment.clock, sleep=moment.sleep)


def suffered_ms(moment, faults):
    begun_s = moment.now_s
    faults.before_commit()
    return (moment.now_s - begun_s) * 1000.0


def test_without_a_file_a_commit_suffers_nothing(machine):
    moment, _, faults = machine
    assert suffered_ms(moment, faults) == 0.0


def test_a_delay_is_suffered_by_each_commit_until_it_is_cleared(machine):
    moment, file, faults = machine
    file.set(Faults(write_delay_ms=120.0))
    assert suffered_ms(moment, faults) == pytest.approx(120.0)
    assert suffered_ms(moment, faults) == pytest.approx(120.0)
    file.clear()
    moment.now_s += 0.2
    assert suffered_ms(moment, faults) == 0.0


def test_jitter_stays_within_its_bounds_and_varies(machine):
    moment, file, faults = machine
    file.set(Faults(write_delay_ms=50.0, write_delay_jitter_ms=10.0))
    seen = {round(suffered_ms(moment, faults), 3) for _ in range(50)}
    assert len(seen) > 10
    assert min(seen) >= 40.0
    assert max(seen) <= 60.0


def test_a_stall_is_suffered_once_for_each_writing_of_the_file(machine):
    moment, file, faults = machine
    file.set(Faults(stall_ms=900.0))
    assert suffered_ms(moment, faults) == pytest.approx(900.0)
    assert suffered_ms(moment, faults) == 0.0
    moment.now_s += 0.2
    file.set(Faults(stall_ms=400.0))
    assert suffered_ms(moment, faults) == pytest.approx(400.0)


def test_the_end_of_a_fault_ends_a_delay_under_way(machine):
    moment, file, faults = machine
    file.set(Faults(write_delay_ms=3_600_000.0))
    moment.at = [(moment.now_s + 1.0, file.clear)]
    assert suffered_ms(moment, faults) <= 1_200.0


def test_a_failure_is_an_error_of_the_device(machine):
    _, file, faults = machine
    file.set(Faults(fail=True))
    with pytest.raises(OSError, match="Input/output error") as raised:
        faults.before_commit()
    assert raised.value.errno == errno.EIO


def test_a_leak_grows_with_time_and_is_kept(machine):
    moment, file, faults = machine
    file.set(Faults(leak_bytes_per_s=4 << 20))
    faults.before_commit()
    for _ in range(4):
        moment.now_s += 0.5
        faults.before_commit()
    assert len(faults._leaked) == 8


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"unknown": 1}', '{"write_delay_ms": "much"}', '{"fail": null}']
)
def test_a_file_that_is_no_fault_is_refused(tmp_path, content):
    path = tmp_path / "faults.json"
    path.write_text(content)
    with pytest.raises(FaultsFileInvalid):
        read_faults(path)


@pytest.mark.parametrize("shape", ["linear", "exponential", "quadratic"])
def test_a_ramp_goes_from_start_to_end_and_never_back(shape):
    ramp = Ramp(onset_s=10.0, start=1.0, end=180.0, duration_s=30.0, shape=shape)
    values = [ramp.value(10.0 + step) for step in range(31)]
    assert ramp.value(9.99) == 0.0
    assert values[0] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(180.0) == ramp.value(1e9)
    assert values == sorted(values)


def test_driving_a_ramp_writes_it_and_clears_at_the_end(tmp_path):
    file = FaultFile(tmp_path / "faults.json")
    stopping = threading.Event()
    now = [0.0]
    ramp = Ramp(onset_s=1.0, start=1.0, end=100.0, duration_s=10.0)
    thread = threading.Thread(
        target=drive_delay, args=(file, ramp, stopping), kwargs={"clock": lambda: now[0]}
    )
    thread.start()
    now[0] = 11.0
    deadline = time.monotonic() + 10.0
    while read_faults(file.path).write_delay_ms < 99.0 and time.monotonic() < deadline:
        stopping.wait(0.01)
    assert read_faults(file.path).write_delay_ms == pytest.approx(100.0)
    stopping.set()
    thread.join()
    assert not file.path.exists()


@pytest.fixture
def victim():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def wait_for_status(pid, status):
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        if psutil.Process(pid).status() == status:
            return True
    return False


def test_a_duty_cycle_stops_and_continues_and_leaves_the_process_running(victim):
    cycle = DutyCycle(victim.pid, stopped_ms=30.0, running_ms=30.0)
    cycle.start()
    for _ in range(2):
        assert wait_for_status(victim.pid, psutil.STATUS_STOPPED)
        assert wait_for_status(victim.pid, psutil.STATUS_SLEEPING)
    cycle.set(stopped_ms=10_000.0, running_ms=0.0)
    assert wait_for_status(victim.pid, psutil.STATUS_STOPPED)
    cycle.stop()
    assert wait_for_status(victim.pid, psutil.STATUS_SLEEPING)


def test_a_duty_cycle_ends_by_itself_when_the_process_is_gone(victim):
    cycle = DutyCycle(victim.pid, stopped_ms=5.0, running_ms=5.0)
    cycle.start()
    victim.kill()
    victim.wait()
    cycle._thread.join(10.0)
    assert not cycle._thread.is_alive()
    cycle.stop()
