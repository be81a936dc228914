"""The numbers at a peer's `/metrics` are what happened."""

from prometheus_client import CollectorRegistry

from peerd.daemon.exporter import PeerExporter
from peerd.daemon.peer import Peer
from peerd.monitoring.metrics import PEER_METRICS
from tests.daemon.fleet import SHARD, Fleet, StandInLas, append, opened, plan, shard_of, until


def scrape(peer: Peer) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(PeerExporter(peer.statistics))
    return registry


async def test_appends_are_timed_and_a_replica_that_is_gone_lags(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three = await fleet.start("peer-1", "peer-2", "peer-3")
    las.commit(shard_of(opened(1, plan(one, one, two, three))))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    await append(one, b"a", b"b")
    await until(lambda: one.host.statistics().lag_records == {"peer-2": 0, "peer-3": 0}, "acks")
    await fleet.kill("peer-3")
    await append(one, b"c", b"d", b"e")
    await until(lambda: one.host.statistics().lag_records["peer-2"] == 0, "peer-2 has it")
    now = scrape(one)
    lag = {
        peer: now.get_sample_value("peerd_link_lag_records", {"peer": peer})
        for peer in ("peer-2", "peer-3")
    }
    assert lag == {"peer-2": 0, "peer-3": 3}
    assert now.get_sample_value("peerd_append_seconds_count") == 2
    assert now.get_sample_value("peerd_append_seconds_sum") > 0
    assert now.get_sample_value("peerd_commit_seconds_count") >= 2
    assert now.get_sample_value("peerd_replication_ack_seconds_count") >= 2
    assert now.get_sample_value("peerd_primaries") == 1
    assert scrape(two).get_sample_value("peerd_link_lag_records", {"peer": "peer-1"}) is None


async def test_only_what_the_table_knows_is_exported(fleet: Fleet, las: StandInLas) -> None:
    one, two = await fleet.start("peer-1", "peer-2")
    las.commit(shard_of(opened(1, plan(one, one, two))))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    known = {metric.name for metric in PEER_METRICS}
    shown = set()
    for family in PeerExporter(one.statistics).collect():
        shown.add(family.name + ("_total" if family.type == "counter" else ""))
    assert shown <= known
