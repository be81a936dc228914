"""`peerctl` against a real cluster: what it prints, as JSON too, its error lines, its statuses."""

import io
import json
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from las.v1 import fleet_pb2, forecast_pb2
from peerd.cli.fleet_commands import _case_row, _print_forecasts
from peerd.cli.peerctl import app
from peerd.cli.rebalance_commands import _print as _print_rebalance
from peerd.cli.top_commands import look
from peerd.client.blocking import connect
from peerd.client.errors import Unavailable

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def peerctl(cluster, monkeypatch):
    """Runs a command that must succeed; what it printed."""
    monkeypatch.setenv("PEERCTL_CONFIG", str(cluster.peerctl_toml))

    def run(*arguments: str, stdin: str | None = None) -> str:
        done = CliRunner().invoke(app, arguments, input=stdin)
        assert done.exit_code == 0, done.output
        assert done.stderr == ""
        return done.stdout

    return run


@pytest.fixture
def refused(cluster, monkeypatch):
    """Runs a command that must fail; its status and its one line."""
    monkeypatch.setenv("PEERCTL_CONFIG", str(cluster.peerctl_toml))

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, arguments)
        assert done.stdout == ""
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("peerctl: ")
        return done.exit_code, line.removeprefix("peerctl: ")

    return run


@pytest.fixture
def log(cluster, request):
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    with connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(name, shards=2)
    return name


def process(cluster, *arguments: str, **pipes) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peerd.cli.peerctl", *arguments, "-c", str(cluster.peerctl_toml)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **pipes,
    )


# ---------------------------------------------------------------------------------- logs
def test_the_tails_of_a_log_are_shown_and_confirmed(peerctl):
    peerctl("log", "create", "tailed", "--shards", "1")
    peerctl("append", "tailed", "one")
    header, row = peerctl("tail", "tailed").splitlines()
    assert header.split() == ["shard", "epoch", "committed", "answered", "by"]
    assert row.split()[1:3] == ["1", "1"]
    (tail,) = json.loads(peerctl("tail", "tailed", "--linearizable", "-o", "json"))
    assert (tail["committed"], tail["epoch"]) == (1, 1)


def test_a_log_is_created_listed_and_described(peerctl):
    said = peerctl("log", "create", "orders", "--shards", "2")
    assert said == "created orders: 2 shards, 3 copies, answered when 2 have it on disk\n"
    header, *rows = peerctl("log", "list").splitlines()
    assert header.split() == ["log", "shards", "copies", "acks"]
    assert ["orders", "2", "3", "2"] in [row.split() for row in rows]
    first, header, *rows = peerctl("log", "describe", "orders").splitlines()
    assert first == "orders: 3 copies, answered when 2 have it on disk; keeps everything"
    assert header.split()[:4] == ["shard", "epoch", "primary", "voters"]
    assert len(rows) == 2


def test_a_drill_asks_the_voters_and_changes_nothing(peerctl, refused, log):
    peerctl("append", log, "one")
    before = peerctl("log", "describe", log)
    header, *rows, last = peerctl("drill", log).splitlines()
    assert header.split()[:2] == ["shard", "primary"]
    assert len(rows) == 2
    assert all(" yes, peer-" in row for row in rows)
    assert last == "all 2 shards would go on without their primary"
    shard = json.loads(peerctl("log", "describe", log, "-o", "json"))["shards"][0]["shard"]
    (found,) = json.loads(peerctl("drill", f"{log}/{shard}", "-o", "json"))
    assert (found["could_go_on"], found["needed"], len(found["voters"])) == (True, 2, 2)
    assert found["successor"] not in {"", found["primary"]}
    assert peerctl("log", "describe", log) == before
    assert refused("drill", "none")[0] == 1
    assert refused("drill", f"{log}/999")[0] == 1


def test_yaml_says_what_json_says(peerctl, log):
    asked = ("log", "describe", log)
    assert yaml.safe_load(peerctl(*asked, "-o", "yaml")) == json.loads(
        peerctl(*asked, "-o", "json")
    )
    for value in ("one", "two: - 2"):
        peerctl("append", log, value, "--key", "k")
    records = list(yaml.safe_load_all(peerctl("read", log, "-o", "yaml")))
    assert [record["value"] for record in records] == ["one", "two: - 2"]


