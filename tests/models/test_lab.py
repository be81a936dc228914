"""The lab's plans, its eyes, and its hands, on small processes that sample and commit."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.lab.episodes import EpisodeThread, limit_memory, run_shared
from models.lab.plan import (
    FAULT_S,
    FIRST_IN_ROOMS,
    PEERS,
    RUN_S_MAX,
    Episode,
    RunPlan,
    Shared,
    plan_run,
)
from models.lab.run import RunSpoiled, carry_out
from models.lab.watch import LabPeer, PeerWatch
from peerd.testing.faults import FaultFile, Faults

MINI_PEER = Path(__file__).parent / "mini_peer.py"


@pytest.fixture
def start(tmp_path):
    running = []

    def start_peer(name):
        directory = tmp_path / name
        directory.mkdir()
        process = subprocess.Popen([sys.executable, str(MINI_PEER), str(directory), "150"])
        running.append(process)
        until((directory / "ready").exists)
        return LabPeer(
            name=name,
            pid=process.pid,
            data_directory=directory,
            record_file=directory / "samples",
            faults_file=directory / "faults.json",
        )

    yield start_peer
    for process in running:
        process.kill()
        process.wait()


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)  # polling a condition with a deadline


def episode(kind, duration_s, **parameters):
    return Episode(
        kind=kind,
        peer=0,
        onset_s=0.0,
        duration_s=duration_s,
        grow_s=duration_s,
        parameters=parameters,
    )


def never(*arguments):
    raise AssertionError(f"this was not to happen: {arguments}")


def play(peer, what):
    thread = EpisodeThread(
        episode=what,
        peer=peer,
        run_begun_s=time.monotonic(),
        ending=threading.Event(),
        restart=never,
    )
    thread.start()
    thread.join()
    return thread.outcome


def test_a_plan_is_the_same_for_the_same_seed_and_differs_otherwise():
    assert plan_run(4, 1) == plan_run(4, 1)
    assert plan_run(4, 1) != plan_run(4, 2)
    assert plan_run(4, 1) != plan_run(5, 1)


def test_plans_keep_their_bounds_and_no_peer_suffers_twice():
    for number in range(FIRST_IN_ROOMS):
        plan = plan_run(number, 7)
        assert plan.length_s <= RUN_S_MAX
        victims = [e.peer for e in (*plan.faults, *plan.look_alikes)]
        assert len(set(victims)) == len(victims)
        assert set(victims) <= set(range(PEERS))
        for fault in plan.faults:
            assert fault.duration_s <= FAULT_S[1]
            assert fault.onset_s + fault.duration_s < RUN_S_MAX


def test_training_and_held_out_runs_both_see_every_kind():
    def kinds(numbers):
        plans = [plan_run(number, 1) for number in numbers]
        return {e.kind for p in plans for e in (*p.faults, *p.look_alikes)} | {
            e.kind for p in plans for e in p.shared
        }

    everything = kinds(range(FIRST_IN_ROOMS))
    assert len(everything) == 13
    assert kinds(n for n in range(18) if n % 3 == 2) == everything
    assert kinds(n for n in range(18) if n % 3 != 2) == everything


def test_a_failed_write_ends_the_peer_and_is_seen(start):
    outcome = play(
        start("a"),
        episode(
            "storage_delay",
            1.0,
            start_ms=1.0,
            end_ms=200.0,
            shape="linear",
            jitter_share=0.1,
            ends_by="failed_write",
        ),
    )
    assert outcome.why == "its process is gone"
    assert 0.9 < outcome.stopped_s - outcome.begun_s < 10.0


def test_a_hanging_write_is_seen_after_three_seconds_and_the_peer_is_killed(start):
    peer = start("a")
    outcome = play(
        peer,
        episode(
            "storage_delay",
            1.0,
            start_ms=1.0,
            end_ms=50.0,
            shape="exponential",
            jitter_share=0.0,
            ends_by="hang",
        ),
    )
    assert outcome.why.startswith("a commit is under way for")
    watch = PeerWatch(peer)
    until(watch.gone)
    watch.close()


def test_growing_pauses_end_in_silence(start):
    outcome = play(
        start("a"),
        episode("pauses", 2.0, period_ms=500.0, start_share=0.05, end_share=0.8, shape="linear"),
    )
    assert outcome.why.startswith("no sample for")


def test_a_leak_ends_at_the_limit_of_memory(start):
    peer = start("a")
    limit_memory(peer, 60_000_000)
    outcome = play(peer, episode("memory_leak", 2.0, leak_bytes=60e6))
    assert outcome.why == "its process is gone"


def test_look_alikes_leave_the_peer_as_it_was(start):
    peer = start("a")
    for what in (
        episode("slow_spell", 0.5, delay_ms=20.0, jitter_share=0.2),
        episode("single_pause", 1.0, stopped_ms=200.0),
    ):
        assert play(peer, what).stopped_s is None
    watch = PeerWatch(peer)
    assert watch.stopped() == ""
    watch.close()
    assert not peer.faults_file.exists()


def test_a_restart_kills_and_brings_back(start):
    peer, restarted = start("a"), []
    thread = EpisodeThread(
        episode=episode("restart", 0.1),
        peer=peer,
        run_begun_s=time.monotonic(),
        ending=threading.Event(),
        restart=restarted.append,
    )
    thread.start()
    thread.join()
    assert restarted == ["a"]
    assert thread.outcome.stopped_s is None


def test_shared_events_end_in_time_and_leave_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"x" * 3_000_000)
    for kind in ("cpu_hog", "backup"):
        event = Shared(kind=kind, start_s=0.0, duration_s=0.4, strength=1.0)
        begun_s = time.monotonic()
        run_shared(event, [tmp_path / "data"], tmp_path, threading.Event())
        assert time.monotonic() - begun_s < 10.0


def small_plan(**changes):
    plan = plan_run(1, 1)
    fault = episode(
        "storage_delay",
        3.0,
        start_ms=1.0,
        end_ms=300.0,
        shape="exponential",
        jitter_share=0.1,
        ends_by="failed_write",
    )
    small = replace(
        plan,
        length_s=6.0,
        faults=(replace(fault, onset_s=2.0),),
        look_alikes=(),
        shared=(Shared(kind="load_spike", start_s=1.0, duration_s=1.0, strength=2.0),),
    )
    return replace(small, **changes)


def test_a_whole_run_becomes_a_recording_with_its_truth(start, tmp_path):
    peers = [start("a"), start("b")]
    spikes = []
    plan: RunPlan = small_plan()
    run = carry_out(
        plan,
        peers,
        tmp_path,
        load_event=lambda event, ending: spikes.append(event.kind),
        restart=never,
    )
    assert spikes == ["load_spike"]
    victim, bystander = run.truth.nodes
    assert (victim.kind, bystander.kind) == ("storage_delay", "healthy")
    assert plan.faults[0].onset_s <= victim.onset_s < 20.0
    assert victim.onset_s < victim.stop_s < victim.onset_s + 15.0
    assert bystander.stop_s is None
    seen = ~np.isnan(run.values).all(axis=2)
    assert seen[1, int(victim.onset_s) : -2].mean() > 0.7
    assert not seen[0, int(victim.stop_s) + 2 :].any()
    assert np.nansum(run.labels(600.0)[0]) >= 1.0


def test_a_run_in_which_a_bystander_dies_is_spoiled(start, tmp_path):
    peers = [start("a"), start("b")]
    FaultFile(peers[1].faults_file).set(Faults(fail=True))
    plan = small_plan(shared=(), length_s=3.0)
    with pytest.raises(RunSpoiled, match="b ended"):
        carry_out(plan, peers, tmp_path, load_event=never, restart=never)
