"""gRPC tools that know the contract alone append and read: no CRC, no shard, no producer."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).with_name("buf")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def orders(small: DevCluster, request) -> str:
    name = f"orders-{len(request.node.name)}-{request.node.name[-5:].strip('[]')}"
    with connect(credentials=small.peerctl_toml) as client:
        client.create_log(name, shards=4, copies=1)
    return name


def curl(cluster: DevCluster, method: str, request: object, *how: str) -> list[dict]:
    """The answers of `buf curl`, as the README shows it."""
    tls = cluster.client_tls
    done = subprocess.run(
        [
            *(BUF, "curl", "--protocol", "grpc", *how),
            *("--cacert", tls.ca, "--cert", tls.certificate, "--key", tls.key),
            *("-d", json.dumps(request)),
            f"https://{cluster.peers[0].address}/peerd.v1.LogService/{method}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    decoder, text, answers = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].lstrip()
    return answers


@pytest.mark.parametrize("how", [(), ("--schema", "proto")], ids=["reflection", "proto"])
def test_buf_curl_appends_and_reads(small, orders, how):
    record = {"key": base64.b64encode(b"household-900").decode(), "value": "aGVsbG8="}
    append = {"log": orders, "batch": {"recordCount": 1, "records": {"records": [record]}}}
    (appended,) = curl(small, "Append", append, *how)
    assert appended["receipt"]["durableOn"] == ["peer-1"]
    answers = curl(small, "Read", {"log": orders}, *how)
    batches = [batch for answer in answers for batch in answer.get("batches", ())]
    assert [batch["batch"]["records"]["records"] for batch in batches] == [[record]]
    with connect(credentials=small.peerctl_toml) as client:
        (read,) = client.read(orders)
    assert (read.key, read.value) == (b"household-900", b"hello")


def test_stubs_made_from_the_protos_append_and_read(small, orders, tmp_path):
    """In a package tree of its own, so that nothing of ours is imported."""
    moved = tmp_path / "protos"
    (moved / "stock" / "v1").mkdir(parents=True)
    for name in ("log.proto", "batch.proto", "errors.proto"):
        text = (ROOT / "proto" / "peerd" / "v1" / name).read_text("utf-8")
        renamed = text.replace('import "peerd/v1', 'import "stock/v1')
        (moved / "stock" / "v1" / name).write_text(renamed, "utf-8")
    out = tmp_path / "stubs"
    out.mkdir()
    files = [str(path.relative_to(moved)) for path in moved.rglob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{moved}"]
    command += [f"--python_out={out}", f"--grpc_python_out={out}"]
    script = tmp_path / "use.py"
    script.write_text(STOCK)
    subprocess.run([*command, *files], check=True)
    tls = small.client_tls
    done = subprocess.run(
        [sys.executable, script, small.peers[0].address, tls.ca, tls.certificate, tls.key, orders],
        capture_output=True,
        text=True,
        cwd=out,
        env={"PYTHONPATH": str(out)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['peer-1']", "b'hello'"]


STOCK = """
import pathlib
import sys

import grpc
from stock.v1 import batch_pb2, log_pb2, log_pb2_grpc

address, *files, log = sys.argv[1:]
ca, certificate, key = (pathlib.Path(each).read_bytes() for each in files)
credentials = grpc.ssl_channel_credentials(ca, key, certificate)
with grpc.secure_channel(address, credentials) as channel:
    service = log_pb2_grpc.LogServiceStub(channel)
    records = batch_pb2.Records(records=[batch_pb2.Record(value=b"hello")])
    batch = batch_pb2.Batch(record_count=1, records=records)
    answer = service.Append(log_pb2.AppendRequest(log=log, batch=batch))
    print(list(answer.receipt.durable_on))
    for response in service.Read(log_pb2.ReadRequest(log=log)):
        for each in response.batches:
            print(each.batch.records.records[0].value)
"""
