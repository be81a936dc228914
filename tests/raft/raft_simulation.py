"""A deterministic network of members in one thread: simulated time, links, crashes and power cuts.

The same schedule runs on the stock library (`StockCluster`) and on the guarded one (`Cluster`). A
schedule is a list of calls: who stands, who ticks, what is delivered, which link breaks. Nothing
happens by itself.
"""

import collections
import os
import pickle
import shutil
from concurrent.futures import Executor, Future

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from las.internal.v1 import raft_pb2
from las.raft.disk import Disk
from las.raft.errors import OutcomeUnknown, PeerRefused, RaftError
from las.raft.guard import ALL_GUARDS
from las.raft.member import FailStop, RaftMember, Timing
from las.raft.sessions import Envelope
from las.raft.store import init_directory, open_directory

FAR_AWAY = 1e12
CLUSTER_ID = "6f2c8f4e-2b0e-4c66-9a3b-3d4a4e3f9d10"
CLUSTER = "test"


class Clock:
    """Simulated seconds; strictly growing."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 1e-6
        return self.now


class SimulatedDisk(Disk):
    """Remembers what was synced, so that a power cut can take the rest."""

    def __init__(self):
        self.synced_bytes = {}
        self.syncs = 0

    def sync(self, descriptor):
        status = os.fstat(descriptor)
        self.synced_bytes[status.st_ino] = status.st_size
        self.syncs += 1

    def sync_directory(self, directory):
        pass

    def cut_power(self, directory, torn_bytes=0):
        """Takes back what was not synced, but for the first `torn_bytes` of it."""
        for path in directory.iterdir():
            status = path.stat()
            kept = self.synced_bytes.get(status.st_ino)
            if kept is not None and status.st_size > kept:
                os.truncate(path, min(status.st_size, kept + torn_bytes))


class InlineExecutor(Executor):
    """Runs at once what would run in another thread."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  the future carries it
            future.set_exception(error)
        return future


class ListMachine:
    """Appends each command to a list; the result is its length. `raise` is a defect, on purpose."""

    def __init__(self):
        self.items = []

    def apply(self, command):
        if command == "raise":
            raise ValueError("a defect of the state machine")
        if command.startswith("refuse"):
            return "refused"
        self.items.append(command)
        return str(len(self.items))

    def freeze(self):
        items = tuple(self.items)
        return lambda: "\n".join(items).encode()

    def restore(self, snapshot):
        self.items = snapshot.decode().split("\n") if snapshot else []


class Network:
    """Links and queues between members; what it carries are bytes."""

    def __init__(self):
        self.queues = collections.defaultdict(collections.deque)
        self.links = set()

    def post(self, source, target, payload):
        if (source, target) not in self.links:
            return False
        self.queues[source, target].append(payload)
        return True


