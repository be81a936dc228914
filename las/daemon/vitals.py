"""What the leader has heard of each node since its election: when, from which process, how full.

Volatile on purpose: a new leader knows nothing but what it hears, and what it has not heard yet it
does not hold against anybody.

Bound: one entry a node of the committed map.
"""

from dataclasses import dataclass

from las.v1 import fleet_pb2
from peerd.core.ids import BootId, NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The last heartbeat of a node. `at_ms` is of the leader's monotonic clock."""

    at_ms: int
    boot: BootId
    free_bytes: int
    stored_bytes: int
    damaged_batches: int
    repaired_batches: int
    scrub_age_s: int | None
    map_version: int
    access_version: int
    workload: fleet_pb2.NodeWorkload
    workload_at_ms: int
    tier_waiting_ms: int = 0
    tier_trouble: str = ""
    tier_lag_bytes: int = 0
    tier_slows_appends: bool = False
    copying: fleet_pb2.CopyProgress | None = None


class Vitals:
    """Used on the event loop; time is passed in."""

    def __init__(self, begin_ms: int) -> None:
        """`begin_ms` is when this node began to lead."""
        self._begin_ms = begin_ms
        self._heard: dict[NodeName, Heard] = {}

    def heard(
        self, node: NodeName, boot: BootId, heartbeat: fleet_pb2.HeartbeatRequest, now_ms: int
    ) -> None:
        """A heartbeat came. One without a workload leaves what was told before."""
        before = self._heard.get(node)
        workload, workload_at_ms = fleet_pb2.NodeWorkload(), now_ms
        if heartbeat.HasField("workload"):
            workload = heartbeat.workload
        elif before is not None and before.boot == boot:
            workload, workload_at_ms = before.workload, before.workload_at_ms
        self._heard[node] = Heard(
            at_ms=now_ms,
            boot=boot,
            free_bytes=heartbeat.free_bytes,
            stored_bytes=heartbeat.stored_bytes,
            damaged_batches=heartbeat.damaged_batches,
            repaired_batches=heartbeat.repaired_batches,
            scrub_age_s=heartbeat.scrub_age_s if heartbeat.HasField("scrub_age_s") else None,
            workload=workload,
            workload_at_ms=workload_at_ms,
            map_version=heartbeat.map_version,
            access_version=heartbeat.access_version,
            tier_waiting_ms=heartbeat.tier_lag.waiting_ms,
            tier_trouble=heartbeat.tier_lag.trouble,
            tier_lag_bytes=heartbeat.tier_lag.lag_bytes,
            tier_slows_appends=heartbeat.tier_lag.slows_appends,
            copying=heartbeat.copying if heartbeat.HasField("copying") else None,
        )

    def of(self, node: NodeName) -> Heard | None:
        """The last heartbeat; None if there was none in this term."""
        return self._heard.get(node)

    def stored_bytes(self, node: NodeName) -> int:
        """What a node stored at its last heartbeat; 0 if there was none in this term."""
        heard = self._heard.get(node)
        return 0 if heard is None else heard.stored_bytes

    def told_bytes(self, node: NodeName) -> int | None:
        """What a node stored at its last heartbeat; None if there was none in this term."""
        heard = self._heard.get(node)
        return None if heard is None else heard.stored_bytes

    def silent_ms(self, node: NodeName, now_ms: int) -> int:
        """Time since the last heartbeat, or since the election if there was none."""
        heard = self._heard.get(node)
        return now_ms - (self._begin_ms if heard is None else heard.at_ms)
