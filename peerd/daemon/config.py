"""Settings of a peer. `python -m peerd.daemon.config --reference` prints the reference page.

Each key has its unit in its name, a default that suits a production host, and a description; all
of it stands here (and, for what every daemon has, in `peerd.transport.endpoint`). Must not:
interpret a setting, which is its user's task, or look at anything but file, environment, options.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from peerd.core.chunks import CHUNK_BYTES
from peerd.pki import Identity, Role
from peerd.recorder.ring import RING_BYTES_MAX, RING_BYTES_MIN
from peerd.settings import Address, ConfigError, Section, is_loopback, load, reference
from peerd.transport import endpoint
from peerd.transport.caller_limits import CallerLimits
from peerd.transport.endpoint import ConnectionLimits, Endpoint
from peerd.transport.options import MESSAGE_BYTES_MAX

__all__ = ["ConfigError", "PeerdConfig", "load_config", "verify_identity"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

ENVIRONMENT_PREFIX = "PEERD"
# limit: bytes that append.batch_bytes_max may be set to; a batch travels inside a gRPC message
# that also holds its header and, on a replication stream, its neighbours
BATCH_BYTES_LIMIT = MESSAGE_BYTES_MAX // 2
# From the peer port to the client port, where only the former is given; the one between them is
# `http_listen` by default.
CLIENT_PORT_OFFSET = 2
# limit: the highest port that TCP has
PORT_MAX = 65_535
# limit: front workers of a peer; each is a Python of 40 MB that can keep a core busy, and the one
# sequencer behind them is the bound before so many are
WORKERS_MAX = 32
# From so many cores on a peer has workers by default: below, the sequencer, its threads and those
# of gRPC have work for all of them.
CORES_FOR_WORKERS_MIN = 4
# limit: workers by default; as many as the appends of a busy peer need
WORKERS_DEFAULT_MAX = 8
# limit: keys of the tier; one more with each rotation, until what the oldest wrote is gone
TIER_KEYS_MAX = 64
# limit: LAS addresses in a configuration; a group has 1, 3 or 5 nodes
LAS_ADDRESSES_MAX = 9


def default_workers(cores: int | None = None) -> int:
    """Front workers of a peer on so many cores (of this process, if None): half, or none."""
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    return min(cores // 2, WORKERS_DEFAULT_MAX) if cores >= CORES_FOR_WORKERS_MIN else 0


def _client_listen_default(data: dict[str, Any]) -> str:
    host, _, port_text = data["listen"].rpartition(":")
    port = int(port_text)
    # 0 takes a free one here, too.
    if port:
        port += CLIENT_PORT_OFFSET if port + CLIENT_PORT_OFFSET <= PORT_MAX else -CLIENT_PORT_OFFSET
    return f"{host}:{port}"


class FailureDomain(Section):
    """What fails together with this peer."""

    host: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=253,
        description="Peers with the same value share a machine: no two copies of a record lie "
        "there. By default this host's name",
    )
    rack: str = Field(
        default="", max_length=253, description="Copies are kept in different racks if possible"
    )
    zone: str = Field(
        default="", max_length=253, description="Copies are kept in different zones if possible"
    )


class Storage(Section):
    """The store."""

    map_size_bytes_max: int = Field(
        default=64 * GIB,
        ge=16 * MIB,
        description="Size up to which the store file may grow. It grows ahead of need and never "
        "shrinks",
    )
    reserve_bytes: int = Field(
        default=1 * GIB,
        ge=0,
        description="Free space, of the disk and of the store, below which appends are refused "
        "with `DISK_RESERVE`. Reads go on",
    )
    commit_bytes_max: int = Field(
        default=8 * MIB,
        ge=1 * MIB,
        le=256 * MIB,
        description="Bytes that one storage commit takes from the queue at most",
    )
    queue_bytes_max: int = Field(
        default=64 * MIB,
        ge=8 * MIB,
        description="Bytes that wait for the storage writer at most. Beyond it appends get "
        "`OVERLOADED`",
    )
    chunk_bytes: int = Field(
        default=CHUNK_BYTES,
        ge=KIB,
        description="Bytes of a chunk, the unit in which a shard is trimmed. The same on all peers",
    )


class Append(Section):
    """What clients may have under way."""

    batch_bytes_max: int = Field(
        default=1 * MIB,
        ge=1 * KIB,
        le=BATCH_BYTES_LIMIT,
        description="Size of one batch. A larger one gets `BATCH_TOO_LARGE`",
    )
    inflight_bytes_max: int = Field(
        default=64 * MIB,
        ge=1 * MIB,
        description="Bytes of unanswered appends on this peer. Beyond it appends get `OVERLOADED`",
    )
    producer_expiry_s: int = Field(
        default=7 * 24 * 3600,
        ge=3600,
        description="A producer that has appended nothing to a shard for so long is forgotten "
        "there, and begins anew under another id when it comes back",
    )


class Limits(ConnectionLimits):
    """What strangers and callers may cost. Of each caller, by its certificate's name; peers and LAS
    nodes are not counted. Each front worker counts for itself.
    """

    requests_per_s: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Calls, and appends of streams, that one caller may make in a second. Beyond "
        "it they get `OVERLOADED`, with the time to wait. 0 is no limit",
    )
    bytes_per_s: int = Field(
        default=0,
        ge=0,
        le=1 << 40,
        description="Bytes of batches that one caller may append or read in a second. Beyond it "
        "appends get `OVERLOADED`, and reads wait. 0 is no limit",
    )
    connections_max: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Connections of one caller that have an open stream, or had a call within the "
        "last minute. Calls on another one get `OVERLOADED`. 0 is no limit",
    )

    def of_callers(self) -> CallerLimits:
        """Those of callers."""
        return CallerLimits(
            requests_per_s=self.requests_per_s,
            bytes_per_s=self.bytes_per_s,
            connections_max=self.connections_max,
        )


class Replication(Section):
    """Streams to other peers."""

    frame_bytes_max: int = Field(
        default=2 * MIB,
        ge=64 * KIB,
        le=MESSAGE_BYTES_MAX // 2,
        description="Size up to which batches are joined into one message",
    )
    frames_inflight_max: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Unacknowledged messages on one stream. Few join what arrives meanwhile",
    )
    queue_bytes_max: int = Field(
        default=64 * MIB,
        ge=8 * MIB,
        description="Bytes kept in memory for a peer that lags. Beyond it they are read from disk",
    )
    beat_ms: int = Field(
        default=250,
        ge=10,
        le=10_000,
        description="Time between two frames on an idle stream, by which peers hear each other",
    )
    commit_notice_ms: int = Field(
        default=20,
        ge=0,
        le=1_000,
        description="Time after which a commit offset travels alone if no batch takes it along; "
        "reads of a shadow's own copy lag by so much more when appends pause",
    )


class Copier(Section):
    """What this peer moves in the background: repair, pre-fetch, drain, and the way to the tier."""

    bytes_per_s_max: int = Field(
        default=160 * MIB,
        ge=64 * KIB,
        description="Bytes a second of all background work together: copies that this peer "
        "fetches, copies that it gives, and what goes to the tier and is compared there. With "
        "`network_bytes_per_s`, at most half of that",
    )
    busy_bytes_per_s_max: int = Field(
        default=8 * MIB,
        ge=64 * KIB,
        description="The same for copies while appends are written here: they go first. What goes "
        "to the tier makes room for them, and does not wait",
    )
    urgent_bytes_per_s_max: int = Field(
        default=24 * MIB,
        ge=64 * KIB,
        description="The same for copies of segments that the next loss may hurt: those with fewer "
        "holders on healthy nodes than the `acks` that their records were answered with, or with "
        "one holder left of several. Such copies go faster beside appends, though these feel it; "
        "never slower than `busy_bytes_per_s_max`",
    )


class Scrub(Section):
    """Reading all that is stored, again and again, to find damaged batches and repair them."""

    bytes_per_s_max: int = Field(
        default=8 * MIB,
        ge=0,
        description="Bytes a second that the scrub reads of the own store; a batch counts as 4 KiB "
        "at least. 0 switches it off",
    )
    interval_s: int = Field(
        default=24 * 3600,
        ge=1,
        description="Least time between the beginnings of two passes over the store",
    )


class Tier(Section):
    """The object store for what is too old for this peer's disk (docs/tiers.md)."""

    url: str = Field(
        default="",
        pattern=r"^(s3://[^/\s]+(/[^\s]*)?|file:///[^\s]+)?$",
        description="`s3://bucket/prefix`, or `file:///directory` for the mount of a large disk, "
        "the same on all peers. Empty: this peer has no tier",
    )
    endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^\s]+)?$",
        description="Address of an S3 server that is not Amazon's, `https://host:port`",
    )
    region: str = Field(default="", description="Region of the bucket, where the server has some")
    access_key_id_file: Path | None = Field(
        default=None,
        description="File with the access key id. Without it the environment (`AWS_…`) and the "
        "machine's role are asked",
    )
    secret_access_key_file: Path | None = Field(
        default=None, description="File with the secret access key; a systemd credential is one"
    )
    key_files: tuple[Path, ...] = Field(
        default=(),
        max_length=TIER_KEYS_MAX,
        description="Files with keys of 32 bytes, or 64 hexadecimal digits: what goes to the tier "
        "is encrypted with the first, and read with any of them. None: it is not encrypted",
    )
    object_bytes: int = Field(
        default=32 * MIB,
        ge=4 * KIB,
        le=256 * MIB,
        description="Bytes of records in one object; memory for some three of them is needed",
    )
    cache_bytes: int = Field(
        default=32 * MIB, ge=MIB, description="Bytes of records from the tier kept in memory"
    )
    upload_bytes_per_s_max: int = Field(
        default=80 * MIB, ge=64 * KIB, description="Bytes a second that go to the tier at most"
    )
    lag_bytes_max: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that may wait for the tier beyond the hot bytes of the shards that this "
        "peer orders. Beyond it appends get `OVERLOADED`, and come as fast as the tier takes. By "
        "default half of the store's room; more than the disk has: appends go on until "
        "`storage.reserve_bytes`",
    )
    deadline_ms: int = Field(
        default=30_000,
        ge=100,
        le=600_000,
        description="Time that one call to the object store may take",
    )
    attempts: int = Field(
        default=4,
        ge=1,
        le=20,
        description="Times that a call is tried, with growing pauses, before it has failed",
    )
    remove_after_s: int = Field(
        default=60,
        ge=0,
        le=7 * 24 * 3600,
        description="Time that objects stay in the tier after what is in them was trimmed, or its "
        "log was deleted",
    )


