"""`peerctl history` against a real cluster, and what files of outages may look like."""

import builtins
import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from las.v1 import history_pb2
from peerd.cli import outage_files
from peerd.cli.outage_files import BadFile, read_outages, write_outages
from peerd.cli.peerctl import app

pytestmark = pytest.mark.timeout(120)

HEADER = "node,begin,end,cause,rack\n"


@pytest.fixture
def run(cluster, monkeypatch):
    monkeypatch.setenv("PEERCTL_CONFIG", str(cluster.peerctl_toml))
    return lambda *arguments: CliRunner().invoke(app, ["history", *arguments])


def file_of(text: str, name: str = "outages.csv") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def test_outages_go_in_once_and_come_out_again(run):
    file = file_of(
        HEADER
        + "db-1,2026-03-01T12:00:00Z,2026-03-01T13:00:00+00:00,disk,r1\n"
        + "\n"
        + "db-2,1772366460,,,r1\n"
    )
    done = run("import", str(file))
    assert (done.exit_code, done.stdout) == (0, "2 added, 0 changed, 0 known already\n")
    again = json.loads(run("import", str(file), "-o", "json").stdout)
    assert again == {"added": 0, "changed": 0, "too_old": 0, "known": 2}

    newest, oldest = json.loads(run("list", "-o", "json").stdout)[:2]
    assert (newest["node"], newest["end_s"], newest["cause"]) == ("db-2", None, "unknown")
    assert (oldest["begin_s"], oldest["end_s"]) == (1772366400, 1772370000)
    assert "goes on" in run("list", "db-2").stdout

    for name in ("out.csv", "out.parquet"):
        assert run("export", name).exit_code == 0
        known = json.loads(run("import", name, "-o", "json").stdout)
        assert (known["added"], known["changed"], known["known"]) == (0, 0, 2)
    assert run("export").stdout == Path("out.csv").read_text()

    shown = run("patterns").stdout
    assert "2 failures" in shown
    assert "2 failures in 1 groups" in shown
    assert json.loads(run("patterns", "-o", "json").stdout)["failures"] == 2


def test_a_bad_row_imports_nothing(run):
    before = run("list", "-o", "json").stdout
    done = run("import", str(file_of(HEADER + "db-7,1000,,disk,\ndb-8,1000,999,disk,\n")))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "outages.csv, line 3: end" in done.stderr
    assert "nothing was imported" in done.stderr
    assert run("list", "-o", "json").stdout == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no column begin"),
        ("node,begin,colour\n", "has a column 'colour'"),
        ("node,begin,node\n", "two columns of one name"),
        ("node,begin\np1\n", "line 2: 1 cells, the header has 2"),
        ("node,begin\n,5\n", "line 2: node is empty"),
        ("node,begin\np1,\n", "line 2: begin is empty"),
        ("node,begin\np1,soon\n", "line 2: begin is 'soon': expected seconds since 1970"),
        ("node,begin\np1,2026-03-01T12:00:00\n", "has no time zone"),
        ("node,begin\np1,1e99\n", "expected seconds since 1970"),
        ("node,begin\np1,99999999999999\n", "expected seconds since 1970"),
        ("node,begin\np1,-5\n", "begin -5 lies before 1970"),
        ("node,begin,cause\np1,5,gremlins\n", "cause is 'gremlins'; causes are operator"),
        ("node,begin,in_service\np1,5,6\n", "lies after begin"),
        (f"node,begin\n{'p' * 129},5\n", "node has 129 characters"),
        ('node,begin\n"p1,5\n', "no CSV"),
        ("node,begin\np\x01,5\n", "cannot be printed"),
    ],
)
def test_a_file_that_cannot_be_says_where_and_why(text, says):
    with pytest.raises(BadFile) as error:
        read_outages(file_of(text))
    assert says in str(error.value)


def test_what_names_look_like_is_shown_as_it_is(run):
    """Brackets and colons are what terminals' markup is made of; names are none."""
    names = ("h[/x]", "[bold]rack", ":warning:")
    rows = "".join(f"n-{name},1700000000,{name},{name}\n" for name in names)
    assert run("import", str(file_of("node,begin,host,rack\n" + rows))).exit_code == 0
    for command in ("list", "patterns"):
        shown = run(command)
        assert shown.exit_code == 0, shown.output
        assert all(name in shown.stdout for name in names)


