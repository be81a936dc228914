"""Certificates and the authority itself replaced under load, with every process running."""

import urllib.request

import pytest

from peerd.pki import (
    Role,
    begin_rotation,
    finish_rotation,
    load_authority,
    switch_rotation,
)
from peerd.testing.dev_cluster import DevCluster, Member
from tests.integration.load import Load, assert_nothing_lost, until

pytestmark = pytest.mark.timeout(300)


def days_left(member: Member) -> float:
    """What `/metrics` says."""
    url = f"http://{member.metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    metric = f"{member.role.value.replace('peer', 'peerd')}_certificate_expiry_days "
    (line,) = (line for line in lines if line.startswith(metric))
    return float(line.split()[1])


def renew_all(cluster: DevCluster, days: int) -> None:
    """New keys and certificates for every daemon and the client; returns once all have them."""
    authority = load_authority(cluster.directory / "pki")
    for member in cluster.members:
        hosts = [member.host, "127.0.0.1", "localhost"]
        authority.issue(
            member.role, member.id, hosts, cluster.directory / "pki", days, overwrite=True
        )
    authority.issue(Role.ADMIN, "dev-admin", [], cluster.directory / "pki", days, overwrite=True)
    for member in cluster.members:
        until(
            lambda member=member: days - 1 < days_left(member) <= days,
            f"{member.id} uses its new certificate",
        )


def test_everything_is_renewed_and_no_append_fails(cluster: DevCluster, log: str):
    pki = cluster.directory / "pki"
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(100)
        begin_rotation(pki)
        renew_all(cluster, 40)
        load.wait_acked(100)
        switch_rotation(pki)
        renew_all(cluster, 50)
        load.wait_acked(100)
        finish_rotation(pki)
        renew_all(cluster, 60)
        load.wait_acked(100)
        # New connections everywhere, of processes that began with the old authority.
        for member in (cluster.peers[0], cluster.las[0]):
            member.kill()
            cluster.restart(member.id)
            load.wait_acked(100)
        cluster.wait_whole()
        load.finish()
        assert load.sent.failed == {}
        assert_nothing_lost(cluster, load)