def test_a_shard_is_split(peerctl, refused):
    log = json.loads(peerctl("log", "create", "split", "--shards", "1", "-o", "json"))
    (parent,) = log["shards"]
    keys = [f"key-{number}" for number in range(8)]
    for key in keys:
        peerctl("append", "split", "before", "--key", key)
    said = peerctl("log", "split", f"split/{parent}")
    assert said.startswith(f"split/{parent} is split into split/")
    again = json.loads(peerctl("log", "split", f"split/{parent}", "-o", "json"))
    lower, upper = again["children"]
    for key in keys:
        peerctl("append", "split", "after", "--key", key)
    read = [json.loads(line) for line in peerctl("read", "split", "-o", "json").splitlines()]
    assert {record["shard"] for record in read} == {parent, lower, upper}
    for key in keys:
        assert [r["value"] for r in read if r["key"] == key] == ["before", "after"]
    rows = peerctl("log", "describe", "split").splitlines()[2:]
    assert [row.split()[0] for row in rows] == [f"split/{s}" for s in (parent, lower, upper)]
    assert rows[0].rstrip().endswith(f"split into {lower} and {upper}")
    status, line = refused("log", "split", "split/9999")
    assert (status, line.startswith("split has no shard 9999")) == (1, True)
    assert refused("log", "split", f"split/{lower}", "--at", "much")[0] == 2
    assert refused("log", "split", f"split/{lower}", "--at", hex(1 << 64))[0] == 2
    _, line = refused("log", "split", f"split/{lower}", "--at", "0xffffffffffffffff")
    assert "does not cut the range" in line


def test_old_records_are_let_go(peerctl, refused):
    (shard,) = json.loads(peerctl("log", "create", "old", "--shards", "1", "-o", "json"))["shards"]
    said = peerctl("log", "retain", "old", "--bytes", "1000000", "--ms", "60000")
    words = "keeps the newest 1000000 bytes of each shard, and what is younger than 0:01:00"
    assert said == f"old: {words}\n"
    assert peerctl("log", "describe", "old").splitlines()[0].endswith(words)
    assert peerctl("log", "retain", "old", "--bytes", "0", "--ms", "0") == "old: keeps everything\n"
    assert refused("log", "retain", "old")[0] == 2
    peerctl("append", "old", "one")
    for where, before in ((f"old/{shard}", "1"), ("old", "2200-01-01T00:00Z")):
        (trimmed,) = json.loads(peerctl("log", "trim", where, "--before", before, "-o", "json"))
        assert trimmed == {"shard": shard, "first_offset": 0}, "no chunk ends there"
    assert refused("log", "trim", "old", "--before", "1")[0] == 2
    assert refused("log", "trim", "old/x", "--before", "1")[0] == 2
    assert refused("log", "trim", f"old/{shard}", "--before", "yesterday")[0] == 2
    assert refused("log", "trim", "old/9999", "--before", "1")[1].startswith("old has no shard")


def test_a_log_may_be_tiered(peerctl, refused):
    (shard,) = json.loads(peerctl("log", "create", "cold", "--shards", "1", "-o", "json"))["shards"]
    said = peerctl("log", "tier", "cold", "--hot-bytes", "1000000")
    assert said == "cold: the newest 1000000 bytes of a shard on its peers\n"
    first = peerctl("log", "describe", "cold").splitlines()[0]
    assert first.endswith("keeps everything; the newest 1000000 bytes of a shard on its peers")
    described = json.loads(peerctl("log", "describe", "cold", "-o", "json"))
    assert described["hot_bytes"] == 1_000_000
    (entry,) = described["shards"]
    assert (entry["shard"], entry["stored_from"], entry["tier"]) == (shard, 0, None)
    assert peerctl("log", "tier", "cold", "--hot-bytes", "0") == "cold: its peers keep all\n"
    assert "there is no log" in refused("log", "tier", "nothing", "--hot-bytes", "1")[1]


