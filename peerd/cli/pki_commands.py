"""`peerctl pki …`: the cluster's certificates, without any other tool."""

import datetime
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509

from peerd.cli.output import EXIT_REFUSED, Format, FormatOption, fail, print_document, print_table
from peerd.pki import (
    AUTHORITY_CERTIFICATE,
    PkiError,
    Role,
    TlsFiles,
    begin_rotation,
    create_authority,
    finish_rotation,
    hosts_of,
    load_authority,
    read_certificates,
    switch_rotation,
    uris_of,
)

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
    if output is not Format.TABLE:
        print_document(output, {"cluster": cluster, "directory": str(directory)})
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
    days: Annotated[
        int, typer.Option(min=1, max=36_500, help="Days that it is valid.")
    ] = DAYS_DEFAULT,
    renew: Annotated[
        bool, typer.Option("--renew", help="Replace the certificate and key that are there.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Issue a certificate. Example: peerctl pki issue peer peer-1 --host 10.0.0.1

    Daemons and clients that run take renewed files by themselves, within a second or with the next
    connection. The names of --host have to be given again.
    """
    try:
        files = load_authority(directory).issue(
            role, name, host or [], to or directory, days, overwrite=renew
        )
    except PkiError as error:
        fail(str(error), EXIT_REFUSED)
    if output is not Format.TABLE:
        print_document(output, _files_json(files))
        return
    typer.echo("[tls]")
    for key, path in _files_json(files).items():
        typer.echo(f"{key} = {json.dumps(path)}")


class Step(StrEnum):
    """Of the replacement of an authority."""

    BEGIN = "begin"
    SWITCH = "switch"
    FINISH = "finish"


_STEPS = {Step.BEGIN: begin_rotation, Step.SWITCH: switch_rotation, Step.FINISH: finish_rotation}
_NEXT = {
    Step.BEGIN: "next: bring ca.pem to every host and client, then `peerctl pki rotate switch`",
    Step.SWITCH: "next: `peerctl pki issue … --renew` for everybody, bring the files to their "
    "hosts, then `peerctl pki rotate finish`",
    Step.FINISH: "next: bring ca.pem to every host and client; what is not renewed is refused",
}


@pki_app.command("rotate")
def rotate(
    step: Annotated[Step, typer.Argument(help="Which step of the three.")],
    directory: DirectoryOption = Path("pki"),
    output: FormatOption = Format.TABLE,
) -> None:
    """Replace the authority itself, in three steps, with everything running.

    begin: a next authority is made and trusted beside the present one. switch: it signs from here
    on. finish: the old one is trusted no more. Between two steps the files go to all hosts.
    """
    try:
        authority = _STEPS[step](directory)
    except PkiError as error:
        fail(str(error), EXIT_REFUSED)
    if output is not Format.TABLE:
        print_document(output, {"step": step.value, "trusted": len(authority.trusted)})
        return
    typer.echo(
        f"{AUTHORITY_CERTIFICATE} trusts {len(authority.trusted)}; the one that signs is valid "
        f"until {authority.certificate.not_valid_after_utc:%Y-%m-%d}; {_NEXT[step]}"
    )


@pki_app.command("show")
def show(
    path: Annotated[
        list[Path] | None, typer.Argument(help="Files, or directories of them; default: ./pki.")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say of each certificate who it names, where, of which authority and for how long.

    Exit status 1: one has expired or is not valid yet.
    """
    try:
        found = [
            (file, certificate)
            for file in _certificate_files(path or [Path("pki")])
            for certificate in read_certificates(file)
        ]
    except PkiError as error:
        fail(str(error), EXIT_REFUSED)
    if not found:
        fail("no certificate there: name files or directories that hold some", EXIT_REFUSED)
    rows = [_certificate_json(file, certificate) for file, certificate in found]
    if output is not Format.TABLE:
        print_document(output, {"certificates": rows})
    else:
        print_table(
            ["file", "identity", "hosts", "authority", "valid until", "days left", "serial"],
            [
                [
                    row["file"],
                    row["identity"] or "–",
                    ", ".join(row["hosts"]) or "–",
                    row["authority"],
                    row["valid_until"][:16].replace("T", " "),
                    str(row["days_left"]),
                    row["serial"],
                ]
                for row in rows
            ],
        )
    if not all(row["valid"] for row in rows):
        raise typer.Exit(EXIT_REFUSED)


def _certificate_files(paths: list[Path]) -> list[Path]:
    """The files themselves, and of a directory those that hold certificates."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            named = sorted(each for each in path.glob("*.pem") if not each.name.endswith("key.pem"))
            files += named
        else:
            files.append(path)
    return files


def _certificate_json(file: Path, certificate: x509.Certificate) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    end = certificate.not_valid_after_utc
    identities = [uri for uri in uris_of(certificate) if uri.startswith("spiffe://")]
    return {
        "file": str(file),
        "identity": identities[0] if identities else None,
        "hosts": hosts_of(certificate),
        "authority": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": end.isoformat(),
        "days_left": (end - now).days,
        "valid": certificate.not_valid_before_utc <= now <= end,
    }


def _files_json(files: TlsFiles) -> dict[str, str]:
    return {
        "ca": str(files.ca.absolute()),
        "certificate": str(files.certificate.absolute()),
        "key": str(files.key.absolute()),
    }
