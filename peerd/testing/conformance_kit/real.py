"""The check against real processes: mutual TLS, a disk, and a primary that is killed meanwhile."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

from peerd.client.blocking import connect
from peerd.testing.conformance_kit.program import Program
from peerd.testing.dev_cluster import DevCluster, Shape

APPENDS = 120
KILL_AT = 40
LOG = "orders"


async def run(command: list[str], directory: Path) -> str:
    """Append while a peer is killed, then read: "" if nothing is lost or doubled."""
    cluster = DevCluster(directory / "cluster", Shape(peers=3, las=1), port_base=None)
    await asyncio.to_thread(cluster.start)
    try:
        await asyncio.to_thread(_create, cluster)
        return await judge(command, cluster)
    finally:
        await asyncio.to_thread(cluster.stop)


def _create(cluster: DevCluster) -> None:
    with connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(LOG, shards=3, copies=3, acks=2)


async def judge(command: list[str], cluster: DevCluster) -> str:
    """The same with a cluster that runs and has the log; its first peer is dead afterwards."""
    files = cluster.client_tls
    tls = {name: str(getattr(files, name)) for name in ("ca", "certificate", "key")}
    program = Program(command)
    try:
        await program.start([peer.address for peer in cluster.peers], tls)
        answers = {}
        for number in range(APPENDS):
            if number == KILL_AT:
                cluster.peers[0].signal(signal.SIGKILL)
            value = b"%d" % number
            key = b"key-%d" % (number % 12)
            answers[value] = await program.append(LOG, value, key, timeout_s=30.0)
        reading = await program.read(LOG)
    finally:
        await asyncio.shield(program.close())
    told = Counter(value for *_, value in reading.records)
    lost = [value for value, answer in answers.items() if answer.ok and not told[value]]
    lied = [value for value, each in answers.items() if each.taken == "no" and told[value]]
    twice = [value for value, times in told.items() if times > 1]
    failed = [answer for answer in answers.values() if not answer.ok]
    if lost or lied or twice or failed or reading.reason:
        return (
            f"{len(lost)} acknowledged are lost, {len(twice)} doubled, {len(lied)} told as not "
            f"taken are there, {len(failed)} failed {failed[:1]} {reading.reason}"
        )
    return ""
