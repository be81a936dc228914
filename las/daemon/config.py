"""Settings of a LAS node. `python -m las.daemon.config --reference` prints the reference page.

Each key has its unit in its name, a default that suits a production group, and a description; all
of it stands here (and, for what every daemon has, in `peerd.transport.endpoint`). All nodes of a
group take the same `members` and `policy`. Must not: interpret a setting, which is its user's task.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from las.core.judgement import Rules
from peerd.pki import Identity, IdentityError, Role, check_name
from peerd.recorder.ring import RING_BYTES_MAX, RING_BYTES_MIN
from peerd.settings import Address, ConfigError, Section, is_loopback, load, reference
from peerd.transport import endpoint
from peerd.transport.endpoint import Endpoint

__all__ = ["ConfigError", "LasConfig", "load_config", "verify_identity"]

ENVIRONMENT_PREFIX = "LAS"
MIB = 1024 * 1024
GIB = 1024 * MIB
LABEL = r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$"
# A group of two would stop with either of its nodes; more than five only slow each other down.
GROUP_SIZES = (1, 3, 5)


class Policy(Section):
    """When a node is at risk, and how much may be done about it."""

    interval_ms: int = Field(
        default=1_000, ge=100, le=60_000, description="Time between two forecasts of the fleet"
    )
    threshold: float = Field(
        default=0.8,
        gt=0.0,
        le=1.0,
        description="Probability of failing within `horizon_s` from which a node is at risk",
    )
    horizon_s: Literal[600, 3_600] = Field(
        default=600, description="Horizon whose probability is compared with `threshold`"
    )
    consecutive: int = Field(
        default=2,
        ge=1,
        le=60,
        description="Forecasts in a row that must hold before anything is moved",
    )
    off_share: float = Field(
        default=0.5,
        ge=0.0,
        lt=1.0,
        description="Share of its line below which a node at risk begins to count as recovered",
    )
    off_after_s: int = Field(
        default=900,
        ge=0,
        le=86_400,
        description="Time that it has to stay below that to be no longer at risk",
    )
    pause_cost_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=1024 * GIB,
        description="What the unforeseen pause of one shard is worth, in bytes of copying. At "
        "horizons beyond an hour a node is at risk when the probability of its failure × its cost "
        "(this for each shard that it leads, and `exposure_cost` × what it stores) reaches the "
        "cost of protecting it (`shadow_cost_bytes` for each vote, and what it stores)",
    )
    exposure_cost: float = Field(
        default=4.0,
        ge=0.0,
        le=1e6,
        description="What it is worth that a byte is never on fewer copies than promised, in times "
        "that it could be copied. With 1 or less what is stored never makes protection pay",
    )
    shadow_cost_bytes: int = Field(
        default=8 * MIB,
        ge=0,
        le=1024 * GIB,
        description="Cost of one planned change of a shard, in bytes of copying",
    )
    slow_factor: float = Field(
        default=20.0,
        ge=2.0,
        le=10_000.0,
        description="Storage latency (p99), or time that its process stands still, as a multiple "
        "of the node's own past, from which it is at risk for that alone",
    )
    slow_latency_ms: float = Field(
        default=200.0,
        ge=1.0,
        le=600_000.0,
        description="Storage latency (p99) below which no node counts as slow",
    )
    slow_consecutive: int = Field(
        default=10, ge=1, le=3_600, description="Forecasts in a row in which it must be so slow"
    )
    stall_ms: float = Field(
        default=200.0,
        ge=1.0,
        le=600_000.0,
        description="Time that its process stands still, within a second, below which no node "
        "counts as stalled",
    )
    link_factor: float = Field(
        default=5.0,
        ge=2.0,
        le=10_000.0,
        description="Round trips (half of them), or retransmission timers, as a multiple of the "
        "node's own past, from which it is at risk for that alone; half of the other nodes must be "
        "better by a third",
    )
    link_consecutive: int = Field(
        default=8, ge=1, le=3_600, description="Forecasts in a row in which its link must be so bad"
    )
    distant_ms: float = Field(
        default=200.0,
        ge=1.0,
        le=600_000.0,
        description="Round trip (half of them) below which no node counts as distant; half as much "
        "is enough while it grows steadily",
    )
    lossy_per_s: float = Field(
        default=3.0,
        ge=0.1,
        le=1e6,
        description="Waits of its connections for a retransmission timer below which no node "
        "counts as lossy",
    )
    exhaustion_s: int = Field(
        default=60,
        ge=0,
        le=3_600,
        description="A node is at risk whose memory, descriptors or disk run out within so many "
        "seconds, on the straight line of the last half minute. 0 turns this off",
    )
    exhaustion_share: float = Field(
        default=0.7,
        gt=0.0,
        le=1.0,
        description="Used share below which nothing counts as running out",
    )
    exhaustion_consecutive: int = Field(
        default=3, ge=1, le=3_600, description="Forecasts in a row in which it must run out so soon"
    )
    at_risk_action: Literal["hand_over", "mirror"] = Field(
        default="hand_over",
        description="What a primary does whose node comes to be at risk: it hands over to another "
        "voter, or, with `mirror`, goes on ordering without a vote while others keep the copies",
    )
    at_risk_share_max: float = Field(
        default=0.34,
        gt=0.0,
        le=1.0,
        description="Share of the fleet that may be at risk at once, but at least one node; the "
        "riskiest go first",
    )
    shadows_max: int = Field(
        default=4_096,
        ge=1,
        le=1_000_000,
        description="Votes that may be kept elsewhere for nodes at risk at once; one node may "
        "always be at risk",
    )
    copy_bytes_per_s: int = Field(
        default=800 * MIB,
        ge=64 * 1024,
        description="Copying that the whole fleet can bear: a node is not protected for its cost "
        "alone if what is to be copied would take longer than the horizon that decided",
    )
    replace_factor: float = Field(
        default=1.5,
        ge=1.0,
        le=1_000.0,
        description="How much riskier a node must be to take the place, while the budget is spent, "
        "of one that is protected for its cost alone",
    )
    breaker_share: float = Field(
        default=0.5,
        gt=0.0,
        le=1.0,
        description="Share of the fleet above which the forecast is not believed if so many nodes "
        "seem to fail, at once or within `breaker_window_s`: the map is kept and status says so",
    )
    breaker_window_s: int = Field(
        default=900, ge=1, le=86_400, description="Time over which nodes that cried are counted"
    )
    take_over_shards: int = Field(
        default=32,
        ge=1,
        le=1_000_000,
        description="Shards of dead primaries that a node has to be given, to count as busy and "
        "not sick for `take_over_patience_s`",
    )
    take_over_patience_s: int = Field(
        default=60,
        ge=0,
        le=600,
        description="Time from the first of these shards on in which signs of load put no node at "
        "risk; afterwards they do for as long at least. Errors of disk and memory, outside "
        "forecasts, silence and failed storage count all the time. 0: no patience",
    )
    holdout: float = Field(
        default=0.05,
        ge=0.0,
        le=0.5,
        description="Share of the alarms that is left alone, drawn by chance, so that `peerctl "
        "forecast effect` can tell what protection saves. Only alarms whose miss costs a pause at "
        "most: each record stays on two healthy nodes without the node. 0 leaves none alone",
    )
    heartbeat_ms: int = Field(
        default=500,
        ge=50,
        le=60_000,
        description="Time between two heartbeats of a peer; longer where more than 2,000 a second "
        "would come",
    )
    lease_ms: int = Field(
        default=1_500,
        ge=150,
        le=600_000,
        description="Silence after which a peer counts as dead, at least three heartbeats; longer "
        "where these are",
    )
    repair_delay_s: int = Field(
        default=600,
        ge=0,
        le=86_400,
        description="Time that a dead node has to come back before its sealed copies are made "
        "anew. Protection of new appends never waits",
    )
    retention_period_ms: int = Field(
        default=5_000,
        ge=100,
        le=3_600_000,
        description="Time between two looks at what logs with a retention need not keep any more",
    )
    prefetch_bytes_per_s: int = Field(
        default=80 * MIB,
        ge=64 * 1024,
        description="Not used any more, and taken so that older files stay valid: what copying "
        "may take is said to each peer (`copier.bytes_per_s_max`)",
    )

    rebalance: bool = Field(
        default=True,
        description="Whether votes and leads are moved where nodes carry more or less than others, "
        "and copies where they store more or less. `peerctl rebalance` does it once, also without "
        "this",
    )
    rebalance_copies: bool = Field(
        default=True,
        description="Whether copies of sealed segments are moved, too, once votes and leads lie "
        "evenly; needs `release_surplus`",
    )
    rebalance_bytes_min: int = Field(
        default=64 * MIB,
        ge=0,
        description="Bytes by which a node must store more, or less, than is even before copies "
        "are moved, beside `rebalance_band`",
    )
    rebalance_band: float = Field(
        default=0.1,
        ge=0.01,
        le=1.0,
        description="Share of what is even by which a node must carry more, or less, before "
        "anything is moved; then nodes are brought within half of it",
    )
    rebalance_after_s: int = Field(
        default=60,
        ge=0,
        le=86_400,
        description="Time without any change of the nodes, or of the LAS leader, before anything "
        "is moved",
    )
    rebalance_moves_per_s: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Shards moved in a second over the whole fleet; each of them takes appends "
        "some 20 ms later for it",
    )

    release_surplus: bool = Field(
        default=True,
        description="Whether a sealed segment's holders beyond its log's copies let it go, once as "
        "many others say that they have it; never fewer than two are left. It waits like the "
        "rebalance",
    )

    split_bytes_per_s: int = Field(
        default=0,
        ge=0,
        le=100 * GIB,
        description="Payload bytes a second from which, over half a minute, a shard is split in "
        "the middle of its key range; one at a time, and not where a few keys have most of it. "
        "A split is not taken back. 0 splits nothing",
    )
    split_shards_max: int = Field(
        default=256,
        ge=2,
        le=1_024,
        description="Shards of a log from which none of them is split for that",
    )

    def rules(self) -> Rules:
        """The numbers of the judgement."""
        named = {each.name for each in fields(Rules)}
        given = self.model_dump(include=named)
        given["off_after_ms"] = self.off_after_s * 1_000
        given["breaker_window_ms"] = self.breaker_window_s * 1_000
        return Rules(**given)


class Telemetry(Section):
    """Where the health of the peers comes from."""

    source: Literal["heartbeat", "prometheus"] = Field(
        default="heartbeat",
        description="The peers' own heartbeats, or a Prometheus server that scrapes them",
    )
    url: str = Field(
        default="",
        description="Of the Prometheus server, e.g. `https://prometheus:9090`; plain http on "
        "loopback alone",
    )
    interval_ms: int = Field(
        default=5_000, ge=500, le=300_000, description="Time between two scrapes of a peer"
    )
    query_ms: int = Field(
        default=1_000,
        ge=500,
        le=300_000,
        description="Time between two rounds of queries. The shorter, the sooner a scrape is seen",
    )
    timeout_ms: int = Field(
        default=3_000, ge=100, le=60_000, description="What all queries of a round may take"
    )
    staleness_ms: int = Field(
        default=15_000,
        ge=1_000,
        le=600_000,
        description="Age from which a sample is missing; at least two intervals",
    )
    node_label: str = Field(
        default="node",
        pattern=LABEL,
        description="Label of the scraped series that has the node's name: set it on each target",
    )
    host_label: str = Field(
        default="host",
        pattern=LABEL,
        description="Label with the host's name, where node_exporter serves several peers",
    )
    matchers: str = Field(
        default="",
        max_length=500,
        pattern=r"^[^{}]*$",
        description='Further matchers of the series, e.g. `cluster="shop"`',
    )
    bearer_token_file: Path | None = Field(
        default=None, description="File with the token to show; read anew for each round"
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates that the server's must come from; else the system's"
    )
    certificate_file: Path | None = Field(
        default=None, description="Certificate to show to the server, with `key_file`"
    )
    key_file: Path | None = Field(default=None, description="Its key")
    answer_bytes_max: int = Field(
        default=64 * MIB,
        ge=64 * 1024,
        le=GIB,
        description="Size from which an answer is not read on, some 15 KB a node",
    )


class LasConfig(Endpoint):
    """All settings of a LAS node."""

    listen: Address = Field(
        default="0.0.0.0:7500", description="Address for gRPC, `host:port`. Port 0 takes a free one"
    )
    http_listen: Address = Field(
        default="127.0.0.1:7501",
        description="Address for plain HTTP: `/metrics`, `/healthz`, `/readyz`, and the page of "
        "the fleet. Port 0 takes a free one",
    )
    web_page: bool = Field(
        default=True,
        description="Whether there is a page of the fleet at `http_listen`, for all who reach it: "
        "names, places, risks and events, nothing of what is in records, and nothing to change",
    )
    members: dict[str, Address] = Field(
        description="Name and address of every node of the group, this one too: 1, 3 or 5, the "
        "same on all of them",
    )
    model_path: Path | None = Field(
        default=None,
        description="ONNX file of the forecast; by default the one that is shipped",
    )
    shutdown_timeout_ms: int = Field(
        default=5_000,
        ge=0,
        le=600_000,
        description="Time that a stop gives the calls under way to end",
    )
    flight_recorder_bytes: int = Field(
        default=16 * MIB,
        ge=0,
        le=RING_BYTES_MAX,
        description="Size of the file `flight.ring` in `data_dir` that keeps the last committed "
        "commands, for `peerctl incident save`. 0 records nothing",
    )
    policy: Policy = Field(default_factory=Policy)
    telemetry: Telemetry = Field(default_factory=Telemetry)


def load_config(
    path: Path | None,
    overrides: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> LasConfig:
    """Reads a LAS node's settings: `overrides` (dotted key -> value) over environment over file.

    Raises:
        ConfigError: something in them is wrong; one line with place and advice.
    """
    return load(
        LasConfig,
        path=path,
        prefix=ENVIRONMENT_PREFIX,
        overrides=overrides,
        environment=environment,
        check=_mistakes,
    )


def verify_identity(config: LasConfig) -> Identity:
    """Judges the certificates, and that they are this node's. Raises `ConfigError`."""
    return endpoint.verify_identity(config, Role.LAS)


