"""The journal: what was synced comes back, what was not may go, what is damaged is refused."""

import errno
import os
import shutil

import pytest
from raft_simulation import SimulatedDisk

from las.raft.codec import NO_OP, command_of
from las.raft.disk import Disk
from las.raft.errors import StoreCorrupt
from las.raft.journal import (
    BUFFER_BYTES_MAX,
    RECORD_BYTES_MAX,
    Journal,
    LogEntry,
    create_journal,
)


class Ended(BaseException):
    """Stands in for the end of the process."""


def end(reason):
    raise Ended(reason)


def entry(index, term=1, text=None):
    return LogEntry(command_of(text or f"c\n{index}\n{{}}"), index, term)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "journal"
    create_journal(path, SimulatedDisk())
    return path


@pytest.fixture
def open_journal():
    journals = []

    def open_journal(path, covered=None, disk=None):
        journals.append(Journal(path, covered=covered, disk=disk or SimulatedDisk(), fatal=end))
        return journals[-1]

    yield open_journal
    for journal in journals:
        journal.close()


def fill(journal):
    """Terms, votes, entries, a cut and more entries, in several syncs."""
    journal.setCurrentTerm(1, "b")
    journal.sync()
    for index in range(2, 6):
        journal.add(*entry(index, 1))
    journal.sync()
    journal.setCurrentTerm(2, None)
    journal.deleteEntriesFrom(3)
    journal.add(*entry(4, 2, "c\n9\n" + "ü" * 40))
    journal.sync()
    journal.add(NO_OP, 5, 2)
    journal.setCurrentTerm(3, "a")
    journal.sync()


def content(journal):
    return list(journal[:]), journal.current_term, journal.voted_for


def test_everything_synced_comes_back(path, open_journal):
    journal = open_journal(path)
    fill(journal)
    again = open_journal(path)
    assert content(again) == content(journal)
    assert [each.index for each in again[:]] == [1, 2, 3, 4, 5]
    assert (again.term_at(4), again.term_at(6), again.term_at(0)) == (2, None, None)


def test_what_was_not_synced_is_gone_after_a_power_cut(path, open_journal):
    disk = SimulatedDisk()
    journal = open_journal(path, disk=disk)
    journal.setCurrentTerm(1, "a")
    journal.add(*entry(2))
    journal.sync()
    before = content(journal)
    journal.add(*entry(3))
    disk.cut_power(path.parent)
    assert content(open_journal(path)) == before


def test_one_sync_covers_all_that_waits(path, open_journal):
    disk = SimulatedDisk()
    journal = open_journal(path, disk=disk)
    before = disk.syncs
    for index in range(2, 100):
        journal.add(*entry(index))
    journal.setCurrentTerm(4, "a")
    journal.sync()
    journal.sync()
    assert disk.syncs == before + 1


def test_records_that_fill_the_buffer_are_still_synced(path, open_journal):
    disk = SimulatedDisk()
    journal = open_journal(path, disk=disk)
    text = "c\n1\n" + "x" * 60_000
    count = BUFFER_BYTES_MAX // 60_000 + 1
    for index in range(2, 2 + count):
        journal.add(*entry(index, 1, text))
    journal.sync()
    disk.cut_power(path.parent)
    assert len(open_journal(path)) == 1 + count


def test_a_tail_torn_at_any_byte_is_cut_and_the_rest_comes_back(path, open_journal, tmp_path):
    complete_bytes = path.stat().st_size
    journal = open_journal(path)
    fill(journal)
    whole = path.read_bytes()
    torn = tmp_path / "torn" / "journal"
    torn.parent.mkdir()
    lengths = []
    for size in range(complete_bytes, len(whole)):
        torn.write_bytes(whole[:size])
        again = open_journal(torn)
        lengths.append((again.current_term, len(again)))
        # And it goes on from there.
        again.add(NO_OP, again.last().index + 1, again.last().term)
        again.sync()
        assert content(open_journal(torn)) == content(again)
    assert lengths[0] == (0, 1)
    assert lengths[-1] == (2, 5)


def test_a_tail_of_zeros_is_an_unfinished_write(path, open_journal):
    journal = open_journal(path)
    fill(journal)
    before = content(journal)
    whole = path.read_bytes()
    for kept in range(len(whole) - 20, len(whole)):
        path.write_bytes(whole[:kept] + bytes(5000))
        again = open_journal(path)
        # The last record was torn, the one before it is there.
        assert again.current_term == 2
        assert list(again[:]) == before[0]


def test_a_file_cut_within_what_was_written_at_once_is_refused(path, open_journal):
    """A whole file is synced before it gets its name: what is missing there was not torn."""
    journal = open_journal(path)
    for index in range(2, 6):
        journal.add(*entry(index))
    journal.clear()
    for index in range(1, 6):
        journal.add(*entry(index))
    journal.sync()
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreCorrupt, match="las rejoin"):
            open_journal(path)


def test_a_flipped_bit_anywhere_is_refused(path, open_journal):
    fill(open_journal(path))
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(StoreCorrupt):
                open_journal(path)


def test_a_missing_journal_is_refused(path, open_journal):
    path.unlink()
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        open_journal(path)


def test_bytes_of_an_earlier_process_are_synced_before_they_are_spoken_of(path, open_journal):
    disk = SimulatedDisk()
    create_journal(path, disk)
    journal = open_journal(path, disk=disk)
    journal.add(*entry(2))
    # The process is killed after its write and before its sync: the page cache keeps the bytes.
    journal._write_buffer()
    again = open_journal(path, disk=disk)
    assert len(again) == 2
    disk.cut_power(path.parent)
    assert len(open_journal(path)) == 2


