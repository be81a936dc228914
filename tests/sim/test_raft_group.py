"""The LAS group as the real Raft, in virtual time: its promises, and that a seed is a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from las.raft.codec import command_of
from las.raft.disk import Disk
from las.raft.journal import Journal, create_journal
from las.raft.member import FailStop
from peerd.testing.sim import BrokenPromise
from peerd.testing.sim.__main__ import replay
from peerd.testing.sim.options import Options, drawn_group
from peerd.testing.sim.raft.alone import GroupSimulation
from peerd.testing.sim.raft.disk import Gone, SimDisk
from peerd.testing.sim.raft.history import History
from peerd.testing.sim.runner import run_seed
from peerd.testing.sim.world import World
from peerd.testing.trace import TraceHash


@pytest.mark.parametrize("seed", range(8))
def test_the_promises_hold(seed):
    assert run_seed(seed, mode="alone").failure == ""


def trace_of(seed):
    running = TraceHash()
    GroupSimulation(seed, drawn_group(seed), running.add).run()
    return running.hexdigest()


def test_the_same_seed_gives_the_same_run_whatever_the_interpreters_hash_seed():
    program = (
        "from tests.sim.test_raft_group import trace_of\nprint(*(trace_of(n) for n in (0, 3, 5)))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "77")
    }
    assert len(told) == 1
    assert len(set(told.pop().split())) == 3


def test_a_replay_tells_each_step_and_ends_with_the_trace(capsys):
    assert replay(5, verbose=True, mode="alone") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("append_entries of" in line for line in lines)
    assert lines[-1] == f"trace {trace_of(5)}"


def test_a_leader_that_nobody_disturbs_stays():
    calm = Options(
        peers=0, shards=0, loss=0, repeat=0, slow_messages=0, partitions_per_s=0,
        slow_links_per_s=0, las_crashes_per_s=0, boundary_crashes=0, trouble_ms=6_000,
    )  # fmt: skip
    run = GroupSimulation(3, calm)
    run.run()
    statuses = [host.process.status for host in run.group.hosts.values()]
    assert {status.term for status in statuses} == {1}
    assert len(run.history.agreed) > 60


# ------------------------------------------------------------------ the disk
HERE = Path("directory")


@pytest.fixture
def disk():
    return SimDisk(World(1, Options()))


def written(disk, name, *, sync):
    descriptor = disk.create(HERE / name)
    disk.write(descriptor, b"0123456789")
    if sync:
        disk.sync(descriptor)
        disk.sync_directory(HERE)
    return descriptor


def test_the_simulated_disk_has_every_operation_of_the_real_one():
    operations = {name for name in vars(Disk) if not name.startswith("_")}
    made_of_others = {"replace", "write_file", "write_draft", "remove_drafts"}
    assert operations - made_of_others <= set(vars(SimDisk))


def test_a_kill_takes_nothing_and_a_power_cut_what_was_not_synced(disk):
    written(disk, "synced", sync=True)
    written(disk, "not", sync=False)
    disk.end_process(power_cut=False)
    assert disk.read_file(HERE / "not") == b"0123456789"
    disk.end_process(power_cut=True)
    assert disk.read_file(HERE / "synced") == b"0123456789"
    left = disk.read_file(HERE / "not") if disk.exists(HERE / "not") else b""
    assert b"0123456789".startswith(left.rstrip(b"\0"))


def test_what_a_failed_sync_dropped_is_readable_and_never_written(disk):
    descriptor = written(disk, "file", sync=True)
    disk.write(descriptor, b"more")
    disk.fails_next = "sync"
    with pytest.raises(OSError, match="failed"):
        disk.sync(descriptor)
    disk.end_process(power_cut=False)
    descriptor = disk.open_to_append(HERE / "file")
    assert disk.read_file(HERE / "file") == b"0123456789more"
    disk.sync(descriptor)
    disk.end_process(power_cut=True)
    assert disk.read_file(HERE / "file").rstrip(b"\0") == b"0123456789"


def test_a_name_is_where_it_was_until_its_directory_is_synced(disk):
    written(disk, "old", sync=True)
    disk.rename(HERE / "old", HERE / "new")
    found = set()
    for _ in range(20):
        disk.end_process(power_cut=True)
        found.add(disk.exists(HERE / "old"))
        if not disk.exists(HERE / "old"):
            break
        disk.rename(HERE / "old", HERE / "new")
    assert found <= {True, False}
    assert disk.exists(HERE / "old") != disk.exists(HERE / "new")


def test_a_process_ends_between_any_two_effects(disk):
    disk.fuse = 1
    descriptor = disk.create(HERE / "file")
    with pytest.raises(Gone):
        disk.write(descriptor, b"x")
    with pytest.raises(Gone):
        disk.read_file(HERE / "file")
    disk.end_process(power_cut=False)
    assert disk.read_file(HERE / "file") == b""


def opened(disk):
    def fatal(reason):
        raise FailStop(reason)

    return Journal(HERE / "journal", covered=None, disk=disk, fatal=fatal)


def test_what_a_failed_sync_dropped_is_on_the_disk_before_the_next_process_speaks_of_it(disk):
    """The process ends when a sync fails; the next one reads the entry all the same."""
    create_journal(HERE / "journal", disk)
    journal = opened(disk)
    journal.add(command_of("client\n1\n{}"), 2, 1)
    disk.fails_next = "sync"
    with pytest.raises(FailStop):
        journal.sync()
    disk.end_process(power_cut=False)
    assert opened(disk).last().index == 2
    disk.end_process(power_cut=True)
    assert opened(disk).last().index == 2


# ------------------------------------------------------------------ the checkers
def history_of(*commands):
    history = History(unique=True)
    for number, command in enumerate(commands, start=1):
        history.given(command, "client", number)
    return history


def test_a_reordered_command_is_noticed():
    history = history_of("x", "y")
    history.applied("a", 1, "x", "1", None)
    with pytest.raises(BrokenPromise, match="one order"):
        history.applied("b", 1, "y", "1", None)


def test_a_second_application_and_a_late_one_are_noticed():
    history = history_of("w", "x")
    history.applied("a", 1, "x", "1", None)
    with pytest.raises(BrokenPromise, match="exactly once"):
        history.applied("a", 2, "x", "2", None)
    history = history_of("w", "x")
    history.applied("a", 1, "x", "1", None)
    with pytest.raises(BrokenPromise, match="after a later one"):
        history.applied("a", 2, "w", "2", None)


def test_a_stale_read_and_a_lost_answer_are_noticed():
    history = history_of("x", "y")
    history.applied("a", 1, "x", "1", None)
    history.acknowledged("x", "1", above=0)
    with pytest.raises(BrokenPromise, match="linearizable"):
        history.read("b", 0, at_least=history.shown)
    with pytest.raises(BrokenPromise, match="acknowledged is committed"):
        history.acknowledged("y", "1", above=1)