class TierFile(Section):
    """What of a peer's configuration commands read that look at the tier themselves."""

    tier: Tier = Field(default_factory=Tier)


class Telemetry(Section):
    """What the peer tells about its health."""

    record_file: Path | None = Field(
        default=None,
        description="File to which each sample is also appended, for training and for research",
    )
    smart_device: Path | None = Field(
        default=None,
        description="Disk that `smartctl` is asked about, e.g. `/dev/sda`; by default the one that "
        "`data_dir` lies on, which cannot be found below a RAID or several disks",
    )


class Testing(Section):
    """Only for tests, demo and fault lab; leave it out elsewhere."""

    faults_file: Path | None = Field(
        default=None,
        description="File from which `peerd.testing.faults` reads which storage faults to play",
    )


class PeerdConfig(Endpoint):
    """All settings of a peer."""

    listen: Address = Field(
        default="0.0.0.0:7400", description="Address for gRPC, `host:port`. Port 0 takes a free one"
    )
    http_listen: Address = Field(
        default="127.0.0.1:7401",
        description="Address for plain HTTP: `/metrics`, `/healthz`. Port 0 takes a free one",
    )
    workers: int = Field(
        default_factory=default_workers,
        ge=0,
        le=WORKERS_MAX,
        description="Front worker processes, which take many small clients' calls at "
        "`client_listen` and give the appends to this one in batches. 0 has no such port, and all "
        "is served at `listen`. By default half as many as there are cores, at most "
        f"{WORKERS_DEFAULT_MAX}, and 0 below {CORES_FOR_WORKERS_MIN} cores",
    )
    client_listen: Address = Field(
        default_factory=_client_listen_default,
        description="Address of the front workers for gRPC, `host:port`; without workers unused. "
        "Port 0 takes a free one. By default the host of `listen` and its port plus "
        f"{CLIENT_PORT_OFFSET}",
    )
    las: tuple[Address, ...] = Field(
        min_length=1,
        max_length=LAS_ADDRESSES_MAX,
        description="Addresses of the LAS nodes; one that answers is enough",
    )
    role: Literal["any", "shadow"] = Field(
        default="any",
        description="A `shadow` stores copies and is never primary",
    )
    network_bytes_per_s: int = Field(
        default=0,
        ge=0,
        description="What the link of this host bears in one direction, 125000000 for 1 Gbit/s. "
        "The LAS gives the peer no shard that would fill it beyond 80 %. 0: it bears everything",
    )
    stall_timeout_ms: int = Field(
        default=500,
        ge=50,
        le=60_000,
        description="Time without an acknowledgement after which a shadow is reported and replaced",
    )
    drain_timeout_ms: int = Field(
        default=200,
        ge=0,
        le=60_000,
        description="Time that a hand-over gives the batches under way to commit",
    )
    shutdown_timeout_ms: int = Field(
        default=5_000,
        ge=0,
        le=600_000,
        description="Time that a stop gives the calls under way to end",
    )
    flight_recorder_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=RING_BYTES_MAX,
        description="Size of the file that keeps what this process was last given to decide, for "
        "`peerctl incident save`. 0 records nothing",
    )
    flight_recorder_dir: Path | None = Field(
        default=None,
        description="Directory of that file, by default `data_dir`. One on a memory file system "
        "outlives the process, not the machine, and never waits for a disk",
    )
    failure_domain: FailureDomain = Field(default_factory=FailureDomain)
    storage: Storage = Field(default_factory=Storage)
    append: Append = Field(default_factory=Append)
    limits: Limits = Field(default_factory=Limits)
    replication: Replication = Field(default_factory=Replication)
    copier: Copier = Field(default_factory=Copier)
    scrub: Scrub = Field(default_factory=Scrub)
    tier: Tier = Field(default_factory=Tier)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    testing: Testing = Field(default_factory=Testing)


