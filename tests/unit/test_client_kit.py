"""The kit for authors of clients: our own client passes, and what a client does wrong is told."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from peerd.testing.conformance_kit import checks, vectors
from peerd.testing.conformance_kit.program import NotSupported, ProgramFailed

ROOT = Path(__file__).parents[2]
OURS = [sys.executable, "-m", "peerd.testing.conformance_kit.python_client"]
GRPC_JS = ROOT / "build" / "bench" / "node_modules"
CHECKS = dict(checks.CHECKS)


def test_the_published_vectors_are_those_of_the_code():
    assert json.loads((ROOT / "docs/client-vectors.json").read_text()) == vectors.vectors()


@pytest.mark.parametrize("name", CHECKS)
async def test_our_client_does_it_right(name):
    assert await checks.run(CHECKS[name], OURS) == ""


@pytest.mark.skipif(
    shutil.which("node") is None or not GRPC_JS.exists(),
    reason="needs node, and grpc-js where `make client-kit` puts it",
)
async def test_a_page_of_javascript_does_it_right(monkeypatch):
    monkeypatch.setenv("NODE_PATH", str(GRPC_JS))
    client = ROOT / "peerd/testing/conformance_kit/grpc_js_client.js"
    command = ["node", str(client), str(ROOT / "proto")]
    for name in ("routing by key", "one sequence for all tries", "SPLIT"):
        assert await checks.run(CHECKS[name], command) == ""


CARELESS = """
import base64, json, sys
import grpc
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc
stub = None
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"unsupported": True}
    if asked["do"] == "connect":
        stub = log_pb2_grpc.LogServiceStub(grpc.insecure_channel(asked["addresses"][0]))
        answer = {"ok": True}
    elif asked["do"] == "append":
        record = batch_pb2.Record(
            key=base64.b64decode(asked["key"]), value=base64.b64decode(asked["value"])
        )
        batch = batch_pb2.Batch(record_count=1, records=batch_pb2.Records(records=[record]))
        request = log_pb2.AppendRequest(log=asked["log"], batch=batch)
        while True:
            try:
                got = stub.Append(request, timeout=30).receipt
                answer = {"ok": True, "shard": got.shard, "offset": got.base_offset}
                break
            except grpc.RpcError:
                pass
    print(json.dumps(answer), flush=True)
"""


async def test_a_client_that_tries_again_without_a_producer_is_found_out(tmp_path):
    program = tmp_path / "careless.py"
    program.write_text(CARELESS)
    command = [sys.executable, str(program)]
    assert "2 times" in await checks.run(CHECKS["outcome unknown"], command)
    assert "no producer id" in await checks.run(CHECKS["one sequence for all tries"], command)
    with pytest.raises(NotSupported):
        await checks.run(CHECKS["key hash"], command)
    with pytest.raises(ProgramFailed, match="it ended"):
        await checks.run(CHECKS["MOVED"], [sys.executable, "-c", ""])
