"""What the LAS writes of real processes that go: killed, stopped, held up."""

import signal

import pytest

from peerd.cli.outage_files import cause_text
from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import until

pytestmark = pytest.mark.timeout(180)


def test_outages_are_written_with_what_is_known_of_their_causes(tmp_path):
    with (
        DevCluster(tmp_path / "dev", Shape(peers=3, las=1), port_base=None) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        killed, stopped, held = (member.id for member in cluster.peers)

        def silent_ms(name: str) -> int:
            nodes = {each.node.name: each.silent_ms for each in client.las.status().nodes}
            return int(nodes[name])

        def causes() -> dict[str, tuple[str, bool]]:
            return {
                each.node: (cause_text(each), each.HasField("end_s"))
                for each in client.las.list_outages()
            }

        # Neighbours that have heard each other can tell a closed port from silence.
        client.create_log("orders", shards=1)
        client.append("orders", b"1")
        cluster.member(killed).kill()
        until(lambda: causes().get(killed) == ("crash", False), "the kill is written")
        cluster.restart(killed)
        until(lambda: causes().get(killed) == ("crash", True), "its end is written")

        cluster.member(stopped).signal(signal.SIGTERM)
        until(lambda: causes().get(stopped) == ("operator", False), "the stop is written")
        cluster.member(stopped).wait()
        cluster.restart(stopped)
        until(lambda: causes().get(stopped) == ("operator", True), "its end is written")

        cluster.member(held).signal(signal.SIGSTOP)
        until(lambda: causes().get(held) == ("unknown", False), "the silence is written")
        # So long that it plainly took no samples for most of the silence.
        until(lambda: silent_ms(held) > 8_000, "it is silent for long")
        cluster.member(held).signal(signal.SIGCONT)
        until(lambda: causes().get(held) == ("unknown", True), "its end is written")
        assert client.las.failure_patterns().wished == 1
