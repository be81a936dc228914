"""Real nodes in one process: threads, disks and gRPC over loopback."""

import asyncio
import contextlib
import json
import time

import grpc
import grpc.aio
import pysyncobj.syncobj
import pytest

from las.internal.v1 import raft_pb2_grpc
from las.raft import (
    CommandInvalid,
    CommandSuperseded,
    CommandTooLarge,
    DirectoryEmpty,
    DirectoryInUse,
    NotLeader,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    RaftError,
    RaftNode,
    RaftOptions,
    init_directory,
    rejoin_directory,
)
from las.raft.driver import RaftThread
from las.raft.member import OPEN_COMMANDS_MAX, FailStop, RaftMember
from peerd.testing.ports import free_address
from tests.patient_clock import PatientClock

CLUSTER_ID = "0d5f7a53-6c0e-4a0f-8f0e-5b6a8f2b7a11"
DEADLINE_S = 60.0
TIMEOUT_MS = 60_000
NAMES = ("las-1", "las-2", "las-3")


class Register:
    """Commands are {"set": name, "to": value}; the result is the number of commands applied."""

    def __init__(self):
        self.values = {}
        self.count = 0

    def apply(self, command):
        fields = json.loads(command)
        if "set" not in fields:
            return json.dumps({"error": "what?"})
        self.count += 1
        # A new dict each time keeps what `freeze` captured as it was.
        self.values = {**self.values, fields["set"]: fields["to"]}
        return json.dumps(self.count)

    def freeze(self):
        count, values = self.count, self.values
        return lambda: json.dumps([count, values]).encode()

    def restore(self, snapshot):
        self.count, self.values = json.loads(snapshot)


def command(name, to=1):
    return json.dumps({"set": name, "to": to})


