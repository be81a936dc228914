"""What is checked of an append before a core sees it, and where it belongs.

Invariants:
- What passes is a batch that every reader can parse, with as many records as it says, within the
  limits, and with all its keys inside the shard it goes to (G5, G8). The bytes are passed on as
  they came.
- What does not pass is refused with *taken = no*: nothing of it was handed on.

Must not: decide who is primary, or wait for anything.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

import crc32c
import zstandard
from google.protobuf.message import DecodeError

from peerd.core.batch import NO_PRODUCER, BatchHeader
from peerd.core.errors import Reason
from peerd.core.ids import ProducerId, ShardId
from peerd.core.shard_map import Shard
from peerd.core.value import value
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.internal_logs import is_internal
from peerd.transport.limits import (
    DECOMPRESSED_BYTES_MAX,
    HEADER_NAME_BYTES_MAX,
    LOG_NAME_CHARACTERS_MAX,
    MAP_UNKNOWN_RETRY_MS,
    EdgeLimits,
)
from peerd.transport.map_cache import MapCache
from peerd.transport.map_service import unknown_log
from peerd.transport.plain_batch import plain_batch
from peerd.transport.status import Refused, refusal
from peerd.v1 import batch_pb2

PRODUCER_ID_BYTES = 16
SEQUENCE_END = 1 << 64
LOG_NAME = re.compile(rf"[a-z0-9._-]{{1,{LOG_NAME_CHARACTERS_MAX}}}")


@value(frozen=True, slots=True, kw_only=True)
class CheckedAppend:
    """An append that passed: `payload` is the serialized batch, `header` says what is in it.

    `joinable`: nothing but its records was said, so that they may share a batch with others.
    """

    log: str
    shard: ShardId
    header: BatchHeader
    payload: bytes
    expected_offset: int | None
    joinable: bool = False


def key_hash(key: bytes) -> int:
    """Where a key lies among the ranges of a log's shards: test vectors stand in batch.proto."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big")


