"""The access table of a peer: from the LAS, on disk, and what is told of refusals.

Why a grant or a revocation holds while the LAS is down: what the LAS tells is in force at once and
is written to `access.json` in the data directory; a process that starts reads it before it serves.
To the LAS a peer tells the version that is on its disk, so what was distributed survives a restart.

Invariants:
- A file that cannot be trusted is not overlooked: without it the peer would let in who was revoked.
- A write that fails is tried again, and is no reason to stop: the table in memory is in force.

Must not: judge a call (`peerd.transport.access`).
"""

import asyncio
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from google.protobuf import json_format

from las.v1 import access_pb2
from peerd.core.errors import Reason
from peerd.daemon.errors import StoreUnusable
from peerd.daemon.logging import get_logger
from peerd.storage.directory import write_file_durably
from peerd.transport.access import (
    Access,
    AccessMalformed,
    decode_access,
    encode_access,
    encode_refused,
)
from peerd.transport.refused_calls import RefusedCall, RefusedCalls

FILE_NAME = "access.json"
FORMAT = 1
"""Of the file. One of a higher number is refused."""
# A write that failed is tried again after so long. Seconds.
RETRY_S = 1.0
# How often the file is touched while the LAS says that it is current: its age tells the age of the
# table after a restart. Seconds.
TOUCH_EVERY_S = 60.0
# limit: refusals that wait to be told to the LAS; beyond, the oldest are in the log alone
TOLD_WAITING_MAX = 256
# limit: refusals that one heartbeat tells, as the contract says
TOLD_PER_HEARTBEAT_MAX = 32
# How often what was joined is looked at. Seconds.
LOOK_EVERY_S = 1.0

_log = get_logger("access")


class RefusalsTold:
    """Refusals of this peer: logged, and kept until a heartbeat takes them along."""

    def __init__(self) -> None:
        self.calls = RefusedCalls(self._told)
        self._waiting: deque[RefusedCall] = deque(maxlen=TOLD_WAITING_MAX)

    def _told(self, call: RefusedCall) -> None:
        _log.warning("calls refused", **call.facts)
        # Who is only too busy is told here: a busy day would fill the audit.
        if call.reason != Reason.OVERLOADED.name:
            self._waiting.append(call)

    def take(self) -> list[access_pb2.RefusedCalls]:
        """What is to be told to the LAS now."""
        count = min(len(self._waiting), TOLD_PER_HEARTBEAT_MAX)
        return [encode_refused(self._waiting.popleft()) for _ in range(count)]

    async def run(self) -> None:
        """Tell what was joined, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.calls.look()


class AccessKeeper:
    """Used on one event loop. `load` it before anything is served."""

    def __init__(
        self,
        directory: Path,
        access: Access,
        *,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`access` is what the calls are judged by."""
        self.access = access
        self.durable_version = 0
        self._path = directory / FILE_NAME
        self._now_s = now_s
        self._wall_s = wall_s
        self._heard_s = now_s()
        self._touched_s = now_s()
        self._cluster_id = ""
        self._changed = asyncio.Event()

    @property
    def age_s(self) -> float:
        """Since the LAS last said that the table is current; of one from disk, since it was."""
        return max(0.0, self._now_s() - self._heard_s)

    def load(self, cluster_id: str) -> None:
        """Take what the disk has. `cluster_id` is the store's.

        Raises:
            StoreUnusable: the file is damaged, of another cluster or of a later version.
        """
        self._cluster_id = cluster_id
        try:
            content = self._path.read_bytes()
            age_s = self._wall_s() - self._path.stat().st_mtime
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreUnusable(f"{self._path}: {error.strerror or error}") from error
        try:
            table = decode_access(_parsed(content, cluster_id))
        except ValueError as error:
            raise StoreUnusable(
                f"{self._path}: {error}; who was revoked could get in without it. Bring it back, "
                "or delete it: then everything is open here until the LAS is reached"
            ) from error
        self.access.take(table)
        self.durable_version = table.version
        self._heard_s = self._now_s() - max(0.0, age_s)

    def told(self, wire: access_pb2.AccessTable, cluster_id: str) -> None:
        """The LAS says what the table is. Raises `AccessMalformed`: it is none."""
        self._cluster_id = cluster_id
        if self.access.take(decode_access(wire)):
            table = self.access.table
            _log.info(
                "access table",
                version=table.version,
                required=table.required,
                grants=len(table.grants),
                revoked=len(table.revoked),
            )
            self._changed.set()
        self.heard_current()

    def heard_current(self) -> None:
        """The LAS said that there is nothing newer."""
        self._heard_s = now_s = self._now_s()
        if self.durable_version and now_s - self._touched_s >= TOUCH_EVERY_S:
            self._touched_s = now_s
            try:
                os.utime(self._path)
            except OSError as error:
                _log.warning("the access table's file is not there", why=str(error))

    async def run(self) -> None:
        """Write each new table, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            table = self.access.table
            content = _content(encode_access(table), self._cluster_id)
            try:
                await asyncio.to_thread(write_file_durably, self._path, content)
            except OSError as error:
                _log.error("the access table is not on disk", why=str(error))
                await asyncio.sleep(RETRY_S)
                self._changed.set()
            else:
                self.durable_version = table.version


def _content(wire: access_pb2.AccessTable, cluster_id: str) -> bytes:
    table = json_format.MessageToDict(wire, preserving_proto_field_name=True)
    body = {"format": FORMAT, "cluster_id": cluster_id, "table": table}
    return (json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n").encode()


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _parsed(content: bytes, cluster_id: str) -> access_pb2.AccessTable:
    """Raises `AccessMalformed` and other `ValueError`s."""
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise AccessMalformed(f"it is no access table of format {FORMAT}")
    sha256 = found.pop("sha256", "")
    if sha256 != _digest(found):
        raise AccessMalformed("its checksum is wrong: it was changed or damaged")
    if cluster_id and found.get("cluster_id") != cluster_id:
        raise AccessMalformed(f"it is of cluster {found.get('cluster_id')!r}")
    try:
        return json_format.ParseDict(found["table"], access_pb2.AccessTable())
    except (json_format.ParseError, KeyError, TypeError) as error:
        raise AccessMalformed(f"it cannot be read ({error})") from error