class ClusterBase:
    """What both kinds of cluster can do. `acks` lists (member, item, result, reason)."""

    def __init__(self, size, clock, root):
        self.clock = clock
        self.root = root
        self.network = Network()
        self.names = [chr(ord("A") + number) for number in range(size)]
        self.nodes = {}
        self.acks = []

    def start_all(self):
        for name in self.names:
            self.start(name)
        for name in self.names:
            for other in self.names:
                if name < other:
                    self.connect(name, other)

    # -- links

    def connect(self, first, second):
        for source, target in ((first, second), (second, first)):
            if (source, target) not in self.network.links and self.may_link(source, target):
                self.network.links.add((source, target))
                self.link_up(source, target)

    def cut(self, first, second, *, drop=True):
        for source, target in ((first, second), (second, first)):
            if (source, target) in self.network.links:
                self.network.links.discard((source, target))
                if drop:
                    self.network.queues[source, target].clear()
                if source in self.nodes:
                    self.link_down(source, target)

    def may_link(self, source, target):
        return source in self.nodes and target in self.nodes

    def kill(self, name, *, drop=True):
        """The process is gone; its directory is as it was at this moment."""
        for source, target in sorted(self.network.links):
            if source == name:
                self.cut(source, target, drop=drop)
        self.reap(self.nodes.pop(name))

    def restart(self, name, links=()):
        if name in self.nodes:
            self.kill(name)
        self.start(name)
        for other in links:
            self.connect(name, other)

    def deliver(self, source, target, count=None):
        """Delivers `count` messages, or all that are queued now, in order."""
        queue = self.network.queues[source, target]
        count = len(queue) if count is None else min(count, len(queue))
        for _ in range(count):
            if not queue:
                # The receiver ended while it took the message before.
                break
            payload = queue.popleft()
            if target in self.nodes:
                self.take(source, target, payload)
        return count

    # -- time

    def private(self, name, attribute):
        return getattr(self.library(name), f"_SyncObj__{attribute}")

    def set_private(self, name, attribute, value):
        setattr(self.library(name), f"_SyncObj__{attribute}", value)

    def hold(self, *names):
        """Keeps members from standing by themselves."""
        for name in names or self.nodes:
            self.set_private(name, "raftElectionDeadline", FAR_AWAY)

    def tick(self, *names, seconds=0.0):
        self.clock.now += seconds
        for name in names or list(self.nodes):
            if name in self.nodes:
                self.tick_one(name)
                if name in self.nodes:
                    self.hold(name)

    def settle(self, names=None, rounds=12, seconds=0.11):
        """Lets `names` talk with each other for a while."""
        names = list(names or self.nodes)
        for _ in range(rounds):
            self.tick(*names, seconds=seconds)
            for source in names:
                for target in names:
                    if source != target:
                        self.deliver(source, target)
            self.hold(*[name for name in names if name in self.nodes])

    # -- questions

    def leads(self, name):
        return self.library(name)._isLeader()

    def leaders(self):
        return [name for name in self.nodes if self.leads(name)]

    def log(self, name):
        return [(entry[1], entry[2]) for entry in self.private(name, "raftLog")[:]]

    def acknowledged(self):
        """Items whose submitter was told that they are applied."""
        return [ack[1] for ack in self.acks if ack[3] == "SUCCESS"]

    def term(self, name):
        return self.library(name).raftCurrentTerm

    def lost(self, *survivors):
        """Acknowledged items that none of the survivors has."""
        kept = {item for name in survivors for item in self.items(name)}
        return [item for item in self.acknowledged() if item not in kept]


# ---------------------------------------------------------------------- the library as it is


class StockTransport(Transport):
    """Posts pickled messages into the network."""

    def __init__(self, name, network):
        super().__init__(None, None, [])
        self.name = name
        self.network = network

    def send(self, node, message):
        return self.network.post(self.name, node.id, pickle.dumps(message))


class StockNode(SyncObj):
    """The unmodified library with a list as its state."""

    def __init__(self, name, others, configuration, transport):
        self.items = []
        super().__init__(
            Node(name),
            [Node(other) for other in others],
            conf=configuration,
            nodeClass=Node,
            transport=transport,
        )
        # The library saves what was added after its constructor; name it again.
        self._SyncObj__properies.discard("items")

    @replicated
    def append(self, item):
        if item == "raise":
            raise ValueError("a defect of the state machine")
        self.items.append(item)
        return str(len(self.items))


