"""`peerd`: the command line of the peer daemon. Each command does one call; errors are one line."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

from peerd.grpc_core import EXPERIMENTS

# Before grpc is imported: this process never forks, and its handlers for that cost a tenth.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
# The C core writes free text to stderr, where this daemon writes JSON lines; what matters of it
# comes back as errors of calls. ERROR is what a starter that uses the client hands down.
if os.environ.get("GRPC_VERBOSITY", "ERROR") == "ERROR":
    os.environ["GRPC_VERBOSITY"] = "NONE"

import typer

from peerd.cli.dev import dev

app = typer.Typer(
    name="peerd",
    help="A peer of a replicated transaction log that moves its data before a machine dies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", help="Settings of this peer, a TOML file.")
]


@app.command()
def serve(
    config: ConfigFile,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Write pid and addresses to this file, as JSON, once the peer serves."),
    ] = None,
) -> None:
    """Run a peer until SIGTERM or SIGINT."""
    from peerd.daemon import serve as daemon
    from peerd.daemon.config import ConfigError, load_config
    from peerd.daemon.errors import EXIT_CANNOT_START, DaemonError
    from peerd.daemon.logging import configure_logging

    try:
        settings = load_config(config)
        configure_logging(peer=settings.name)
        raise typer.Exit(daemon.serve(settings, lambda: load_config(config), ready_file))
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)
    except DaemonError as error:
        _fail(str(error), error.exit_status)


@app.command()
def check(config: ConfigFile) -> None:
    """Say whether a peer could start with these settings, without starting it.

    A tier is asked, too: whether it answers, lets this peer in, and is readable with its keys.
    Nothing is changed.
    """
    from peerd.daemon.config import ConfigError, load_config, verify_identity
    from peerd.daemon.errors import EXIT_CANNOT_START
    from peerd.daemon.tier import exposed_secrets
    from peerd.daemon.tier_check import check_tier
    from peerd.tier.errors import TierError

    try:
        settings = load_config(config)
        identity = verify_identity(settings)
        tier = asyncio.run(check_tier(settings))
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)
    except TierError as error:
        _fail(f"tier: {error.code}: {error}", EXIT_CANNOT_START)
    else:
        how = "plaintext on loopback" if settings.tls is None else "mutual TLS"
        print(f"{identity.uri} at {settings.listen}, {how}, data in {settings.data_dir}: fit")
        if tier:
            print(tier)
        for file in exposed_secrets(settings.tier):
            print(f"warning: everybody on this host may read {file}: chmod o= {file}")


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="Data directory of a peer that is stopped.")],
) -> None:
    """Read a whole store and say whether it is sound.

    Exit status 0: it is. 1: batches are damaged, and are repaired from other holders once it runs.
    74: the store itself is damaged and must not be used. How far it is goes to stderr.
    """
    from peerd.daemon.errors import EXIT_FAILED, EXIT_OK, EXIT_STORAGE_FAILED
    from peerd.storage.errors import StorageError
    from peerd.storage.verify import verify_store

    try:
        report = verify_store(directory, _tell_progress)
    except StorageError as error:
        _fail(str(error), EXIT_FAILED)
    else:
        print(
            f"store {report.store_id}: {report.shards} shards, {report.segments} segments, "
            f"{report.batches} batches, {report.records} records, {report.payload_bytes} bytes, "
            f"read in {report.duration_ms} ms"
        )
        for line in (*report.damage, *report.corrupt):
            print(f"  {line}")
        if report.usable and not report.sound:
            print(f"{report.corrupt_batches} batches must be fetched again from other holders")
        print("sound" if report.sound else "not sound")
        if not report.usable:
            raise typer.Exit(EXIT_STORAGE_FAILED)
        raise typer.Exit(EXIT_OK if report.sound else EXIT_FAILED)


app.command()(dev)


def _tell_progress(read_bytes: int, file_bytes: int) -> None:
    typer.echo(f"peerd: {read_bytes >> 20} MiB of a file of {file_bytes >> 20} MiB read", err=True)


def _fail(message: str, exit_status: int) -> None:
    typer.echo(f"peerd: {message}", err=True)
    raise typer.Exit(exit_status)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
