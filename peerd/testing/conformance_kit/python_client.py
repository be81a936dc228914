"""The project's own client behind the kit's line protocol: `python -m …python_client`."""

import asyncio
import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peerd
import peerd.aio
from peerd.transport.append_edge import key_hash

Answer = dict[str, object]


async def append(client: peerd.aio.Client, asked: Mapping[str, Any]) -> Answer:
    """One record; how it ended."""
    key = asked["key"]
    try:
        receipt = await client.append(
            asked["log"],
            base64.b64decode(asked["value"]),
            key=None if key is None else base64.b64decode(key),
            timeout_s=asked["timeout_s"],
        )
    except peerd.PeerdError as error:
        reason = getattr(error, "reason", "") or type(error).__name__
        return {"ok": False, "reason": str(reason), "taken": peerd.taken_of(error)}
    return {"ok": True, "shard": receipt.shard, "offset": receipt.offset}


async def read(client: peerd.aio.Client, asked: Mapping[str, Any]) -> Answer:
    """All records of a log, or of a shard from an offset on."""
    found: list[tuple[int, int, str | None, str]] = []
    options = {"shard": asked["shard"], "start": asked["offset"]} if "shard" in asked else {}
    try:
        async for record in client.read(asked["log"], **options):
            key = None if record.key is None else base64.b64encode(record.key).decode()
            value = base64.b64encode(record.value).decode()
            found.append((record.shard, record.offset, key, value))
    except peerd.Trimmed as error:
        return {"ok": False, "reason": "TRIMMED", "first_offset": error.first_offset}
    except peerd.PeerdError as error:
        return {"ok": False, "reason": str(error)}
    return {"ok": True, "records": found, "gaps": []}


async def answer(client: peerd.aio.Client, asked: Mapping[str, Any]) -> Answer:
    """What is said to one request."""
    if asked["do"] == "append":
        return await append(client, asked)
    if asked["do"] == "read":
        return await read(client, asked)
    if asked["do"] == "hash":
        return {"hash": f"{key_hash(base64.b64decode(asked['key'])):016x}"}
    return {"unsupported": True}


async def main() -> None:
    """Requests from stdin until it ends."""
    first = json.loads(await asyncio.to_thread(sys.stdin.readline))
    files = {name: Path(file) for name, file in (first["tls"] or {}).items()}
    tls = peerd.TlsFiles(**files) if files else None
    async with peerd.aio.connect(first["addresses"], credentials=tls) as client:
        _say({"ok": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            _say(await answer(client, json.loads(line)))


def _say(answer: Answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
