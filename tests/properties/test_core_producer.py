"""The producer table against one that remembers everything."""

from hypothesis import given, settings
from hypothesis import strategies as st

from peerd.core.batch import BatchHeader
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, ProducerId
from peerd.core.limits import PRODUCER_WINDOW_BATCHES
from peerd.core.producer import ProducerTable, TableBatch, empty_table, merged

ONE, TWO = ProducerId(b"1" * 16), ProducerId(b"2" * 16)


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[ProducerId, int, int]]:
    """(producer, sequence, count): mostly the next batch, often one that was sent before."""
    following = {ONE: 0, TWO: 0}
    sent: list[tuple[ProducerId, int, int]] = []
    for _ in range(draw(st.integers(0, 90))):
        kind = draw(st.sampled_from(["next", "next", "next", "again", "gap"]))
        producer = draw(st.sampled_from([ONE, ONE, TWO]))
        if kind == "again" and sent:
            sent.append(draw(st.sampled_from(sent)))
            continue
        count = draw(st.integers(1, 3))
        skip = 1 if kind == "gap" else 0
        sent.append((producer, following[producer] + skip, count))
        following[producer] += 0 if skip else count
    return sent


def header_of(request: tuple[ProducerId, int, int]) -> BatchHeader:
    producer, sequence, count = request
    return BatchHeader(
        record_count=count,
        payload_crc=0,
        producer=producer,
        first_sequence=sequence,
        payload_bytes=0,
    )


@settings(max_examples=150)
@given(requests(), st.data())
def test_a_sequence_is_taken_once_and_a_retry_finds_its_place(sent, data):
    table, end = ProducerTable(empty_table()), Offset(0)
    places: dict[tuple[ProducerId, int, int], Offset] = {}
    following = {ONE: 0, TWO: 0}
    in_flight: list[tuple[Offset, BatchHeader]] = []
    since = data.draw(st.integers(0, 20).map(Offset))
    base = empty_table() if since == 0 else None
    for request in sent:
        producer, sequence, count = request
        header = header_of(request)
        verdict = table.judge(header)
        if request in places:
            if isinstance(verdict, TableBatch):
                assert verdict.base == places[request]
            else:
                assert verdict is not None
                assert verdict.reason is Reason.SEQUENCE_TOO_OLD
                later = [p for p in places if p[0] == producer and p[1] > sequence]
                assert len(later) >= PRODUCER_WINDOW_BATCHES
        elif sequence != following[producer]:
            assert verdict is not None
            assert not isinstance(verdict, TableBatch)
        elif verdict is None:
            table.order(Epoch(1), end, header)
            places[request] = end
            following[producer] += count
            end = Offset(end + count)
            in_flight.append((end, header))
        else:
            assert not isinstance(verdict, TableBatch)
            assert verdict.reason is Reason.PRODUCER_WINDOW_FULL
        while in_flight and data.draw(st.booleans()):
            table.commit(*in_flight.pop(0))
            if base is None and table.as_of >= since:
                base = table.snapshot()
    if base is not None:
        assert merged(base, table.snapshot(base.as_of)) == table.snapshot()
