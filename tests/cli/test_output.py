"""What is typed and shown: numbers, moments and names, whatever they look like."""

import datetime

import pytest
import typer
from typer.testing import CliRunner

from peerd.cli.output import parsed_moment, print_table, whole_number
from peerd.cli.peerctl import app


def test_names_are_shown_as_they_are(capsys):
    print_table(["[b]"], [["h[/x]"], ["[red]rack[/red]"], [":warning:"]])
    assert capsys.readouterr().out.split() == ["[b]", "h[/x]", "[red]rack[/red]", ":warning:"]


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1.0", "²", "١", "1" * 19, "9" * 5_000])
def test_what_is_no_plain_number_is_none(text):
    assert whole_number(text) is None
    assert whole_number("042") == 42


def test_a_time_span_without_end_reaches_back_to_1970():
    assert parsed_moment("999999d") == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    "text", ["soon", "2026-01-01", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "1000000d"]
)
def test_what_is_no_moment_ends_the_command(text, capsys):
    with pytest.raises(typer.Exit) as ended:
        parsed_moment(text)
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.startswith("peerctl: --time ")


@pytest.mark.parametrize(
    "words",
    [
        ("model", "promote", "²"),
        ("model", "promote", "9" * 5_000),
        ("model", "fetch", str(1 << 32), "x.onnx"),
        ("model", "install", "/dev/zero"),
        ("log", "trim", "orders", "--before", "²"),
        ("explain", "shard", "orders/²"),
        ("position", "set", "me", "orders", "--at", f"1={'9' * 5_000}"),
        ("read", "orders", "--shard", str(1 << 63)),
    ],
)
def test_numbers_that_are_none_are_refused_in_words(words, monkeypatch):
    monkeypatch.setenv("PEERCTL_CONFIG", "/dev/null")
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert isinstance(done.exception, SystemExit)
