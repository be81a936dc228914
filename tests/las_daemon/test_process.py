"""What an operator sees of `las`: files are made once, mistakes are one line, exit status 2."""

import asyncio
import json
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from las.daemon.cli import app
from las.daemon.directory import init
from las.daemon.node import LasNode
from peerd.daemon.errors import PortInUse, StoreBroken, StoreUnusable
from peerd.pki import Role, create_authority
from peerd.testing.ports import free_port
from tests.las_daemon.stand_in import las_config
from tests.las_daemon.test_logs import create

ID = "00000000-0000-4000-8000-000000000001"


def write_config(path: Path, **settings: object) -> Path:
    port = free_port()
    fields = {
        "cluster": "shop",
        "name": "las-1",
        "listen": f"127.0.0.1:{port}",
        "http_listen": "127.0.0.1:0",
        "data_dir": str(path.parent / "data"),
        "insecure_loopback": True,
        "members.las-1": f"127.0.0.1:{port}",
        **settings,
    }
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in fields.items() if value is not None]
    path.write_text("".join(lines))
    return path


def las(*arguments: object):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def one_line(result) -> str:
    """The one line on stderr of a command that could not do its work."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("las: ")
    return line


def test_init_prints_the_id_alone_and_works_once(tmp_path):
    config = write_config(tmp_path / "las.toml")
    first = las("init", "-c", config)
    assert first.exit_code == 0
    assert re.fullmatch(r"[0-9a-f-]{36}\n", first.stdout)
    assert "not empty" in one_line(las("init", "-c", config))


def test_the_others_take_the_id_of_the_first(tmp_path):
    config = write_config(tmp_path / "las.toml")
    assert las("init", "-c", config, "--cluster-id", ID).stdout == f"{ID}\n"
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["cluster_id"] == ID
    other = write_config(tmp_path / "other.toml", data_dir=str(tmp_path / "other"))
    assert "not a UUID" in one_line(las("init", "-c", other, "--cluster-id", "shop"))


def test_the_first_of_three_says_what_to_do_on_the_others(tmp_path):
    more = {f"members.las-{number}": f"127.0.0.1:{free_port()}" for number in (2, 3)}
    config = write_config(tmp_path / "las.toml", **more)
    first = las("init", "-c", config)
    assert f"las init --cluster-id {first.stdout.strip()}" in first.stderr


def test_serve_refuses_an_empty_directory_and_names_the_ways(tmp_path):
    line = one_line(las("serve", "-c", write_config(tmp_path / "las.toml")))
    assert "las init" in line
    assert "las rejoin" in line


def test_rejoin_keeps_what_was_there_and_refuses_another_cluster(tmp_path):
    config = write_config(tmp_path / "las.toml")
    las("init", "-c", config, "--cluster-id", ID)
    done = las("rejoin", "-c", config, "--cluster-id", ID)
    assert done.exit_code == 0
    assert "rejoins" in done.stdout
    assert (tmp_path / "data" / "before-rejoin-1" / "manifest.json").exists()
    other = "00000000-0000-4000-8000-000000000002"
    assert "belongs to cluster" in one_line(las("rejoin", "-c", config, "--cluster-id", other))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "las-9"}, "lacks this node"),
        ({"lisen": "127.0.0.1:1"}, "listen"),
        ({"policy.lease_ms": "long"}, "lease_ms"),
        ({"insecure_loopback": None}, "tls"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, settings, words):
    config = write_config(tmp_path / "las.toml", **settings)
    for command in ("check", "serve", "init"):
        assert words in one_line(las(command, "-c", config))


def test_check_says_what_would_start(tmp_path):
    result = las("check", "-c", write_config(tmp_path / "las.toml"))
    assert result.exit_code == 0
    assert "spiffe://shop/las/las-1" in result.stdout


def test_another_ones_certificate_is_refused(tmp_path):
    authority = create_authority(tmp_path / "ca", "shop")
    for role, name in ((Role.PEER, "las-1"), (Role.LAS, "las-2")):
        files = authority.issue(role, name, ["127.0.0.1"], tmp_path / f"{role}-{name}", 7)
        config = write_config(
            tmp_path / f"{role}-{name}.toml",
            insecure_loopback=None,
            **{
                "tls.ca": str(files.ca),
                "tls.certificate": str(files.certificate),
                "tls.key": str(files.key),
            },
        )
        assert files.certificate.name in one_line(las("serve", "-c", config))


async def test_a_port_in_use_is_named(tmp_path, rule):
    config = las_config(tmp_path / "data")
    init(config, None)
    host, _, port = config.listen.rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        with pytest.raises(PortInUse, match=f"listen: {config.listen} is in use"):
            await LasNode.start(config)
    node = await LasNode.start(config)
    try:
        with pytest.raises((PortInUse, StoreUnusable)):
            await LasNode.start(config)
    finally:
        await node.stop()


async def test_another_groups_directory_is_refused(tmp_path, rule):
    config = las_config(tmp_path / "data")
    init(config, None)
    renamed = las_config(tmp_path / "data", name="las-2")
    with pytest.raises(StoreUnusable, match="las-1"):
        await LasNode.start(renamed)


async def test_a_damaged_directory_is_a_failed_store(tmp_path, rule):
    config = las_config(tmp_path / "data")
    init(config, None)
    (config.data_dir / "manifest.json").write_text("{")
    with pytest.raises(StoreBroken, match="las rejoin"):
        await LasNode.start(config)


async def test_a_restarted_node_has_what_was_committed(start_las, tmp_path):
    first = await (await start_las()).leading()
    await first.add_peers(1)
    await create(first, copies=1)
    state = first.state
    await first.stop()
    first.peers.clear()
    again = await (await start_las()).leading()
    assert again.state == state


async def test_metrics_and_health(las):
    await las.add_peers(2)
    await create(las, copies=2)

    def fetch(path: str) -> str:
        with urllib.request.urlopen(f"http://{las.node.http_address}{path}") as answer:
            return answer.read().decode()

    text = await asyncio.to_thread(fetch, "/metrics")
    for line in (
        "las_raft_is_leader 1.0",
        'las_nodes{state="up"} 2.0',
        "las_shards 2.0",
        "las_shards_paused 0.0",
        'las_forecast_decisions_total{judgement="at_risk"} 0.0',
    ):
        assert line in text.splitlines(), line
    assert await asyncio.to_thread(fetch, "/healthz") == "alive\n"
    assert await asyncio.to_thread(fetch, "/readyz") == "serving\n"
