"""Sequencer and worker at the two ends of a real socket, in one process, with a host by hand."""

import asyncio
import os
import socket
from dataclasses import dataclass, field

import pytest

from las.v1 import shard_map_pb2
from peerd.core.batch import BatchHeader
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import Epoch, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.shard_map import Plan, Segment, Shard
from peerd.daemon.config import PeerdConfig, default_workers, load_config
from peerd.daemon.errors import CannotStart, PortInUse
from peerd.daemon.front import connection as connections
from peerd.daemon.front.connection import Connection
from peerd.daemon.front.frames import (
    FrontAppend,
    Kind,
    Settings,
    encode_accepted,
    encode_append,
    encode_number,
    frame,
)
from peerd.daemon.front.fronts import (
    LOOK_INTERVAL_S,
    SILENT_LOOKS_MAX,
    Front,
    Fronts,
    Link,
)
from peerd.daemon.front.host import SequencerAppends
from peerd.daemon.front.port import ClientPort
from peerd.daemon.supervisor import Supervisor
from peerd.settings import ConfigError
from peerd.transport.access import Access
from peerd.transport.limits import RETRY_STEP_MS, ByteBudget
from peerd.transport.map_cache import MapCache
from tests.daemon.fleet import DEADLINE_S

SHARD = ShardId(7)
SEQUENCER = ProcessId("peer-1", "5" * 32, "b" * 32)
OTHER = ProcessId("peer-2", "6" * 32, "c" * 32)


@dataclass
class HandHost:
    """Takes appends, and gives the answers that the test tells it to."""

    taken: list = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    space_in_reserve = False

    def is_primary(self, shard):
        return True

    def append(self, shard, header, payload, expected_offset, done):
        self.taken.append((shard, header, payload, expected_offset, done))
        self.news.set()

    async def until_taken(self, count):
        while len(self.taken) < count:
            self.news.clear()
            await self.news.wait()


def receipt(base):
    return AppendAccepted(
        request=0,
        shard=SHARD,
        epoch=Epoch(1),
        base=Offset(base),
        record_count=1,
        timestamp_ms=5,
        durable_on=(SEQUENCER.replica, OTHER.replica),
    )


def header_of(payload):
    return BatchHeader(record_count=1, payload_crc=9, payload_bytes=len(payload))


class Ends:
    """A link (the sequencer's end) and the appends of a worker, joined by a socketpair."""

    def __init__(self):
        self.now_s = 0.0
        self.host = HandHost()
        self.budget = ByteBudget("this peer", 100)
        self.access = Access("shop")
        self.link_ended = asyncio.get_running_loop().create_future()
        self.worker_ended = asyncio.get_running_loop().create_future()
        self.served = asyncio.Event()
        self.link = Link(
            self.host,
            self.budget,
            self.access,
            serves=self.served.set,
            ended=self.link_ended.set_result,
        )
        self.cache = MapCache(lambda: 0)
        self.appends = SequencerAppends(SEQUENCER, self.cache, lambda: self.now_s)

    async def join(self):
        ours, theirs = socket.socketpair()
        await self.link.open_on(ours)
        self.connection = await Connection.open_on(
            theirs, self.appends.answered, self.worker_ended.set_result
        )
        self.appends.connect(self.connection)
        return self

    def append(self, payload, shard=SHARD):
        answer = asyncio.get_running_loop().create_future()
        self.appends.append(shard, header_of(payload), payload, None, answer.set_result)
        return answer


@pytest.fixture
async def ends():
    ends = await Ends().join()
    yield ends
    ends.connection.close()
    ends.link.close()


