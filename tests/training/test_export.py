"""Which moments are exported, with what labels and weights, out of a server's answers."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from las.core.history import Cause, Outage
from las.training.cli import train_app
from las.training.command import BadQuestion, telemetry_of
from las.training.export import Wanted, export, looks
from las.training.labels import Fates
from las.training.windows import WINDOW_S, BadData, read_moments
from peerd.daemon.telemetry.exporter import SAMPLE_AGE_NAME
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA
from tests.las_daemon.test_prometheus import matrix, serving, told

BEGIN_S, EVERY_S = 1_000_000, 1_800
FAILED_S = BEGIN_S + 10_000
FATES = Fates(until_s=BEGIN_S + 20_000, outages=(Outage("b", "", "", FAILED_S, None, Cause.CRASH),))
PRESENT = TELEMETRY_SCHEMA.metric(ALWAYS_PRESENT).exported_name


def test_a_grid_of_all_nodes_and_a_closer_look_before_a_failure():
    wanted = Wanted(begin_s=BEGIN_S, end_s=BEGIN_S + 20_000, every_s=EVERY_S)
    found = looks(wanted, FATES)
    assert [each.at_s for each in found] == sorted(each.at_s for each in found)
    grid = [each for each in found if each.nodes is None]
    assert [each.at_s for each in grid] == list(
        range(BEGIN_S + WINDOW_S, BEGIN_S + 20_000, EVERY_S)
    )
    near = [each for each in found if each.nodes is not None]
    assert len(near) == 60
    assert all(each.nodes == {"b"} and 0 < FAILED_S - each.at_s < 3_600 for each in near)
    # An hour before a failure counts as an hour, however often it is looked at.
    assert sum(each.weight for each in near) == pytest.approx(3_600 / EVERY_S)


def test_too_many_moments_are_refused():
    with pytest.raises(BadData, match="a larger --every"):
        looks(Wanted(begin_s=0, end_s=100_000_000, every_s=60), FATES)


def series(form):
    """Two peers that are scraped each second; of "b" nothing once it has failed."""
    seconds = range(int(form["start"]), int(form["end"]) + 1)
    alive = {"a": list(seconds), "b": [at_s for at_s in seconds if at_s < FAILED_S]}
    if form["query"].startswith("timestamp("):
        return matrix(*(({"node": node}, {s: s for s in at}) for node, at in alive.items()))
    if not re.match(r"\{__name__", form["query"]):
        return matrix()
    rows = []
    for node, at in alive.items():
        rows.append(({"__name__": PRESENT, "node": node}, dict.fromkeys(at, 1.5)))
        rows.append(({"__name__": SAMPLE_AGE_NAME, "node": node}, dict.fromkeys(at, 0.2)))
    return matrix(*rows)


async def test_windows_of_a_server_with_what_became_of_each_node(tmp_path):
    path, seen = tmp_path / "fleet.parquet", []
    wanted = Wanted(begin_s=FAILED_S - 300, end_s=FAILED_S + 200, every_s=300)
    async with serving(series) as server:
        written = await export(
            path,
            told(server.url),
            wanted,
            hosts={"a": "h1", "b": "h2", "never scraped": "h3"},
            fates=FATES,
            progress=lambda done, count: seen.append((done, count)),
        )
    found = list(read_moments([path]))
    assert written.moments == len(found)
    assert seen[-1] == (seen[-1][1], seen[-1][1])
    grid = [each for each in found if each.weight == 1.0]
    assert [each.nodes for each in grid] == [("a",)] * len(grid)  # of "b" the closer look tells
    assert all((each.labels == 0).all() for each in grid)
    near = [each for each in found if each.nodes == ("b",)]
    assert len(near) == 3
    assert all((each.labels == 1).all() for each in near)
    assert written.came_true == 3
    window = near[-1].windows[0]
    present = window[:, TELEMETRY_SCHEMA.positions[ALWAYS_PRESENT]]
    np.testing.assert_array_equal(present, np.full(WINDOW_S, 1.5, dtype=np.float32))
    assert np.isnan(window[:, TELEMETRY_SCHEMA.positions["disk_busy_share"]]).all()


async def test_a_server_that_fails_leaves_no_file(tmp_path):
    from aiohttp import web

    from las.daemon.prometheus import PrometheusError

    async with serving(lambda form: web.Response(status=503)) as server:
        with pytest.raises(PrometheusError):
            await export(
                tmp_path / "fleet.parquet",
                told(server.url),
                Wanted(begin_s=0, end_s=200, every_s=60),
                hosts={"a": "a"},
                fates=FATES,
                progress=lambda *_: None,
            )
    assert list(tmp_path.iterdir()) == []


def test_where_the_server_is_comes_of_the_las_s_file_or_the_option(tmp_path):
    config = tmp_path / "las.toml"
    config.write_text('name = "x"\n[telemetry]\nurl = "https://p:9090"\ninterval_ms = 1000\n')
    assert telemetry_of(config, "").interval_ms == 1_000
    assert telemetry_of(config, "http://127.0.0.1:1").url == "http://127.0.0.1:1"
    config.write_text('[telemetry]\nurl = "https://p:9090"\nbearer_token_file = "token"\n')
    assert telemetry_of(config, "").bearer_token_file == tmp_path / "token"
    config.write_text("telemetry = 5")
    with pytest.raises(BadQuestion, match="telemetry is no table"):
        telemetry_of(config, "")
    config.write_text("x = ")
    for path, url, why in (
        (None, "", "which Prometheus server"),
        (config, "", "cannot be read"),
        (tmp_path / "lost.toml", "", "cannot be read"),
        (None, "ftp://p", "telemetry"),
    ):
        with pytest.raises(BadQuestion, match=why):
            telemetry_of(path, url)


def test_the_command_says_what_is_missing_in_one_line(tmp_path):
    outages = tmp_path / "outages.csv"
    outages.write_text("node,begin\n")
    words = ["export", str(tmp_path / "x.parquet"), "--outages", str(outages)]
    for more, why in (
        ([], "which Prometheus server"),
        (["--url", "http://127.0.0.1:1"], "no node is known"),
    ):
        ended = CliRunner().invoke(train_app, [*words, *more])
        assert ended.exit_code == 1
        assert why in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    outages.write_text("node,begin\na,1000\n")
    ended = CliRunner().invoke(train_app, [*words, "--url", "http://127.0.0.1:1", "--since", "10m"])
    assert (ended.exit_code, "cannot be asked" in ended.stderr) == (1, True)
    assert "nothing was written" in ended.stderr
    words += ["--url", "http://127.0.0.1:1"]
    for since, why in (("5s", "--since: at least"), ("2999-01-01T00:00:00Z", "--since: at least")):
        ended = CliRunner().invoke(train_app, [*words, "--since", since])
        assert (ended.exit_code, why in ended.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == [outages]


async def test_a_server_that_has_none_of_the_nodes_leaves_no_file(tmp_path):
    async with serving(lambda _: matrix()) as server:
        with pytest.raises(BadData, match=r"has no sample of b in that time: .* label node"):
            await export(
                tmp_path / "fleet.parquet",
                told(server.url),
                Wanted(begin_s=BEGIN_S, end_s=BEGIN_S + 5_000, every_s=EVERY_S),
                hosts={"b": "b"},
                fates=FATES,
                progress=lambda *_: None,
            )
    assert list(tmp_path.iterdir()) == []