class AppendEdge:
    """Checks appends against the map and the limits of one peer."""

    def __init__(
        self, cache: MapCache, limits: EdgeLimits, is_near: Callable[[ShardId], bool]
    ) -> None:
        """`is_near` tells shards that are served without a hop; where any will do, one is taken."""
        self._cache = cache
        self._limits = limits
        self._is_near = is_near
        self._turn = 0

    def check(self, request: log_bytes_pb2.AppendRequestBytes, payload: bytes) -> CheckedAppend:
        """Returns the append as a core takes it.

        Args:
            request: What is asked for.
            payload: Its `batch`: each look at that copies it.

        Raises:
            Refused: what is wrong with it; always taken = no.
        """
        if is_internal(request.log):
            raise invalid(
                "log", f"is {request.log!r}, a log of the system's own: nobody appends to it"
            )
        shards = self._shards_of(request.log)
        self._check_size(payload)
        payload_crc = crc32c.crc32c(payload)
        if request.HasField("payload_crc") and request.payload_crc != payload_crc:
            raise Refused(
                refusal(
                    Reason.CRC_MISMATCH,
                    f"payload_crc is {request.payload_crc:#010x}, the {len(payload)} bytes of the "
                    f"batch have {payload_crc:#010x}: damaged on the way, send them again",
                )
            )
        producer = _producer(request.producer_id)
        record_count, hashes = _contents(payload)
        if producer and request.first_sequence + record_count > SEQUENCE_END:
            raise invalid("first_sequence", "runs beyond 64 bits")
        low, high = (min(hashes), max(hashes)) if hashes else (0, 0)
        if request.HasField("shard"):
            shard = self._named_shard(request)
            if hashes:
                self._check_range(shard, low, high)
        else:
            shard = self._route(request.log, shards, hashes, producer)
        return CheckedAppend(
            log=request.log,
            shard=shard,
            header=BatchHeader(
                record_count=record_count,
                payload_crc=payload_crc,
                key_hash_low=low,
                key_hash_high=high,
                producer=producer,
                first_sequence=request.first_sequence if producer else 0,
                payload_bytes=len(payload),
            ),
            payload=payload,
            expected_offset=request.expected_offset
            if request.HasField("expected_offset")
            else None,
            joinable=not producer
            and not request.HasField("payload_crc")
            and not request.HasField("expected_offset"),
        )

    def _shards_of(self, log: str) -> tuple[ShardId, ...]:
        shards = self._cache.shards_of(log)
        if shards:
            return shards
        if not LOG_NAME.fullmatch(log):
            raise invalid("log", f"is {log!r}, must match {LOG_NAME.pattern}")
        if self._cache.version == 0:
            raise Refused(
                refusal(
                    Reason.MAP_UNKNOWN,
                    "this peer has not heard the shard map yet: try again, or another peer",
                    retry_after_ms=MAP_UNKNOWN_RETRY_MS,
                )
            )
        raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(log)))

    def _check_size(self, payload: bytes) -> None:
        if not payload:
            raise invalid("batch", "is missing: an append carries at least one record")
        if len(payload) > self._limits.batch_bytes_max:
            raise Refused(
                refusal(
                    Reason.BATCH_TOO_LARGE,
                    f"the batch has {len(payload)} bytes, the limit is "
                    f"{self._limits.batch_bytes_max} (append.batch_bytes_max): cut it",
                )
            )

    def _named_shard(self, request: log_bytes_pb2.AppendRequestBytes) -> ShardId:
        """A shard of the log; also one that was split, whose primary answers retries (§4.3)."""
        shard = ShardId(request.shard)
        if not self._cache.is_part(request.log, shard):
            raise Refused(refusal(Reason.UNKNOWN_SHARD, unknown_shard(request.log, shard)))
        return shard

    def _check_range(self, shard: ShardId, low: int, high: int) -> None:
        entry: Shard = self._cache.shards[shard]
        if low < entry.key_hash_low or high > entry.key_hash_high:
            raise Refused(
                refusal(
                    Reason.KEY_OUTSIDE_SHARD,
                    f"shard {shard} owns key hashes {entry.key_hash_low:#018x} to "
                    f"{entry.key_hash_high:#018x}, the batch has {low:#018x} to {high:#018x}: "
                    "refresh the map, or leave the shard out",
                )
            )

    def _route(
        self,
        log: str,
        shards: tuple[ShardId, ...],
        hashes: list[int],
        producer: ProducerId,
    ) -> ShardId:
        """Where a batch without a shard goes: by its keys, else by its producer, else anywhere."""
        if not hashes and not producer:
            near = [shard for shard in shards if self._is_near(shard)] or shards
            self._turn += 1
            return near[self._turn % len(near)]
        found = {self._cache.shard_for(log, one) for one in hashes or [key_hash(producer)]}
        if len(found) > 1:
            raise Refused(
                refusal(
                    Reason.KEYS_SPAN_SHARDS,
                    f"the keys of the batch belong to {len(found)} shards of {log!r}, and a batch "
                    "is atomic within one: cut it by key",
                )
            )
        shard = found.pop()
        if shard is None:
            raise Refused(
                refusal(
                    Reason.MAP_UNKNOWN,
                    f"this peer's map has no shard of {log!r} for the key: try again",
                    retry_after_ms=MAP_UNKNOWN_RETRY_MS,
                )
            )
        if producer:
            self._check_no_split(shard)
        return shard

    def _check_no_split(self, shard: ShardId) -> None:
        """A sequence belongs to the shard that it was first sent to, and only its sender knows
        whether that was the parent: sent to a child as well it could be stored twice (§4.3).
        """
        parent = self._cache.shards[shard].parent
        if parent is None:
            return
        wire = refusal(
            Reason.SPLIT,
            f"shard {parent.shard} was split at offset {parent.end}, and the batch does not say "
            f"which shard its sequence belongs to: name {parent.shard} if it was sent before the "
            f"split, else {shard}",
            first_offset=parent.end,
        )
        split = (
            self._cache.shards[parent.shard].split if parent.shard in self._cache.shards else None
        )
        wire.children.extend(() if split is None else split.children)
        raise Refused(wire)


# ------------------------------------------------------------------------------ contents of a batch


def parse_records(payload: bytes) -> list[batch_pb2.Record]:
    """The records of a serialized batch, which is thereby known to be readable.

    Raises:
        Refused: MALFORMED_BATCH, RECORD_COUNT_MISMATCH, or INVALID_ARGUMENT for a bad header.
    """
    return list(_checked(payload)[0])


