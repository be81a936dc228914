"""docs/cli.md, from the commands themselves: `python -m deploy.cli_reference > docs/cli.md`."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from las.daemon.cli import app as las_app
from peerd.cli.peerctl import app as peerctl_app
from peerd.cli.peerd import app as peerd_app

_ROOM = re.compile(r"\s+")


def _line(text: object) -> str:
    # A bracket that the terminal would take for markup is written `\\[`.
    plain = str(text or "").replace("\\[", "[")
    return _ROOM.sub(" ", plain).strip().replace("|", "\\|")


def _rows(command: Any) -> Iterator[str]:
    for each in command.params:
        if each.name in {"help", "install_completion", "show_completion"}:
            continue
        names = ", ".join([*each.opts, *each.secondary_opts])
        if each.param_type_name == "argument":
            names = each.name.upper()
        default = each.default
        said = default is not None and not isinstance(default, bool) and str(default)
        shown = f"`{default}`" if said and not each.required else ""
        yield f"| `{names}` | {shown} | {_line(getattr(each, 'help', ''))} |"


def _commands(name: str, command: Any) -> Iterator[str]:
    if getattr(command, "hidden", False):
        return
    # Some are loaded when they are asked for.
    names = command.list_commands(None) if hasattr(command, "list_commands") else None
    if names is None or (command.callback is not None and not command.no_args_is_help):
        yield f"\n### `{name}`\n"
    else:
        yield f"\n## `{name}`\n"
    yield _line((command.help or "").split("\f", maxsplit=1)[0])
    rows = list(_rows(command))
    if rows:
        yield "\n| | default | |\n| - | - | - |"
        yield from rows
    for child in sorted(names or ()):
        yield from _commands(f"{name} {child}", command.get_command(None, child))


def page() -> str:
    """The page's text."""
    head = (
        "# Command lines\n\nWhat `--help` says, of every command; printed from the commands "
        "(`make docs`).\nExit statuses: [operations.md](operations.md#exit-statuses)."
    )
    lines = [head]
    for name, app in (("peerctl", peerctl_app), ("peerd", peerd_app), ("las", las_app)):
        lines += _commands(name, typer.main.get_command(app))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print it."""
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
