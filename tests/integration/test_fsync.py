"""G1: no receipt before the bytes are durable, at the primary and at its shadow.

Both processes are watched from below, at the calls into the system: what counts is when a sync has
returned, whatever the process believes. One of the two syncs slowly, so that a receipt that does
not wait for it comes first.
"""

import time

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.disk_watch import COMPILER, DiskWatch, build

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler (cc) to watch the disk"),
]
APPENDS = 8
SLOW_MS = 40


@pytest.mark.parametrize("slow", ["peer-1", "peer-2"])
def test_no_receipt_before_both_copies_are_durable(tmp_path, slow):
    cluster = DevCluster(tmp_path / "dev", Shape(peers=2, las=1), port_base=None)
    library = build(tmp_path)
    watches = [
        DiskWatch(member, library, tmp_path, SLOW_MS if member.id == slow else 0)
        for member in cluster.peers
    ]
    receipts: list[tuple[bytes, float]] = []
    with cluster, connect(credentials=cluster.peerctl_toml) as client:
        client.create_log("orders", shards=1, copies=2, acks=2)
        for number in range(APPENDS):
            marker = b"<marker of append %06d>" % number
            client.append("orders", marker)
            receipts.append((marker, time.monotonic()))
    for marker, receipt_s in receipts:
        for member, watch in zip(cluster.peers, watches, strict=True):
            durable_s = watch.durable_from_s(marker)
            assert durable_s is not None, f"{marker!r} was never made durable on {member.id}"
            assert durable_s < receipt_s, f"{marker!r} was acknowledged before {member.id} had it"
