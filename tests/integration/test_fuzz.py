"""Every call of both daemons with what nobody should send: a typed status, and all live on.

    python -m tests.integration.test_fuzz SECONDS [SEED]        (make fuzz)

Messages are drawn field by field, with extreme values, with names that are there and names that are
not, then now and then cut, flipped or replaced by noise; streams get them in any number and order.
Callers have the role that may call. Between processes, where a lie is out of scope (everybody there
is believed, docs/guarantees.md), they name a store and a boot that do not exist.

Demanded: no status of an unexpected exception, no traceback in a log, no process that ends, no
memory that grows, and the logs that existed before take appends and have what they had.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from las.internal.v1 import raft_pb2
from las.v1 import fleet_pb2, forecast_pb2, log_admin_pb2, shard_map_pb2
from peerd.client.blocking import connect
from peerd.internal.v1 import replication_pb2
from peerd.pki import Identity, Role
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from peerd.transport.authz import allowed_roles
from peerd.transport.tls import plaintext_metadata
from peerd.v1 import incident_pb2, log_pb2
from tests.integration.load import tell

pytestmark = pytest.mark.timeout(300)
SECONDS = 12.0
SEED = 1
CALL_TIMEOUT_S = 0.3
STREAM_MESSAGES_MAX = 5
DEPTH_MAX = 4
# What the daemons may grow by after they have warmed up, in bytes: caches, threads, fragments.
GROWTH_BYTES_MAX = 48 << 20
WARM_SHARE = 0.3

PEER_FILES = (log_pb2, incident_pb2, shard_map_pb2, replication_pb2)
LAS_FILES = (fleet_pb2, forecast_pb2, log_admin_pb2, shard_map_pb2, raft_pb2)
# Whoever acts in another process's name is believed.
BETWEEN_PROCESSES = ("peerd.internal.", "las.internal.", "las.v1.FleetService")
UNEXPECTED = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}

INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    99,
    255,
    1 << 16,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 63,
    (1 << 64) - 1,
)
NAMES = (
    "",
    "a",
    "x" * 128,
    "x" * 5_000,
    "no/name",
    "../up",
    "UPPER",
    "_positions",
    "zeile\n",
    "\0",
    "ж",
)
REAL_NAMES = ("orders", "orders", "orders", "fuzz", "consumer")
# A deletion that is well-formed deletes: not the log that takes appends afterwards.
DELETED_NAMES = ("fuzz", "consumer")


class Drawer:
    """Draws messages."""

    def __init__(self, draw: random.Random, *, real: tuple[str, ...]) -> None:
        self._draw = draw
        self._real = real

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._draw.random() < 0.35:
                continue
            if field.message_type is not None and depth >= DEPTH_MAX:
                continue
            self._fill(message, field, depth)
        return message

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            self._fill_map(getattr(message, field.name), entry, depth)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(self._draw.choice((0, 1, 1, 2, 5, 200 if depth < 2 else 3))):
                if entry is not None:
                    values.add().CopyFrom(self.message(entry, depth + 1))
                else:
                    values.append(self._scalar(field))
        elif entry is not None:
            getattr(message, field.name).CopyFrom(self.message(entry, depth + 1))
        else:
            setattr(message, field.name, self._scalar(field))

    def _fill_map(self, values: object, entry: Descriptor, depth: int) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(self._draw.choice((0, 1, 3))):
            if value.message_type is not None:
                values[self._scalar(key)].CopyFrom(self.message(value.message_type, depth + 1))
            else:
                values[self._scalar(key)] = self._scalar(value)

    def _scalar(self, field: FieldDescriptor) -> object:
        draw = self._draw
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return draw.random() < 0.5
        if kind in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
            return draw.choice((0.0, -1.0, 0.5, 1e30, float("inf"), float("nan")))
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return draw.randbytes(draw.choice((0, 1, 8, 16, 16, 17, 300, 70_000)))
            return draw.choice(self._real if self._real and draw.random() < 0.7 else NAMES)
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return draw.choice((0, 1, 2, 3, 99))
        number = draw.choice(INTEGERS[:4] if draw.random() < 0.5 else INTEGERS)
        bits = 32 if kind in {field.CPPTYPE_INT32, field.CPPTYPE_UINT32} else 64
        if kind in {field.CPPTYPE_INT32, field.CPPTYPE_INT64}:
            return (number & ((1 << bits) - 1)) - ((1 << (bits - 1)) if number > 99 else 0)
        return number & ((1 << bits) - 1)

    def wire(self, descriptor: Descriptor) -> bytes:
        """A serialized message, sometimes damaged."""
        data = bytearray(self.message(descriptor).SerializeToString())
        chance = self._draw.random()
        if chance < 0.05:
            return self._draw.randbytes(self._draw.choice((1, 10, 1_000)))
        if chance < 0.12 and data:
            data[self._draw.randrange(len(data))] ^= 1 << self._draw.randrange(8)
        elif chance < 0.17:
            del data[self._draw.randrange(len(data) + 1) :]
        return bytes(data)


@dataclass(frozen=True)
class Target:
    """A method of one daemon."""

    member: Member
    method: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def is_internal(self) -> bool:
        return self.path[1:].startswith(BETWEEN_PROCESSES)


def targets(cluster: DevCluster) -> Iterator[Target]:
    for member, files in ((cluster.peers[0], PEER_FILES), (cluster.las[0], LAS_FILES)):
        for file in files:
            for service in file.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    yield Target(member, method)


def caller(path: str) -> Identity:
    """Somebody who may make the call; never a process of this cluster."""
    roles = allowed_roles(path)
    role = Role.ADMIN if Role.ADMIN in roles else min(roles)
    return Identity(cluster="dev", role=role, name="stranger")


def call(channel: grpc.Channel, target: Target, draw: random.Random) -> grpc.StatusCode:
    """One call; how it ended: with a status that is meant, and in one line."""
    method = target.method
    real = DELETED_NAMES if method.name == "DeleteLog" else REAL_NAMES
    drawer = Drawer(draw, real=() if target.is_internal else real)
    wires = [
        drawer.wire(method.input_type)
        for _ in range(draw.randrange(STREAM_MESSAGES_MAX + 1) if method.client_streaming else 1)
    ]
    options = {"timeout": CALL_TIMEOUT_S, "metadata": plaintext_metadata(caller(target.path))}
    code, words = grpc.StatusCode.OK, ""
    try:
        if method.client_streaming and method.server_streaming:
            _drain(channel.stream_stream(target.path, bytes, bytes)(iter(wires), **options))
        elif method.server_streaming:
            _drain(channel.unary_stream(target.path, bytes, bytes)(wires[0], **options))
        else:
            channel.unary_unary(target.path, bytes, bytes)(wires[0], **options)
    except grpc.RpcError as error:
        code, words = error.code(), error.details() or ""
    assert code not in UNEXPECTED, f"{target.path}: {code} {words}"
    assert len(words.splitlines()) <= 1, f"{target.path}: {words!r}"
    return code


def _drain(responses) -> None:
    for _ in responses:
        pass


def rss_anonymous_bytes(member: Member) -> int:
    """Memory of the process that is no file's: the map of the store is the kernel's to keep."""
    text = Path(f"/proc/{member.pid}/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


def run(directory: Path, seconds: float, seed: int) -> Counter[str]:
    """Call for so long; counts of (method, status). Raises at the first answer of a bug."""
    cluster = DevCluster(directory / "dev", Shape(peers=1, las=1), port_base=None, tls=False)
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    with cluster:
        with connect(credentials=cluster.peerctl_toml) as client:
            client.create_log("orders", shards=2, copies=1)
            # Nobody calls this one by its name, so nobody may trim it.
            client.create_log("kept", shards=1, copies=1)
            client.append("kept", b"before")
        every = list(targets(cluster))
        channels = {m.id: grpc.insecure_channel(m.address) for m in cluster.members}
        begin_s = time.monotonic()
        warm: dict[str, int] = {}
        while (now_s := time.monotonic() - begin_s) < seconds:
            if not warm and now_s > WARM_SHARE * seconds:
                warm = {m.id: rss_anonymous_bytes(m) for m in cluster.members}
            target = every[sum(counts.values()) % len(every)]
            code = call(channels[target.member.id], target, draw)
            counts[f"{target.path} {code.name}"] += 1
            assert target.member.running, f"{target.path} ended {target.member.id}"
        for channel in channels.values():
            channel.close()
        for member in cluster.members:
            assert member.running, member.id
            grown = rss_anonymous_bytes(member) - warm[member.id]
            tell(f"{member.id} grew by {grown >> 10} KiB")
            assert grown < GROWTH_BYTES_MAX, f"{member.id} grew by {grown} bytes"
            _, trace, rest = member.log.read_text().partition("Traceback")
            assert not trace, f"{member.id}: {rest[:3_000]}"
        with connect(credentials=cluster.peerctl_toml) as client:
            client.append("orders", b"after", key=b"k")
            client.append("kept", b"after")
            assert [record.value for record in client.read("kept")] == [b"before", b"after"]
    return counts


def test_no_call_finds_a_bug(tmp_path):
    counts = run(tmp_path, SECONDS, SEED)
    assert len({path.split()[0] for path in counts}) > 40


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 1_000_000
        tell(f"seed {seed}")
        found = run(Path(scratch), float(sys.argv[1]), seed)
        for name, count in sorted(found.items()):
            tell(f"{count:7} {name}")
