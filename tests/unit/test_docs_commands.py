"""Every command that the documents name exists, with the options that they give it.

Commands are parsed as the programs parse them, and not run: what they do is tested elsewhere. A
place for something of the reader's own (`LOG/SHARD`, `ID`, `…`) is taken as it stands.
"""

import re
import shlex
from pathlib import Path

import click
import pytest
from typer.main import get_command

from las.daemon.cli import app as las
from peerd.cli.peerctl import app as peerctl
from peerd.cli.peerd import app as peerd

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = {"peerctl": get_command(peerctl), "peerd": get_command(peerd), "las": get_command(las)}
BLOCK = re.compile(r"^```(?:console|sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"(?:every host|laptop|[a-z]+-\d)?[$#] ")
INLINE = re.compile(r"`([^`\n]+)`")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# What stands before a program's name in a command.
BEFORE = re.compile(r"^(?:sudo(?: -u \w+)? |[A-Z_]+=\S+ |\S+/(?=(?:peerctl|peerd|las|make) )|… )*")


def in_blocks(text: str) -> list[str]:
    """Commands behind a prompt, with their continued lines, without remarks."""
    found = []
    for block in BLOCK.findall(text):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        prompted = [line[match.end() :] for line in lines if (match := PROMPT.match(line))]
        found += [re.split(r"\s+# ", line)[0].strip() for line in prompted]
    return found


def in_text(text: str) -> list[str]:
    return [each for each in INLINE.findall(BLOCK.sub("", text)) if " " in each]


def alternatives(command: str) -> list[str]:
    """`position get|set` is two commands."""
    for word in command.split():
        if re.fullmatch(r"[a-z-]+(?:\|[a-z-]+)+", word):
            return [command.replace(word, each, 1) for each in word.split("|")]
    return [command]


def commands() -> list[tuple[str, str, bool]]:
    """Page, command, and whether it stands there whole."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for whole, each in [
            *((True, each) for each in in_blocks(text)),
            *((False, each) for each in in_text(text)),
        ]:
            for part in re.split(r"\s+(?:&&|\|\|?|;)\s+", each):
                command = BEFORE.sub("", part)
                if re.match(r"(?:peerctl|peerd|las|make) [^=]", command):
                    found += [(page.name, one, whole) for one in alternatives(command)]
    return list(dict.fromkeys(found))


def resolved(words: list[str]) -> tuple[click.Context, list[str]]:
    """The innermost command that `words` name, and what is given to it."""
    command: click.Command = PROGRAMS[words[0]]
    context = click.Context(command, info_name=words[0])
    rest = words[1:]
    while hasattr(command, "resolve_command"):
        # Options of the program itself, such as -c FILE.
        while rest and rest[0] in {"-c", "--config"}:
            rest = rest[2:]
        if not rest or rest[0].startswith("-"):
            break
        name, command, rest = command.resolve_command(context, list(rest))
        assert command is not None
        context = click.Context(command, parent=context, info_name=name)
    return context, rest


def check(command: str, whole: bool) -> None:
    words = shlex.split(re.sub(r"\s*(?:>|<|&$).*", "", command).replace("[", "").replace("]", ""))
    if words[0] == "make":
        for word in words[1:]:
            assert "=" in word or word.startswith("-") or word in TARGETS, f"no target {word}"
        return
    context, rest = resolved(words)
    options = {name for option in context.command.params for name in option.opts}
    for word in rest:
        name = word.split("=")[0]
        if re.fullmatch(r"--?[a-z][a-z-]*", name) and name != "--help":
            assert name in options, f"{context.command_path} has no option {name}"
    if whole and not any("…" in word for word in rest):
        context.command.parse_args(click.Context(context.command, resilient_parsing=True), rest)


def test_there_are_commands_to_look_at():
    assert len(commands()) > 100


@pytest.mark.parametrize(("page", "command", "whole"), commands())
def test_the_command_exists(page, command, whole):
    try:
        check(command, whole)
    except click.ClickException as error:
        pytest.fail(f"{page}: {command}: {error.format_message()}")
