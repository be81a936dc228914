"""`peerd serve` as a process: it says in one line what it lacks, serves, and stops as asked."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner

from peerd.cli.peerd import app
from peerd.core.shard_map import Plan
from peerd.daemon.errors import EXIT_STORAGE_FAILED
from peerd.testing.faults import FaultFile, Faults
from tests.daemon.fleet import CLUSTER, DEADLINE_S, Fleet, StandInLas, opened, shard_of, until

SETTINGS = """
cluster = "{cluster}"
name = "{name}"
listen = "{listen}"
http_listen = "127.0.0.1:0"
las = ["{las}"]
data_dir = "{directory}/data"
insecure_loopback = true
[storage]
reserve_bytes = 0
map_size_bytes_max = 1073741824
"""


def settings(tmp_path: Path, las: str, listen: str = "127.0.0.1:0", extra: str = "") -> Path:
    path = tmp_path / "peerd.toml"
    text = SETTINGS.format(
        cluster=CLUSTER, name="peer-1", listen=listen, las=las, directory=tmp_path
    )
    path.write_text(extra + text)
    return path


_started: list[asyncio.subprocess.Process] = []


@pytest.fixture(autouse=True)
async def nothing_is_left_running() -> AsyncIterator[None]:
    """A test that fails half way leaves its daemon to nobody else."""
    yield
    while _started:
        process = _started.pop()
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def start(*arguments: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "peerd.cli.peerd",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _started.append(process)
    return process


async def run(*arguments: str) -> tuple[int, str, str]:
    process = await start(*arguments)
    out, error = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def ready(path: Path, process: asyncio.subprocess.Process) -> dict[str, object]:
    await until(lambda: path.exists() or process.returncode is not None, "it serves or ends")
    assert process.returncode is None, "it ended before it served"
    return json.loads(await asyncio.to_thread(path.read_text))


async def test_it_serves_answers_and_stops_on_sigterm(tmp_path: Path, las: StandInLas) -> None:
    config, told = settings(tmp_path, las.address), tmp_path / "ready.json"
    process = await start("serve", "-c", str(config), "--ready-file", str(told))
    facts = await ready(told, process)
    assert facts["pid"] == process.pid
    async with grpc.aio.insecure_channel(str(facts["address"])) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="peerd.v1.LogService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await stream.read()).list_services_response.service}
        assert {"peerd.v1.LogService", "las.v1.ShardMapService"} <= listed
        assert "peerd.internal.v1.ReplicationService" not in listed
        stream.cancel()
    async with aiohttp.ClientSession(f"http://{facts['http']}") as http:
        while (await http.get("/readyz")).status != 200:
            pass  # the test's own time limit ends this
        while "peerd_las_connected 1.0" not in await (await http.get("/metrics")).text():
            pass  # of a moment of its own: the session may have begun anew meanwhile
        assert (await http.get("/healthz")).status == 200
    process.send_signal(signal.SIGTERM)
    _, error = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 0, error
    lines = [json.loads(line) for line in error.decode().splitlines()]
    assert all(line["peer"] == "peer-1" and line["level"] and line["time"] for line in lines)
    assert lines[-1]["event"] == "stopped"
    assert (tmp_path / "data" / "manifest.json").exists()


async def test_it_comes_back_after_a_kill_with_its_store_and_another_boot_id(
    tmp_path: Path, las: StandInLas
) -> None:
    config = settings(tmp_path, las.address)

    def boots() -> set[str]:
        """A process whose session breaks registers again, as the same one."""
        return {each.boot_id for each in las.registrations}

    for number in range(2):
        told = tmp_path / f"ready-{number}.json"
        process = await start("serve", "-c", str(config), "--ready-file", str(told))
        await ready(told, process)
        await until(lambda number=number: len(boots()) > number, "a new process registers")
        process.kill()
        await process.communicate()
    assert len(boots()) == 2
    assert len({each.store_id for each in las.registrations}) == 1


async def test_a_mistake_in_the_settings_is_one_line(tmp_path: Path, las: StandInLas) -> None:
    config = settings(tmp_path, las.address, extra="no_such_key = 1\n")
    status, _, error = await run("serve", "-c", str(config))
    assert status == 2
    assert "no_such_key" in error
    assert len(error.strip().splitlines()) == 1
    checked = CliRunner().invoke(app, ["check", "-c", str(config)])
    assert (checked.exit_code, checked.stderr) == (2, error)
    assert not (tmp_path / "data").exists()


async def test_a_port_in_use_is_one_line_and_nothing_is_written(
    tmp_path: Path, las: StandInLas
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        status, _, error = await run("serve", "-c", str(settings(tmp_path, las.address, listen)))
    assert status == 2
    assert error.strip().splitlines()[-1] == (
        f"peerd: listen: {listen} is in use by another process: stop it or choose another port"
    )
    assert "Traceback" not in error
    assert not (tmp_path / "data").exists()


async def test_a_store_of_another_cluster_is_refused(tmp_path: Path, las: StandInLas) -> None:
    config, told = settings(tmp_path, las.address), tmp_path / "ready.json"
    process = await start("serve", "-c", str(config), "--ready-file", str(told))
    await ready(told, process)
    await until(lambda: las.registrations, "it registers")
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), DEADLINE_S)
    manifest = tmp_path / "data" / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(fields | {"cluster_id": "11111111-0000-4000-8000-000000000001"}))
    status, _, error = await run("serve", "-c", str(config))
    assert status == 2
    assert "belongs to cluster 11111111" in error.strip().splitlines()[-1]
    assert "Traceback" not in error


def test_check_says_what_was_found_fit(tmp_path: Path) -> None:
    checked = CliRunner().invoke(app, ["check", "-c", str(settings(tmp_path, "127.0.0.1:7500"))])
    assert checked.exit_code == 0
    assert "spiffe://test/peer/peer-1" in checked.stdout
    assert not (tmp_path / "data").exists()


async def test_verify_reads_a_stopped_store_and_names_what_is_none(
    tmp_path: Path, fleet: Fleet
) -> None:
    await fleet.start_peer("peer-1")
    refused = CliRunner().invoke(app, ["verify", str(tmp_path / "peer-1")])
    assert refused.exit_code == 1
    assert "in use by another process" in refused.stderr
    await fleet.stop()
    verified = CliRunner().invoke(app, ["verify", str(tmp_path / "peer-1")])
    assert verified.exit_code == 0, verified.output
    assert verified.stdout.endswith("sound\n")
    refused = CliRunner().invoke(app, ["verify", str(tmp_path / "nothing")])
    assert refused.exit_code == 1
    assert len(refused.stderr.strip().splitlines()) == 1


async def test_a_disk_that_fails_ends_the_process_with_its_own_status(
    tmp_path: Path, las: StandInLas
) -> None:
    faults, told = tmp_path / "faults.json", tmp_path / "ready.json"
    extra = f'testing.faults_file = "{faults}"\n'
    process = await start(
        "serve", "-c", str(settings(tmp_path, las.address, extra=extra)), "--ready-file", str(told)
    )
    await ready(told, process)
    await until(lambda: las.registrations, "it registers")
    me = las.nodes["peer-1"].process
    FaultFile(faults).set(Faults(fail=True))
    # Its first segment makes it write.
    las.commit(shard_of(opened(1, Plan(primary=me, voters=(me.replica,), acks=1))))
    _, error = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == EXIT_STORAGE_FAILED, error
    last = error.decode().strip().splitlines()[-1]
    assert last.startswith(f"peerd: storage in {tmp_path}/data failed: ")
    assert [boot for boot, _ in las.reported("storage_failed")] == [me.boot]


async def logged(process: asyncio.subprocess.Process, *events: str) -> dict[str, object]:
    """The next line of the log that tells of one of `events`."""
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        async for line in process.stderr:
            entry = json.loads(line)
            if entry["event"] in events:
                return entry
    raise AssertionError(f"it ended without {events}")


async def test_settings_are_taken_while_it_runs_as_a_whole_or_not_at_all(
    tmp_path: Path, las: StandInLas
) -> None:
    config, told = settings(tmp_path, las.address), tmp_path / "ready.json"
    process = await start("serve", "-c", str(config), "--ready-file", str(told))
    await ready(told, process)
    before = config.read_text()

    async def reloaded(text: str) -> dict[str, object]:
        config.write_text(text)
        process.send_signal(signal.SIGHUP)
        return await logged(process, "reloaded", "not reloaded")

    slower = before + "[copier]\nbytes_per_s_max = 1000000\n[scrub]\nbytes_per_s_max = 0\n"
    taken = await reloaded(slower)
    assert taken["event"] == "reloaded"
    assert taken["keys"] == ["copier.bytes_per_s_max", "scrub.bytes_per_s_max"]
    fixed = await reloaded(before.replace("reserve_bytes = 0", "reserve_bytes = 1024"))
    assert (fixed["event"], fixed["keys"]) == ("not reloaded", ["storage.reserve_bytes"])
    wrong = await reloaded(before + "[copier]\nbytes_per_s_max = 'fast'\n")
    assert wrong["event"] == "not reloaded"
    assert "copier.bytes_per_s_max" in str(wrong["why"])
    # What was refused changed nothing: the settings in use are still the slower ones.
    again = await reloaded(before)
    assert again["keys"] == taken["keys"]
    assert process.returncode is None