def test_a_log_may_be_packed(peerctl, refused):
    asked = ("log", "create", "packed", "--shards", "1", "--compression", "zstd", "-o", "json")
    assert json.loads(peerctl(*asked))["compression"] == "zstd"
    assert peerctl("log", "describe", "packed").splitlines()[0].endswith("; packed with zstd")
    peerctl("append", "packed", "the same again " * 100)
    assert peerctl("read", "packed").endswith("the same again \n")
    said = peerctl("log", "alter", "packed", "--compression", "none")
    assert said == "packed: 3 copies, answered when 2 have it on disk\n"
    assert refused("log", "alter", "packed")[0] == 2


def test_the_same_as_json(peerctl):
    created = json.loads(peerctl("log", "create", "bills", "--shards", "2", "-o", "json"))
    policy = {"retention_bytes", "retention_ms", "compression", "hot_bytes"}
    assert created.keys() == {"name", "copies", "acks", "shards"} | policy
    assert created in json.loads(peerctl("log", "list", "-o", "json"))
    described = json.loads(peerctl("log", "describe", "bills", "-o", "json"))
    low, high = described["shards"]
    assert (low["key_hash_low"], high["key_hash_high"]) == (0, 2**64 - 1)
    assert low["key_hash_high"] + 1 == high["key_hash_low"]
    segment = low["open"]
    assert (segment["epoch"], segment["begin"], segment["end"]) == (1, 0, None)
    assert segment["primary"] in segment["voters"]
    assert sorted(segment["voters"]) == ["peer-1", "peer-2", "peer-3"]
    assert (low["prepared"], low["fence"], low["sealed"]) == (None, None, [])


# ---------------------------------------------------------------------------------- records
def test_a_record_goes_in_and_comes_out(peerctl, log):
    receipt = json.loads(peerctl("append", log, "hello", "--key", "k", "-o", "json"))
    assert (receipt["log"], receipt["offset"], receipt["record_count"]) == (log, 0, 1)
    assert len(receipt["durable_on"]) >= 2
    assert not receipt["duplicate"]
    shard = receipt["shard"]
    assert peerctl("read", log) == f"{log}/{shard} 0  k  hello\n"
    (record,) = [json.loads(line) for line in peerctl("read", log, "-o", "json").splitlines()]
    assert (record["key"], record["value"], record["headers"]) == ("k", "hello", [])
    assert record["appended_ms"] == receipt["timestamp_ms"]
    said = peerctl("append", log, "again", "--key", "k", "--expected-offset", "1")
    assert said.startswith(f"{log}/{shard} offset 1, epoch 1, on disk at peer-")
    assert peerctl("read", log, "--shard", str(shard), "--from", "1").endswith("k  again\n")
    assert peerctl("read", log, "-n", "1").endswith("k  hello\n")
    assert peerctl("read", log, "--from", "latest") == ""
    assert peerctl("read", log, "--time", "1h").endswith("k  again\n")
    assert peerctl("read", log, "--time", "2200-01-01T00:00Z") == ""


def test_a_consumers_position_is_set_shown_and_forgotten(peerctl, refused, log):
    assert peerctl("position", "get", log, "billing") == f"billing has no position in {log}\n"
    peerctl("append", log, "hello", "--key", "household-900")
    described = json.loads(peerctl("log", "describe", log, "-o", "json"))
    first, second = (shard["shard"] for shard in described["shards"])
    peerctl("position", "set", log, "billing", "--at", f"{first}=0", "--at", f"{second}=0")
    shown = peerctl("position", "get", log, "billing")
    assert f"{log}/{first}" in shown
    assert "records behind" in shown
    assert peerctl("position", "list", log).splitlines()[1].split() == ["billing", "2", "1"]
    peerctl("position", "set", log, "billing", "--to", "latest")
    (listed,) = json.loads(peerctl("position", "list", log, "-o", "json"))
    assert (listed["consumer"], listed["records_behind"]) == ("billing", 0)
    found = json.loads(peerctl("position", "get", log, "billing", "-o", "json"))
    assert sorted(found["offsets"].values()) == [0, 1]
    peerctl("position", "forget", log, "billing")
    assert peerctl("position", "list", log) == f"no consumer has a position in {log}\n"
    assert json.loads(peerctl("position", "get", log, "billing", "-o", "json"))["offsets"] == {}
    assert "_positions" not in peerctl("log", "list")
    status, line = refused("position", "set", log, "billing", "--at", "1:5")
    assert (status, "SHARD=OFFSET" in line) == (2, True)
    status, line = refused("position", "set", log, "billing")
    assert (status, "either" in line) == (2, True)


