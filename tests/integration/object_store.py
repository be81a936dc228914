"""A real S3 server for tests (SeaweedFS), and a proxy in front of it that spoils on purpose."""

import asyncio
import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sys import executable

import obstore
from obstore.store import S3Store

from peerd.testing.ports import free_ports

ACCESS_KEY = "tier-access"
SECRET_KEY = "tier-secret"
BUCKET = "peerd"
_WEED = Path(executable).with_name("weed")
_START_S = 40


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[str]:
    """`http://host:port` of an S3 server with `BUCKET`; it asks for `ACCESS_KEY`."""
    directory.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "peerd",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    kinds = ["master", "volume", "filer", "s3"]
    ports = dict(zip([*kinds, *(f"{kind}.grpc" for kind in kinds)], free_ports(8), strict=True))
    arguments = [
        f"-{kind}.port{suffix}={ports[kind + suffix]}" for kind in kinds for suffix in ("", ".grpc")
    ]
    data = directory / "data"
    data.mkdir(exist_ok=True)
    command = [
        *(str(_WEED), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", "-s3"),
        *(f"-s3.config={config}", "-master.telemetry=false", "-master.volumeSizeLimitMB=128"),
        *("-volume.max=30", "-volume.minFreeSpace=1MiB", "-s3.iam=false", *arguments),
    ]
    with (directory / "weed.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
        try:
            _wait(process, ports["s3"], ports["filer"])
            url = f"http://127.0.0.1:{ports['s3']}"
            _make_bucket(url)
            yield url
        finally:
            process.kill()  # it takes its time over a polite end, and nobody needs its data
            process.wait()


def _wait(process: subprocess.Popen[bytes], *ports: int) -> None:
    deadline = time.monotonic() + _START_S
    for port in ports:
        while True:
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not come up"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)


def _make_bucket(url: str) -> None:
    """The server makes a bucket with the first object in it, and lists none before."""
    store = S3Store(
        BUCKET,
        config={
            "endpoint": url,
            "region": "us-east-1",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
        },
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    obstore.put(store, "first", b"1")
    obstore.delete(store, "first")


@dataclass
class SpoilingProxy:
    """Passes bytes on to a server, one connection for each request.

    `fail_every`: each n-th request is answered with 500, unseen by the server. `lose_puts`: so many
    puts reach the server and their answers do not come back. `hang`: requests wait for ever.
    `delay_s`: each waits so long before it is passed on; `waiting_max` is how many did at a time.
    """

    target: str
    fail_every: int = 0
    lose_puts: int = 0
    hang: bool = False
    delay_s: float = 0.0
    requests: int = 0
    waiting_max: int = 0
    url: str = ""
    waiting: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.contextmanager
    def in_a_thread(self) -> Iterator["SpoilingProxy"]:
        """The same, for a test that has no event loop. Switches may be turned meanwhile."""
        loop, ready = asyncio.new_event_loop(), threading.Event()
        over = asyncio.Event()

        async def serve() -> None:
            async with self.running():
                ready.set()
                await over.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
        thread.start()
        assert ready.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join(10)
            loop.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["SpoilingProxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(
            (int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        self.requests += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.delay_s:
            self.waiting += 1
            self.waiting_max = max(self.waiting_max, self.waiting)
            try:
                await asyncio.sleep(self.delay_s)
            finally:
                self.waiting -= 1
        if self.fail_every and self.requests % self.fail_every == 0:
            writer.write(b"HTTP/1.1 500 Spoilt\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        host, _, port = self.target.removeprefix("http://").partition(":")
        there, upward = await asyncio.open_connection(host, int(port))
        try:
            kept = [line for line in lines[1:-2] if not line.lower().startswith(b"connection:")]
            # The host is signed: it stays as the client named it.
            upward.write(b"\r\n".join([lines[0], *kept, b"Connection: close", b"", b""]) + body)
            await upward.drain()
            answer = bytearray()
            while piece := await there.read(1 << 16):
                answer += piece
        finally:
            upward.close()
        if self.lose_puts and head.startswith(b"PUT"):
            self.lose_puts -= 1
            return
        writer.write(bytes(answer))
        await writer.drain()
