"""A recorded run replays to the same effects; one that was changed does not."""

import re

import pytest

from peerd.core import events as ev
from peerd.core.check import InvariantViolation
from peerd.core.durable import PromiseEpoch, Stored, StoredShard, apply
from peerd.core.ids import ProcessId
from peerd.core.limits import Limits
from peerd.core.messages import Adopt
from peerd.core.replica import Replica
from peerd.core.shard_map import Plan
from peerd.recorder.flight import FlightRecorder, forms
from peerd.recorder.graph import CHECKPOINT_VALUES_MAX, NotCheckpointed
from peerd.recorder.recording import Checkpoint, Recording, RecordingRefused
from peerd.recorder.ring import RingError
from peerd.testing.replay import Different, Replay, main, unheard
from peerd.testing.sim import Options
from peerd.testing.trace import Booted, Died, Handled
from tests.recorder.recorded import RING_BYTES, RecordedSimulation

# Few events fill it.
SMALL_RING_BYTES = 128 * 1024
OTHER = ProcessId("b", "store-b", "boot-b")
ME = ProcessId("a", "store-a", "boot-a")
ADOPT = Adopt(
    shard=1, epoch=1, begin=0, plan=Plan(primary=OTHER, voters=(OTHER.replica, ME.replica), acks=1)
)
PROMISE = PromiseEpoch(shard=1, fence=1, epoch=0)
TROUBLE = Options(peers=4, crashes_per_s=2.0, trouble_ms=3_000)
# Processes that live long enough to fill a small ring.
QUIET = Options(crashes_per_s=0.0, failed_disks_per_s=0.0, appends_per_s=60.0)


def recorded(directory, seed=1, options=TROUBLE, size_bytes=RING_BYTES):
    run = RecordedSimulation(seed, options, directory, size_bytes)
    run.run()
    return run


@pytest.mark.parametrize("seed", range(3))
def test_a_run_with_crashes_replays_to_the_same_effects(tmp_path, seed):
    run = recorded(tmp_path, seed)
    replay = Replay(tmp_path)
    records = list(replay.records())
    accounts = list(replay.accounts())
    assert len(accounts) == len(run.booted) > len(run.recorders)
    assert all(account.whole and not account.skipped for account in accounts)
    assert not [note for account in accounts for note in account.notes]
    assert sum(isinstance(record, Booted) for record in records) == len(accounts)
    assert sum(isinstance(record, Died) for record in records) == len(accounts) - len(run.recorders)
    assert sum(isinstance(record, Handled) for record in records) > 500


def test_it_replays_from_a_checkpoint_when_the_ring_has_wrapped(tmp_path):
    run = recorded(tmp_path, 5, QUIET, SMALL_RING_BYTES)
    for peer in run.peers.values():
        core, recorder = peer.process.replicas[1], run.recorders[peer.name]
        for request in range(3_000):  # until the start of the core is overwritten
            event = ev.HasBegunAsked(request=request, epoch=1)
            recorder.handled(1, event, core.handle(event))
    replay = Replay(tmp_path)
    count = sum(isinstance(record, Handled) for record in replay.records())
    accounts = list(replay.accounts())
    assert count > 300
    assert any(not account.whole and account.events > 100 for account in accounts)
    assert sum(account.checkpoints for account in accounts) > 3
    assert not [note for account in accounts for note in account.notes if "no use" in note]


def test_a_changed_effect_is_told_in_words(tmp_path, monkeypatch, capsys):
    recorded(tmp_path, 2)
    handle = Replica.handle
    seen = []

    def handle_wrong(self, event):
        step = handle(self, event)
        if step == type(step)():
            return step
        seen.append(event)
        return type(step)() if len(seen) == 200 else step

    monkeypatch.setattr(Replica, "handle", handle_wrong)
    assert main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert re.search(r"shard 1, event \d+ at \+?-?[\d.]+ s: the effects are not", captured.err)
    assert len(captured.err.splitlines()) == 1


def test_the_state_of_every_core_is_restored_exactly(tmp_path):
    """A checkpoint after each event, each restored and written again."""
    run = RecordedSimulation(4, Options(peers=3, trouble_ms=1_000), tmp_path, RING_BYTES)
    compared = 0

    def checkpointed(peer, replica, event):
        nonlocal compared
        if event.__class__ is not ev.Ticked:
            recorder, shard = run.recorders[peer.name], replica.stored.shard
            recorder._checkpoint(shard, recorder._here[shard])
            compared += 1

    run.after_event = checkpointed
    run.run()
    for path in tmp_path.glob("*.ring"):
        recording = Recording(path)
        for item in recording.items():
            if isinstance(item, Checkpoint):
                replica = recording.replica(item)
                assert recording.is_state_of(item, replica)
    assert compared > 100
    list(Replay(tmp_path).records())  # compares each with the replayed core


