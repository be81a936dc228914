"""Joining appends: what is stored and answered is what each of them alone would have got."""

from collections import deque
from types import SimpleNamespace

import crc32c
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from peerd.core.batch import BatchHeader
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Refusal
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, Offset, ReplicaId, ShardId, StoreId
from peerd.transport.append_edge import CheckedAppend, parse_records
from peerd.transport.joining import (
    HELD_APPENDS_MAX,
    HOLD_ROUNDS,
    HOLD_S_MAX,
    JOINED_RECORDS_MAX,
    AppendJoiner,
)
from peerd.v1 import batch_pb2

SHARD = ShardId(3)
DURABLE_ON = (ReplicaId(NodeName("peer-1"), StoreId("s")),)
BYTES_MAX = 64 * 1024
REFUSED = Refusal(reason=Reason.NOT_PRIMARY, message="go elsewhere", epoch=NO_EPOCH)


class QueueHost:
    """Orders what it is given; the test says when each batch is answered."""

    space_in_reserve = False

    def __init__(self):
        self.batches = []
        """(header, payload, expected offset), in order."""
        self.refusing = False
        self._answers = deque()
        self._end = 0

    def is_primary(self, shard):
        return True

    def append(self, shard, header, payload, expected_offset, done):
        if self.refusing:
            done(REFUSED)
            return
        self.batches.append((header, payload, expected_offset))
        assert header.payload_crc == crc32c.crc32c(payload)
        assert header.payload_bytes == len(payload) <= BYTES_MAX
        accepted = AppendAccepted(
            request=0,
            shard=shard,
            epoch=Epoch(1),
            base=Offset(self._end),
            record_count=header.record_count,
            timestamp_ms=7,
            durable_on=DURABLE_ON,
        )
        self._end += header.record_count
        self._answers.append(lambda: done(accepted))

    @property
    def unanswered(self):
        return len(self._answers)

    def answer(self):
        self._answers.popleft()()

    def values(self):
        return [record.value for _, payload, _ in self.batches for record in parse_records(payload)]


class Clock:
    """An event loop's time, which stands still but for `advance`."""

    def __init__(self):
        self.now_s = 0.0
        self._due = []
        self._cancelled = []

    def time(self):
        return self.now_s

    def call_later(self, delay, callback, *arguments):
        timer = SimpleNamespace(at_s=self.now_s + delay)
        timer.call = lambda: callback(*arguments)
        timer.cancel = lambda: self._cancelled.append(timer)
        self._due.append(timer)
        return timer

    def advance(self, seconds):
        self.now_s += seconds
        for timer in [timer for timer in self._due if timer.at_s <= self.now_s]:
            self._due.remove(timer)
            if timer not in self._cancelled:
                timer.call()


class Client:
    """Appends through a joiner, and keeps the outcomes by value of the first record."""

    def __init__(self):
        self.host = QueueHost()
        self.clock = Clock()
        self.cores_are_scarce = False
        self.joiner = AppendJoiner(
            self.host,
            BYTES_MAX,
            cores_are_scarce=lambda: self.cores_are_scarce,
            timers=lambda: self.clock,
        )
        self.outcomes = {}

    def append(self, *values, joinable=True, hashes=(0, 0), payload=None):
        payload = payload or batch_of(*values).SerializeToString()
        header = BatchHeader(
            record_count=len(values),
            payload_crc=crc32c.crc32c(payload),
            payload_bytes=len(payload),
            key_hash_low=hashes[0],
            key_hash_high=hashes[1],
        )
        append = CheckedAppend(
            log="orders",
            shard=SHARD,
            header=header,
            payload=payload,
            expected_offset=None,
            joinable=joinable,
        )

        def done(outcome):
            assert values[0] not in self.outcomes, "answered twice"
            self.outcomes[values[0]] = outcome

        self.joiner.append(append, done)

    def answer(self, after_s=0.001):
        """The oldest batch under way is answered, so many seconds later."""
        self.clock.advance(after_s)
        self.host.answer()

    def finish(self):
        """Everything under way is answered, and no time is left to wait for."""
        self.clock.advance(HOLD_S_MAX)
        while self.host.unanswered:
            self.host.answer()
            self.clock.advance(HOLD_S_MAX)


def batch_of(*values):
    records = [batch_pb2.Record(value=value) for value in values]
    return batch_pb2.Batch(record_count=len(values), records=batch_pb2.Records(records=records))


@pytest.fixture
def client():
    client = Client()
    yield client
    client.finish()
    assert client.joiner._lines == {}


def test_a_lone_append_leaves_at_once_and_unchanged(client):
    for number in range(3):
        client.append(b"%d" % number)
        assert client.host.batches[-1][1] == batch_of(b"%d" % number).SerializeToString()
        client.host.answer()