def test_an_export_to_a_file_writes_it_whatever_the_answer_looks_like(run):
    told = json.loads(run("export", "told.csv", "-o", "json").stdout)
    assert told == {"file": "told.csv", "outages": len(read_outages(Path("told.csv")))}


def test_what_lies_in_the_future_imports_nothing(run):
    before = run("list", "-o", "json").stdout
    done = run("import", str(file_of("node,begin\ndb-8,5\ndb-9,9999-12-31T00:00:00Z\n")))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "line 3: 9999-12-31T00:00:00Z lies in the future" in done.stderr
    assert run("list", "-o", "json").stdout == before
    assert run("list", "--count", str(1 << 32)).exit_code == 2


def test_what_spreadsheets_and_pandas_make_of_a_file_is_read():
    text = (
        "\ufeffnode,begin,end,cause\r\nn\u00f6de-1,1700000000.0,NaN,Disk\r\nb,1700000000.75,,\r\n"
    )
    first, second = read_outages(file_of(text))
    assert (first.node, first.begin_s, first.HasField("end_s")) == (
        "n\u00f6de-1",
        1_700_000_000,
        False,
    )
    assert first.cause == history_pb2.OUTAGE_CAUSE_DISK
    assert (second.begin_s, second.cause) == (1_700_000_000, history_pb2.OUTAGE_CAUSE_UNKNOWN)


def test_a_parquet_file_of_pandas_is_read():
    columns = {
        "node": [0, 7],
        "begin": [1.7e9, 1.8e9],
        "end": [math.nan, 1.9e9],
        "rack": [math.nan] * 2,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), "outages.PARQUET")
    first, second = read_outages(Path("outages.PARQUET"))
    assert (first.node, first.HasField("end_s"), first.rack) == ("0", False, "")
    assert (second.node, second.begin_s, second.end_s) == ("7", 1_800_000_000, 1_900_000_000)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"node": [["a"]], "begin": [5]}, "row 1: node is a list: expected a name"),
        ({"node": [b"a"], "begin": [5]}, "row 1: node is a bytes: expected a name"),
        ({"node": ["a"], "begin": [1e30]}, "row 1: begin is '1e+30': expected seconds"),
        ({"node": ["a"], "begin": [math.inf]}, "row 1: begin is 'inf': expected seconds"),
        ({"node": ["a"], "begin": [True]}, "row 1: begin is 'True': expected seconds"),
        ({"node": ["a"], "begin": [5], "cause": [7]}, "row 1: cause is '7'; causes are"),
    ],
)
def test_a_parquet_cell_of_another_kind_says_so(columns, says):
    pyarrow.parquet.write_table(pyarrow.table(columns), "outages.parquet")
    with pytest.raises(BadFile) as error:
        read_outages(Path("outages.parquet"))
    assert says in str(error.value)


def test_files_are_bounded(monkeypatch):
    monkeypatch.setattr(outage_files, "ROWS_MAX", 2)
    rows = file_of("node,begin\n" + "".join(f"p{n},5\n" for n in range(3)))
    with pytest.raises(BadFile, match="more than 2 rows"):
        read_outages(rows)
    monkeypatch.setattr(outage_files, "FILE_BYTES_MAX", 10)
    with pytest.raises(BadFile, match="at most 10 are taken"):
        read_outages(rows)
    with pytest.raises(BadFile, match="No such file"):
        read_outages(Path("nowhere.csv"))


def test_a_file_that_is_no_parquet_says_so():
    with pytest.raises(BadFile, match="is no parquet file"):
        read_outages(file_of("node,begin\n", "outages.parquet"))


def test_without_pyarrow_parquet_says_what_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadFile, match=r"pip install 'peerd\[parquet\]'"):
        write_outages(Path("out.parquet"), [])
    with pytest.raises(BadFile, match="needs pyarrow"):
        read_outages(file_of("", "out.parquet"))
    write_outages(Path("out.csv"), [])
