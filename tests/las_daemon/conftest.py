"""A LAS of one node in this process, and stand-ins for its peers."""

from collections.abc import AsyncIterator, Callable
from functools import partial

import grpc.aio
import pysyncobj.syncobj
import pytest

from las.core.levels import FIRST_LEVEL
from las.daemon import node as las_node
from las.daemon.directory import init
from las.daemon.group import Group
from las.daemon.model import Model
from las.daemon.node import LasNode
from las.daemon.slow_heads import SlowHeads
from las.forecast.heuristic import HeuristicForecaster
from las.raft import RaftNode, RaftOptions
from las.v1 import (
    fleet_pb2_grpc,
    forecast_pb2_grpc,
    log_admin_pb2_grpc,
    shard_map_pb2_grpc,
)
from tests.las_daemon.stand_in import StandInPeer, las_config, until
from tests.patient_clock import PatientClock


class Las:
    """A running node with stubs of its services."""

    def __init__(self, node: LasNode) -> None:
        self.node = node
        self.channel = grpc.aio.insecure_channel(node.address)
        self.fleet = fleet_pb2_grpc.FleetServiceStub(self.channel)
        self.logs = log_admin_pb2_grpc.LogAdminServiceStub(self.channel)
        self.map = shard_map_pb2_grpc.ShardMapServiceStub(self.channel)
        self.forecast = forecast_pb2_grpc.ForecastServiceStub(self.channel)
        self.peers: list[StandInPeer] = []

    @property
    def state(self):
        return self.node.group.state

    @property
    def term(self):
        return self.node._leading()

    async def add_peers(self, count: int) -> list[StandInPeer]:
        for number in range(len(self.peers) + 1, len(self.peers) + count + 1):
            self.peers.append(await StandInPeer(number, self.node.address).start())
        return self.peers

    async def leading(self) -> "Las":
        """It leads, and what a leader commits unasked is committed: the rest is the test's."""
        await until(lambda: self.term is not None, "a leader")
        await until(lambda: self.state.command_level > FIRST_LEVEL, "the level of a new cluster")
        return self

    async def stop(self) -> None:
        for peer in self.peers:
            await peer.stop()
        await self.channel.close()
        await self.node.stop()


@pytest.fixture
def quick_elections(monkeypatch) -> None:
    """A group of one needs no second of silence to elect itself; a group of three, less of it, and
    only of the time in which this process is run.
    """

    def options(**settings: object) -> RaftOptions:
        alone = len(settings["members"]) == 1
        return RaftOptions(
            **settings,
            tick_ms=5,
            heartbeat_ms=10 if alone else 40,
            election_timeout_ms=(40, 60) if alone else (300, 500),
            leader_fallback_ms=1_000,
        )

    clock = PatientClock()
    monkeypatch.setattr(las_node, "RaftOptions", options)
    # How long a command is waited for is judged nowhere here.
    monkeypatch.setattr(Group.submit, "__kwdefaults__", {"timeout_ms": 30_000})
    monkeypatch.setattr(las_node, "RaftNode", partial(RaftNode, clock=clock))
    monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", clock)


@pytest.fixture
def rule(monkeypatch) -> None:
    """The forecast is the rule, and that is as it should be."""
    monkeypatch.setattr(
        Model,
        "load",
        classmethod(lambda cls, path: cls(HeuristicForecaster(), "", SlowHeads.load())),
    )


@pytest.fixture
async def start_las(tmp_path, rule, quick_elections) -> AsyncIterator[Callable[..., object]]:
    running: list[Las] = []

    async def start(name: str = "las-1", **settings: object) -> Las:
        config = las_config(tmp_path / name, name=name, **settings)
        if not config.data_dir.exists():
            init(config, "00000000-0000-4000-8000-000000000001")
        las = Las(await LasNode.start(config))
        running.append(las)
        return las

    yield start
    for las in running:
        await las.stop()


@pytest.fixture
async def las(start_las) -> Las:
    return await (await start_las()).leading()