def test_what_comes_meanwhile_leaves_as_one_batch_and_each_gets_its_own_receipt(client):
    client.append(b"a")
    client.append(b"c", b"c2", hashes=(50, 60))
    client.append(b"d", hashes=(10, 20))
    client.append(b"e", hashes=(30, 90))
    assert len(client.host.batches) == 1
    client.host.answer()
    header, payload, expected = client.host.batches[1]
    assert payload == batch_of(b"c", b"c2", b"d", b"e").SerializeToString()
    assert (header.key_hash_low, header.key_hash_high, expected) == (10, 90, None)
    assert set(client.outcomes) == {b"a"}
    client.host.answer()
    places = {value: (out.base, out.record_count) for value, out in client.outcomes.items()}
    assert places == {b"a": (0, 1), b"c": (1, 2), b"d": (3, 1), b"e": (4, 1)}
    assert client.outcomes[b"e"].durable_on == DURABLE_ON
    assert client.outcomes[b"e"].timestamp_ms == 7


def test_what_says_more_than_its_records_stays_alone_and_overtakes_nothing(client):
    for value in (b"a", b"b", b"c"):
        client.append(value)
    client.append(b"named", joinable=False)
    assert client.host.values() == [b"a", b"b", b"c", b"named"]
    assert [header.record_count for header, *_ in client.host.batches] == [1, 2, 1]


def compressed(value):
    records = batch_pb2.Records(records=[batch_pb2.Record(value=value)]).SerializeToString()
    return batch_pb2.Batch(
        record_count=1,
        codec=batch_pb2.CODEC_ZSTD,
        compressed=zstandard.ZstdCompressor().compress(records),
    ).SerializeToString()


@pytest.mark.parametrize(
    "payload",
    [
        compressed(b"x"),
        # A field of a later version, behind what this one knows.
        batch_of(b"x").SerializeToString() + b"\xfa\x01\x01z",
        # The same batch in another form of the same message.
        b"\x10\x81\x00" + batch_of(b"x").SerializeToString()[2:],
    ],
    ids=["compressed", "unknown field", "longer form"],
)
def test_a_batch_in_another_form_is_stored_as_it_came(client, payload):
    for value in (b"a", b"b", b"c"):
        client.append(value)
    client.append(b"x", payload=payload)
    client.append(b"d")
    while client.host.unanswered:
        client.host.answer()
    assert client.host.values() == [b"a", b"b", b"c", b"x", b"d"]
    assert payload in [stored for _, stored, _ in client.host.batches]
    assert client.outcomes[b"x"].base == 3


def test_records_with_and_without_keys_share_no_batch(client):
    for value in (b"a", b"b"):
        client.append(value)
    client.append(b"keyed", hashes=(5, 5))
    assert [header.key_hash_high for header, *_ in client.host.batches] == [0, 0]
    client.host.answer()
    client.host.answer()
    assert client.host.batches[-1][0].key_hash_low == 5


