"""Telemetry from Prometheus: a real HTTP server speaks its API, well and badly."""

import asyncio
import json
import math
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from las.core.state import ClusterState
from las.daemon import scraped as module
from las.daemon.config import ConfigError, Telemetry, load_config
from las.daemon.prometheus import PrometheusClient, PrometheusError, parse_matrix
from las.daemon.scraped import ScrapedTelemetry
from las.v1 import forecast_pb2
from peerd.daemon.telemetry.exporter import SAMPLE_AGE_NAME
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from tests.las_core.builders import done, name, register
from tests.las_daemon.stand_in import ADMIN, until
from tests.las_daemon.test_fleet import status

NOW_S = 1_000_000


class Server:
    """Answers `query_range` with what `answer` gives for a query; remembers what was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.headers = []

    async def handle(self, request):
        form = await request.post()
        self.asked.append(dict(form))
        self.headers.append(dict(request.headers))
        answer = self.answer(form)
        return await answer if asyncio.iscoroutine(answer) else answer


@asynccontextmanager
async def serving(answer):
    server = Server(answer)
    application = web.Application()
    application.router.add_post("/api/v1/query_range", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


def matrix(*series):
    return web.json_response(
        {
            "status": "success",
            "data": {
                "resultType": "matrix",
                "result": [
                    {"metric": labels, "values": [[at, str(value)] for at, value in values.items()]}
                    for labels, values in series
                ],
            },
        }
    )


def told(url, **changes):
    fields = {"source": "prometheus", "url": url, "timeout_ms": 10_000, "interval_ms": 1_000}
    return Telemetry(**(fields | changes))


# ---------------------------------------------------------------------------------- bad answers
def later(_form):
    async def wait():
        await asyncio.sleep(30)

    return wait()


BAD = {
    "html": (lambda _: web.Response(text="<html>", content_type="text/html"), "not_json"),
    "login": (lambda _: web.Response(status=401, text="no"), "status"),
    "redirect": (lambda _: web.Response(status=302, headers={"Location": "/"}), "status"),
    "slow": (later, "timeout"),
    "refused": (
        lambda _: web.json_response({"status": "error", "error": "bad query"}, status=400),
        "refused",
    ),
    "no matrix": (
        lambda _: web.json_response(
            {"status": "success", "data": {"resultType": "vector", "result": []}}
        ),
        "malformed",
    ),
    "a list": (lambda _: web.json_response([1]), "malformed"),
    "torn": (lambda _: web.Response(text="{", content_type="application/json"), "malformed"),
    "huge": (lambda _: web.json_response("x" * 100_000), "too_large"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_answer_has_a_kind_and_changes_nothing(case):
    answer, kind = BAD[case]
    taken = []
    async with serving(answer) as server:
        telemetry = told(
            server.url, timeout_ms=200 if case == "slow" else 10_000, answer_bytes_max=64 * 1024
        )
        scraped = source(telemetry, taken)
        await scraped.round()
        await scraped._client.close()
    assert scraped.rounds == {kind: 1}
    assert scraped.failing
    assert taken == []


async def test_a_server_that_is_not_there_is_unreachable():
    client = PrometheusClient(told("http://127.0.0.1:1"))
    with pytest.raises(PrometheusError) as error:
        await client.query_range(["up"], begin_s=1, end_s=2)
    assert error.value.kind == "unreachable"


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"status": "success"},
        {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}}]}},
        {
            "status": "success",
            "data": {"resultType": "matrix", "result": [{"metric": [], "values": []}]},
        },
        {
            "status": "success",
            "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, "x"]]}]},
        },
        {
            "status": "success",
            "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[1e999, "1"]]}]},
        },
    ],
)
def test_an_answer_of_another_shape_is_malformed(value):
    with pytest.raises(PrometheusError, match="no matrix"):
        parse_matrix(json.dumps(value).encode())


# ---------------------------------------------------------------------------------- credentials
async def test_the_token_is_read_anew_and_sent_to_nobody_else(tmp_path):
    token = tmp_path / "token"
    token.write_text("first\n")
    async with serving(lambda _: matrix()) as server:
        client = PrometheusClient(told(server.url, bearer_token_file=token))
        await client.query_range(["up"], begin_s=1, end_s=2)
        token.write_text("second")
        await client.query_range(["up"], begin_s=1, end_s=2)
        await client.close()
    assert [each["Authorization"] for each in server.headers] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("content", [None, "", "two\nlines"])
async def test_a_token_that_is_none_is_told(tmp_path, content):
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    client = PrometheusClient(told("http://127.0.0.1:1", bearer_token_file=token))
    with pytest.raises(PrometheusError, match="bearer_token_file") as error:
        await client.query_range(["up"], begin_s=1, end_s=2)
    assert error.value.kind == "credentials"


async def test_certificates_that_are_none_are_told(tmp_path):
    files = {"ca_file": tmp_path / "ca.pem"}
    client = PrometheusClient(told("https://127.0.0.1:1", **files))
    with pytest.raises(PrometheusError, match=r"ca\.pem cannot be used") as error:
        await client.query_range(["up"], begin_s=1, end_s=2)
    assert error.value.kind == "credentials"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": ""}, "telemetry.url"),
        ({"url": "ftp://prometheus"}, "telemetry.url"),
        ({"url": "http://prometheus:9090"}, "must be https"),
        ({"url": "https://me:secret@prometheus"}, "no credentials"),
        ({"staleness_ms": 9_000}, "at least two intervals"),
        ({"key_file": "/x"}, "belong together"),
        ({"node_label": "a-b"}, "node_label"),
        ({"matchers": '} or {a="b"'}, "matchers"),
    ],
)
def test_a_source_that_cannot_be_is_refused_at_the_start(tmp_path, changes, says):
    fields = {"source": "prometheus", "url": "https://prometheus:9090"} | changes
    with pytest.raises(ConfigError, match=says):
        load_config(
            None,
            {
                "cluster": "shop",
                "name": "las-1",
                "listen": "127.0.0.1:1",
                "data_dir": str(tmp_path),
                "members": {"las-1": "127.0.0.1:1"},
                "insecure_loopback": True,
                **{f"telemetry.{key}": value for key, value in fields.items()},
            },
            environment={},
        )


# ---------------------------------------------------------------------------------- samples
def source(telemetry, taken, *, clock=None):
    state = done(ClusterState(cluster_id="c"), register(1), register(2), register(3))
    return ScrapedTelemetry(
        telemetry,
        state=lambda: state,
        take=lambda *row: taken.append(row),
        window_s=4,
        wall_ms=clock or (lambda: NOW_S * 1000),
    )


def fleet(form):
    """Peer 1 whole, peer 2 scraped long ago, peer 3 not at all; node_exporter knows host 1."""
    seconds = range(int(form["start"]), int(form["end"]) + 1)
    one, two = {"node": name(1)}, {"node": name(2)}
    if form["query"].startswith("{__name__"):
        series = [
            ({**labels, "__name__": f"peerd_{metric}"}, dict.fromkeys(seconds, value))
            for labels in (one, two)
            for metric, value in (("sample_delay_ms", 1.5), ("commit_age_ms", "NaN"))
        ]
        ages = [
            ({**labels, "__name__": SAMPLE_AGE_NAME}, dict.fromkeys(seconds, 0.25))
            for labels in (one, two)
        ]
        return matrix(*series, *ages)
    if form["query"].startswith("timestamp("):
        return matrix(
            (one, {second: second - 3 for second in seconds}),
            (two, {second: second - 20 for second in seconds}),
        )
    if "node_load1" in form["query"]:
        return matrix(({"host": "host-1"}, dict.fromkeys(seconds, 0.75)))
    return matrix()


async def test_samples_are_taken_by_the_second_and_missing_stays_missing():
    taken = []
    async with serving(fleet) as server:
        scraped = source(told(server.url, staleness_ms=15_000), taken)
        await scraped.round()
        await scraped._client.close()
    assert scraped.rounds == {"ok": 1}
    # Peer 2's are stale, although the server goes on with its last value.
    assert [row[:3] for row in taken] == [
        (name(1), NOW_S - ago, ago * 1_000) for ago in (3, 2, 1, 0)
    ]
    values = dict(zip(TELEMETRY_SCHEMA.names, taken[0][3], strict=True))
    assert values["sample_delay_ms"] == 1.5
    assert values["load_per_core"] == 0.75, "of node_exporter on its host"
    assert math.isnan(values["commit_age_ms"])
    assert math.isnan(values["cpu_busy_share"])
    assert scraped.unseen() == [name(2), name(3)]


async def test_each_second_is_asked_for_once_and_a_failed_one_again(monkeypatch):
    monkeypatch.setattr(module, "PIECE_S", 3)
    taken, failing = [], []
    now_s = NOW_S

    def answer(form):
        return web.Response(status=500) if failing else fleet(form)

    async with serving(answer) as server:
        scraped = source(told(server.url), taken, clock=lambda: now_s * 1000)
        await scraped.round()
        failing.append(True)
        now_s += 2
        await scraped.round()
        assert "answers 500" in scraped.failing
        failing.clear()
        now_s += 2
        await scraped.round()
        assert not scraped.failing
        spans = [(int(each["start"]), int(each["end"])) for each in server.asked]
        # The clock is set back by an hour: what is asked for follows it.
        now_s -= 3_600
        await scraped.round()
        await scraped._client.close()
    assert list(dict.fromkeys(spans)) == [
        (NOW_S - 3, NOW_S - 1),
        (NOW_S, NOW_S),
        (NOW_S + 1, NOW_S + 2),
        (NOW_S + 1, NOW_S + 3),
        (NOW_S + 4, NOW_S + 4),
    ]
    assert [row[1] for row in taken[:8]] == list(range(NOW_S - 3, NOW_S + 5))
    assert taken[-1][1] == NOW_S + 4 - 3_600


async def test_queries_name_the_labels_and_matchers():
    async with serving(fleet) as server:
        telemetry = told(server.url, node_label="peer", host_label="box", matchers='cluster="shop"')
        scraped = source(telemetry, [])
        await scraped.round()
        await scraped._client.close()
    queries = [each["query"] for each in server.asked]
    assert queries[0].endswith('",cluster="shop"}')
    assert queries[1] == 'timestamp(peerd_sample_delay_ms{cluster="shop"})'
    assert any("by (peer, box)" in query and "[4s]" in query for query in queries)


async def test_a_las_with_this_source_knows_its_nodes_from_there_alone(start_las):
    def live(form):
        seconds = range(int(form["start"]), int(form["end"]) + 1)
        label = {"node": "peer-1"}
        if form["query"].startswith("timestamp("):
            return matrix((label, {second: second for second in seconds}))
        if not form["query"].startswith("{__name__"):
            return matrix()
        told = ("peerd_sample_delay_ms", "peerd_commit_latency_ms_p99", SAMPLE_AGE_NAME)
        return matrix(
            *(({**label, "__name__": each}, dict.fromkeys(seconds, 1.0)) for each in told)
        )

    async with serving(live) as server:
        settings = {"source": "prometheus", "url": server.url, "query_ms": 500}
        las = await (await start_las(telemetry=settings)).leading()
        first, second = await las.add_peers(2)
        for peer in (first, second):
            await peer.heartbeats(peer.beat(samples=peer.samples(60, commit_ms=2.0)))

        async def known():
            request = forecast_pb2.GetForecastRequest()
            answer = await las.forecast.GetForecast(request, metadata=ADMIN, timeout=30)
            return {each.node: each.known for each in answer.forecasts}

        await until(lambda: las.term.scraped.rounds["ok"] > 0, "a round")

        async def one_is_known() -> bool:
            return (await known())["peer-1"]

        await until(one_is_known, "the first one is known")
        assert await known() == {"peer-1": True, "peer-2": False}, "its heartbeats do not count"
        warnings = (await status(las)).warnings
        assert any("no fresh telemetry of peer-2" in line for line in warnings)
