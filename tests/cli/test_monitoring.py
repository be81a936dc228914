"""`peerctl monitoring` needs no cluster; what it writes is what the package is made of."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from peerd.cli.peerctl import app
from peerd.monitoring.alerts import rules, rules_yaml
from peerd.monitoring.dashboard import dashboard


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ("monitoring", *arguments))
    return done.exit_code, done.stdout, done.stderr


def test_files_are_written_or_printed(tmp_path):
    assert run("alerts") == (0, rules_yaml(), "")
    target = tmp_path / "dashboard.json"
    assert run("dashboard", str(target)) == (0, "", f"wrote the dashboard to {target}\n")
    assert json.loads(target.read_text()) == dashboard()


def test_metrics_are_listed_in_all_forms():
    status, table, _ = run("metrics")
    assert status == 0
    assert "peerd_append_seconds" in table
    documents = [json.loads(run("metrics", "-o", "json")[1])]
    documents.append(yaml.safe_load(run("metrics", "-o", "yaml")[1]))
    assert documents[0] == documents[1]
    assert {"peerd", "las"} == {row["daemon"] for row in documents[0]}


def test_a_file_that_cannot_be_written_is_an_error_in_one_line(tmp_path):
    status, out, error = run("alerts", str(tmp_path / "none" / "rules.yml"))
    assert (status, out) == (2, "")
    assert error.startswith("peerctl: ")
    assert error.count("\n") == 1


def test_the_rules_name_no_machine():
    assert all("instance" not in rule["labels"] for rule in rules()["groups"][0]["rules"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_usual_shells(shell, monkeypatch):
    monkeypatch.setenv("_PEERCTL_COMPLETE", f"source_{shell}")
    done = CliRunner().invoke(app, [], prog_name="peerctl")
    assert done.exit_code == 0
    assert "_PEERCTL_COMPLETE" in done.stdout
