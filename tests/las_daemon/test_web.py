"""The page of the fleet: what it is told, that it is told as text, and that a browser shows it.

The browser is Chromium without a window, where there is one; its picture is kept in `build/web`.
"""

import asyncio
import json
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from las.core.commands import RecordEvent, SetNodeState
from las.core.state import NodeState
from las.daemon.web import fleet_document
from peerd.core.ids import NodeName
from tests.las_daemon.stand_in import until
from tests.las_daemon.test_logs import create

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURES = Path(__file__).parents[2] / "build" / "web"


async def fetch(las, path: str, method: str = "GET"):
    def ask():
        request = urllib.request.Request(f"http://{las.node.http_address}{path}", method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), ""

    return await asyncio.to_thread(ask)


async def document(las) -> dict:
    status, _, text = await fetch(las, "/fleet.json")
    assert status == 200
    return json.loads(text)


async def told(las, kind: str, text: str) -> None:
    line = RecordEvent(node=NodeName("peer-1"), kind=kind, text=text, timestamp_ms=1_000)
    await las.node.group.submit(line)


async def test_the_document_says_what_is_committed_and_what_the_leader_hears(las, monkeypatch):
    monkeypatch.setattr("las.daemon.web.page.FRESH_S", 0.0)
    await las.add_peers(3)
    await create(las, shards=2)
    await told(las, "at_risk", "its disk is slow")
    seen = await document(las)
    assert (seen["node"], seen["leader"], seen["leads"]) == ("las-1", "las-1", True)
    assert seen["counts"]["shards"] == 2
    assert [peer["name"] for peer in seen["peers"]] == ["peer-1", "peer-2", "peer-3"]
    assert [shard["name"] for shard in seen["shards"]] == ["orders/1", "orders/2"]
    assert seen["shards"][0]["voters"] == ["peer-1", "peer-2", "peer-3"]
    assert seen["events"][0]["text"] == "its disk is slow"
    boot = las.state.nodes[NodeName("peer-2")].boot
    await las.node.group.submit(
        SetNodeState(node=NodeName("peer-2"), boot=boot, state=NodeState.FAILED)
    )
    await until(lambda: las.state.nodes[NodeName("peer-2")].state is NodeState.FAILED, "failed")
    worst = await document(las)
    assert worst["peers"][0]["name"] == "peer-2"
    assert any("storage of peer-2 failed" in line for line in worst["warnings"])


async def test_a_table_has_a_bound_and_says_how_many_there_are(las, monkeypatch):
    monkeypatch.setattr(fleet_document, "PEERS_SHOWN_MAX", 1)
    monkeypatch.setattr(fleet_document, "SHARDS_SHOWN_MAX", 1)
    await las.add_peers(2)
    await create(las, shards=3)
    seen = await document(las)
    assert (len(seen["peers"]), len(seen["shards"])) == (1, 1)
    assert (seen["counts"]["peers"], seen["counts"]["shards"]) == (2, 3)


async def test_the_page_loads_nothing_from_elsewhere_and_changes_nothing(las):
    for path in ("/", "/fleet.js", "/fleet.css", "/fleet.json"):
        status, headers, text = await fetch(las, path)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        for method in ("POST", "PUT", "DELETE"):
            assert (await fetch(las, path, method))[0] == 405
    assert "innerHTML" not in (await fetch(las, "/fleet.js"))[2]


async def test_there_is_no_page_where_it_is_switched_off(start_las):
    las = await (await start_las(web_page=False)).leading()
    assert (await fetch(las, "/"))[0] == 404
    assert (await fetch(las, "/healthz"))[0] == 200


def browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.mark.skipif(browser() is None, reason="needs Chromium")
async def test_a_browser_shows_the_fleet(las):
    await las.add_peers(3)
    await create(las, shards=2)
    await told(las, "at_risk", "<img src=x onerror=document.title='taken'>")
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = await rendered(las, "--dump-dom")
    assert ">nothing is wrong<" in page
    assert "peer-2" in page
    assert "orders/2" in page
    assert "at risk: &lt;img src=x" in page
    assert "<title>peerd</title>" in page
    picture = PICTURES / "fleet.png"
    await rendered(las, f"--screenshot={picture}", "--window-size=1300,1200")
    assert picture.stat().st_size > 10_000


async def rendered(las, *arguments: str) -> str:
    """What Chromium writes when the page has run for three of its seconds."""
    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            browser(),
            *("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"),
            f"--user-data-dir={profile}",
            *arguments,
            f"http://{las.node.http_address}/",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()
