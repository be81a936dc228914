"""What a peer says of itself when it registers, checked and as plain values."""

import re
from collections.abc import Callable
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
    """Of each shard in the store: `epochs` are all that it knows, promised ones too; `adopted` are
    those that it has adopted or stored; `sealed` those of which the map told it the end.
    """

    store: StoreId
    boot: BootId
    labels: tuple[tuple[str, str], ...]
    epochs: tuple[tuple[ShardId, Epoch], ...]
    adopted: tuple[tuple[ShardId, Epoch], ...]
    sealed: tuple[tuple[ShardId, Epoch], ...]


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
        epochs=_pairs(request, lambda shard: {shard.promised, *_adopted(shard)}),
        adopted=_pairs(request, _adopted),
        sealed=_pairs(
            request, lambda shard: {each.epoch for each in shard.segments if each.sealed}
        ),
    )


def _pairs(
    request: fleet_pb2.RegisterRequest, epochs_of: Callable[[fleet_pb2.StoredShard], set[int]]
) -> tuple[tuple[ShardId, Epoch], ...]:
    return tuple(
        (ShardId(shard.shard), Epoch(epoch))
        for shard in request.shards
        for epoch in sorted(epochs_of(shard))
    )


def _adopted(shard: fleet_pb2.StoredShard) -> set[int]:
    return {shard.adopted, *(segment.epoch for segment in shard.segments)}