def load_config(
    path: Path | None,
    overrides: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> PeerdConfig:
    """Reads a peer's settings: `overrides` (dotted key -> value) over environment over file.

    Raises:
        ConfigError: something in them is wrong; one line with place and advice.
    """
    return load(
        PeerdConfig,
        path=path,
        prefix=ENVIRONMENT_PREFIX,
        overrides=overrides,
        environment=environment,
        check=_mistakes,
    )


def verify_identity(config: PeerdConfig) -> Identity:
    """Judges the certificates, and that they are this peer's. Raises `ConfigError`."""
    return endpoint.verify_identity(config, Role.PEER)


def _mistakes(config: PeerdConfig) -> Iterator[tuple[str, str]]:
    yield from endpoint.endpoint_mistakes(config, [("las", address) for address in config.las])
    if config.workers:
        if config.tls is None and not is_loopback(config.client_listen):
            message = f"{config.client_listen} is off loopback, where plaintext is refused"
            yield "client_listen", f"{message}: set [tls]"
        if config.client_listen.rpartition(":")[2] in _taken_ports(config):
            yield "client_listen", "must have a port of its own, beside listen and http_listen"
    if config.storage.reserve_bytes >= config.storage.map_size_bytes_max:
        yield (
            "storage.reserve_bytes",
            "leaves no room: it must be below storage.map_size_bytes_max",
        )
    if (config.tier.access_key_id_file is None) != (config.tier.secret_access_key_file is None):
        yield "tier.access_key_id_file", "and tier.secret_access_key_file go together"
    if 0 < config.flight_recorder_bytes < RING_BYTES_MIN:
        yield "flight_recorder_bytes", f"must be 0 (off) or at least {RING_BYTES_MIN}"
    if config.append.batch_bytes_max > config.append.inflight_bytes_max:
        yield "append.batch_bytes_max", "must not exceed append.inflight_bytes_max"
    if config.append.batch_bytes_max > config.replication.frame_bytes_max:
        yield "append.batch_bytes_max", "must not exceed replication.frame_bytes_max"


def _taken_ports(config: PeerdConfig) -> set[str]:
    return {address.rpartition(":")[2] for address in (config.listen, config.http_listen)} - {"0"}


REFERENCE_HEAD = """\
# Configuration

Printed from the code by `make docs`; do not edit.

Each daemon reads one TOML file (`-c FILE`). An environment variable beats the file; in it, lists
are written `a,b,c` and tables `name=value,name=value`. A path in a file is relative to that file.
An unknown key, a wrong type or a value out of its range is an error that names file, line and key;
`peerd check -c FILE` and `las check -c FILE` find them without starting anything. A key's unit is
the end of its name.

A peer's whole file may be as short as this:

```toml
cluster = "shop"
name = "peer-1"
las = ["las-1.example:7500", "las-2.example:7500", "las-3.example:7500"]
data_dir = "/var/lib/peerd"
tls.ca = "/etc/peerd/ca.pem"
tls.certificate = "/etc/peerd/peer-1.cert.pem"
tls.key = "/etc/peerd/peer-1.key.pem"
```

"""


if __name__ == "__main__":
    if sys.argv[1:] != ["--reference"]:
        sys.exit("usage: python -m peerd.daemon.config --reference")
    sys.stdout.write(REFERENCE_HEAD + reference(PeerdConfig, ENVIRONMENT_PREFIX, "peerd"))
