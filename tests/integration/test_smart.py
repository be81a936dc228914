"""A failing disk's days at a real peer, whose `smartctl` is a program of the test."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.client.blocking import connect
from peerd.daemon.telemetry.disk_days import DAY_S, FILE_NAME
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import until

pytestmark = pytest.mark.timeout(120)

WEEK_S = 7 * DAY_S


def attributes(bad):
    """Of a day on which `bad` sectors wait to be replaced."""
    return {5: bad * 2, 9: 20_000, 187: bad // 8, 197: bad, 198: bad}


def smartctl_says(bad):
    table = [{"id": number, "raw": {"value": raw}} for number, raw in attributes(bad).items()]
    return {
        "serial_number": "Z1",
        "user_capacity": {"bytes": 4_000_787_030_016},
        "smart_status": {"passed": True},
        "ata_smart_attributes": {"table": table},
    }


def earlier_days(today):
    """What the peer kept while its disk got worse, up to yesterday."""
    days = []
    for before in range(60, 0, -1):
        bad = max(0, 10 - before) * 16
        days.append([today - before, 4_000_787_030_016, sorted(attributes(bad).items())])
    return {"format": 1, "serial": "Z1", "days": days}


def test_a_failing_disk_is_foreseen_and_one_without_smart_is_named(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "smartctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(smartctl_says(160))}\nEND\n")
    program.chmod(0o755)
    with (
        DevCluster(tmp_path / "dev", Shape(peers=2, las=1), port_base=None) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        failing, other = cluster.peers
        failing.kill()
        failing.environment = {
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "PEERD_TELEMETRY_SMART_DEVICE": "/dev/sdz",
        }
        kept = failing.data_dir / FILE_NAME
        kept.write_text(json.dumps(earlier_days(int(time.time()) // DAY_S)))
        cluster.restart(failing.id)

        def hardware():
            heads = {each.node: each.heads for each in client.las.forecasts()}
            return {node: each[0] for node, each in heads.items() if each}

        def foreseen():
            found = hardware().get(failing.id)
            return found is not None and found.known and bool(found.reasons)

        until(foreseen, "the hardware head's word")
        status = {each.node.name: each.node.state for each in client.las.status().nodes}
        assert status == {failing.id: NODE_STATE_UP, other.id: NODE_STATE_UP}
        week = {each.horizon_s: each.probability for each in hardware()[failing.id].horizons}
        assert week[WEEK_S] > 0.01  # a disk like any other: 0.0004
        assert hardware()[other.id].without == "no SMART"

        # Today's reading, which the program gave, is kept with the earlier ones.
        days = json.loads(kept.read_text())["days"]
        assert len(days) == 61
        assert dict(days[-1][2])[197] == 160

        shown = subprocess.run(
            [Path(sys.executable).with_name("peerctl"), "forecast", "-c", cluster.peerctl_toml],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        rows = {line.split()[0]: line for line in shown.splitlines()[1:]}
        assert "hardware-" in rows[failing.id]
        assert "sectors" in rows[failing.id]
        assert "no SMART" in rows[other.id]
