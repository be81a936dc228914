"""What a peer says of itself when it registers, checked and as plain values."""

import re
from dataclasses import dataclass

from las.daemon.services.results import invalid
from las.v1 import fleet_pb2
from peerd.core.ids import BootId, Epoch, NodeName, ShardId, StoreId
from peerd.settings import check_address

_ID = re.compile(r"[0-9a-f]{32}")
LABELS = frozenset({"host", "rack", "zone"})
# limit: characters of a label's value, as the peer's settings have it.
LABEL_CHARACTERS_MAX = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """`epochs` has for each shard in the store the highest epoch that it knows."""

    store: StoreId
    boot: BootId
    labels: tuple[tuple[str, str], ...]
    epochs: tuple[tuple[ShardId, Epoch], ...]


def is_id(text: str) -> bool:
    """Whether `text` can be a store or boot id."""
    return _ID.fullmatch(text) is not None


def parse_registration(name: NodeName, request: fleet_pb2.RegisterRequest) -> Registration:
    """Check a registration. Raises `Refused`: INVALID_ARGUMENT, naming the field."""
    for field, value in (("store_id", request.store_id), ("boot_id", request.boot_id)):
        if not is_id(value):
            raise invalid(f"{field} of {name}: expected 32 hexadecimal digits, not {value!r}")
    try:
        check_address(request.address)
    except ValueError as error:
        raise invalid(f"address of {name}, {request.address!r}: {error}") from error
    for label, value in request.labels.items():
        if label not in LABELS or not 0 < len(value) <= LABEL_CHARACTERS_MAX:
            raise invalid(
                f"label {label!r} of {name}: expected one of {', '.join(sorted(LABELS))} with 1 "
                f"to {LABEL_CHARACTERS_MAX} characters"
            )
    return Registration(
        store=StoreId(request.store_id),
        boot=BootId(request.boot_id),
        labels=tuple(sorted(request.labels.items())),
        epochs=tuple((ShardId(shard.shard), _highest(shard)) for shard in request.shards),
    )


def _highest(shard: fleet_pb2.StoredShard) -> Epoch:
    stored = [segment.epoch for segment in shard.segments]
    return Epoch(max(shard.promised, shard.adopted, *stored))
