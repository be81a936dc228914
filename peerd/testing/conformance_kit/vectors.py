"""Vectors for authors of clients: `docs/client-vectors.json` is what this makes.

Key hashes, the shard of a log that each goes to, and CRC-32C of serialized batches: what two
programs must agree about to the bit. Made from the code that servers and our client run.
"""

import json
import sys

import crc32c

from las.core.state import key_range
from peerd.transport.append_edge import key_hash
from peerd.v1 import batch_pb2

KEYS = (
    b"",
    b"\x00",
    b"household-900",
    b"orders/31198570044",
    "Grüße".encode(),
    bytes(range(256)),
    b"k" * 1000,
)
SHARD_COUNTS = (1, 2, 3, 4, 5)


def shard_index(hashed: int, count: int) -> int:
    """Which of `count` shards of a new log, counted from 0, has that key hash."""
    return next(index for index in range(count) if hashed <= key_range(index, count)[1])


def batches() -> list[batch_pb2.Batch]:
    """Small batches of every shape."""
    header = batch_pb2.Header(name="trace", value=b"\x01\x02")
    records = (
        [batch_pb2.Record(value=b"hello")],
        [batch_pb2.Record(key=b"household-900", value=b"hello", headers=[header])],
        [batch_pb2.Record(key=b"", value=b"", timestamp_ms=1_764_460_800_000)],
        [batch_pb2.Record(key=b"a", value=b"1"), batch_pb2.Record(key=b"a", value=b"2")],
    )
    return [
        batch_pb2.Batch(record_count=len(each), records=batch_pb2.Records(records=each))
        for each in records
    ]


def vectors() -> dict[str, object]:
    """All of them, as JSON has them; bytes are hexadecimal."""
    return {
        "key_hash": [
            {
                "key": key.hex(),
                "hash": f"{key_hash(key):016x}",
                "shard_index_of": {
                    str(count): shard_index(key_hash(key), count) for count in SHARD_COUNTS
                },
            }
            for key in KEYS
        ],
        "shard_ranges": {
            str(count): [
                {"low": f"{low:016x}", "high": f"{high:016x}"}
                for low, high in (key_range(index, count) for index in range(count))
            ]
            for count in SHARD_COUNTS
        },
        "payload_crc": [
            {"batch": data.hex(), "crc32c": f"{crc32c.crc32c(data):08x}"}
            for data in (batch.SerializeToString(deterministic=True) for batch in batches())
        ],
    }


def main() -> None:
    """Print them."""
    sys.stdout.write(json.dumps(vectors(), indent=2) + "\n")


if __name__ == "__main__":
    main()
