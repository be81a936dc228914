"""The examples of the pages are programs that run: each Python block, and each call by `buf curl`.

What a page leaves to its reader is given to a block: `client`, a client that is connected;
`handle`, which ends a loop that would follow for ever; `save` and `load`.
"""

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import peerd
from peerd.testing.dev_cluster import DevCluster, Shape

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/getting-started.md", "docs/client.md")
BLOCK = re.compile(r"^( *)```(python|console)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LOG = "orders"
RECORDS_HANDLED = 3
pytestmark = pytest.mark.timeout(300)


class Enough(Exception):
    """A loop that follows has handled some records."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[DevCluster]:
    """Two peers and one LAS node, with the example's log."""
    directory = tmp_path_factory.mktemp("examples") / "dev"
    with DevCluster(directory, Shape(peers=2, las=1), port_base=None) as running:
        yield running


def blocks(language: str) -> Iterator[tuple[str, str, int]]:
    """Page, text and line of each block in `language`."""
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for found in BLOCK.finditer(text):
            if found[2] == language:
                line = text.count("\n", 0, found.start()) + 1
                yield page, inspect.cleandoc("\n" + found[3]), line


def here(text: str, pair: DevCluster) -> str:
    """`text` for the cluster of this test."""
    text = text.replace("build/dev", str(pair.directory))
    return re.sub(r"(localhost|127\.0\.0\.1):7400", pair.peers[0].address, text)


@pytest.fixture(scope="module")
def client(pair) -> Iterator[peerd.Client]:
    with peerd.connect(credentials=pair.peerctl_toml) as client:
        yield client


@pytest.fixture
def names(client):
    """What a block may use without having made it."""
    handled, saved = [], [peerd.Position()]

    def handle(record: peerd.Record) -> None:
        handled.append(record)
        if len(handled) == RECORDS_HANDLED:
            raise Enough

    return {
        "peerd": peerd,
        "client": client,
        "handle": handle,
        "save": saved.append,
        "load": lambda: saved[-1],
    }


@pytest.mark.parametrize(
    ("page", "text", "line"),
    [pytest.param(*block, id=f"{block[0]}:{block[2]}") for block in blocks("python")],
)
def test_python_examples_run(pair, client, names, page, text, line):
    exists = LOG in [log.name for log in client.list_logs()]
    if "create_log" in text and exists:
        # Each page begins anew, as its reader does; here the log is there already.
        text = re.sub(r"^.*create_log.*\n", "", text, flags=re.MULTILINE)
    elif not exists and "create_log" not in text:
        client.create_log(LOG, shards=4)
    if exists:
        client.append_many(LOG, [b"%d" % number for number in range(RECORDS_HANDLED)])
    path = f"{page}:{line}"
    code = compile(here(text, pair), path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        result = eval(code, names)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except Enough:
        pass


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=f"{page}:{line}")
        for page, text, line in blocks("console")
        if "buf curl" in text
    ],
)
def test_calls_of_a_stock_tool_run(pair, client, text):
    if LOG not in [log.name for log in client.list_logs()]:
        client.create_log(LOG, shards=4)
    commands = re.sub(r"^\$ ", "", here(text, pair), flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euc", commands],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"receipt"' in done.stdout


def test_the_pages_have_examples():
    assert {page for page, _, _ in blocks("python")} == set(PAGES)