def test_lines_of_stdin_and_files_are_records(peerctl, log, tmp_path):
    said = peerctl("append", log, "--key", "k", stdin="one\ntwo\r\nthree")
    assert said == f"appended 3 records to {log}\n"
    (tmp_path / "record").write_bytes(b"\xff\n")
    peerctl("append", log, "--key", "k", "--file", str(tmp_path / "record"))
    values = [json.loads(line)["value"] for line in peerctl("read", log, "-o", "json").splitlines()]
    assert values == ["one", "two", "three", "\\xff\n"]
    receipts = peerctl("append", log, "-o", "json", "--key", "k", stdin="a\nb\n").splitlines()
    assert [json.loads(line)["offset"] for line in receipts] == [4, 5]


def test_follow_goes_on_until_ctrl_c_and_says_nothing_on_stderr(cluster, log):
    reading = process(cluster, "read", log, "--follow")
    assert reading.stdout is not None
    with connect(credentials=cluster.peerctl_toml) as client:
        for value in (b"first", b"second"):
            client.append(log, value, key=b"k")
            assert reading.stdout.readline().endswith(f"k  {value.decode()}\n")
    reading.send_signal(signal.SIGINT)
    _, error = reading.communicate(timeout=60)
    assert (reading.returncode, error) == (130, "")


def test_a_reader_that_goes_away_is_no_error(cluster, log):
    with connect(credentials=cluster.peerctl_toml) as client:
        client.append_many(log, [b"x" * 100] * 5_000)
    with process(cluster, "read", log) as reading:
        assert reading.stdout is not None
        assert reading.stdout.readline()
        reading.stdout.close()
        assert reading.stderr is not None
        assert reading.stderr.read() == ""
    assert reading.returncode == 0


# ---------------------------------------------------------------------------------- fleet
def test_status_says_what_is_there(peerctl):
    lines = peerctl("status").splitlines()
    told = [line for line in lines if not line.startswith("!")]
    assert told[0].startswith("at stake  0 s: whichever node dies now, ")
    assert told[1] == "fleet     3 of 3 peers up in 3 zones, LAS 1 of 1 (leader las-1)"
    assert told[2].startswith("data ")
    status = json.loads(peerctl("status", "-o", "json"))
    assert status["las_leader"] == "las-1"
    assert [each["node"]["name"] for each in status["nodes"]] == ["peer-1", "peer-2", "peer-3"]
    assert {each["node"]["state"] for each in status["nodes"]} == {"NODE_STATE_UP"}


def test_top_prints_each_look_where_there_is_no_terminal(peerctl, log):
    peerctl("append", log, "one")
    looks = peerctl("top", "--looks", "2", "--every", "0.2")
    assert looks.count("fleet     3 of 3 peers up") == 2
    header = next(line for line in looks.splitlines() if line.startswith("node "))
    assert header.split()[:3] == ["node", "state", "p(10"]
    assert [line.split()[1] for line in looks.splitlines() if line.startswith("peer-")] == [
        "up"
    ] * 6


def test_top_watches_on_while_no_las_node_answers(cluster):
    console = Console(file=io.StringIO(), width=200)
    with connect(credentials=cluster.peerctl_toml) as client:
        console.print(look(client, console))
    assert "3 of 3 peers up" in console.file.getvalue()
    lost = SimpleNamespace(las=SimpleNamespace(status=partial(_raise, Unavailable("nobody leads"))))
    console.print(look(lost, console))
    assert console.file.getvalue().endswith("no answer: nobody leads\n")


def _raise(error: Exception) -> None:
    raise error


