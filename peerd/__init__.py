"""peerd: a replicated transaction log that moves its data before a machine dies.

    import peerd

    with peerd.connect("localhost:7400", credentials="build/dev/peerctl.toml") as client:
        receipt = client.append("orders", b"…", key=b"household-900")
        for record in client.read("orders", start="earliest"):
            ...

`peerd.aio.connect` is the same for asyncio. docs/client.md tells the rest.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peerd import aio
    from peerd.client.blocking import Client, Producer, connect
    from peerd.client.errors import (
        AccessDenied,
        AppendError,
        BatchDamaged,
        BatchTooLarge,
        ClientClosed,
        CodecUnknown,
        ConnectFailed,
        CorruptData,
        CredentialsError,
        DiskReserve,
        InternalError,
        InvalidRequest,
        KeysSpanShards,
        LasUnavailable,
        LimitReached,
        LogExists,
        ModelRejected,
        NotAppended,
        NotEnoughPeers,
        NotServedYet,
        OffsetBeyondTail,
        OffsetMismatch,
        OutcomeUnknown,
        Overloaded,
        PeerdError,
        QueueFull,
        ReadError,
        RecordsMissing,
        StateConflict,
        Trimmed,
        Unavailable,
        UnknownLog,
        UnknownModel,
        UnknownNode,
        UnknownShard,
        taken_of,
    )
    from peerd.client.options import ClientOptions, ProducerOptions
    from peerd.client.values import NewRecord, Position, Receipt, Record, Tail
    from peerd.pki import TlsFiles

__version__ = "0.1.0"

# The C core of gRPC writes a line to stderr for each connection that ends; it reads this when it
# starts. Whoever wants those lines sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__all__ = [
    "AccessDenied",
    "AppendError",
    "BatchDamaged",
    "BatchTooLarge",
    "Client",
    "ClientClosed",
    "ClientOptions",
    "CodecUnknown",
    "ConnectFailed",
    "CorruptData",
    "CredentialsError",
    "DiskReserve",
    "InternalError",
    "InvalidRequest",
    "KeysSpanShards",
    "LasUnavailable",
    "LimitReached",
    "LogExists",
    "ModelRejected",
    "NewRecord",
    "NotAppended",
    "NotEnoughPeers",
    "NotServedYet",
    "OffsetBeyondTail",
    "OffsetMismatch",
    "OutcomeUnknown",
    "Overloaded",
    "PeerdError",
    "Position",
    "Producer",
    "ProducerOptions",
    "QueueFull",
    "ReadError",
    "Receipt",
    "Record",
    "RecordsMissing",
    "StateConflict",
    "Tail",
    "TlsFiles",
    "Trimmed",
    "Unavailable",
    "UnknownLog",
    "UnknownModel",
    "UnknownNode",
    "UnknownShard",
    "aio",
    "connect",
    "taken_of",
]

_HOMES = {
    "aio": "peerd.aio",
    "Client": "peerd.client.blocking",
    "connect": "peerd.client.blocking",
    "ClientOptions": "peerd.client.options",
    "Producer": "peerd.client.blocking",
    "ProducerOptions": "peerd.client.options",
    "NewRecord": "peerd.client.values",
    "Position": "peerd.client.values",
    "Receipt": "peerd.client.values",
    "Record": "peerd.client.values",
    "Tail": "peerd.client.values",
    "TlsFiles": "peerd.pki",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: the daemons import this package, too."""
    if name not in __all__:
        raise AttributeError(f"module 'peerd' has no attribute {name!r}")
    module = import_module(_HOMES.get(name, "peerd.client.errors"))
    value = module if name == "aio" else getattr(module, name)
    globals()[name] = value
    return value