async def test_each_append_gets_its_own_answer_whatever_the_order(ends):
    answers = [ends.append(payload) for payload in (b"a", b"b", b"c")]
    await ends.host.until_taken(3)
    assert [taken[2] for taken in ends.host.taken] == [b"a", b"b", b"c"]
    refused = Refusal(
        reason=Reason.OFFSET_MISMATCH, message="no", taken=Taken.NO, first_offset=Offset(4)
    )
    ends.host.taken[2][4](receipt(2))
    ends.host.taken[0][4](receipt(0))
    ends.host.taken[1][4](refused)
    first, second, third = await asyncio.gather(*answers)
    assert (first.base, second, third.base) == (0, refused, 2)
    assert first.durable_on == (SEQUENCER.replica, ReplicaId(OTHER.peer, OTHER.store))
    assert (ends.budget.used_bytes, ends.link.unanswered_bytes, ends.link.appends) == (0, 0, 3)


async def test_beyond_the_budget_of_the_peer_an_append_is_refused_and_the_rest_goes_on(ends):
    large = ends.append(bytes(80))
    refused = await ends.append(bytes(30))
    assert refused.reason is Reason.OVERLOADED
    assert refused.taken is Taken.NO
    assert refused.retry_after_ms
    ends.host.taken[0][4](receipt(0))
    assert (await large).base == 0
    ends.append(bytes(30))
    await ends.host.until_taken(2)


async def test_outcomes_after_the_end_of_a_worker_are_dropped_and_free_their_bytes(ends):
    ends.append(b"abc")
    await ends.host.until_taken(1)
    ends.connection.close()
    await ends.link_ended
    assert ends.budget.used_bytes == 3
    ends.host.taken[0][4](receipt(0))
    assert ends.budget.used_bytes == 0


async def test_a_worker_without_its_sequencer_ends(ends):
    answer = ends.append(b"abc")
    await ends.host.until_taken(1)
    ends.link.close()
    assert "ended" in await ends.worker_ended
    assert not answer.done()


async def test_an_answer_to_nothing_ends_the_worker(ends):
    ends.link.send(encode_accepted(17, receipt(0)))
    assert "17" in await ends.worker_ended


@pytest.mark.parametrize(
    "sent", [frame(Kind.ACCEPTED, b"x"), frame(Kind.APPEND, b"cut"), b"\xff\xff\xff\xff\xff"]
)
async def test_what_no_worker_sends_ends_its_link_alone(ends, sent):
    append = FrontAppend(1, SHARD, header_of(b"v"), b"v", None)
    ends.connection.send(encode_append(append) + sent + encode_append(append))
    await ends.link_ended
    assert len(ends.host.taken) == 1


