"""Real processes under kill -9 and pause: nothing acknowledged is lost or applied twice.

`python tests/raft/raft_torture.py SECONDS SEED` runs it for as long as wanted, and
`python tests/raft/raft_torture.py bench` measures commits and fail-over.
"""

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from las.raft import init_directory

CLUSTER_ID = "b2f1c7de-3d0a-4e5b-9a43-1c1f5c6f0c77"
NAMES = ("las-1", "las-2", "las-3")
HERE = Path(__file__).parent
ANSWER_S = 15.0


def free_addresses(count):
    """Addresses that were free a moment ago; the members have to know them before they listen."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def say(line):
    """Prints a result."""
    sys.stdout.write(line + "\n")


class Member:
    """A process and the questions to it that are open."""

    def __init__(self, name, root, members, compaction_entries):
        self.name = name
        self.settings = {
            "name": name,
            "members": members,
            "directory": str(root / name),
            "seed": NAMES.index(name),
            "compaction_entries": compaction_entries,
        }
        self.log_path = root / f"{name}.log"
        self.process = None
        self.numbers = itertools.count(1)
        self.open = {}
        self.reader = None

    async def start(self):
        path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
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
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self.reader
        self.process.stdin.close()


class Torture:
    """Clients that append and retry, a nemesis that kills and pauses."""

    def __init__(self, root, seed, *, compaction_entries=150):
        self.random = random.Random(seed)
        addresses = dict(zip(NAMES, free_addresses(len(NAMES)), strict=True))
        for name in NAMES:
            init_directory(root / name, "test", name, NAMES, cluster_id=CLUSTER_ID)
        self.members = {name: Member(name, root, addresses, compaction_entries) for name in NAMES}
        self.acknowledged = {}
        self.stale = []
        self.over = False
        self.kills = self.pauses = 0

    async def start(self):
        for member in self.members.values():
            await member.start()

    async def end(self):
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

    async def client(self, number):
        """Gives each item until it has an outcome, always with the same id."""
        names = itertools.cycle(NAMES)
        name = next(names)
        for sequence in itertools.count(1):
            item = f"{number}-{sequence}"
            while True:
                answer = await self.members[name].ask(
                    "submit", item=item, command_id=[f"client-{number}", sequence]
                )
                if "result" in answer:
                    self.acknowledged[item] = int(answer["result"])
                    break
                if self.over:
                    return
                name = next(names)
                await asyncio.sleep(0.02)
            if self.over:
                return
            await asyncio.sleep(0.005)

    async def auditor(self):
        """What a barrier lets through has everything that was acknowledged before it."""
        while not self.over:
            before = dict(self.acknowledged)
            for member in self.members.values():
                answer = await member.ask("barrier")
                if "result" in answer:
                    self.stale += sorted(before.keys() - set(answer["result"]))
            await asyncio.sleep(0.05)

    async def nemesis(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self.random.uniform(0.3, 1.5))
            victims = self.random.sample(NAMES, self.random.choice([1, 1, 1, 3]))
            if len(victims) == 1 and self.random.random() < 0.4:
                victim = self.members[victims[0]]
                self.pauses += 1
                victim.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self.random.uniform(0.2, 2.5))
                victim.process.send_signal(signal.SIGCONT)
                continue
            for name in victims:
                self.kills += 1
                await self.members[name].kill()
            await asyncio.sleep(self.random.uniform(0.0, 1.0))
            for name in victims:
                await self.members[name].start()

    async def run(self, seconds):
        """Returns the items that all members hold at the end; raises AssertionError."""
        clients = [asyncio.create_task(self.client(number)) for number in range(3)]
        auditor = asyncio.create_task(self.auditor())
        await self.nemesis(seconds)
        self.over = True
        await asyncio.gather(auditor, *clients)
        leader = await self.leader()
        answer = await leader.ask("barrier")
        items = answer["result"]
        deadline = time.monotonic() + 30
        for member in self.members.values():
            while (await member.ask("items")).get("result") != items:
                assert time.monotonic() < deadline, f"{member.name} does not catch up"
                await asyncio.sleep(0.05)
        for item, position in self.acknowledged.items():
            assert items[position - 1 : position] == [item], f"acknowledged {item} is lost"
        assert len(set(items)) == len(items), "applied twice"
        assert not self.stale, f"barriers did not see {self.stale[:5]}"
        return items


async def torture(seconds, seed, root):
    run = Torture(root, seed)
    try:
        await run.start()
        items = await run.run(seconds)
    finally:
        await run.end()
    for member in run.members.values():
        log = member.log_path.read_text()
        assert " ERROR " not in log, log
        assert "Traceback" not in log, log
    return (
        f"seed {seed}: {run.kills} kills, {run.pauses} pauses, {len(run.acknowledged)} "
        f"acknowledged, {len(items)} applied"
    )


async def bench(root):
    run = Torture(root, 1, compaction_entries=5000)
    try:
        await run.start()
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
    finally:
        await run.end()


def main():
    directory = Path(tempfile.mkdtemp(prefix="raft-torture-"))
    try:
        if sys.argv[1] == "bench":
            asyncio.run(bench(directory))
        else:
            say(asyncio.run(torture(float(sys.argv[1]), int(sys.argv[2]), directory)))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
