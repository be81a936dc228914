"""A client under test: a program that takes one JSON object a line and answers each with one."""

import asyncio
import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# How much longer than the deadline that it was given a program may take to answer, in seconds.
GRACE_S = 10.0
# limit: bytes of one line of a program; a read of a check has a few thousand small records
LINE_BYTES_MAX = 16 * 1024 * 1024


class ProgramFailed(Exception):
    """It ended, said nothing in time, or said what is no answer."""


class NotSupported(Exception):
    """It says that it does not do this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What became of an append: `shard` and `offset` if it is in the log, else why not."""

    ok: bool
    shard: int = 0
    offset: int = 0
    reason: str = ""
    taken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a read gave: (shard, offset, key, value), gaps as (shard, first, next), or why not."""

    records: tuple[tuple[int, int, bytes | None, bytes], ...] = ()
    gaps: tuple[tuple[int, int, int], ...] = ()
    reason: str = ""
    first_offset: int = -1


class Program:
    """One run of the client under test. `start` before use, `close` after."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, addresses: Sequence[str], tls: dict[str, str] | None = None) -> None:
        """Start it and tell it where the cluster is; `tls`: paths of ca, certificate and key."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
        await self.ask({"do": "connect", "addresses": list(addresses), "tls": tls})

    async def close(self) -> None:
        """End it: its stdin is closed, and what does not end by that is killed."""
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def ask(self, request: dict[str, object], timeout_s: float = 10.0) -> dict[str, Any]:
        """One request and its answer. Raises `ProgramFailed`, `NotSupported`."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ProgramFailed("it was not started")
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(timeout_s + GRACE_S):
                line = await process.stdout.readline()
        except TimeoutError:
            raise ProgramFailed(f"no answer {GRACE_S:.0f} s after the deadline") from None
        except (OSError, ValueError) as error:
            raise ProgramFailed(str(error)) from error
        try:
            answer = json.loads(line) if line else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            said = f"it said {line[:80]!r}" if line else "it ended"
            raise ProgramFailed(f"{said} in answer to {request['do']!r}")
        if answer.get("unsupported"):
            raise NotSupported(str(request["do"]))
        return answer

    async def append(
        self, log: str, value: bytes, key: bytes | None = None, timeout_s: float = 10.0
    ) -> Appended:
        """Append one record."""
        request: dict[str, object] = {
            "do": "append",
            "log": log,
            "key": None if key is None else base64.b64encode(key).decode(),
            "value": base64.b64encode(value).decode(),
            "timeout_s": timeout_s,
        }
        answer = await self.ask(request, timeout_s)
        return Appended(
            ok=bool(answer.get("ok")),
            shard=int(answer.get("shard", 0)),
            offset=int(answer.get("offset", 0)),
            reason=str(answer.get("reason", "")),
            taken=str(answer.get("taken", "")),
        )

    async def read(self, log: str, start: tuple[int, int] | None = None) -> Reading:
        """Read a log from its first records on to its end; `start`: from a shard's offset."""
        request: dict[str, object] = {"do": "read", "log": log}
        if start is not None:
            request |= {"shard": start[0], "offset": start[1]}
        answer = await self.ask(request, 30.0)
        if not answer.get("ok"):
            first = int(answer.get("first_offset", -1))
            return Reading(reason=str(answer.get("reason", "?")), first_offset=first)
        return Reading(
            records=tuple(
                (
                    int(shard),
                    int(offset),
                    None if key is None else base64.b64decode(key),
                    base64.b64decode(value),
                )
                for shard, offset, key, value in answer.get("records", ())
            ),
            gaps=tuple((int(a), int(b), int(c)) for a, b, c in answer.get("gaps", ())),
        )

    async def hash(self, key: bytes) -> str:
        """The key's hash, as 16 hexadecimal digits."""
        answer = await self.ask({"do": "hash", "key": base64.b64encode(key).decode()})
        return str(answer.get("hash", ""))
