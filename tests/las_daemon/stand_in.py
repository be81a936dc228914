"""A peer as the LAS sees it: real calls over loopback, storage and cores made up."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from las.daemon.config import LasConfig, load_config
from las.v1 import fleet_pb2, fleet_pb2_grpc
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.pki import Identity, Role
from peerd.testing.ports import free_port
from peerd.transport.concurrency import CallOver, write_to
from peerd.transport.status import refusal_of_error
from peerd.transport.tls import plaintext_metadata
from peerd.v1 import errors_pb2

DEADLINE_S = 60.0


def las_config(
    directory: Path,
    *,
    name: str = "las-1",
    members: dict[str, str] | None = None,
    telemetry: dict[str, object] | None = None,
    web_page: bool = True,
    **policy: object,
) -> LasConfig:
    members = members or {name: f"127.0.0.1:{free_port()}"}
    return load_config(
        None,
        {
            "cluster": "shop",
            "name": name,
            "listen": members[name],
            "http_listen": "127.0.0.1:0",
            "data_dir": str(directory),
            "members": members,
            "insecure_loopback": True,
            "telemetry": telemetry or {},
            "web_page": web_page,
            "policy": {
                "heartbeat_ms": 50,
                "lease_ms": 600_000,  # a stand-in is silent unless told to beat
                "interval_ms": 100,
                "holdout": 0.0,  # nothing by chance
                **policy,
            },
        },
        environment={},
    )


def metadata(role: Role, name: str, cluster: str = "shop") -> tuple[tuple[str, str], ...]:
    return plaintext_metadata(Identity(cluster=cluster, role=role, name=name))


ADMIN = metadata(Role.ADMIN, "ann")


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


async def refused(call: Awaitable[object]) -> tuple[str, errors_pb2.Refusal]:
    """The reason's name and the refusal that `call` ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    refusal = refusal_of_error(failure.value)
    assert refusal is not None, failure.value
    return errors_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_"), refusal


class StandInPeer(replication_pb2_grpc.ReplicationServiceServicer):
    """Registers, sends heartbeats, reports; answers promises as a store without records."""

    def __init__(self, number: int, las: str, *, port: int = 0) -> None:
        self.name = f"peer-{number}"
        self.host = f"host-{number}"
        self.store = f"{number:032x}"
        self.boot = f"{number + 1000:032x}"
        self.metadata = metadata(Role.PEER, self.name)
        self.las = grpc.aio.insecure_channel(las)
        self.fleet = fleet_pb2_grpc.FleetServiceStub(self.las)
        self.updates: list[fleet_pb2.HeartbeatResponse] = []
        self.sequence = 0
        self.silences: dict[str, int] = {}
        # Answers to give in place of those below, by method.
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.promised: list[replication_pb2.PromiseOrder] = []
        self._server = grpc.aio.server()
        replication_pb2_grpc.add_ReplicationServiceServicer_to_server(self, self._server)
        # Of its own: one that comes back at it finds it free.
        self.address = f"127.0.0.1:{port or free_port()}"
        self._server.add_insecure_port(self.address)
        self._streams: list[tuple[object, asyncio.Task[None]]] = []

    async def start(self) -> "StandInPeer":
        await self._server.start()
        await self.register()
        return self

    async def stop(self) -> None:
        for call, reading in self._streams:
            call.cancel()
            reading.cancel()
        await asyncio.gather(*(task for _, task in self._streams), return_exceptions=True)
        await self.las.close()
        await self._server.stop(None)

    def registration(self, **changes: object) -> fleet_pb2.RegisterRequest:
        fields = {
            "store_id": self.store,
            "boot_id": self.boot,
            "address": self.address,
            "labels": {"host": self.host},
            "may_lead": True,
            "telemetry_schema": TELEMETRY_SCHEMA.version,
            "feature_level": 3,
        }
        return fleet_pb2.RegisterRequest(**{**fields, **changes})

    async def register(self, **changes: object) -> fleet_pb2.RegisterResponse:
        return await self.fleet.Register(
            self.registration(**changes), metadata=self.metadata, timeout=30
        )

    def beat(self, **changes: object) -> fleet_pb2.HeartbeatRequest:
        fields = {"boot_id": self.boot, "free_bytes": 1 << 40, "stored_bytes": 7}
        return fleet_pb2.HeartbeatRequest(**{**fields, **changes})

    async def heartbeats(self, first: fleet_pb2.HeartbeatRequest | None = None) -> object:
        """Opens a stream; what comes down is collected in `updates`.

        One that is refused at once may end under its first write; its code tells why, unless
        grpc.aio made one up (INTERNAL): then another one has to ask.
        """
        while True:
            call = self.fleet.Heartbeat(metadata=self.metadata)
            with contextlib.suppress(CallOver, grpc.aio.AioRpcError):
                await write_to(call, first or self.beat())
            if not call.done() or await call.code() is not grpc.StatusCode.INTERNAL:
                break

        async def read() -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                while isinstance(response := await call.read(), fleet_pb2.HeartbeatResponse):
                    self.updates.append(response)

        self._streams.append((call, asyncio.create_task(read())))
        return call

    def samples(self, count: int, *, commit_ms: float) -> list[fleet_pb2.HealthSample]:
        """The newest `count` seconds: calm ones, of which the last ten took `commit_ms`."""
        values = np.zeros(len(TELEMETRY_SCHEMA), dtype=np.float32)
        values[TELEMETRY_SCHEMA.positions[ALWAYS_PRESENT]] = 1.0
        made = []
        for age_s in range(count, 0, -1):
            at = TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]
            values[at] = commit_ms if age_s <= 10 else 2.0
            self.sequence += 1
            made.append(
                fleet_pb2.HealthSample(
                    age_ms=age_s * 1000, sequence=self.sequence, values=values.tolist()
                )
            )
        return made

    async def report(self, *reports: fleet_pb2.PeerReport) -> None:
        await self.fleet.Report(
            fleet_pb2.ReportRequest(boot_id=self.boot, reports=reports),
            metadata=self.metadata,
            timeout=30,
        )

    # ------------------------------------------------------------------ asked by the leader
    async def Promise(self, request, context):
        if answer := self.answers.get("Promise"):
            return answer(request)
        assert request.target_store_id == self.store
        self.promised += request.orders
        return replication_pb2.PromiseResponse(
            store_id=self.store,
            promised=[
                replication_pb2.Promised(
                    shard=order.shard,
                    promised=order.fence,
                    open=replication_pb2.EpochState(epoch=order.epoch),
                    prepared=replication_pb2.EpochState(epoch=order.prepared),
                )
                for order in request.orders
            ],
        )

    async def FindCuts(self, request, context):
        if answer := self.answers.get("FindCuts"):
            return answer(request)
        cuts = [replication_pb2.FoundCut() for _ in request.orders]
        return replication_pb2.FindCutsResponse(store_id=self.store, cuts=cuts)

    async def HasBegun(self, request, context):
        if answer := self.answers.get("HasBegun"):
            return answer(request)
        return replication_pb2.HasBegunResponse(begun=False)

    async def Hears(self, request, context):
        silent_ms = self.silences.get(request.peer)
        return replication_pb2.HearsResponse(
            neighbour=silent_ms is not None, silent_ms=silent_ms or 0
        )
