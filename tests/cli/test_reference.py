"""docs/cli.md is what the commands say, docs/api.md what the .proto files say."""

import re
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from deploy import cli_reference, proto_reference
from deploy.proto_reference import PROTO_DIRECTORY, NoComment
from las.daemon.cli import app as las_app
from peerd.cli.peerctl import app as peerctl_app
from peerd.cli.peerd import app as peerd_app

ROOT = Path(__file__).parents[2]


def test_the_page_is_current_and_has_every_command():
    text = cli_reference.page()
    assert (ROOT / "docs/cli.md").read_text() == text, "run: make docs"
    for command in ("peerctl status", "peerctl cluster finalize", "peerd serve", "las init"):
        assert f"### `{command}`" in text


@pytest.fixture(scope="module")
def api() -> str:
    return proto_reference.page()


def test_the_page_of_services_is_current_and_has_every_public_call(api: str):
    assert (ROOT / "docs/api.md").read_text() == api, "run: make docs"
    for proto in sorted(PROTO_DIRECTORY.rglob("*.proto")):
        source = proto.read_text()
        is_public = "internal" not in proto.parts
        for name in re.findall(r"^service (\w+)", source, re.MULTILINE):
            assert (f"\n### {name}\n" in api) is is_public
        for call in re.findall(r"^  rpc (\w+)\(", source, re.MULTILINE) if is_public else ():
            assert f"| `{call}` |" in api
    assert "| `expected_offset` | 7 | optional uint64 |" in api
    assert "| stream of [AppendStreamRequest](#appendstreamrequest) |" in api
    assert "map of uint64 to uint64" in api


def test_every_link_of_the_page_of_services_leads_somewhere(api: str):
    headings = re.findall(r"^#+ (.*)$", api, re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9_ -]", "", each.lower()).replace(" ", "-") for each in headings]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]*)\)", api)) <= set(anchors)


def test_what_has_no_comment_is_told(tmp_path: Path):
    shutil.copytree(PROTO_DIRECTORY, tmp_path / "proto")
    proto = tmp_path / "proto/peerd/v1/log.proto"
    source = proto.read_text()
    comment = "  // Where the batch is.\n"
    assert source.count(comment) == 1
    proto.write_text(source.replace(comment, ""))
    with pytest.raises(NoComment, match=r"log\.proto: AppendResponse\.receipt has no comment"):
        proto_reference.page(tmp_path / "proto")


def every_command():
    for program, app in (("peerctl", peerctl_app), ("peerd", peerd_app), ("las", las_app)):
        todo = [(program, typer.main.get_command(app))]
        while todo:
            name, command = todo.pop()
            yield name, command
            children = command.list_commands(None) if hasattr(command, "list_commands") else ()
            todo += [(f"{name} {child}", command.get_command(None, child)) for child in children]


def test_the_page_has_commands_that_are_loaded_when_they_are_asked_for():
    text = cli_reference.page()
    for name, _ in every_command():
        assert f"# `{name}`\n" in text
    assert "A las.toml: its [telemetry] names the server." in text


def test_no_help_takes_what_it_tells_for_markup(monkeypatch):
    monkeypatch.setenv("COLUMNS", "4000")
    for name, command in every_command():
        told = [command.help or "", *(getattr(each, "help", "") or "" for each in command.params)]
        bracketed = re.findall(r"\w*\\?\[[^\]]*\]?", " ".join(told))
        if bracketed:
            shown = CliRunner().invoke(command_app(name), [*name.split()[1:], "--help"]).stdout
            assert all(each.replace("\\[", "[") in shown for each in bracketed), name


def command_app(name: str):
    return {"peerctl": peerctl_app, "peerd": peerd_app, "las": las_app}[name.split(maxsplit=1)[0]]


CHECKED_BY_HAND = {("peerctl audit", "-n"), ("peerd dev", "--peers"), ("peerd dev", "--las")}
"""Whose bounds are in a line of the command's own."""


def test_every_number_that_a_command_takes_has_bounds():
    for name, command in every_command():
        for each in command.params:
            descriptor = getattr(each, "type_descriptor", None)
            told = str(descriptor.annotation) if descriptor else ""
            if (name, each.opts[0]) in CHECKED_BY_HAND:
                continue
            if re.search(r"\b(int|float)\b", told):
                assert None not in {each.min, each.max}, (name, each.opts)
