"""`peerctl history` against a real cluster, and what files of outages may look like."""

import builtins
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

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
        ("node,begin\np1,-5\n", "expected seconds since 1970"),
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