def test_a_committed_entry_is_never_removed(path, open_journal):
    journal = open_journal(path)
    for index in range(2, 6):
        journal.add(*entry(index))
    journal.setRaftCommitIndex(4)
    journal.setRaftCommitIndex(2)
    journal.deleteEntriesFrom(4)
    with pytest.raises(Ended, match="committed"):
        journal.deleteEntriesFrom(3)


@pytest.mark.parametrize(
    ("first", "second"),
    [((2, None), (1, None)), ((2, "a"), (2, "b")), ((2, "a"), (2, None))],
)
def test_terms_and_votes_never_go_back(path, open_journal, first, second):
    journal = open_journal(path)
    journal.setCurrentTerm(*first)
    with pytest.raises(Ended, match="term and vote"):
        journal.setCurrentTerm(*second)


# ---------------------------------------------------------------------- beside a snapshot


def test_a_crash_before_the_journal_was_trimmed_keeps_the_tail(path, open_journal):
    journal = open_journal(path)
    for index in range(2, 10):
        journal.add(*entry(index))
    journal.sync()
    again = open_journal(path, covered=(entry(5), entry(6)))
    assert list(again[:]) == [entry(index) for index in range(5, 10)]
    assert again.commit_floor == 6
    assert content(open_journal(path, covered=(entry(5), entry(6)))) == content(again)


def test_a_crash_before_a_received_snapshot_replaced_the_journal(path, open_journal):
    journal = open_journal(path)
    for index in range(2, 10):
        journal.add(*entry(index, 1))
    journal.setCurrentTerm(3, None)
    journal.sync()
    # Entry 6 is of another term in the snapshot: what follows here is in conflict with it.
    assert list(open_journal(path, covered=(entry(5, 2), entry(6, 2)))[:]) == [
        entry(5, 2),
        entry(6, 2),
    ]


def test_a_received_snapshot_replaces_the_journal_as_a_whole(path, open_journal):
    disk = SimulatedDisk()
    journal = open_journal(path, disk=disk)
    for index in range(2, 10):
        journal.add(*entry(index, 1))
    journal.sync()
    before = path.read_bytes()
    journal.clear()
    journal.add(*entry(20, 2))
    journal.add(*entry(21, 2))
    assert path.read_bytes() == before
    journal.sync()
    again = open_journal(path, covered=(entry(20, 2), entry(21, 2)))
    assert list(again[:]) == [entry(20, 2), entry(21, 2)]
    assert again.current_term == 2


def test_a_journal_that_does_not_reach_its_snapshot_is_refused(path, open_journal):
    journal = open_journal(path)
    for index in range(2, 10):
        journal.add(*entry(index))
    journal.deleteEntriesTo(7)
    assert journal.first().index == 8
    with pytest.raises(StoreCorrupt, match="the snapshot before it is gone"):
        open_journal(path)
    with pytest.raises(StoreCorrupt, match="the snapshot ends at 5"):
        open_journal(path, covered=(entry(4), entry(5)))
    journal.add(*entry(10))
    journal.sync()
    assert open_journal(path, covered=(entry(8), entry(9))).last() == entry(10)


# ---------------------------------------------------------------------- disks that fail


class FailingDisk(SimulatedDisk):
    """Fails the named operation from the moment it is told to."""

    def __init__(self):
        super().__init__()
        self.fails = None

    def _check(self, operation):
        if operation == self.fails:
            raise OSError(errno.EIO, "Input/output error")

    def write(self, descriptor, data):
        self._check("write")
        super().write(descriptor, data)

    def sync(self, descriptor):
        self._check("sync")
        super().sync(descriptor)

    def replace(self, source, target):
        self._check("replace")
        super().replace(source, target)


@pytest.mark.parametrize(
    ("operation", "reason"), [("write", "write"), ("sync", "sync"), ("replace", "replace")]
)
def test_a_failing_disk_ends_the_process(path, open_journal, operation, reason):
    disk = FailingDisk()
    journal = open_journal(path, disk=disk)
    journal.add(*entry(2))
    journal.add(*entry(3))
    disk.fails = operation
    with pytest.raises(Ended, match=f"cannot {reason}"):
        journal.deleteEntriesTo(1) if operation == "replace" else journal.sync()


def test_a_full_disk_ends_the_process(tmp_path, open_journal):
    """With a real file system's answer: /dev/full takes nothing."""
    disk = Disk()
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            disk.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_the_real_disk_writes_whole_files(tmp_path):
    disk = Disk()
    path = tmp_path / "file"
    disk.write_file(path, b"one", b"two")
    disk.write_file(path, b"three")
    assert path.read_bytes() == b"three"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_largest_command_fits_a_record(path, open_journal):
    journal = open_journal(path)
    text = f"{'c' * 128}\n{2**64 - 1}\n{'x' * 64 * 1024}"
    journal.add(*entry(2, 2**63, text))
    journal.sync()
    assert open_journal(path)[1] == entry(2, 2**63, text)
    assert len(text) < RECORD_BYTES_MAX


def test_a_copy_is_as_good_as_the_file(path, open_journal, tmp_path):
    fill(open_journal(path))
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    assert content(open_journal(copy)) == content(open_journal(path))