class StockCluster(ClusterBase):
    """Members that are the library as it ships."""

    def __init__(self, size, clock, root, **configuration):
        super().__init__(size, clock, root)
        self.configuration = configuration
        self.start_all()

    def start(self, name):
        settings = {
            "autoTick": False,
            "raftMinTimeout": 0.4,
            "raftMaxTimeout": 1.4,
            "appendEntriesUseBatch": True,
            "logCompactionMinEntries": 10**9,
            "logCompactionMinTime": 10**9,
            "useFork": False,
            "journalFile": str(self.root / f"{name}.journal"),
            "fullDumpFile": str(self.root / f"{name}.dump"),
        }
        settings.update(self.configuration)
        if settings["fullDumpFile"] is None:
            settings.pop("fullDumpFile")
        others = [other for other in self.names if other != name]
        transport = StockTransport(name, self.network)
        self.nodes[name] = StockNode(name, others, SyncObjConf(**settings), transport)
        self.hold(name)
        self.nodes[name].doTick(0)

    def library(self, name):
        return self.nodes[name]

    def items(self, name):
        return list(self.nodes[name].items)

    def transport(self, name):
        return self.private(name, "transport")

    def link_up(self, source, target):
        self.transport(source)._onNodeConnected(Node(target))

    def link_down(self, source, target):
        self.transport(source)._onNodeDisconnected(Node(target))

    def take(self, source, target, payload):
        self.transport(target)._onMessageReceived(Node(source), pickle.loads(payload))

    def tick_one(self, name):
        self.nodes[name].doTick(0)

    def elect(self, name, voters, *, unheard=True):
        self.set_private(name, "raftElectionDeadline", 0)
        self.nodes[name].doTick(0)
        self.hold(name)
        for voter in voters:
            self.deliver(name, voter)
            self.deliver(voter, name)
        self.hold()
        return self.leads(name)

    def submit(self, name, item):
        def callback(result, reason):
            self.acks.append((name, item, result, REASONS.get(reason, reason)))

        self.nodes[name].append(item, callback=callback)

    def compact(self, name):
        self.nodes[name].forceLogCompaction()

    def reap(self, node):
        """Releases what a killed process would release: descriptors, without any clean-up logic."""
        journal = getattr(node._SyncObj__raftLog, "_FileJournal__journalFile", None)
        if journal is not None:
            journal._ResizableFile__mm.close()
            journal._ResizableFile__f.close()
        serializer = node._SyncObj__serializer
        incoming = serializer._Serializer__incomingTransmissionFile
        if hasattr(incoming, "close"):
            incoming.close()
        for transmission in serializer._Serializer__transmissions.values():
            transmission["file"].close()
        notifier = getattr(node, "_SyncObj__pipeNotifier", None)
        if notifier is not None:
            os.close(notifier._PipeNotifier__pipeR)
            os.close(notifier._PipeNotifier__pipeW)

    def cut_power(self, name):
        """Nothing that the library writes is ever synced: all of it can be gone."""
        self.kill(name)
        for path in self.root.glob(f"{name}.*"):
            path.unlink()


REASONS = {value: name for name, value in vars(FAIL_REASON).items() if not name.startswith("_")}


# ---------------------------------------------------------------------- the guarded library