def test_a_joined_batch_is_bounded(client):
    client.append(b"a")
    for number in range(JOINED_RECORDS_MAX + 1):
        client.append(b"n%d" % number)
    assert client.host.batches[1][0].record_count == JOINED_RECORDS_MAX
    for letter in (b"x", b"y"):
        client.append(letter * (BYTES_MAX * 2 // 3))
    # What went beyond the records, and as much as the bytes allow.
    assert client.host.batches[2][0].record_count == 2
    while client.host.unanswered:
        client.host.answer()
    assert len(client.host.values()) == len(client.outcomes) == JOINED_RECORDS_MAX + 4


def test_a_refusal_is_true_of_each(client):
    for value in (b"a", b"c", b"d"):
        client.append(value)
    client.host.refusing = True
    client.host.answer()
    assert client.outcomes[b"c"] == client.outcomes[b"d"] == REFUSED
    client.append(b"e")
    assert client.outcomes[b"e"] == REFUSED


def test_nothing_is_left_waiting_when_what_it_sent_was_refused_at_once(client):
    for value in (b"a", b"c"):
        client.append(value)
    client.host.refusing = True
    client.append(b"keyed", hashes=(5, 5))
    while client.host.unanswered:
        client.host.answer()
    assert client.outcomes[b"c"] == client.outcomes[b"keyed"] == REFUSED


def values_of(client):
    """What each batch that left holds, as the first letters of its values."""
    return [
        b"".join(record.value[:1] for record in parse_records(payload)).decode()
        for _, payload, _ in client.host.batches
    ]


@pytest.fixture
def crowded(client):
    """A client whose cores are scarce; "a" was answered, and "bcd", which came meanwhile."""
    client.cores_are_scarce = True
    for value in (b"a", b"b", b"c", b"d"):
        client.append(value)
    client.answer()
    client.clock.advance(HOLD_S_MAX)
    client.answer(after_s=0.004)
    assert values_of(client) == ["a", "bcd"]
    return client


def test_where_cores_are_scarce_a_batch_waits_until_as_many_have_come_back(crowded):
    for value in (b"e", b"f"):
        crowded.append(value)
    assert values_of(crowded)[2:] == []
    crowded.append(b"g")
    assert values_of(crowded)[2:] == ["efg"]
    crowded.answer()
    assert crowded.outcomes[b"g"].base == 6


def test_it_waits_so_many_times_as_long_as_the_last_batch_took_and_no_longer(crowded):
    crowded.append(b"e")
    crowded.clock.advance(HOLD_ROUNDS * 0.004 - 0.0001)
    assert values_of(crowded)[2:] == []
    crowded.clock.advance(0.0002)
    assert values_of(crowded)[2:] == ["e"]


def test_an_earlier_wait_does_not_end_a_later_one(crowded):
    for value in (b"e", b"f", b"g"):
        crowded.append(value)
    crowded.answer(after_s=HOLD_ROUNDS * 0.004 - 0.001)
    crowded.append(b"h")
    crowded.clock.advance(0.0015)
    assert values_of(crowded)[2:] == ["efg"]


def test_a_batch_that_took_long_holds_back_only_up_to_the_bound(client):
    client.cores_are_scarce = True
    for value in (b"a", b"b", b"c"):
        client.append(value)
    client.answer(after_s=60.0)
    client.clock.advance(HOLD_S_MAX)
    assert values_of(client) == ["a", "bc"]


def test_nothing_is_held_back_where_cores_are_idle(crowded):
    crowded.clock.advance(HOLD_S_MAX)
    crowded.cores_are_scarce = False
    for value in (b"e", b"f"):
        crowded.append(value)
    crowded.answer()
    assert values_of(crowded)[2:] == ["e", "f"]


def test_enough_is_not_held_back(client):
    client.cores_are_scarce = True
    client.append(b"a")
    for _ in range(2):
        for number in range(HELD_APPENDS_MAX):
            client.append(b"%d-%d" % (number, len(client.outcomes)))
        client.answer()
    assert [header.record_count for header, *_ in client.host.batches] == [
        1,
        HELD_APPENDS_MAX,
        HELD_APPENDS_MAX,
    ]


def test_a_lone_append_waits_for_nothing_where_cores_are_scarce(client):
    client.cores_are_scarce = True
    for number in range(3):
        client.append(b"%d" % number)
        assert len(client.host.batches) == number + 1
        client.answer()
    assert client.joiner._lines == {}


def test_what_cannot_be_joined_ends_the_wait(crowded):
    crowded.append(b"e")
    crowded.append(b"named", joinable=False)
    assert values_of(crowded)[2:] == ["e", "n"]
    crowded.clock.advance(HOLD_S_MAX)
    assert values_of(crowded)[2:] == ["e", "n"]


def test_clients_that_left_are_not_waited_for(crowded):
    crowded.clock.advance(HOLD_S_MAX)
    assert crowded.joiner._lines == {}
    crowded.append(b"e")
    assert values_of(crowded)[2:] == ["e"]


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"),
            st.integers(1, 3),
            st.booleans(),
            st.sampled_from([(0, 0), (1, 9), (4, 5)]),
        ),
        st.tuples(st.just("answer")),
        st.tuples(st.sampled_from(["refuse", "accept", "crowd", "leave"])),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, HOLD_S_MAX])),
    ),
    max_size=60,
)


@given(steps)
def test_every_append_is_answered_once_with_where_its_records_are(plan):
    client, sent, refused = Client(), [], set()
    for number, (what, *how) in enumerate(plan):
        if what == "append":
            count, joinable, hashes = how
            values = [b"%d-%d" % (number, index) for index in range(count)]
            sent.append(values)
            client.append(*values, joinable=joinable, hashes=hashes)
        elif what == "answer" and client.host.unanswered:
            client.host.answer()
        elif what in {"refuse", "accept"}:
            client.host.refusing = what == "refuse"
        elif what in {"crowd", "leave"}:
            client.cores_are_scarce = what == "crowd"
        elif what == "wait":
            client.clock.advance(*how)
    client.finish()
    refused = {value for value, out in client.outcomes.items() if isinstance(out, Refusal)}
    stored = client.host.values()
    assert set(client.outcomes) == {values[0] for values in sent}
    assert stored == [v for values in sent if values[0] not in refused for v in values]
    for values in sent:
        if values[0] not in refused:
            base = client.outcomes[values[0]].base
            assert stored[base : base + len(values)] == values
    assert client.joiner._lines == {}
