"""How far a producer may run ahead of a batch that has no answer (docs/protocol.md §3.1)."""

from peerd.client.pipeline import Batch, keeps_window
from peerd.core.limits import PRODUCER_WINDOW_BATCHES
from peerd.internal.v1 import log_bytes_pb2


def batch(number: int) -> Batch:
    append = log_bytes_pb2.AppendRequestBytes()
    return Batch(
        entries=[],
        append=append,
        payload=b"",
        record_count=1,
        earliest_deadline=0.0,
        number=number,
    )


def test_the_oldest_batch_without_an_answer_stays_within_the_window():
    held = [batch(7)]
    assert keeps_window(7 + PRODUCER_WINDOW_BATCHES - 1, held)
    assert not keeps_window(7 + PRODUCER_WINDOW_BATCHES, held)
    assert keeps_window(1_000, [])
    assert keeps_window(1_000, [batch(990), batch(999)])
