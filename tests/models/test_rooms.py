"""The lab's rooms: what is planned for them, and what needs no root of what is done in them."""

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from models.dataset import RECORDINGS, read_run
from models.lab import __main__ as lab
from models.lab import kinds, room, watch
from models.lab.episodes import GIVEN_UP, EpisodeThread
from models.lab.link import HELD_MAX, Holder
from models.lab.plan import FIRST_IN_ROOMS, PEERS, Episode, plan_run, smoke_plan
from models.lab.room_episodes import ROOM_EPISODES
from models.lab.run import RunSpoiled, check_episode
from models.lab.watch import AnswerProbe, LabPeer, PeerWatch

NINE = range(FIRST_IN_ROOMS, FIRST_IN_ROOMS + 9)


def test_old_numbers_keep_the_plan_that_their_recordings_show():
    for number in (0, 17, 44):
        told = read_run(RECORDINGS / f"run-{number:03}.parquet").truth
        plan = plan_run(number, told.seed)
        assert not plan.in_rooms
        for each in (*plan.faults, *plan.look_alikes):
            node = told.nodes[each.peer]
            assert node.kind == each.kind
            assert node.parameters.items() >= each.parameters.items()


def test_nine_runs_in_rooms_see_each_gradual_kind_thrice_and_each_third_of_them_once():
    def faults(numbers):
        return [fault.kind for number in numbers for fault in plan_run(number, 1).faults]

    for kind in kinds.GRADUAL:
        assert faults(NINE).count(kind) == 3
        for third in range(3):
            assert faults(n for n in NINE if n % 3 == third).count(kind) == 1
    assert set(faults(NINE)) == {*kinds.GRADUAL, *kinds.ABRUPT}


def test_plans_in_rooms_keep_their_bounds_and_no_peer_suffers_twice():
    for number in range(FIRST_IN_ROOMS, FIRST_IN_ROOMS + 100):
        plan = plan_run(number, 3)
        assert plan == plan_run(number, 3)
        assert plan.in_rooms
        victims = [e.peer for e in (*plan.faults, *plan.look_alikes)]
        assert len(set(victims)) == len(victims) == PEERS
        chosen = {fault.kind for fault in plan.faults}
        assert not {"packet_loss", "packet_delay"} <= chosen, "one sick link at a time"
        for fault in plan.faults:
            low, high = kinds.FAULT_S
            assert low <= fault.duration_s <= high or fault.kind in kinds.ABRUPT
        assert {e.kind for e in (*plan.faults, *plan.look_alikes)} <= set(kinds.EVERY)


def test_eight_gradual_kinds_and_their_look_alikes_can_be_tried():
    assert len(kinds.GRADUAL) == 8
    assert len(set(kinds.EVERY) - {*kinds.GRADUAL, *kinds.ABRUPT}) >= 5
    for kind in kinds.EVERY:
        plan = smoke_plan(kind)
        (only,) = (*plan.faults, *plan.look_alikes)
        assert kind in ROOM_EPISODES or kind in ("restart", "single_pause")
        assert only.kind == kind


def test_a_link_delays_in_order_loses_its_share_and_holds_no_more_than_its_bound():
    link = Holder(seed=1)
    link.delay_s = 2.0
    link.take(0.0, b"first")
    link.delay_s = 1.0
    link.take(0.5, b"overtakes")
    link.take(0.6, b"last")
    assert link.wait_s(1.0) == pytest.approx(0.5)
    assert link.due(1.0) == []
    assert link.due(3.0) == [b"overtakes", b"last", b"first"]
    assert link.wait_s(3.0) is None

    link.loss_share = 0.25
    for _ in range(4_000):
        link.take(4.0, b"x")
    assert len(link.due(9.0)) == pytest.approx(3_000, abs=150)
    link.loss_share = 0.0
    for _ in range(HELD_MAX + 10):
        link.take(10.0, b"x")
    assert len(link.due(20.0)) == HELD_MAX