def _mistakes(config: LasConfig) -> Iterator[tuple[str, str]]:
    dialled = [(f"members.{name}", address) for name, address in config.members.items()]
    yield from endpoint.endpoint_mistakes(config, dialled)
    yield from _member_mistakes(config)
    if 0 < config.flight_recorder_bytes < RING_BYTES_MIN:
        yield "flight_recorder_bytes", f"must be 0 (off) or at least {RING_BYTES_MIN}"
    policy = config.policy
    if policy.lease_ms < 3 * policy.heartbeat_ms:
        yield "policy.lease_ms", f"must be at least three heartbeats ({3 * policy.heartbeat_ms})"
    if config.telemetry.source == "prometheus":
        yield from telemetry_mistakes(config.telemetry)


def telemetry_mistakes(telemetry: Telemetry) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of a server's settings."""
    url = urlsplit(telemetry.url)
    if url.scheme not in {"http", "https"} or not url.hostname:
        yield "telemetry.url", "must be the server's address, e.g. https://prometheus:9090"
    elif url.query or url.fragment or url.username or url.password:
        yield "telemetry.url", "must have no query and no credentials; use `bearer_token_file`"
    elif url.scheme == "http" and not is_loopback(f"{url.hostname}:0"):
        yield (
            "telemetry.url",
            "must be https: who can change what is measured can have nodes emptied",
        )
    if (telemetry.certificate_file is None) != (telemetry.key_file is None):
        yield "telemetry.certificate_file", "and `key_file` belong together"
    if telemetry.staleness_ms < 2 * telemetry.interval_ms:
        yield (
            "telemetry.staleness_ms",
            f"must be at least two intervals ({2 * telemetry.interval_ms})",
        )


def _member_mistakes(config: LasConfig) -> Iterator[tuple[str, str]]:
    if config.name not in config.members:
        yield (
            "members",
            f"lacks this node, {config.name!r}: list every node of the group, the same everywhere",
        )
    if len(config.members) not in GROUP_SIZES:
        yield "members", f"has {len(config.members)} nodes: a group has 1, 3 or 5"
    if len(set(config.members.values())) < len(config.members):
        yield "members", "gives one address to two nodes"
    for name in config.members:
        try:
            check_name(name)
        except IdentityError as error:
            yield "members", str(error)


if __name__ == "__main__":
    if sys.argv[1:] != ["--reference"]:
        sys.exit("usage: python -m las.daemon.config --reference")
    sys.stdout.write(reference(LasConfig, ENVIRONMENT_PREFIX, "las"))