def test_nodes_and_forecasts_have_a_row_each(peerctl):
    header, *rows = peerctl("node", "list").splitlines()
    assert header.startswith("node ")
    assert [row.split()[0] for row in rows] == ["peer-1", "peer-2", "peer-3"]
    assert len(json.loads(peerctl("node", "list", "-o", "json"))) == 3
    assert [each["node"] for each in json.loads(peerctl("forecast", "peer-2", "-o", "json"))] in (
        ["peer-2"],
        [],
    )
    explained = json.loads(peerctl("explain", "node", "peer-1", "-o", "json"))
    assert explained["forecast"]["node"] == "peer-1"
    assert json.loads(peerctl("explain", "peer-1", "-o", "json"))["facts"][0] == "it is healthy"
    assert "seen      it is healthy" in peerctl("explain", "peer-1").splitlines()


def test_a_forecast_that_is_not_known_shows_no_probability(capsys):
    horizon = forecast_pb2.Horizon(horizon_s=600, probability=0.25)
    known = forecast_pb2.NodeForecast(node="peer-1", known=True, horizons=[horizon])
    fresh = forecast_pb2.NodeForecast(node="peer-2", known=False, horizons=[horizon])
    _print_forecasts([known, fresh])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["peer-1", "0.25", "-"]
    assert second.split()[:3] == ["peer-2", "?", "not"]


def test_a_switch_names_the_new_epoch(peerctl, log):
    shard = json.loads(peerctl("log", "describe", log, "-o", "json"))["shards"][0]
    target = next(peer for peer in shard["open"]["voters"] if peer != shard["open"]["primary"])
    said = json.loads(peerctl("shard", "switch", f"{log}/{shard['shard']}", target, "-o", "json"))
    assert said["node"] == target
    assert said["epoch"] > shard["open"]["epoch"]


def test_the_ledger_and_what_it_tells(peerctl):
    assert json.loads(peerctl("forecast", "ledger", "-o", "json")) == []
    assert "no forecast has crossed a line yet" in peerctl("forecast", "ledger")
    assert "not known yet" in peerctl("forecast", "effect")
    assert json.loads(peerctl("forecast", "effect", "-o", "json"))["saved_s"]["value"] is None


def test_a_case_is_one_row():
    case = forecast_pb2.LedgerCase(
        number=7,
        node="peer-1",
        response="protect",
        rule="threshold",
        probability=0.91,
        horizon_s=600,
        line=0.8,
        outcome="hit",
        lead_ms=41_500,
        copies_spent=3,
        bytes_spent=2_100_000,
        told="41.5 s ahead",
    )
    number, _, *rest = _case_row(case)
    assert number == "7"
    assert rest == [
        *("peer-1", "p(10 min) 0.91, line 0.80", "protect", "hit", "41.5 s"),
        *("3 copies, 2.1 MB", "41.5 s ahead"),
    ]


def test_a_shard_is_explained(peerctl, log):
    shard = json.loads(peerctl("log", "describe", log, "-o", "json"))["shards"][0]
    lines = peerctl("explain", f"{log}/{shard['shard']}").splitlines()
    assert lines == peerctl("explain", "shard", f"{log}/{shard['shard']}").splitlines()
    assert any(f"{shard['open']['primary']} leads" in line for line in lines)
    assert any("could vote beside them" in line for line in lines)


def test_what_a_stop_would_cost(cluster, log, monkeypatch):
    monkeypatch.setenv("PEERCTL_CONFIG", str(cluster.peerctl_toml))
    with connect(credentials=cluster.peerctl_toml) as client:
        primary = client.describe_log(log)[1][0].open.plan.primary.peer
    done = CliRunner().invoke(app, ["safe-to-stop", primary])
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{primary} should not be stopped now:\n  appends to ")
    assert "pause: it is the primary" in done.stdout
    as_json = CliRunner().invoke(app, ["safe-to-stop", primary, "-o", "json"])
    assert as_json.exit_code == 1
    told = json.loads(as_json.stdout)
    assert told["safe"] is False
    assert log in {cost["log"] for cost in told["costs"]}