class Group:
    """Nodes on loopback without TLS; a caller names itself in its metadata."""

    def __init__(self, root, names=NAMES, clock=time.monotonic, **options):
        self.clock = clock
        self.root = root
        self.names = names
        self.options = options
        self.members = {}
        self.nodes = {}
        self.machines = {}
        self.servers = {}
        self.changes = {name: [] for name in names}
        self.failures = []
        # Pairs (dialler, address) that do not get through.
        self.blocked = set()

    def directory(self, name):
        return self.root / name

    def init(self):
        for name in self.names:
            init_directory(self.directory(name), "test", name, self.names, cluster_id=CLUSTER_ID)

    async def start_all(self):
        for name in self.names:
            await self.listen(name)
        for name in self.names:
            await self.start(name)

    async def listen(self, name):
        """Binds a port first: the members have to know each other's addresses.

        One that comes back has its own again, which no connection may have taken meanwhile.
        """
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        address = self.members.setdefault(name, free_address())
        server.add_insecure_port(address)
        self.servers[name] = server

    async def start(self, name):
        if name not in self.servers:
            await self.listen(name)
        node = self.make_node(name)
        await node.start()
        raft_pb2_grpc.add_RaftServiceServicer_to_server(node.servicer, self.servers[name])
        await self.servers[name].start()
        self.nodes[name] = node

    def make_node(self, name):
        self.machines[name] = Register()
        return RaftNode(
            RaftOptions(
                name=name,
                members=self.members,
                directory=self.directory(name),
                cluster="test",
                seed=self.names.index(name),
                **self.options,
            ),
            self.machines[name],
            channel_factory=lambda address: self.channel(name, address),
            identify=caller,
            # Stands in for the client certificate.
            metadata=(("name", name),),
            on_change=self.changes[name].append,
            clock=self.clock,
            fatal=self.failures.append,
        )

    def channel(self, name, address):
        target = "127.0.0.1:1" if (name, address) in self.blocked else address
        return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])

    async def stop(self, name):
        server, node = self.servers.pop(name, None), self.nodes.pop(name, None)
        if server is not None:
            await server.stop(None)
        if node is not None:
            await node.stop()

    async def stop_all(self):
        for name in self.names:
            await self.stop(name)

    def leader(self):
        return next((n for n, node in self.nodes.items() if node.status().is_leader), None)

    async def until(self, condition):
        """Waits until `condition()` is true and returns its value."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached: {[n.status() for n in self.nodes.values()]}")
            await asyncio.sleep(0.01)
        return value

    async def submit(self, text, command_id=None):
        """Gives a command to whoever leads until it has an outcome."""
        while True:
            name = await self.until(self.leader)
            try:
                return await self.nodes[name].submit(
                    text, timeout_ms=TIMEOUT_MS, command_id=command_id
                )
            except NotLeader:
                continue
            except OutcomeUnknown:
                if command_id is None:
                    raise

    async def until_equal(self):
        """Waits until all running members hold the same."""

        def equal():
            states = [self.machines[name].values for name in self.nodes]
            return all(state == states[0] for state in states)

        await self.until(equal)


def caller(context):
    for key, value in context.invocation_metadata():
        if key == "name":
            return value
    raise ValueError("no certificate")


@pytest.fixture
async def make_group(tmp_path, monkeypatch):
    clock = PatientClock()
    monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", clock)
    async with contextlib.AsyncExitStack() as stack:

        async def make(**options):
            group = Group(tmp_path, clock=clock, **options)
            group.init()
            stack.push_async_callback(group.stop_all)
            await group.start_all()
            return group

        yield make


async def test_a_status_that_came_while_it_started_is_not_replaced_by_an_older_one(
    tmp_path, monkeypatch
):
    """On a loop that is held up the member is elected before `start` goes on, and tells it once."""
    group = Group(tmp_path, NAMES[:1], tick_ms=5, heartbeat_ms=10, election_timeout_ms=(40, 60))
    call = RaftThread.call

    async def held_up(thread, function):
        answer = await call(thread, function)
        await group.until(lambda: any(told.is_leader for told in group.changes["las-1"]))
        return answer

    monkeypatch.setattr(RaftThread, "call", held_up)
    group.init()
    await group.start_all()
    assert group.nodes["las-1"].status().is_leader
    await group.stop_all()


async def test_elect_submit_lose_the_leader_and_bring_it_back(make_group):
    group = await make_group()
    first = await group.until(group.leader)
    assert await group.submit(command("a")) == "1"
    await group.stop(first)
    second = await group.until(group.leader)
    assert second != first
    for number in range(20):
        await group.submit(command(f"b{number}", number))
    await group.start(first)
    await group.until(lambda: len(group.nodes[first].status().members_up) == 3)
    await group.submit(command("c"))
    await group.until_equal()
    assert group.machines[first].count == 22
    assert not group.failures


async def test_all_members_come_back_with_everything(make_group):
    group = await make_group(compaction_entries=8)
    for number in range(30):
        await group.submit(command(f"k{number}", number))
    await group.stop_all()
    assert (group.directory("las-1") / "snapshot").exists()
    await group.start_all()
    await group.submit(command("last"))
    await group.until_equal()
    assert len(group.machines["las-2"].values) == 31


async def test_a_member_that_is_far_behind_gets_a_snapshot(make_group):
    group = await make_group(compaction_entries=8)
    leader = await group.until(group.leader)
    behind = next(name for name in group.names if name != leader)
    await group.stop(behind)
    for number in range(60):
        await group.submit(command(f"k{number}", "x" * 20_000))
    await group.start(behind)
    await group.submit(command("last"))
    await group.until_equal()
    assert len(group.machines[behind].values) == 61


async def test_one_member_alone_is_a_group(make_group):
    group = await make_group(names=("las-1",))
    assert await group.submit(command("a")) == "1"
    await group.nodes["las-1"].barrier(timeout_ms=TIMEOUT_MS)
    await group.stop("las-1")
    await group.start("las-1")
    assert await group.submit(command("b")) == "2"


async def test_a_follower_names_the_leader(make_group):
    group = await make_group()
    leader = await group.until(group.leader)
    follower = next(name for name in group.names if name != leader)
    await group.until(lambda: group.nodes[follower].status().leader == leader)
    with pytest.raises(NotLeader) as caught:
        await group.nodes[follower].submit(command("a"), timeout_ms=TIMEOUT_MS)
    assert caught.value.leader == leader
    with pytest.raises(NotLeader):
        await group.nodes[follower].barrier(timeout_ms=TIMEOUT_MS)


async def test_a_deadline_means_unknown_and_the_retry_gets_one_result(make_group):
    group = await make_group()
    leader = await group.until(group.leader)
    with pytest.raises(OutcomeUnknown):
        await group.nodes[leader].submit(command("a"), timeout_ms=0, command_id=("me", 1))
    assert await group.submit(command("a"), command_id=("me", 1)) == "1"
    assert await group.submit(command("a"), command_id=("me", 1)) == "1"
    assert await group.submit(command("b"), command_id=("me", 2)) == "2"
    with pytest.raises(CommandSuperseded):
        await group.submit(command("a"), command_id=("me", 1))
    assert group.machines[leader].count == 2


async def test_a_leader_without_followers_gives_its_commands_back_as_unknown(make_group):
    group = await make_group()
    leader = await group.until(group.leader)
    for name in group.names:
        if name != leader:
            await group.stop(name)
    with pytest.raises(OutcomeUnknown, match="lost the leadership"):
        await group.nodes[leader].submit(command("a"), timeout_ms=TIMEOUT_MS)
    assert not group.nodes[leader].status().is_leader


async def test_many_commands_at_once_are_all_applied_once(make_group):
    group = await make_group()
    leader = await group.until(group.leader)
    results = await asyncio.gather(
        *[
            group.nodes[leader].submit(command(f"k{number}"), timeout_ms=TIMEOUT_MS)
            for number in range(300)
        ]
    )
    assert sorted(map(int, results)) == list(range(1, 301))
    await group.until_equal()


async def test_a_barrier_sees_what_was_acknowledged_before(make_group):
    group = await make_group()
    leader = await group.until(group.leader)
    node = group.nodes[leader]
    await asyncio.gather(
        *[node.submit(command(f"k{number}"), timeout_ms=TIMEOUT_MS) for number in range(50)],
        *[node.barrier(timeout_ms=TIMEOUT_MS) for _ in range(50)],
    )
    before = node.status().commit_index
    await asyncio.gather(*[node.barrier(timeout_ms=TIMEOUT_MS) for _ in range(50)])
    # One for the first caller, one for all who came while it was on its way.
    assert node.status().commit_index - before == 2
    assert group.machines[leader].count == 50


async def test_bounds_refuse_before_anything_is_taken(make_group):
    group = await make_group()
    node = group.nodes[await group.until(group.leader)]
    with pytest.raises(CommandTooLarge, match="65536"):
        await node.submit("x" * (64 * 1024 + 1), timeout_ms=TIMEOUT_MS)
    with pytest.raises(CommandInvalid):
        await node.submit('"\ud800"', timeout_ms=TIMEOUT_MS)
    with pytest.raises(CommandInvalid):
        await node.submit("{}", timeout_ms=TIMEOUT_MS, command_id=("", 1))
    with pytest.raises(CommandInvalid):
        await node.submit("{}", timeout_ms=TIMEOUT_MS, command_id=("me", 0))
    assert json.loads(await node.submit("{}", timeout_ms=TIMEOUT_MS)) == {"error": "what?"}
    many = [
        asyncio.ensure_future(node.submit(command(f"k{number}"), timeout_ms=TIMEOUT_MS))
        for number in range(OPEN_COMMANDS_MAX + 1)
    ]
    done = await asyncio.gather(*many, return_exceptions=True)
    refused = [outcome for outcome in done if isinstance(outcome, Overloaded)]
    assert len(refused) == 1
    assert refused[0].retry_after_ms > 0
    assert sum(isinstance(outcome, str) for outcome in done) == OPEN_COMMANDS_MAX


async def test_a_stopped_node_says_so(make_group):
    group = await make_group()
    node = group.nodes[await group.until(group.leader)]
    open_command = asyncio.ensure_future(node.submit(command("a"), timeout_ms=TIMEOUT_MS))
    await asyncio.sleep(0)
    await node.stop()
    outcome = await asyncio.gather(open_command, return_exceptions=True)
    assert isinstance(outcome[0], str | OutcomeUnknown)
    with pytest.raises(NotRunning):
        await node.submit(command("a"), timeout_ms=TIMEOUT_MS)
    with pytest.raises(NotRunning):
        await node.barrier(timeout_ms=TIMEOUT_MS)
    await node.stop()


async def test_changes_are_told_in_the_event_loop(make_group):
    group = await make_group()
    leader = await group.until(group.leader)
    await group.until(lambda: len(group.nodes[leader].status().members_up) == 3)
    told = group.changes[leader]
    assert told[-1] == group.nodes[leader].status() or told[-1].is_leader
    assert any(status.is_leader for status in told)
    assert told[-1].members_up == group.names


async def test_a_wiped_member_does_not_start(make_group):
    group = await make_group()
    await group.submit(command("a"))
    await group.stop("las-1")
    for path in group.directory("las-1").iterdir():
        path.unlink()
    with pytest.raises(DirectoryEmpty, match="las rejoin"):
        await group.start("las-1")


async def test_a_wiped_and_initialised_member_is_refused_and_rejoins(make_group, caplog):
    group = await make_group()
    await group.submit(command("a"))
    await group.until_equal()
    await group.stop("las-1")
    for path in group.directory("las-1").iterdir():
        path.unlink()
    init_directory(group.directory("las-1"), "test", "las-1", NAMES, cluster_id=CLUSTER_ID)
    with caplog.at_level("INFO", "las.raft"):
        await group.start("las-1")
        await group.until(lambda: "its directory was replaced" in caplog.text)
    assert group.nodes["las-1"].status().leader is None
    await group.stop("las-1")
    rejoin_directory(group.directory("las-1"), "test", "las-1", NAMES, cluster_id=CLUSTER_ID)
    await group.start("las-1")
    await group.until(lambda: group.nodes["las-1"].status().voting)
    await group.submit(command("b"))
    await group.until_equal()
    assert group.machines["las-1"].values == {"a": 1, "b": 1}


async def test_a_directory_has_one_process(make_group):
    group = await make_group(names=("las-1",))
    with pytest.raises(DirectoryInUse):
        await group.make_node("las-1").start()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (None, grpc.StatusCode.UNAUTHENTICATED),
        ("stranger", grpc.StatusCode.PERMISSION_DENIED),
        ("las-1", grpc.StatusCode.PERMISSION_DENIED),
        ("las-2", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_strangers_and_streams_without_hello_are_refused(make_group, name, code):
    group = await make_group()
    metadata = [("name", name)] if name else []
    async with grpc.aio.insecure_channel(group.members["las-1"]) as channel:
        call = raft_pb2_grpc.RaftServiceStub(channel).Exchange(metadata=metadata)
        await call.done_writing()
        assert await call.code() == code
    # The member that was spoken for is still connected.
    await group.until(lambda: len(group.nodes["las-1"].status().members_up) == 3)


async def test_one_way_loss_does_not_depose_the_leader_for_long(make_group):
    """A follower whose frames do not reach the leader: the others go on."""
    group = await make_group()
    leader = await group.until(group.leader)
    follower = next(name for name in group.names if name != leader)
    group.blocked.add((follower, group.members[leader]))
    await group.stop(follower)
    await group.start(follower)
    for number in range(5):
        await group.submit(command(f"k{number}"))
    await group.until_equal()


def test_options_are_checked(tmp_path):
    good = {
        "name": "a",
        "members": {"a": "127.0.0.1:1"},
        "directory": tmp_path,
        "cluster": "test",
        "seed": 1,
    }
    RaftOptions(**good)
    for bad in (
        {"name": "b"},
        {"election_timeout_ms": (200, 1200)},
        {"election_timeout_ms": (600, 600)},
        {"leader_fallback_ms": 100},
    ):
        with pytest.raises(RaftError):
            RaftOptions(**{**good, **bad})


def test_a_disk_that_fails_anywhere_ends_the_member_in_one_line(caplog):
    member = RaftMember.__new__(RaftMember)
    reasons = []
    member._failed, member._on_fatal = None, reasons.append

    def fails():
        raise OSError(5, "Input/output error")

    with pytest.raises(FailStop):
        member._guarded(fails)
    assert reasons == ["the disk failed: [Errno 5] Input/output error"]
    assert not caplog.records