def test_limits_are_written_in_the_words_of_either_version(tmp_path):
    old = tmp_path / "v1"
    limits = room.Limits("run/room-0", "7:3", root=old)
    (old / "memory/run/room-0/memory.usage_in_bytes").write_text("1000")
    limits.set_memory(500)
    limits.set_writes(12.4)
    limits.set_cpu(0.25)
    assert (old / "memory/run/room-0/memory.limit_in_bytes").read_text() == "1500"
    assert (old / "blkio/run/room-0/blkio.throttle.write_iops_device").read_text() == "7:3 12"
    assert (old / "cpu/run/room-0/cpu.cfs_quota_us").read_text() == "25000"
    limits.set_cpu(None)
    limits.set_writes(None)
    limits.set_weight(4)
    assert (old / "cpu/run/cpu.shares").read_text() == "4096"
    assert (old / "cpu/run/room-0/cpu.cfs_quota_us").read_text() == "-1"
    assert (old / "blkio/run/room-0/blkio.throttle.write_iops_device").read_text() == "7:3 0"

    new = tmp_path / "v2"
    new.mkdir()
    limits = room.Limits("run/room-0", "7:3", root=new, version=2)
    assert (new / "cgroup.subtree_control").exists()
    assert (new / "run/cgroup.subtree_control").exists()
    limits.set_weight(4)
    assert (new / "run/cpu.weight").read_text() == "400"
    (new / "run/room-0/memory.current").write_text("1000")
    limits.set_memory(500)
    limits.set_writes(12.4)
    # Too small a share for the usual period.
    limits.set_cpu(0.001)
    assert (new / "run/room-0/memory.max").read_text() == "1500"
    assert (new / "run/room-0/io.max").read_text() == "7:3 wiops=12"
    assert (new / "run/room-0/cpu.max").read_text() == "1000 1000000"


def test_the_lab_says_what_it_leaves_out_without_root(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(lab.signal, "signal", lambda *_: None)  # the test's own stay
    first = ["--first", str(FIRST_IN_ROOMS), "--runs", "2", "--out", str(tmp_path)]
    assert lab.main(first) == 0
    assert "left out: runs from number 45 on, which need rooms: they need root" in (
        capsys.readouterr().out
    )
    assert lab.main(["--smoke", "disk_slow", "--out", str(tmp_path)]) == 0
    assert "left out: disk_slow: they need root" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)  # polling a condition with a deadline


def test_a_probe_tells_a_peer_that_answers_from_one_that_does_not(listener, monkeypatch):
    monkeypatch.setattr(watch, "PROBE_PERIOD_S", 0.02)
    monkeypatch.setattr(watch, "STOPPED_AFTER_S", 0.2)
    probe = AnswerProbe(listener.getsockname())
    until(lambda: probe.silent_s() > 0.3)  # nobody takes the connection
    # A machine on which nobody answers says nothing of one peer.
    busy = AnswerProbe(listener.getsockname(), listener.getsockname())
    monkeypatch.setattr(watch, "CONTROL_S_MAX", 0.05)
    for _ in range(20):
        assert busy.silent_s() == 0.0
        time.sleep(0.05)  # several questions that nobody answers, at 0.2 s each
    busy.close()
    ending = threading.Event()

    def answer():
        listener.settimeout(0.1)
        while not ending.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nalive\n")

    server = threading.Thread(target=answer)
    server.start()
    until(lambda: probe.silent_s() < 0.3)
    probe.close()
    ending.set()
    server.join()


def test_a_full_disk_stops_a_peer_although_it_answers(tmp_path, monkeypatch):
    class Answering:
        def __init__(self, _address, _control):
            pass

        def silent_s(self):
            return 0.0

        def close(self):
            pass

    monkeypatch.setattr(watch, "AnswerProbe", Answering)
    monkeypatch.setattr(watch, "STOPPED_AFTER_S", 0.05)
    peer = LabPeer(
        name="a",
        pid=room.os.getpid(),
        data_directory=tmp_path,
        record_file=tmp_path / "none",
        faults_file=tmp_path / "none",
        room=room.Room(0, tmp_path, tmp_path / "image"),
    )
    eye = PeerWatch(peer)
    assert eye.stopped() == ""
    monkeypatch.setattr(watch, "RESERVE_BYTES", 1 << 60)
    until(lambda: eye.stopped() == "its disk is in its reserve: it refuses appends")
    eye.close()


def test_a_fault_that_failed_or_did_not_stop_its_peer_spoils_the_run(tmp_path):
    housed = LabPeer(
        name="a",
        pid=1,
        data_directory=tmp_path,
        record_file=Path("none"),
        faults_file=Path("none"),
        room=room.Room(0, tmp_path, tmp_path / "image"),
    )
    thread = EpisodeThread(
        episode=Episode(kind="cpu_quota", peer=0, onset_s=0.0, duration_s=1.0),
        peer=housed,
        run_begun_s=0.0,
        ending=threading.Event(),
        restart=lambda name: None,
    )
    check_episode(thread)
    thread.outcome.why = GIVEN_UP
    with pytest.raises(RunSpoiled, match="did not stop it"):
        check_episode(thread)
    # In the first plan the kill is the end that was announced.
    check_episode(replace(thread, peer=replace(housed, room=None)))
    thread.outcome.error = OSError("no such limit")
    with pytest.raises(RunSpoiled, match="no such limit"):
        check_episode(thread)