def test_who_changed_what_is_told(peerctl, refused, log):
    refused("log", "create", log)
    told = json.loads(peerctl("audit", "--log", log, "-o", "json"))
    assert [(each["what"], each["ok"]) for each in told["records"]] == [
        ("log create", True),
        ("log create", False),
    ]
    assert told["records"][0]["role"] == "admin"
    table = peerctl("audit", "--log", log, "--since", "1h")
    assert "refused (LOG_EXISTS): there is a log" in table
    assert "1 older ones fit" in peerctl("audit", "--log", log, "-n", "1")
    assert peerctl("audit", "--log", "none") == "nothing fits\n"


def test_a_drain_for_a_time_counts_down_and_can_be_ended(peerctl):
    peerctl("node", "drain", "peer-3", "--for", "1h", "--no-wait")
    assert "peer-3" in peerctl("status")
    assert "draining, ends in 60 min" in peerctl("node", "list")
    assert "ends in 60 min" in peerctl("status")
    peerctl("node", "undrain", "peer-3")
    assert "draining" not in peerctl("node", "list")


# ---------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("append", "nothing", "x"), 1, "there is no log 'nothing'"),
        (("read", "nothing"), 1, "there is no log 'nothing'"),
        (("log", "describe", "nothing"), 1, "there is no log 'nothing'"),
        (("log", "create", "no/name"), 1, "a log name is"),
        (("log", "create", "many", "--copies", "9"), 1, "copies"),
        (("read", "x", "--from", "7"), 2, "needs --shard"),
        (("read", "x", "--from", "soon"), 2, "earliest, latest or an offset"),
        (("read", "x", "--time", "soon"), 2, "or how long ago"),
        (("read", "x", "--time", "2026-11-29T07:00:00"), 2, "in which time zone"),
        (("read", "x", "--time", "1m", "--from", "latest"), 2, "not both"),
        (("append", "x", "--file", "nothing"), 2, "cannot read nothing"),
        (("append", "x", "v", "--file", "f"), 2, "not both"),
        (("shard", "switch", "orders", "peer-1"), 2, "write LOG/SHARD"),
        (("explain", "node", "peer-9"), 1, "peer-9"),
        (("explain", "peer-9"), 1, "peer-9"),
        (("explain", "nothing/1"), 1, "there is no log 'nothing'"),
        (("node", "drain", "peer-9"), 1, "peer-9"),
        (("node", "drain", "peer-1", "--for", "soon"), 2, "such as 90s, 15m, 2h or 1d"),
        (("node", "drain", "peer-1", "--for", "31d"), 1, "for_ms"),
        (("audit", "-n", "0"), 2, "1 to 1000"),
        (("audit", "--since", "soon"), 2, "or how long ago"),
        (("node", "remove", "peer-9"), 1, "no node is called peer-9"),
        (("node", "remove", "peer-1"), 1, "peer-1 is up"),
        (("node", "replace", "peer-1", "--store", "new"), 1, "32 hexadecimal digits"),
        (("node", "replace", "peer-1", "--store", "f" * 32), 1, "peer-1 is up"),
        (("safe-to-stop", "peer-9"), 1, "no node is called 'peer-9'"),
        (("status", "-c", "nowhere.toml"), 2, "nowhere.toml does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_a_stable_status(refused, arguments, status, words):
    got, line = refused(*arguments)
    assert words in line
    assert got == status


def test_a_log_is_created_once(refused, log):
    status, line = refused("log", "create", log, "--shards", "7")
    assert status == 1
    assert log in line


def test_an_offset_that_is_not_the_end_is_refused(refused, log):
    status, line = refused("append", log, "x", "--key", "k", "--expected-offset", "5")
    assert status == 1
    assert "5" in line


def test_without_a_configuration_it_asks_for_one(monkeypatch):
    done = CliRunner().invoke(app, ["status"])
    assert done.exit_code == 2
    assert "-c or $PEERCTL_CONFIG" in done.stderr


def test_the_configuration_may_be_named_before_the_command_and_behind_it(cluster, tmp_path):
    named = str(cluster.peerctl_toml)
    for arguments in (["-c", named, "log", "list"], ["log", "list", "-c", named]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    nowhere = str(tmp_path / "none.toml")
    assert CliRunner().invoke(app, ["-c", nowhere, "log", "list", "-c", named]).exit_code == 0
    # And nothing of it stays for the next command.
    assert CliRunner().invoke(app, ["log", "list"]).exit_code == 2


def test_a_cluster_that_is_not_there_is_one_line(cluster, tmp_path):
    text = cluster.peerctl_toml.read_text("utf-8").replace('"pki/', f'"{cluster.directory}/pki/')
    for member in cluster.members:
        text = text.replace(member.address, "127.0.0.1:1")
    (tmp_path / "peerctl.toml").write_text(text, "utf-8")
    done = CliRunner().invoke(app, ["log", "list"])
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("peerctl: cannot connect: 127.0.0.1:1")
    assert line.count("nothing listens there") == 1


# ---------------------------------------------------------------------------------- rebalance
def test_what_each_node_carries_is_shown(peerctl, log, cluster):
    answer = json.loads(peerctl("rebalance", "--dry-run", "-o", "json"))
    assert {each["node"] for each in answer["nodes"]} == {peer.id for peer in cluster.peers}
    assert all(each["votes"] >= 2 for each in answer["nodes"]), log
    assert answer["state"] == "off"
    shown = peerctl("rebalance", "--dry-run")
    assert "peer-3" in shown
    assert "even would be" in shown


def test_moves_are_shown_with_their_reasons(capsys):
    share = fleet_pb2.NodeShare(node="peer-1", weight=12, votes=9, leads=4, weight_after=10)
    move = fleet_pb2.RebalanceMove(
        shard=7, log="orders", leaves="peer-1", joins="peer-6", why="peer-1 carries 12.0"
    )
    answer = fleet_pb2.RebalanceResponse(state="off", nodes=[share], moves=[move], more=True)
    _print_rebalance(answer, dry_run=True)
    shown = capsys.readouterr().out
    assert "12.0 → 10.0" in shown
    assert "orders/7" in shown
    assert "peer-1 carries 12.0" in shown
    assert "1 or more moves. At the moment: off" in shown
    assert "nothing was moved for this" in shown
    _print_rebalance(answer, dry_run=False)
    assert "it has begun" in capsys.readouterr().out
    _print_rebalance(fleet_pb2.RebalanceResponse(), dry_run=False)
    assert "nothing is to be moved" in capsys.readouterr().out


def test_copies_that_move_are_shown_with_what_nodes_store(capsys):
    share = fleet_pb2.NodeShare(
        node="peer-1", stored_bytes=3_000_000_000, stored_bytes_after=2_000_000_000, votes=9
    )
    copy = fleet_pb2.CopyMove(
        shard=7,
        log="orders",
        epoch=4,
        giver="peer-1",
        taker="peer-6",
        size_bytes=1_000_000_000,
        why="peer-1 stores 3000 MB",
    )
    answer = fleet_pb2.RebalanceResponse(
        state="even", nodes=[share], copies=[copy], even_bytes=2_000_000_000
    )
    _print_rebalance(answer, dry_run=False)
    shown = capsys.readouterr().out
    assert "3.0 GB → 2.0 GB" in shown
    assert "orders/7  4        peer-1  peer-6  1.0 GB  peer-1 stores 3000 MB" in shown
    assert "1 copies of 1.0 GB, once votes and leads lie evenly. At the moment: even" in shown


# ---------------------------------------------------------------------------------- workload
def test_what_clients_do_is_shown_by_shard_and_node(peerctl, log, cluster, refused):
    with connect(credentials=cluster.peerctl_toml) as client:
        deadline = time.monotonic() + 60
        found = {}
        while not found and time.monotonic() < deadline:
            client.append(log, b"x" * 1000, key=b"household-900")
            list(client.read(log))
            rows = json.loads(peerctl("workload", log, "-o", "json"))["shards"]
            found = {row["workload"]["shard"]: row["workload"] for row in rows}
    (one,) = found.values()
    assert one["records_per_s"] > 0
    assert (one["distinct_keys"], one["hottest_key_share"]) == ("1", 1.0)
    assert one["conditional_share"] == 0.0
    assert one["read_bytes_per_s"] > 0
    shown = peerctl("workload", log)
    assert log in shown
    assert "hottest" in shown
    assert refused("workload", "no-such-log") == (
        1,
        "there is no log 'no-such-log': `peerctl log list` shows them",
    )
