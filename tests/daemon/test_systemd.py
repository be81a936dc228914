"""What a service manager is told, over a real socket, by a real peer and by itself."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from peerd.daemon.systemd import ServiceManager
from tests.daemon.fleet import DEADLINE_S, StandInLas
from tests.daemon.test_process import settings


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.setblocking(False)
        yield bound


async def heard(listener: socket.socket) -> list[str]:
    loop = asyncio.get_running_loop()
    told = await asyncio.wait_for(loop.sock_recv(listener, 4096), DEADLINE_S)
    return told.decode().splitlines()


async def test_a_peer_says_when_it_serves_that_it_lives_and_when_it_stops(
    tmp_path: Path, las: StandInLas, listener: socket.socket
) -> None:
    config = settings(tmp_path, las.address)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "peerd.cli.peerd", "serve", "-c", str(config)),
        env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    ready, serving = await heard(listener)
    assert ready == "READY=1"
    assert serving.startswith("STATUS=serving at 127.0.0.1:")
    for _ in range(3):
        assert await heard(listener) == ["WATCHDOG=1"]
    process.send_signal(signal.SIGTERM)
    while (told := await heard(listener)) == ["WATCHDOG=1"]:
        pass
    assert told == ["STOPPING=1", "STATUS=stopping"]
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0


async def test_an_abstract_address_is_understood():
    name = f"peerd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + name)
        bound.setblocking(False)
        ServiceManager({"NOTIFY_SOCKET": "@" + name}).tell("READY=1")
        assert await heard(bound) == ["READY=1"]


async def test_what_is_told_once_waits_for_a_manager_that_is_busy(
    tmp_path: Path, listener: socket.socket
):
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
        others.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:  # until no more of them may wait
                others.sendto(b"WATCHDOG=1", str(tmp_path / "notify"))
    manager.tell("WATCHDOG=1")  # lost, and nobody waits for that
    telling = asyncio.create_task(asyncio.to_thread(manager.tell, "STOPPING=1", wait_s=DEADLINE_S))
    while (told := await heard(listener)) == ["WATCHDOG=1"]:
        pass
    assert told == ["STOPPING=1"]
    await telling


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
async def test_without_anybody_who_listens_nothing_happens(environment):
    manager = ServiceManager(environment)
    manager.tell("READY=1")
    await asyncio.wait_for(manager.keep_watchdog(), DEADLINE_S)
