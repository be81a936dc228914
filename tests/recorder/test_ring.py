"""What survives, what is overwritten, and what is never taken for a record."""

import os
import signal
import subprocess
import sys

import pytest

from peerd.recorder.ring import RING_BYTES_MIN, SEGMENT_COUNT, Ring, RingError, read_segments

TYPES = b"t" * 16


def records(path):
    return [body for segment in read_segments(path) for body in segment.records]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flight.ring"


def test_what_was_written_is_read_while_its_writer_lives_and_after(path):
    ring = Ring.open(path, RING_BYTES_MIN, TYPES)
    assert ring.append(b"one")
    assert ring.append(b"two")
    assert records(path) == [b"one", b"two"]
    ring.close()
    assert records(path) == [b"one", b"two"]


def test_another_writer_goes_on_behind(path):
    for body in (b"one", b"two", b"three"):
        ring = Ring.open(path, RING_BYTES_MIN, TYPES)
        assert ring.append(body)
        ring.close()
    assert records(path) == [b"one", b"two", b"three"]
    assert len(list(read_segments(path))) == 1


def test_a_full_segment_takes_no_more_and_the_oldest_is_overwritten(path):
    ring = Ring.open(path, RING_BYTES_MIN, TYPES)
    body, written, full = b"x" * 1_000, [], 0
    while full < 2 * SEGMENT_COUNT:
        record = body + str(len(written)).encode()
        if ring.append(record):
            written.append(record)
        else:
            ring.advance(TYPES)
            full += 1
    kept = records(path)
    assert kept == written[-len(kept) :]
    assert len(kept) > (SEGMENT_COUNT - 1) * RING_BYTES_MIN // SEGMENT_COUNT // 1_100
    generations = [segment.generation for segment in read_segments(path)]
    assert generations == sorted(generations)
    assert len(generations) == SEGMENT_COUNT


def test_other_types_begin_a_segment_of_their_own(path):
    for types in (TYPES, b"u" * 16):
        ring = Ring.open(path, RING_BYTES_MIN, types)
        ring.append(types)
        ring.close()
    assert [(s.fingerprint, s.records) for s in read_segments(path)] == [
        (TYPES, [TYPES]),
        (b"u" * 16, [b"u" * 16]),
    ]


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("byte", [0, 3, 4, 7, 8, 40])
def test_a_flipped_bit_cuts_there_and_is_told(path, byte, bit):
    ring = Ring.open(path, RING_BYTES_MIN, TYPES)
    for number in range(5):
        ring.append(f"record {number} ".encode() * 10)
    ring.close()
    data = bytearray(path.read_bytes())
    third = data.index(b"record 2") - 8
    data[third + byte] ^= 1 << bit
    path.write_bytes(data)
    (segment,) = read_segments(path)
    assert [body[:8] for body in segment.records] == [b"record 0", b"record 1"]
    assert segment.cut is not None
    assert "bad CRC" in segment.cut
    assert "\n" not in segment.cut


def test_after_damage_a_writer_begins_a_new_segment(path):
    ring = Ring.open(path, RING_BYTES_MIN, TYPES)
    ring.append(b"old record")
    ring.close()
    data = bytearray(path.read_bytes())
    data[data.index(b"old record")] ^= 1
    path.write_bytes(data)
    ring = Ring.open(path, RING_BYTES_MIN, TYPES)
    ring.append(b"new record")
    ring.close()
    assert [segment.records for segment in read_segments(path)] == [[], [b"new record"]]


def test_a_torn_tail_is_left_out(path):
    ring = Ring.open(path, RING_BYTES_MIN, TYPES)
    ring.append(b"whole")
    ring.append(b"torn in the middle")
    ring.close()
    data = bytearray(path.read_bytes())
    at = data.index(b"torn in the middle")
    data[at + 9 : at + 30] = bytes(21)
    path.write_bytes(data)
    assert records(path) == [b"whole"]


def test_a_foreign_file_is_refused_in_one_line(path):
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(RingError, match="is no flight recording") as refused:
        list(read_segments(path))
    assert "\n" not in str(refused.value)
    with pytest.raises(RingError, match="No such file"):
        list(read_segments(path.with_name("none")))


def test_a_file_of_another_size_is_made_anew(path):
    Ring.open(path, RING_BYTES_MIN, TYPES).close()
    ring = Ring.open(path, 2 * RING_BYTES_MIN, TYPES)
    ring.append(b"x")
    ring.close()
    assert path.stat().st_size == 2 * RING_BYTES_MIN
    assert records(path) == [b"x"]


def test_a_ring_that_cannot_be_made_is_a_typed_error(tmp_path):
    with pytest.raises(RingError, match="No such file"):
        Ring.open(tmp_path / "none" / "ring", RING_BYTES_MIN, TYPES)


WRITER = """
import sys
from pathlib import Path
from peerd.recorder.ring import Ring
ring = Ring.open(Path(sys.argv[1]), 1 << 20, b"t" * 16)
for number in range(100):
    ring.append(b"%d" % number)
print("written", flush=True)
sys.stdin.read()
"""


def test_what_was_written_survives_kill_9(path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"written\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    assert records(path) == [b"%d" % number for number in range(100)]
