"""Real processes in real trouble: nothing acknowledged is lost, applied twice or read stale.

`python -m tests.raft.raft_torture` is the long form: three or five members (`--members`) for
`--minutes`, compaction every 60 entries, and one or two troubles at a time, drawn from a seed: one
member killed, all killed, one stopped; as root also the link of one cut in one direction or both
(`--links`, in network namespaces of its own) and its disk slow or failing (`--disks`, through FUSE,
needs libfuse2). `--bench` measures commits and fail-over instead.

What is checked. Each client gives its items one after the other, each until it has an outcome, with
the same command id each time. So a member's state is, for each client, the number of its last item:
- lost: at the end a member has less than was acknowledged, or an item is missing between two;
- applied twice: an item came that is not newer than the client's last;
- diverged: two members have other chains of hashes after the same number of items;
- stale: what a barrier lets through lacks an item that was acknowledged before it was asked.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from las.raft import init_directory
from las.raft.node import FAIL_STOP_STATUS
from peerd.bench.machines import Machines, enter
from peerd.testing.faults import FaultFile, Faults
from peerd.testing.ports import free_address
from peerd.testing.slow_disk import SlowDisk

CLUSTER_ID = "b2f1c7de-3d0a-4e5b-9a43-1c1f5c6f0c77"
HERE = Path(__file__).parent
ANSWER_S = 15.0
PORT = 7300
CLIENTS = 3
CATCH_UP_S = 60.0
SAY_EVERY_S = 60.0


def say(line):
    """Prints a result."""
    sys.stdout.write(line + "\n")


class Member:
    """A process and the questions to it that are open."""

    def __init__(self, name, root, members, compaction_entries, prefix=()):
        self.name = name
        self.prefix = prefix
        self.settings = {
            "name": name,
            "members": members,
            "directory": str(root / name / "data"),
            "seed": int(name.rpartition("-")[2]),
            "compaction_entries": compaction_entries,
        }
        self.log_path = root / f"{name}.log"
        self.faults = FaultFile(root / f"{name}.faults.json")
        self.process = None
        self.numbers = itertools.count(1)
        self.open = {}
        self.reader = None

    async def start(self):
        path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.prefix,
                sys.executable,
                str(HERE / "raft_process.py"),
                json.dumps(self.settings),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                limit=2**24,
            )
        self.reader = asyncio.create_task(self.read(self.process))

    async def read(self, process):
        while line := await process.stdout.readline():
            answer = json.loads(line)
            waiting = self.open.pop(answer["id"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)
        for waiting in self.open.values():
            if not waiting.done():
                waiting.set_result({"error": "Gone"})
        self.open.clear()

    async def ask(self, op, **fields):
        """Returns the answer, or {"error": …} of the node, "Gone" or "Silent"."""
        if self.process is None or self.process.returncode is not None:
            return {"error": "Gone"}
        number = next(self.numbers)
        self.open[number] = waiting = asyncio.get_running_loop().create_future()
        request = {"id": number, "op": op, "timeout_ms": 3000, **fields}
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            return await asyncio.wait_for(waiting, ANSWER_S)
        except TimeoutError:
            return {"error": "Silent"}
        finally:
            self.open.pop(number, None)

    async def kill(self):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.gone()

    async def gone(self):
        """Returns its exit status when it has ended and its last words are read."""
        status = await self.process.wait()
        await self.reader
        self.process.stdin.close()
        return status


class Troubles:
    """What can befall a member; each ends with the member well again.

    `counts` says how often each did.
    """

    def __init__(self, members, draws, machines=None, *, disks=False):
        self._members = members
        self._random = draws
        self._machines = machines
        kinds = [(self.kill, 4), (self.kill_all, 2), (self.stop, 3)]
        if machines is not None:
            kinds += [(self.off, 2), (self.mute, 2), (self.deaf, 2)]
        if disks:
            kinds += [(self.slow_disk, 2), (self.failing_disk, 2)]
        self._kinds, self._weights = zip(*kinds, strict=True)
        self.counts = {kind.__name__: 0 for kind in self._kinds}

    async def strike(self, how_many):
        """Draws so many troubles for as many members, and waits until they are over."""
        victims = self._random.sample(list(self._members.values()), how_many)
        kinds = self._random.choices(self._kinds, self._weights, k=how_many)
        if self.kill_all in kinds:
            kinds = [self.kill_all]
        for kind in kinds:
            self.counts[kind.__name__] += 1
        pairs = zip(kinds, victims, strict=False)
        await asyncio.gather(*(kind(victim) for kind, victim in pairs))

    async def _a_while(self, low_s=0.2, high_s=2.5):
        await asyncio.sleep(self._random.uniform(low_s, high_s))

    async def kill(self, victim):
        await victim.kill()
        await self._a_while(0.0, 1.0)
        await victim.start()

    async def kill_all(self, _victim):
        for member in self._members.values():
            await member.kill()
        for member in self._members.values():
            await member.start()

    async def stop(self, victim):
        victim.process.send_signal(signal.SIGSTOP)
        await self._a_while()
        victim.process.send_signal(signal.SIGCONT)

    async def off(self, victim):
        with self._machines.off(victim.name):
            await self._a_while(0.5, 4.0)

    async def mute(self, victim):
        with self._machines.mute(victim.name):
            await self._a_while(0.5, 4.0)

    async def deaf(self, victim):
        with self._machines.deaf(victim.name):
            await self._a_while(0.5, 4.0)

    async def slow_disk(self, victim):
        victim.faults.set(Faults(write_delay_ms=self._random.uniform(20.0, 400.0)))
        await self._a_while(0.5, 4.0)
        victim.faults.clear()

    async def failing_disk(self, victim):
        """A member that cannot write in doubt ends itself, and comes back when its disk does."""
        victim.faults.set(Faults(fail=True))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(victim.process.wait(), 3.0)
        victim.faults.clear()
        if victim.process.returncode is None:
            # It wrote nothing in that time; or it does just now, and may yet end.
            await victim.kill()
        else:
            assert await victim.gone() == FAIL_STOP_STATUS, f"{victim.name}: see its log"
        await victim.start()


class Torture:
    """Clients that append and retry, an auditor that reads, and trouble."""

    def __init__(self, root, seed, *, count=3, compaction_entries=60, machines=None, disks=False):
        self.random = random.Random(seed)
        names = [f"las-{number}" for number in range(1, count + 1)]
        if machines is None:
            addresses = dict(zip(names, [free_address() for _ in names], strict=True))
        else:
            addresses = {name: f"{machines.host(name)}:{PORT}" for name in names}
        self.members = {
            name: Member(
                name,
                root,
                addresses,
                compaction_entries,
                prefix=() if machines is None else machines.prefix(name),
            )
            for name in names
        }
        self.disks = [
            SlowDisk(root / name, root / f"{name}.backing", self.members[name].faults.path)
            for name in names
            if disks
        ]
        self.troubles = Troubles(self.members, self.random, machines, disks=disks)
        self.acknowledged = dict.fromkeys((f"client-{number}" for number in range(CLIENTS)), 0)
        self.chains = {}
        self.reads = 0
        self.over = False

    @contextlib.asynccontextmanager
    async def running(self):
        """Within it the members run, from empty directories."""
        with contextlib.ExitStack() as mounted:
            for disk in self.disks:
                mounted.enter_context(disk)
            try:
                for name, member in self.members.items():
                    directory = Path(member.settings["directory"])
                    init_directory(
                        directory, "test", name, list(self.members), cluster_id=CLUSTER_ID
                    )
                    await member.start()
                yield self
            finally:
                for member in self.members.values():
                    if member.process is not None and member.process.returncode is None:
                        await member.kill()

    async def leader(self):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for member in self.members.values():
                answer = await member.ask("status")
                if answer.get("result", {}).get("is_leader"):
                    return member
            await asyncio.sleep(0.01)
        raise AssertionError("no leader within 30 s")

    async def client(self, client):
        """Gives each item until it has an outcome, always with the same id."""
        names = itertools.cycle(self.members)
        name = next(names)
        for sequence in itertools.count(1):
            while True:
                answer = await self.members[name].ask(
                    "submit", item=f"{client} {sequence}", command_id=[client, sequence]
                )
                if "result" in answer:
                    self.acknowledged[client] = sequence
                    break
                if self.over:
                    return
                name = next(names)
                await asyncio.sleep(0.02)
            if self.over:
                return
            await asyncio.sleep(0.005)

    async def auditor(self, member):
        """What a barrier lets through has everything that was acknowledged before it."""
        while not self.over:
            before = dict(self.acknowledged)
            answer = await member.ask("barrier")
            if "result" in answer:
                self.check(member, answer["result"], before)
            await asyncio.sleep(0.05)

    def check(self, member, state, acknowledged):
        """Raises AssertionError: the state of a member is none that it may have."""
        self.reads += 1
        assert not state["wrong"], f"{member.name}: {state['wrong']}"
        for client, sequence in acknowledged.items():
            held = state["last"].get(client, 0)
            assert held >= sequence, f"{member.name}: {client} has {held}, acked {sequence}"
        chain = self.chains.setdefault(state["count"], state["chain"])
        assert state["chain"] == chain, f"{member.name} diverged at {state['count']}"

    async def trouble(self, seconds, told):
        begun = said = time.monotonic()
        two_at_once = 0.3 if len(self.members) > 3 else 0.1
        while (now := time.monotonic()) - begun < seconds:
            if now - said >= SAY_EVERY_S:
                said = now
                told(f"{now - begun:.0f} s: {self.account()}")
            await asyncio.sleep(self.random.uniform(0.3, 1.5))
            for member in self.members.values():
                assert member.process.returncode is None, f"{member.name} ended by itself"
            await self.troubles.strike(2 if self.random.random() < two_at_once else 1)

    async def run(self, seconds, told):
        """Raises AssertionError: a promise was broken."""
        async with asyncio.TaskGroup() as tasks:
            for client in self.acknowledged:
                tasks.create_task(self.client(client))
            for member in self.members.values():
                tasks.create_task(self.auditor(member))
            await self.trouble(seconds, told)
            self.over = True
        leader = await self.leader()
        last = (await leader.ask("barrier"))["result"]
        deadline = time.monotonic() + CATCH_UP_S
        for member in self.members.values():
            while (state := (await member.ask("state")).get("result")) != last:
                assert time.monotonic() < deadline, f"{member.name} has {state}, not {last}"
                await asyncio.sleep(0.05)
            self.check(member, state, self.acknowledged)

    def account(self):
        """What was done and survived, in words."""
        done = ", ".join(f"{count} {kind}" for kind, count in self.troubles.counts.items())
        return f"{done}; {sum(self.acknowledged.values())} acknowledged, {self.reads} reads"


async def torture(seconds, seed, root, *, told=lambda line: None, **options):
    """Returns an account. Raises AssertionError: a promise was broken."""
    run = Torture(root, seed, **options)
    try:
        async with run.running():
            await run.run(seconds, told)
    except* AssertionError as broken:
        raise AssertionError("; ".join(map(str, broken.exceptions))) from broken
    for member in run.members.values():
        log = member.log_path.read_text()
        assert " ERROR " not in log, log
        assert "Traceback" not in log, log
    return run.account()


async def bench(root):
    async with Torture(root, 1, compaction_entries=5000).running() as run:
        leader = await run.leader()
        for outstanding, count in ((1, 300), (32, 2000), (256, 6000)):
            answer = await leader.ask("bench", count=count, outstanding=outstanding)
            if "error" in answer:
                say(f"{outstanding} outstanding: {answer['error']}")
                leader = await run.leader()
                continue
            figures = {key: round(value, 2) for key, value in answer["result"].items()}
            say(f"{outstanding} outstanding: {figures}")
        for _ in range(5):
            leader = await run.leader()
            await leader.kill()
            started = time.monotonic()
            await run.leader()
            say(f"new leader after {time.monotonic() - started:.2f} s")
            await leader.start()
            await asyncio.sleep(1.5)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="raft_torture", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--members", type=int, default=3, choices=(3, 5))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compaction-entries", type=int, default=60)
    parser.add_argument("--links", action="store_true", help="cut links too (root)")
    parser.add_argument("--disks", action="store_true", help="disks fail and slow too (root)")
    parser.add_argument("--bench", action="store_true", help="measure instead")
    return parser.parse_args(words)


def main() -> int:
    told = arguments(sys.argv[1:])
    machines = None
    if told.links:
        enter("tests.raft.raft_torture", sys.argv[1:])
        machines = Machines([f"las-{number}" for number in range(1, told.members + 1)])
    directory = Path(tempfile.mkdtemp(prefix="raft-torture-"))
    try:
        if told.bench:
            asyncio.run(bench(directory))
            return 0
        account = asyncio.run(
            torture(
                told.minutes * 60.0,
                told.seed,
                directory,
                told=say,
                count=told.members,
                compaction_entries=told.compaction_entries,
                machines=machines,
                disks=told.disks,
            )
        )
    except AssertionError as broken:
        say(f"seed {told.seed}: BROKEN: {broken}")
        say(f"the members' data and logs stay in {directory}")
        return 1
    say(f"seed {told.seed}: 0 lost, 0 applied twice, 0 diverged, 0 stale: {account}")
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