async def test_a_worker_that_does_not_read_is_ended(ends, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_BYTES_MAX", 1024 * 1024)
    unread, theirs = socket.socketpair()
    ended = asyncio.get_running_loop().create_future()
    link = Link(ends.host, ends.budget, ends.access, serves=ends.served.set, ended=ended.set_result)
    await link.open_on(theirs)
    for _ in range(3):
        link.send(frame(Kind.MAP, bytes(1024 * 1024)))
    assert "has not read" in await ended
    unread.close()


async def test_serving_and_signs_of_life_are_noted(ends):
    ends.link.silent_looks = 3
    ends.connection.send(frame(Kind.SERVING))
    ends.connection.send(frame(Kind.PULSE, (17).to_bytes(8, "little")))
    ends.append(b"v")
    await ends.host.until_taken(1)
    assert ends.served.is_set()
    assert (ends.link.serving, ends.link.silent_looks, ends.link.cpu_us) == (True, 0, 17)


class HandProcess:
    """A worker's process as `asyncio` gives it, that ends when it is killed."""

    def __init__(self):
        self.returncode = None
        self._ended = asyncio.Event()

    async def wait(self):
        await self._ended.wait()
        return self.returncode

    def kill(self):
        self.returncode = -9
        self._ended.set()


async def test_the_whole_map_comes_first_however_it_moves_while_a_worker_starts(monkeypatch):
    cache, started = MapCache(lambda: 0), []
    for version in (1, 2):
        cache.apply(map_update(version))

    async def start(*command, pass_fds, **_):
        started.append(socket.socket(fileno=os.dup(pass_fds[0])))
        cache.apply(map_update(3))
        return HandProcess()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    settings = Settings(worker=1, listen="127.0.0.1:1", sequencer=SEQUENCER, config="{}")
    front = Front(settings, HandHost(), ByteBudget("this peer", 100), Access("shop"))
    stop_telling = cache.subscribe(lambda _: front.link is None or front.link.send_map(cache))
    running = asyncio.create_task(front.run(cache))
    got, enough = [], asyncio.Event()

    def take(kind, body):
        got.append((kind, bytes(body)))
        if len(got) == 4:
            enough.set()

    while front.link is None:  # noqa: ASYNC110 - as many turns as the start takes
        await asyncio.sleep(0)
    cache.apply(map_update(4))
    worker = await Connection.open_on(started[0], take, lambda _: None)
    await enough.wait()
    assert [kind for kind, _ in got] == [
        Kind.ACCESS,
        Kind.SETTINGS,
        Kind.MAP,
        Kind.MAP,
    ]
    maps = [shard_map_pb2.MapUpdate.FromString(body) for _, body in got[2:]]
    assert [(each.version, each.full) for each in maps] == [(3, True), (4, False)]
    stop_telling()
    running.cancel()
    worker.close()


@pytest.fixture
def processes(monkeypatch):
    """Every process that is started; none is real. The far ends of their sockets stay open."""
    started = []

    async def start(*command, pass_fds, **_):
        process = HandProcess()
        process.end = socket.socket(fileno=os.dup(pass_fds[0]))
        started.append(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    yield started
    for process in started:
        process.end.close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds of each sleep, none of which is slept."""
    slept, sleep = [], asyncio.sleep

    async def wait(seconds):
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", wait)
    return slept


def a_front():
    settings = Settings(worker=1, listen="127.0.0.1:1", sequencer=SEQUENCER, config="{}")
    return Front(settings, HandHost(), ByteBudget("this peer", 100), Access("shop"))


async def test_a_worker_that_ends_is_started_again_after_growing_pauses(processes, waits):
    front = a_front()
    front.first.set_result(None)
    running = asyncio.create_task(front.run(MapCache(lambda: 0)))
    for number in range(8):
        await turns(lambda n=number: len(processes) > n and front.link is not None)
        assert front.statistics().starts == number + 1
        processes[number].kill()
        await turns(lambda n=number: len(waits) > n)
    pauses = [seconds for seconds in waits if seconds]
    assert pauses[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    running.cancel()


async def turns(condition):
    """Let the loop turn until `condition()`; fails if it never comes true."""
    loop = asyncio.get_running_loop()
    for _ in range(10_000):
        if condition():
            return
        turned = loop.create_future()
        loop.call_soon(turned.set_result, None)
        await turned
    raise AssertionError("it did not come true")


async def test_a_peer_whose_worker_cannot_serve_does_not_start(processes, tmp_path):
    fronts = Fronts(config(workers="2", client_listen="127.0.0.1:0"))
    supervisor = Supervisor()
    starting = asyncio.create_task(
        fronts.start(
            sequencer=SEQUENCER,
            host=HandHost(),
            budget=ByteBudget("this peer", 100),
            map_cache=MapCache(lambda: 0),
            access=Access("shop"),
            supervisor=supervisor,
        )
    )
    await turns(lambda: len(processes) == 2)
    processes[1].returncode = 2
    processes[1]._ended.set()
    with pytest.raises(CannotStart, match="worker 2 ended with status 2 before it served"):
        await starting
    processes[0].kill()
    await supervisor.stop(timeout_s=DEADLINE_S)
    await fronts.stop(1.0)
    ClientPort(f"127.0.0.1:{fronts.port}").close()


async def test_a_worker_without_a_sign_of_life_is_killed_and_one_that_gives_them_is_not(
    processes, waits
):
    fronts = Fronts(config(workers="2", client_listen="127.0.0.1:0"))
    supervisor = Supervisor()
    starting = asyncio.create_task(
        fronts.start(
            sequencer=SEQUENCER,
            host=HandHost(),
            budget=ByteBudget("this peer", 100),
            map_cache=MapCache(lambda: 0),
            access=Access("shop"),
            supervisor=supervisor,
        )
    )
    await turns(lambda: len(processes) == 2)
    lively, hung = processes
    for process in processes:
        process.end.send(frame(Kind.SERVING))
    await starting
    while hung.returncode is None:
        lively.end.send(encode_number(Kind.PULSE, 1))
        await turns(lambda seen=len(waits): len(waits) > seen)
    assert waits.count(LOOK_INTERVAL_S) > SILENT_LOOKS_MAX
    assert lively.returncode is None
    await supervisor.stop(timeout_s=DEADLINE_S)
    await fronts.stop(1.0)


def map_update(version):
    return shard_map_pb2.MapUpdate(version=version, full=version == 1)


# ------------------------------------------------------------------------------ who is primary


def shard_of(primary):
    plan = Plan(primary=primary, voters=(SEQUENCER.replica, OTHER.replica), acks=2)
    return Shard(
        shard=SHARD,
        log="orders",
        key_hash_low=0,
        key_hash_high=2**64 - 1,
        open=Segment(epoch=Epoch(1), begin=Offset(0), plan=plan),
    )


async def test_the_sequencer_is_tried_where_the_map_names_this_very_process(ends):
    assert not ends.appends.is_primary(SHARD)
    for primary, expected in (
        (SEQUENCER, True),
        (OTHER, False),
        (ProcessId(SEQUENCER.peer, SEQUENCER.store, "d" * 32), False),
    ):
        ends.cache.shards[SHARD] = shard_of(primary)
        assert ends.appends.is_primary(SHARD) is expected


@pytest.mark.parametrize("reason", [Reason.NOT_PRIMARY, Reason.FENCED, Reason.MOVED])
async def test_a_refusal_beats_the_map_for_one_step(ends, reason):
    ends.cache.shards[SHARD] = shard_of(SEQUENCER)
    answer = ends.append(b"v")
    await ends.host.until_taken(1)
    refusal = Refusal(reason=reason, message="go", leader=OTHER, taken=Taken.UNKNOWN)
    ends.host.taken[0][4](refusal)
    assert await answer == refusal
    assert not ends.appends.is_primary(SHARD)
    ends.now_s += RETRY_STEP_MS / 1000
    assert ends.appends.is_primary(SHARD)


# ------------------------------------------------------------------------------ the port, the keys


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_client_port_is_one_peers_alone_and_its_workers_share_it(host):
    port = ClientPort(f"{host}:0")
    with pytest.raises(PortInUse, match="in use by another"):
        ClientPort(port.address)
    workers = [socket.socket() for _ in range(2)]
    for worker in workers:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind((host, port.port))
        worker.listen()
    port.close()
    with pytest.raises(PortInUse, match="in use by another"):
        ClientPort(port.address)
    for worker in workers:
        worker.close()
    ClientPort(port.address).close()


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (3, 0), (4, 2), (8, 4), (64, 8)])
def test_workers_by_default_follow_the_cores(cores, workers):
    assert default_workers(cores) == workers


def config(**keys):
    fixed = {"cluster": "shop", "name": "peer-1", "las": "127.0.0.1:7500", "data_dir": "data"}
    fixed |= {"insecure_loopback": "true", "listen": "127.0.0.1:7400"}
    return load_config(None, fixed | keys, environment={})


def test_the_client_port_lies_beside_the_peer_port():
    assert config().client_listen == "127.0.0.1:7402"
    assert config(listen="127.0.0.1:0").client_listen == "127.0.0.1:0"
    assert config(listen="127.0.0.1:65535").client_listen == "127.0.0.1:65533"
    read = config(workers="3")
    assert PeerdConfig.model_validate_json(read.model_dump_json()) == read


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"client_listen": "0.0.0.0:7402"}, "client_listen: 0.0.0.0:7402 is off loopback"),
        ({"client_listen": "127.0.0.1:7400"}, "client_listen: must have a port of its own"),
        ({"workers": "33"}, "workers: "),
    ],
)
def test_a_client_port_that_cannot_be_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        config(**({"workers": "1"} | keys))
