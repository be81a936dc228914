"""What clients do to each shard, from what the primaries told last.

A primary that hands a shard over tells once more of the interval in which it did; so a shard may
stand here twice, until the old one's next interval is over.
"""

from las.core.state import ClusterState
from las.daemon.vitals import Vitals
from las.v1 import fleet_pb2
from peerd.core.ids import ShardId

# limit: shards of one answer, the busiest; as the contract says
SHARDS_LISTED_MAX = 10_000
# What is older than so many intervals comes from a node that is not heard any more.
FRESH_INTERVALS = 3


def workload_view(
    state: ClusterState, vitals: Vitals, request: fleet_pb2.GetWorkloadRequest, now_ms: int
) -> fleet_pb2.GetWorkloadResponse:
    """The answer to `request`; shards and logs that are gone are left out."""
    found = []
    for name in sorted(state.nodes):
        heard = vitals.of(name)
        if heard is None or (request.node and name != request.node):
            continue
        age_ms = now_ms - heard.workload_at_ms
        if age_ms > FRESH_INTERVALS * heard.workload.period_s * 1000:
            continue
        for each in heard.workload.shards:
            entry = state.shards.get(ShardId(each.shard))
            if entry is None or (request.log and entry.shard.log != request.log):
                continue
            found.append(
                fleet_pb2.ShardWorkloadEntry(
                    node=name, log=entry.shard.log, age_ms=max(0, age_ms), workload=each
                )
            )
    found.sort(key=lambda each: -each.workload.bytes_per_s - each.workload.read_bytes_per_s)
    return fleet_pb2.GetWorkloadResponse(shards=found[:SHARDS_LISTED_MAX], shards_total=len(found))
