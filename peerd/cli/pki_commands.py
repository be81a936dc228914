"""`peerctl pki …`: the cluster's certificates, without any other tool."""

import json
from pathlib import Path
from typing import Annotated

import typer

from peerd.cli.output import EXIT_REFUSED, Format, FormatOption, fail, print_json
from peerd.pki import PkiError, Role, TlsFiles, create_authority, load_authority

pki_app = typer.Typer(
    help="Certificates: an authority, and who it vouches for.", no_args_is_help=True
)

DirectoryOption = Annotated[
    Path, typer.Option("--dir", help="Directory of the authority. Keep its key off the hosts.")
]
DAYS_DEFAULT = 365


@pki_app.command("init")
def init(
    cluster: Annotated[str, typer.Argument(help="Name of the cluster.")],
    directory: DirectoryOption = Path("pki"),
    output: FormatOption = Format.TABLE,
) -> None:
    """Create the authority of a cluster. Example: peerctl pki init shop --dir pki"""
    try:
        create_authority(directory, cluster)
    except PkiError as error:
        fail(str(error), EXIT_REFUSED)
    if output is Format.JSON:
        print_json({"cluster": cluster, "directory": str(directory)})
    else:
        typer.echo(f"authority of {cluster} in {directory}; next: peerctl pki issue peer peer-1 …")


@pki_app.command("issue")
def issue(  # noqa: PLR0917 -- the options of the command
    role: Annotated[Role, typer.Argument(help="What the holder may do.")],
    name: Annotated[str, typer.Argument(help="Name of the daemon or person.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address it is dialled at; may be repeated.")
    ] = None,
    directory: DirectoryOption = Path("pki"),
    to: Annotated[Path | None, typer.Option(help="Directory of the files; default: --dir.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Days that it is valid.")] = DAYS_DEFAULT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Issue a certificate. Example: peerctl pki issue peer peer-1 --host 10.0.0.1"""
    try:
        files = load_authority(directory).issue(role, name, host or [], to or directory, days)
    except PkiError as error:
        fail(str(error), EXIT_REFUSED)
    if output is Format.JSON:
        print_json(_files_json(files))
        return
    typer.echo("[tls]")
    for key, path in _files_json(files).items():
        typer.echo(f"{key} = {json.dumps(path)}")


def _files_json(files: TlsFiles) -> dict[str, str]:
    return {
        "ca": str(files.ca.absolute()),
        "certificate": str(files.certificate.absolute()),
        "key": str(files.key.absolute()),
    }
