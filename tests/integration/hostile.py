"""A client that means harm, as a program of its own: `python -m tests.integration.hostile SPEC`.

SPEC is JSON: `addresses` of a peer, a front worker and a LAS node, TLS `files`, how many malformed
`rpcs`, how many half-open `connections`, a `seed`. It prints what came of it as one line of JSON,
after it has held the half-open connections until all were closed or `patience_s` is over.
"""

import asyncio
import json
import random
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio

from peerd.transport.authz import ALLOWED_ROLES
from peerd.transport.tls import HTTP2_PREFACE

IN_FLIGHT = 32
"""Calls of one channel at a time."""
CALL_TIMEOUT_S = 1.0
SERVICES = sorted(name for name in ALLOWED_ROLES if name.count("/") == 1)
METHODS = sorted(name for name in ALLOWED_ROLES if name.count("/") == 2)
OVERSIZED_BYTES = 64 * 1024


def garbage(random_: random.Random) -> bytes:
    """What is no request, or one whose fields are nonsense."""
    kind = random_.randrange(4)
    if kind == 0:
        return random_.randbytes(random_.randrange(1, 300))
    if kind == 1:
        # A field of bytes whose length reaches beyond the message.
        return b"\x0a" + b"\xff\xff\xff\xff\x0f" + random_.randbytes(20)
    if kind == 2:
        # A log's name, then groups that never end.
        return b"\x0a\x06orders" + b"\x0b" * random_.randrange(1, 300)
    return b"\x0a\x06orders\x2a\x04" + random_.randbytes(4)


def methods(random_: random.Random) -> str:
    """A call that exists, or one that does not."""
    if random_.random() < 0.8:
        return random_.choice(METHODS)
    return f"{random_.choice(SERVICES)}/{random_.choice(('Burn', 'Append', '', '%00', 'x' * 200))}"


async def one_call(channel: grpc.aio.Channel, random_: random.Random, *, oversized: bool) -> str:
    method, data = methods(random_), garbage(random_)
    metadata = (("x-hostile", "y" * OVERSIZED_BYTES),) if oversized else ()
    try:
        if random_.random() < 0.5:
            await channel.unary_unary(method)(data, timeout=CALL_TIMEOUT_S, metadata=metadata)
        else:
            call = channel.stream_stream(method)(timeout=CALL_TIMEOUT_S, metadata=metadata)
            await call.write(data)
            if random_.random() < 0.5:
                call.cancel()
                return "CANCELLED"
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except (asyncio.CancelledError, asyncio.InvalidStateError, grpc.aio.BaseError):
        return "CANCELLED"
    return "OK"


async def rpcs(address: str, files: dict[str, bytes], count: int, seed: int) -> Counter[str]:
    """So many malformed calls, over one channel."""
    random_ = random.Random(seed)
    credentials = grpc.ssl_channel_credentials(files["ca"], files["key"], files["certificate"])
    outcomes: Counter[str] = Counter()
    left = iter(range(count))

    async def worker(channel: grpc.aio.Channel) -> None:
        for number in left:
            outcomes[await one_call(channel, random_, oversized=number % 50 == 49)] += 1

    async with grpc.aio.secure_channel(address, credentials) as channel:
        await asyncio.gather(*(worker(channel) for _ in range(IN_FLIGHT)))
    return outcomes


def half_open(addresses: list[str], count: int, random_: random.Random) -> Iterator[socket.socket]:
    """Connections that say nothing, or the beginning of a handshake and no more."""
    for number in range(count):
        host, _, port = addresses[number % len(addresses)].rpartition(":")
        connection = socket.create_connection((host, int(port)), timeout=10)
        if number % 2:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01" + random_.randbytes(40))
        connection.setblocking(False)
        yield connection


def loris(
    address: str, context: ssl.SSLContext, count: int, random_: random.Random
) -> Iterator[ssl.SSLSocket]:
    """Connections with a certificate that never finish a request, or send what is no HTTP/2."""
    host, _, port = address.rpartition(":")
    for number in range(count):
        raw = socket.create_connection((host, int(port)), timeout=10)
        secured = context.wrap_socket(raw, server_hostname="localhost")
        beginnings = (
            HTTP2_PREFACE[:-4],
            HTTP2_PREFACE + b"\x00\x40\x00\x01\x04\x00\x00\x00\x01" + b"\x00" * 20,
            HTTP2_PREFACE + random_.randbytes(200),
            random_.randbytes(100),
        )
        try:
            secured.sendall(beginnings[number % len(beginnings)])
        except OSError:
            continue
        yield secured


def are_closed(connections: list[socket.socket], patience_s: float) -> int:
    """How many the servers have closed, within the time."""
    deadline_s = time.monotonic() + patience_s
    open_ = list(connections)
    while open_ and time.monotonic() < deadline_s:
        still = []
        for connection in open_:
            try:
                if connection.recv(4096):
                    still.append(connection)
            except (BlockingIOError, ssl.SSLWantReadError):
                still.append(connection)
            except OSError:
                pass
        open_ = still
        time.sleep(0.05)
    return len(connections) - len(open_)


async def attack(spec: dict[str, object]) -> dict[str, object]:
    addresses = [str(each) for each in spec["addresses"]]  # type: ignore[attr-defined]
    paths = {name: Path(path) for name, path in dict(spec["files"]).items()}  # type: ignore[call-overload]
    files = {name: path.read_bytes() for name, path in paths.items()}
    seed, count = int(str(spec["seed"])), int(str(spec["rpcs"]))
    connections = int(str(spec["connections"]))
    random_ = random.Random(seed)
    context = ssl.create_default_context(cafile=paths["ca"])
    context.load_cert_chain(paths["certificate"], paths["key"])
    context.set_alpn_protocols(["h2"])
    held = list(half_open(addresses, connections, random_))
    slow = [
        each
        for address in addresses
        for each in loris(address, context, max(1, connections // 10), random_)
    ]
    part = count // len(addresses)
    outcomes = await asyncio.gather(
        *(rpcs(address, files, part, seed + at) for at, address in enumerate(addresses))
    )
    closed = await asyncio.to_thread(are_closed, held, float(str(spec["patience_s"])))
    for each in (*held, *slow):
        each.close()
    return {
        "outcomes": dict(sum(outcomes, Counter())),
        "half_open": len(held),
        "half_open_closed": closed,
        "slow": len(slow),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(attack(json.loads(sys.argv[1])))))
