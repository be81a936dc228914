"""Snapshots: whole and right, or not at all."""

import pytest
from pysyncobj import SERIALIZER_STATE
from raft_simulation import InlineExecutor, SimulatedDisk

from las.raft.codec import NO_OP, command_of
from las.raft.errors import StoreCorrupt
from las.raft.journal import LogEntry
from las.raft.sessions import Sessions
from las.raft.snapshot import Capture, SnapshotStore, parse_snapshot

PREVIOUS = LogEntry(NO_OP, 6, 2)
LAST = LogEntry(command_of("c\n1\n{}"), 7, 3)


class Ended(BaseException):
    """Stands in for the end of the process."""


class Later(InlineExecutor):
    """Runs what it was given when the test says so."""

    def __init__(self):
        self.jobs = []

    def submit(self, function, /, *args, **kwargs):
        future = super().submit(lambda: None)
        done = []
        future.done = lambda: bool(done)
        self.jobs.append(lambda: (function(*args, **kwargs), done.append(True)))
        return future


def end(reason):
    raise Ended(reason)


def parts(state=b"state", sessions=(("c", 1, "r"),)):
    capture = Capture(
        previous=PREVIOUS,
        last=LAST,
        cluster_id="cluster",
        sessions=sessions,
        serialise=lambda: state,
    )
    return b"".join(capture.to_parts())


class Holder:
    """A state that the store freezes and restores."""

    def __init__(self, directory, background=None):
        self.sessions = Sessions((("c", 1, "r"),))
        self.state = b"state"
        self.disk = SimulatedDisk()
        self.store = SnapshotStore(
            directory / "snapshot",
            cluster_id="cluster",
            freeze=lambda: (self.sessions.freeze(), lambda state=self.state: state),
            restore=self.restore,
            disk=self.disk,
            background=background or InlineExecutor(),
            fatal=end,
        )

    def restore(self, sessions, state):
        self.sessions, self.state = sessions, state


def test_what_was_captured_comes_back():
    snapshot = parse_snapshot(parts())
    assert (snapshot.previous, snapshot.last) == (PREVIOUS, LAST)
    assert (snapshot.sessions, snapshot.state) == ((("c", 1, "r"),), b"state")


def test_a_flipped_bit_or_a_missing_byte_anywhere_is_noticed():
    whole = parts()
    for position in range(len(whole)):
        with pytest.raises(ValueError, match=r"damaged|not a snapshot|too short"):
            parse_snapshot(whole[:position])
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            with pytest.raises(ValueError, match=r"damaged|not a snapshot"):
                parse_snapshot(bytes(damaged))
    with pytest.raises(ValueError, match="damaged"):
        parse_snapshot(whole + b"x")


def test_writing_happens_elsewhere_and_holds_what_was_captured(tmp_path):
    later = Later()
    holder = Holder(tmp_path, later)
    holder.store.serialize((None, LAST, PREVIOUS, None), PREVIOUS.index)
    holder.state = b"newer"
    assert holder.store.is_writing
    assert holder.store.checkSerializing()[0] == SERIALIZER_STATE.SERIALIZING
    later.jobs.pop()()
    assert holder.store.read() is None
    assert holder.store.checkSerializing() == (SERIALIZER_STATE.SUCCESS, PREVIOUS.index)
    assert holder.store.checkSerializing()[0] == SERIALIZER_STATE.NOT_SERIALIZING
    assert holder.store.deserialize()[1:3] == (LAST, PREVIOUS)
    assert holder.state == b"state"


def test_a_received_snapshot_outlives_one_that_was_being_written(tmp_path):
    later = Later()
    holder = Holder(tmp_path, later)
    holder.store.serialize((None, LAST, PREVIOUS, None), PREVIOUS.index)
    received = tmp_path / "received"
    received.write_bytes(parts(b"received"))
    holder.store.install(received)
    later.jobs.pop()()
    assert holder.store.checkSerializing()[0] == SERIALIZER_STATE.NOT_SERIALIZING
    assert holder.store.read().state == b"received"
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]


def test_a_snapshot_that_cannot_be_written_ends_the_process(tmp_path):
    holder = Holder(tmp_path / "missing")
    holder.store.serialize((None, LAST, PREVIOUS, None), PREVIOUS.index)
    with pytest.raises(Ended, match="cannot be written"):
        holder.store.checkSerializing()


def test_a_damaged_or_foreign_snapshot_is_never_served(tmp_path):
    holder = Holder(tmp_path)
    path = tmp_path / "snapshot"
    path.write_bytes(parts()[:-1])
    with pytest.raises(StoreCorrupt, match="las rejoin"):
        holder.store.read()
    with pytest.raises(Ended, match="cannot be restored"):
        holder.store.deserialize()
    path.write_bytes(parts().replace(b"cluster", b"another"))
    with pytest.raises(StoreCorrupt):
        holder.store.read()


def test_a_snapshot_of_another_cluster_is_refused(tmp_path):
    holder = Holder(tmp_path)
    capture = Capture(
        previous=PREVIOUS, last=LAST, cluster_id="other", sessions=(), serialise=lambda: b""
    )
    (tmp_path / "snapshot").write_bytes(b"".join(capture.to_parts()))
    with pytest.raises(StoreCorrupt, match="another cluster"):
        holder.store.read()


def test_a_state_that_cannot_be_restored_ends_the_process(tmp_path):
    holder = Holder(tmp_path)
    (tmp_path / "snapshot").write_bytes(parts())

    def fail(sessions, state):
        raise KeyError("shards")

    holder.store._restore = fail
    with pytest.raises(Ended, match="shards"):
        holder.store.deserialize()