def test_a_state_that_is_too_large_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("peerd.recorder.graph.CHECKPOINT_VALUES_MAX", 10)
    assert CHECKPOINT_VALUES_MAX > 10
    core = Replica(ME, StoredShard(shard=1), Limits())
    recorder = FlightRecorder(tmp_path / "a.ring", SMALL_RING_BYTES, ME, Limits())
    recorder.booted(1, core)
    for request in range(5_000):  # until the start of the core is overwritten
        event = ev.HasBegunAsked(request=request, epoch=1)
        recorder.handled(1, event, core.handle(event))
    replay = Replay(tmp_path)
    assert list(replay.records()) == []
    notes = [note for account in replay.accounts() for note in account.notes]
    assert any("has more than 10 values" in note for note in notes)


def test_what_broke_an_invariant_is_recorded_and_has_to_break_it_again(tmp_path):
    run = RecordedSimulation(1, Options(), tmp_path, RING_BYTES)
    first, second = list(run.peers.values())[:2]
    replica = run.core(first)
    # An outcome that nothing awaits; the other peer breaks off at what breaks nothing.
    done = ev.WriteDone(outcome=Stored(operation=PROMISE, state=StoredShard(shard=1)))
    with pytest.raises(InvariantViolation):
        replica.handle(done)
    run.recorders[first.name].broke(1, ev.Ticked(now=2**70), "no encoding: not recorded")
    (before,) = Replay(tmp_path).records()
    assert isinstance(before, Booted)
    run.core(second)
    run.recorders[second.name].broke(1, ev.Ticked(now=5), "for the test")
    with pytest.raises(Different, match="the replay none"):
        list(Replay(tmp_path).records())


def test_an_event_without_encoding_is_a_gap_and_no_error(tmp_path):
    run = RecordedSimulation(1, Options(), tmp_path, RING_BYTES)
    peer = next(iter(run.peers.values()))
    replica = run.core(peer)
    recorder = run.recorders[peer.name]
    for request in (1, 2**70, 2, 3):
        event = ev.HasBegunAsked(request=request, epoch=1)
        recorder.handled(1, event, replica.handle(event))
    replay = Replay(tmp_path)
    records = list(replay.records())
    (account,) = replay.accounts()
    assert "begins anew after a gap: HasBegunAsked has no encoding" in account.notes[0]
    handled = [record.event.request for record in records if isinstance(record, Handled)]
    assert handled == [1, 3]


def test_a_directory_without_recordings_is_an_error_of_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no *.ring below it" in capsys.readouterr().err
    with pytest.raises(RecordingRefused):
        Replay(tmp_path / "none")


def test_another_versions_recording_is_refused(tmp_path, monkeypatch):
    recorded(tmp_path, 1)
    monkeypatch.setattr(forms(), "fingerprint", b"other types here")
    with pytest.raises(RecordingRefused, match="written by another version"):
        list(Replay(tmp_path).records())


def test_a_checkpoint_that_names_something_else_is_refused(tmp_path):
    recorded(tmp_path, 1, Options(trouble_ms=500))
    recording = Recording(next(tmp_path.glob("*.ring")))
    list(recording.items())
    for graph in (
        b"O\x14\x00\x00\x00peerd.core.x:Process\x00\x00\x00\x00",
        b"O\x10\x00\x00\x00subprocess:Popen\x00\x00\x00\x00",
        b"L\x09\x00\x00\x00os:systemt\x00\x00\x00\x00",
        b"E\x0c\x00\x00\x00os:environ:A",
        b"",
        b"Q",
        b"N",
    ):
        with pytest.raises(NotCheckpointed):
            recording.replica(Checkpoint(1, 0, 0, graph))


def test_the_recorder_says_what_it_cannot_open(tmp_path):
    peer = next(iter(RecordedSimulation(1, Options(), tmp_path, RING_BYTES).peers.values()))
    me = peer.next_process()
    with pytest.raises(RingError, match="No such file"):
        FlightRecorder(tmp_path / "none" / "ring", RING_BYTES, me, Limits())


def test_invariants_are_what_a_replay_ends_with(tmp_path, monkeypatch):
    recorded(tmp_path, 1)

    def broken(self, event):
        raise InvariantViolation("for the test")

    monkeypatch.setattr(Replica, "handle", broken)
    with pytest.raises(Different, match="broken invariant: for the test"):
        list(Replay(tmp_path).records())


def test_what_became_durable_unheard_is_found_in_what_came_back():
    core = Replica(ME, StoredShard(shard=1), Limits())
    core.handle(ev.AdoptReceived(sender=OTHER.replica, message=ADOPT))
    core.handle(ev.PromiseReceived(request=1, fence=3, epoch=1))
    adopt, promise = core.under_way
    adopted, state = apply(core.stored, adopt)
    promised, last = apply(state, promise)
    assert unheard(core, core.stored) == ()
    assert unheard(core, state) == (adopted,)
    assert unheard(core, last) == (adopted, promised)
    assert unheard(core, StoredShard(shard=1, promised=9)) is None
