"""`peerctl grant …` and `peerctl revoke`: who may do what to which log, and who is refused."""

from collections.abc import Sequence
from typing import Annotated

import typer

from las.v1 import access_pb2
from peerd.cli.output import (
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    fail,
    print_document,
    print_table,
)
from peerd.core.access import REVOCABLE_ROLES, Grant, Revocation, Right
from peerd.transport.access import decode_access, encode_grant, encode_revocation

grant_app = typer.Typer(
    help="Say who may append to, read and administer which log.", no_args_is_help=True
)

WhoArgument = Annotated[
    str, typer.Argument(help="Name in the certificate; with * at its end, all that begin so.")
]
LogArgument = Annotated[
    str, typer.Argument(help="Log; with * at its end, all that begin so. Quote the *.")
]


NOTHING = "nothing was ever granted or revoked: whoever has the role may do it to every log"


@grant_app.command("add")
def add(
    who: WhoArgument,
    log: LogArgument,
    rights: Annotated[list[Right], typer.Argument(help="What: append, read, administer.")],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Give rights. What was given before stays.

    Example: peerctl grant add 'shop-*' orders append read
    """
    grant = encode_grant(Grant(who=who, log=log, rights=tuple(rights)))
    with connected(config) as client:
        answer = client.las.add_grant(grant)
    _tell(answer.table, answer.unheard, output)


@grant_app.command("remove")
def remove(
    who: WhoArgument,
    log: LogArgument,
    rights: Annotated[
        list[Right] | None, typer.Argument(help="Which; all of them if none is named.")
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Take rights back; what is open by them ends. WHO and LOG are written as they were given."""
    grant = encode_grant(Grant(who=who, log=log, rights=tuple(rights or ())))
    with connected(config) as client:
        answer = client.las.remove_grant(grant)
    _tell(answer.table, answer.unheard, output)


@grant_app.command("list")
def list_grants(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """Show all grants and revocations, and whether clients need grants."""
    with connected(config) as client:
        answer = client.las.access()
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
        return
    table = answer.table
    if table.version == 0:
        typer.echo(NOTHING)
        return
    found = decode_access(table)
    if found.grants:
        print_table(
            ["who", "log", "may"],
            [[each.who, each.log, ", ".join(each.rights)] for each in found.grants],
        )
    if found.revoked:
        print_table(["revoked", "why"], [[each.subject, each.why or "–"] for each in found.revoked])
    _tell(table, answer.unheard, output)


@grant_app.command("require")
def require(
    off: Annotated[bool, typer.Option("--off", help="Clients need no grants any more.")] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Have clients need grants: what none allows is denied. Give the grants first.

    Administrators, peers and LAS nodes need none. `peerctl grant list` shows what stands.
    """
    with connected(config) as client:
        answer = client.las.set_access(required=not off)
    _tell(answer.table, answer.unheard, output)


def revoke(  # noqa: PLR0917 -- the options of the command
    subject: Annotated[
        str, typer.Argument(help="Name in the certificate, or role/name for one role alone.")
    ] = "",
    serial: Annotated[
        str, typer.Option(help="One certificate alone: its number, as `peerctl pki show` has it.")
    ] = "",
    why: Annotated[str, typer.Option(help="For those who ask later.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Refuse it no more.")] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Refuse a certificate everywhere, at once; what it has open ends.

    Example: peerctl revoke appender/shop-1 --why "its host was stolen"
    """
    if bool(subject) == bool(serial):
        fail("name either a certificate's holder or --serial", EXIT_USAGE)
    role, slash, name = subject.rpartition("/")
    if slash and role not in REVOCABLE_ROLES - {""}:
        fail(f"{role!r} is no role: expected role/name", EXIT_USAGE)
    revocation = encode_revocation(
        Revocation(name=name, role=role, serial=serial.lower().lstrip("0"), why=why)
    )
    with connected(config) as client:
        answer = client.las.end_revocation(revocation) if undo else client.las.revoke(revocation)
    _tell(answer.table, answer.unheard, output)


def _tell(table: access_pb2.AccessTable, unheard: Sequence[str], output: Format) -> None:
    """How it stands now, and who does not know it yet."""
    names = list(unheard)
    if output is not Format.TABLE:
        print_document(output, {"table": as_dict(table), "unheard": names})
    else:
        mode = "clients need grants" if table.required else "clients need no grants"
        typer.echo(
            f"version {table.version}: {mode}; {len(table.grants)} grants, "
            f"{len(table.revoked)} revoked"
        )
        if names:
            typer.echo(
                f"not heard yet by {', '.join(names)}: each gets it as soon as it reaches the LAS"
            )