class Cluster(ClusterBase):
    """Members as `las.raft` makes them, without threads and sockets."""

    def __init__(self, size, clock, root, *, guards=ALL_GUARDS, timing=None, guarded=None, seed=1):
        super().__init__(size, clock, root)
        self.guards = guards
        self.timing = timing or Timing(
            election_timeout_s=(0.4, 1.4),
            leader_fallback_s=30.0,
            compaction_entries=10**9,
            compaction_interval_s=10**9,
        )
        self.seed = seed
        self.disks = {}
        self.machines = {}
        self.failures = []
        self.refusals = []
        self.barriers = []
        self.tokens = {}
        self.next_token = 1
        self.sequences = collections.Counter()
        for name in self.names:
            init_directory(
                root / name, CLUSTER, name, self.names, cluster_id=CLUSTER_ID, disk=self.disk(name)
            )
        self.start_all()

    def disk(self, name):
        return self.disks.setdefault(name, SimulatedDisk())

    def start(self, name):
        store = open_directory(
            self.root / name,
            cluster=CLUSTER,
            name=name,
            members=self.names,
            disk=self.disk(name),
        )
        self.machines[name] = ListMachine()
        self.sequences[name] += 1
        try:
            self.nodes[name] = RaftMember(
                store=store,
                machine=self.machines[name],
                seed=self.seed * 1000 + self.names.index(name),
                clock=self.clock,
                background=InlineExecutor(),
                fatal=self.failures.append,
                timing=self.timing,
                guards=self.guards,
            )
        except BaseException:
            store.close()
            raise
        self.hold(name)

    def library(self, name):
        return self.nodes[name]._library

    def items(self, name):
        return list(self.machines[name].items)

    # -- events; a member that fail-stops is gone

    def on_member(self, name, action):
        node = self.nodes[name]
        try:
            return action(node)
        except FailStop:
            self.kill(name)
            return None

    def step(self, name):
        def action(member):
            step = member.step()
            for target, frame in step.frames:
                self.network.post(name, target, frame.SerializeToString())
            for token, outcome in step.outcomes:
                self.on_outcome(token, outcome)
            return step

        return self.on_member(name, action)

    tick_one = step

    def on_outcome(self, token, outcome):
        name, item = self.tokens.pop(token)
        if isinstance(outcome, RaftError):
            self.acks.append((name, item, None, type(outcome).__name__))
        elif item is None:
            self.barriers.append((name, token))
        else:
            self.acks.append((name, item, outcome, "SUCCESS"))

    def take(self, source, target, payload):
        frame = raft_pb2.RaftFrame.FromString(payload)
        if self.on_member(target, lambda member: member.receive(source, frame) or True):
            self.step(target)

    def may_link(self, source, target):
        if not super().may_link(source, target):
            return False
        hello = self.nodes[target].hello()
        try:
            self.nodes[source].meet(target, hello)
            self.nodes[target].meet(source, self.nodes[source].hello())
        except PeerRefused as error:
            self.refusals.append(str(error))
            return False
        return True

    def link_up(self, source, target):
        self.on_member(source, lambda member: member.link_up(target))

    def link_down(self, source, target):
        self.nodes[source].link_down(target)

    def elect(self, name, voters, *, unheard=True):
        """Lets `name` ask, stand and be voted for; true if it leads then."""
        if unheard:
            # Long enough for everybody to have stopped hearing a leader.
            self.clock.now += self.timing.election_timeout_s[0] + 0.01
        self.set_private(name, "raftElectionDeadline", 0)
        self.step(name)
        for _ in range(3):
            for voter in voters:
                self.deliver(name, voter)
                self.deliver(voter, name)
            if self.leads(name) or name not in self.nodes:
                break
        self.hold()
        return self.leads(name)

    def token_of(self, name, item):
        token = self.next_token
        self.next_token += 1
        self.tokens[token] = (name, item)
        return token

    def submit(self, name, item, command_id=None):
        self.sequences["command"] += 1
        client, sequence = command_id or (f"client-{name}", self.sequences["command"])
        envelope = Envelope(client=client, sequence=sequence, body=item)
        token = self.token_of(name, item)
        self.on_member(name, lambda member: member.propose(token, envelope))
        return token

    def barrier(self, name):
        token = self.token_of(name, None)
        self.on_member(name, lambda member: member.barrier(token))
        return token

    def compact(self, name):
        self.nodes[name].compact()

    def reap(self, node):
        """A killed process: descriptors go, nothing is written."""
        name = node._store.manifest.name
        for token, (owner, item) in list(self.tokens.items()):
            if owner == name:
                del self.tokens[token]
                self.acks.append((name, item, None, OutcomeUnknown.__name__))
        node.close()

    def cut_power(self, name, torn_bytes=0):
        self.kill(name)
        self.disk(name).cut_power(self.root / name, torn_bytes)

    def wipe(self, name):
        if name in self.nodes:
            self.kill(name)
        shutil.rmtree(self.root / name)

    def close(self):
        for name in list(self.nodes):
            self.kill(name)