def _contents(payload: bytes) -> tuple[int, list[int]]:
    """How many records a serialized batch has, and the hashes of their keys.

    Raises:
        Refused: as `parse_records`.
    """
    plain = plain_batch(payload)
    if plain is not None:
        return plain.records, []
    records, all_as_one = _checked(payload)
    # To look at each record takes twenty times as long as to parse them: not unless there is a key.
    hashes = _key_hashes(records) if all_as_one.HasField("key") else []
    return len(records), hashes


def _checked(payload: bytes) -> tuple[Sequence[batch_pb2.Record], batch_pb2.Record]:
    """The records, and all of them merged into one (`RecordsMerged`): what that does not have, none
    of them has.
    """
    try:
        batch = batch_pb2.Batch.FromString(payload)
        packed = batch.WhichOneof("data")
        if packed == "compressed":
            data = _decompress(batch)
            records = batch_pb2.Records.FromString(data).records
            merged = _merged(records, lambda: log_bytes_pb2.RecordsMerged.FromString(data))
        elif batch.codec == batch_pb2.CODEC_UNSPECIFIED:
            records = batch.records.records
            merged = _merged(records, lambda: log_bytes_pb2.BatchMerged.FromString(payload).records)
        else:
            raise _malformed(f"codec is {batch.codec}, but the records are not compressed")
    except DecodeError as error:
        raise _malformed(f"its bytes are no peerd.v1.Batch ({error})") from error
    count = len(records)
    if count != batch.record_count:
        raise Refused(
            refusal(
                Reason.RECORD_COUNT_MISMATCH,
                f"record_count is {batch.record_count}, the batch holds {count} records: "
                "set it to their number",
            )
        )
    if count == 0:
        raise invalid("batch", "holds no record: an append carries at least one")
    for header in merged.headers:
        if len(header.name.encode()) > HEADER_NAME_BYTES_MAX:
            raise invalid("headers", f"name longer than {HEADER_NAME_BYTES_MAX} bytes")
    return records, merged


def _merged(
    records: Sequence[batch_pb2.Record], parse: Callable[[], log_bytes_pb2.RecordsMerged]
) -> batch_pb2.Record:
    return records[0] if len(records) == 1 else parse().records


def _decompress(batch: batch_pb2.Batch) -> bytes:
    if batch.codec != batch_pb2.CODEC_ZSTD:
        raise _malformed(f"codec {batch.codec} is not known for compressed records")
    try:
        # A frame that names its size is unpacked to that size whatever limit is given.
        if zstandard.frame_content_size(batch.compressed) > DECOMPRESSED_BYTES_MAX:
            raise _malformed(f"it unpacks to more than {DECOMPRESSED_BYTES_MAX} bytes")
        return zstandard.ZstdDecompressor().decompress(
            batch.compressed, max_output_size=DECOMPRESSED_BYTES_MAX, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise _malformed(f"its compressed records cannot be unpacked ({error})") from error


def _key_hashes(records: Iterable[batch_pb2.Record]) -> list[int]:
    sha256 = hashlib.sha256
    from_bytes = int.from_bytes
    # An empty key is a key: only its presence tells it from none.
    return [
        from_bytes(sha256(record.key).digest()[:8], "big")
        for record in records
        if record.key or record.HasField("key")
    ]


def _producer(raw: bytes) -> ProducerId:
    if not raw:
        return NO_PRODUCER
    if len(raw) != PRODUCER_ID_BYTES:
        raise invalid("producer_id", f"has {len(raw)} bytes, must have {PRODUCER_ID_BYTES} or none")
    if not any(raw):
        raise invalid("producer_id", "is all zero: draw 16 random bytes")
    return ProducerId(raw)


# ------------------------------------------------------------------------------ refusals


def invalid(field: str, what: str) -> Refused:
    """INVALID_ARGUMENT for one field of a request."""
    return Refused(refusal(Reason.INVALID_ARGUMENT, f"{field} {what}"))


def unknown_shard(log: str, shard: int) -> str:
    """The message for a shard that the log does not have."""
    return f"log {log!r} has no shard {shard}: refresh the map, or leave the shard out"


def _malformed(why: str) -> Refused:
    return Refused(
        refusal(Reason.MALFORMED_BATCH, f"the batch cannot be read: {why}; nothing was appended")
    )
