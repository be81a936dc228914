"""One member as a process of its own, told what to do by lines of JSON on its standard input.

{"id": 1, "op": "submit", "item": "c 1", "command_id": ["c", 1], "timeout_ms": 1000}, "barrier",
"status", "state", "bench" → {"id": 1, "result": …} or {"id": 1, "error": …} on standard output.
"""

import asyncio
import hashlib
import json
import logging
import sys
import time
from pathlib import Path

import grpc
import grpc.aio

from las.internal.v1 import raft_pb2_grpc
from las.raft import RaftError, RaftNode, RaftOptions

logger = logging.getLogger(__name__)


class Items:
    """What was applied, in a form that does not grow: see `raft_torture` for what it proves.

    `count` items; `last` of each client; `chain`, a hash over all items in order; `wrong`, what
    must never come.
    """

    def __init__(self):
        self.count = 0
        self.chain = ""
        self.last = {}
        self.wrong = []

    def apply(self, command):
        self.count += 1
        if command == "bench":
            return str(self.count)
        client, _, number = command.partition(" ")
        sequence = int(number)
        before = self.last.get(client, 0)
        if sequence != before + 1:
            self.wrong = [*self.wrong, f"{client}: {sequence} after {before}"]
        self.last = {**self.last, client: sequence}
        self.chain = hashlib.sha256(f"{self.chain} {command}".encode()).hexdigest()
        return str(self.count)

    def state(self):
        return {
            "count": self.count,
            "chain": self.chain,
            "last": self.last,
            "wrong": self.wrong,
        }

    def freeze(self):
        state = self.state()
        return lambda: json.dumps(state).encode()

    def restore(self, snapshot):
        state = json.loads(snapshot)
        self.count, self.chain = state["count"], state["chain"]
        self.last, self.wrong = state["last"], state["wrong"]


class Process:
    """The node, and the answers to its master."""

    def __init__(self, settings):
        self.settings = settings
        self.machine = Items()
        name = settings["name"]
        self.node = RaftNode(
            RaftOptions(
                name=name,
                members=settings["members"],
                directory=Path(settings["directory"]),
                cluster="test",
                seed=settings["seed"],
                compaction_entries=settings["compaction_entries"],
            ),
            self.machine,
            channel_factory=lambda address: grpc.aio.insecure_channel(
                address, options=[("grpc.use_local_subchannel_pool", 1)]
            ),
            metadata=(("name", name),),
            identify=lambda context: dict(context.invocation_metadata())["name"],
            on_change=lambda status: logger.info("%s", status),
        )

    async def run(self):
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        raft_pb2_grpc.add_RaftServiceServicer_to_server(self.node.servicer, server)
        server.add_insecure_port(self.settings["members"][self.settings["name"]])
        await self.node.start()
        await server.start()
        reader = asyncio.StreamReader(limit=2**24)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        async with asyncio.TaskGroup() as tasks:
            while line := await reader.readline():
                tasks.create_task(self.answer(json.loads(line)))

    async def answer(self, request):
        try:
            answer = {"result": await getattr(self, request["op"])(request)}
        except RaftError as error:
            answer = {"error": type(error).__name__}
        sys.stdout.write(json.dumps({"id": request["id"], **answer}) + "\n")
        sys.stdout.flush()

    async def submit(self, request):
        return await self.node.submit(
            request["item"],
            timeout_ms=request["timeout_ms"],
            command_id=tuple(request["command_id"]),
        )

    async def barrier(self, request):
        await self.node.barrier(timeout_ms=request["timeout_ms"])
        return self.machine.state()

    async def status(self, request):
        status = self.node.status()
        return {"is_leader": status.is_leader, "term": status.term, "leader": status.leader}

    async def state(self, request):
        return self.machine.state()

    async def bench(self, request):
        """Commands of `bytes` each, `outstanding` at a time."""
        times_ms = []
        remaining = iter(range(request["count"]))

        async def worker():
            for _ in remaining:
                started = time.perf_counter()
                await self.node.submit("bench", timeout_ms=30_000)
                times_ms.append((time.perf_counter() - started) * 1000)

        processor_s = time.process_time()
        started = time.perf_counter()
        await asyncio.gather(*[worker() for _ in range(request["outstanding"])])
        times_ms.sort()
        return {
            "per_s": len(times_ms) / (time.perf_counter() - started),
            "leader_cpu_us": (time.process_time() - processor_s) * 1e6 / len(times_ms),
            "p50_ms": times_ms[len(times_ms) // 2],
            "p99_ms": times_ms[int(len(times_ms) * 0.99)],
            "max_ms": times_ms[-1],
        }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(Process(json.loads(sys.argv[1])).run())
