"""`peerctl backup …` and `peerctl restore`: a cluster from its tier alone (docs/backup.md).

What these need of the tier and of the LAS is imported when one of them runs: `peerctl` starts for
every other command, too.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    UINT32_MAX,
    ConfigOption,
    Format,
    FormatOption,
    connected,
    fail,
    print_document,
    print_table,
    size_text,
)

if TYPE_CHECKING:
    from peerd.cli import restoring
    from peerd.daemon.tier import Tier
    from peerd.tier.backup import Backup, ShardBackup

backup_app = typer.Typer(
    help="Backups in the tier, from which a whole cluster can be begun anew.",
    no_args_is_help=True,
)
Result = TypeVar("Result")

TierOption = Annotated[
    Path,
    typer.Option(
        "--tier",
        help="Configuration of a peer: where the tier is, its credentials and keys. A file that "
        "has nothing but the table `tier` will do.",
    ),
]
BackupId = Annotated[str, typer.Argument(help="Id of the backup, as `peerctl backup list` has it.")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one line if the tier, its configuration or a file is of no use."""
    from peerd.daemon.errors import DaemonError
    from peerd.settings import ConfigError
    from peerd.tier.errors import NotConfigured, TierError

    try:
        yield
    except (ConfigError, NotConfigured) as error:
        fail(str(error), EXIT_USAGE)
    except TierError as error:
        fail(f"{error.code}: {error}", EXIT_REFUSED)
    except DaemonError as error:
        fail(str(error), EXIT_REFUSED)


def opened_tier(file: Path) -> "Tier":
    """The tier of a configuration. Raises `ConfigError`, `NotConfigured`."""
    from peerd.daemon.config import ENVIRONMENT_PREFIX, TierFile
    from peerd.daemon.tier import open_tier
    from peerd.settings import load
    from peerd.tier.errors import NotConfigured

    settings = load(TierFile, path=file, prefix=ENVIRONMENT_PREFIX, only={"tier"})
    tier = open_tier(settings.tier, str)
    if tier is None:
        raise NotConfigured(f"{file}: tier.url is not set: name a peer's configuration")
    return tier


def _run(work: Coroutine[None, None, Result]) -> Result:
    return asyncio.run(work)


# ---------------------------------------------------------------------------------- create
@backup_app.command("create")
def create(
    tier: TierOption,
    cut: Annotated[
        bool,
        typer.Option(
            "--cut/--no-cut",
            help="End the open segments first, by handing each to another voter, so that the "
            "newest records are in the backup, too.",
        ),
    ] = True,
    wait_s: Annotated[
        float,
        typer.Option(
            "--wait", min=0, max=604_800, help="Seconds that the tier is waited for at most."
        ),
    ] = 120.0,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Write what the LAS has committed to the tier, and which objects have the records.

    Of tiered logs everything that was committed when the command began is in the backup, if the
    tier takes it in time; it says of each shard how far it goes. Of other logs it has no record.
    Exit status 1: it was written, but does not have everything.

    Example: peerctl backup create --tier /etc/peerd/peerd.toml
    """
    from peerd.cli import backing_up

    with one_line_errors(), connected(config) as client:
        opened = opened_tier(tier)
        asked = backing_up.bring_into_tier(client, cut=cut, wait_s=wait_s)
        made = _run(
            backing_up.write(
                opened.store,
                opened.keys,
                client.las.export_state,
                asked.committed,
                time.time(),
            )
        )
    for trouble in asked.troubles:
        typer.echo(f"peerctl: {trouble}", err=True)
    _print_backup(made, output)
    if asked.troubles or not made.is_whole:
        raise typer.Exit(EXIT_REFUSED)


def _print_backup(made: "Backup", output: Format) -> None:
    if output is not Format.TABLE:
        print_document(output, _as_document(made))
        return
    typer.echo(f"backup {made.id} of cluster {made.cluster}")
    rows = [[*_names(each), str(each.begin), str(each.end), _lack(each)] for each in made.shards]
    print_table(["log", "shard", "from", "to", ""], rows)


def _names(shard: "ShardBackup") -> list[str]:
    return [shard.log, str(shard.shard)]


def _lack(shard: "ShardBackup") -> str:
    if shard.is_whole:
        return ""
    if shard.part is None:
        return "not in the tier: no record of it is in the backup"
    return f"{shard.committed - shard.end} records behind what was committed"


def _as_document(made: "Backup") -> dict[str, object]:
    document = asdict(made)
    document["whole"] = made.is_whole
    return document


# ---------------------------------------------------------------------------------- list, verify
@backup_app.command("list")
def list_backups(tier: TierOption, output: FormatOption = Format.TABLE) -> None:
    """List the backups in the tier, oldest first. Exit status 1: there is one that is damaged.

    Example: peerctl backup list --tier /etc/peerd/peerd.toml
    """

    from peerd.tier import pruning

    with one_line_errors():
        found = _run(pruning.all_stored(opened_tier(tier).store))
    if output is not Format.TABLE:
        print_document(output, [_as_document(each.backup) for each in found if each.backup])
    rows = []
    for stored in found:
        if stored.error:
            typer.echo(f"peerctl: {stored.id}: {stored.error}", err=True)
        if (each := stored.backup) is None:
            continue
        made_at = datetime.fromtimestamp(each.made_at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        behind = sum(not shard.is_whole for shard in each.shards)
        rows.append([each.id, each.cluster, made_at, str(len(each.shards)), str(behind or "-")])
    if output is Format.TABLE:
        print_table(["backup", "cluster", "made (UTC)", "shards", "not whole"], rows)
    if any(stored.error for stored in found):
        raise typer.Exit(EXIT_REFUSED)


@backup_app.command("prune")
def prune(
    tier: TierOption,
    keep: Annotated[
        int,
        typer.Option(
            min=1, max=UINT32_MAX, help="How many of the newest stay, of each cluster's name."
        ),
    ],
    older_than_days: Annotated[
        float,
        typer.Option(min=0, max=36_500, help="Only those go that are older than so many days."),
    ] = 0.0,
    remove: Annotated[
        bool, typer.Option("--remove", help="Do it. Without this nothing changes: a look ahead.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Remove old backups: all but the newest, and always but the newest that is whole.

    What was begun and never finished goes, too, when it is a day old. Records are not touched: how
    long these are kept is a matter of each log's retention.

    Example: peerctl backup prune --tier /etc/peerd/peerd.toml --keep 14 --remove
    """
    from peerd.tier import pruning

    async def work() -> list[pruning.Stored]:
        store = opened_tier(tier).store
        gone = pruning.prunable(
            await pruning.all_stored(store),
            keep=keep,
            older_than_s=older_than_days * 86_400,
            now_s=time.time(),
        )
        for each in gone if remove else ():
            await pruning.remove(store, each.id)
        return gone

    with one_line_errors():
        gone = _run(work())
    if output is not Format.TABLE:
        print_document(output, {"removed": remove, "backups": [each.id for each in gone]})
        return
    for each in gone:
        typer.echo(f"{each.id}{'' if each.backup else '  was never finished'}")
    done = "removed" if remove else "would go; nothing was removed. With --remove they are"
    typer.echo(f"{len(gone)} backups {done}" if gone else "no backup is old enough to go")


@backup_app.command("verify")
def verify(
    backup: BackupId,
    tier: TierOption,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte of every record, too: it takes long.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say whether a cluster could be restored from a backup now.

    Each part is compared with its checksum, and each object must be there in its length. Exit
    status 1: something is wrong, and what.

    Example: peerctl backup verify 20270101T030000Z-6ff1c2aa --tier /etc/peerd/peerd.toml --deep
    """

    from peerd.cli import restoring
    from peerd.tier import backup as backups

    async def read() -> restoring.Found:
        opened = opened_tier(tier)
        found = await restoring.look(opened.store, opened.keys, backup)
        for listed in found.manifests.values() if deep else ():
            await backups.check_records(opened.store, opened.keys, listed)
        return found

    with one_line_errors():
        found = _run(read())
    _print_found(found, output)


def _print_found(found: "restoring.Found", output: Format) -> None:
    shards = []
    for each in found.backup.shards:
        listed = found.manifests.get(each.shard)  # type: ignore[call-overload]
        objects = () if listed is None else listed.entries
        shards.append(
            {
                "log": each.log,
                "shard": each.shard,
                "begin": found.begin_of(each),
                "end": found.end_of(each),
                "removed_below": found.begin_of(each) if found.begin_of(each) > each.begin else 0,
                "objects": len(objects),
                "payload_bytes": sum(entry.payload_bytes for entry in objects),
            }
        )
    if output is not Format.TABLE:
        document = {"id": found.backup.id, "restored_as": found.kin.heir, "shards": shards}
        print_document(output, document)
        return
    typer.echo(f"backup {found.backup.id} of cluster {found.backup.cluster} is sound")
    if found.kin.heir:
        typer.echo(
            f"it was restored before, as {found.kin.heir}: restored again, that cluster may not "
            "use the tier any more"
        )
    rows = [
        [
            *(str(each[key]) for key in ("log", "shard", "begin", "end", "objects")),
            size_text(int(str(each["payload_bytes"]))),
        ]
        for each in shards
    ]
    print_table(["log", "shard", "from", "to", "objects", "records"], rows)


# ---------------------------------------------------------------------------------- restore
def restore(
    backup: BackupId,
    file: Annotated[
        Path, typer.Argument(help="The file to write: what the new LAS group begins with.")
    ],
    tier: TierOption,
    old_cluster_is_gone: Annotated[
        bool,
        typer.Option(
            "--old-cluster-is-gone",
            help="Do it: no process of the old cluster, nor of one that was restored from it "
            "before, runs any more, nor ever will. Without this nothing is written: a look ahead.",
        ),
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Make of a backup and the tier what a new cluster begins with, when all else is lost.

    The file is given to `las init --import` on each member of a new group with the same cluster
    name; then start new peers, with the same tier and empty directories. All records of the backup
    are at their offsets again. What was written later is lost: each shard goes on behind a gap that
    readers are told of.

    The new cluster has an id of its own, and what the old one has in the tier is the new one's from
    then on: the old one, should it live after all, neither adds nor removes anything there and says
    so. To try it out beside the old cluster, copy the tier first.

    Example: peerctl restore 20270101T030000Z-6ff1c2aa begin.las --tier peerd.toml
    """

    from las.daemon import exports
    from peerd.cli import restoring

    async def work() -> restoring.Found:
        opened = opened_tier(tier)
        found = await restoring.look(opened.store, opened.keys, backup)
        if old_cluster_is_gone:
            exports.write(file, await restoring.begin_anew(opened.store, opened.keys, found))
        return found

    with one_line_errors():
        try:
            # Before anything in the tier becomes a cluster's that could not begin.
            exports.see_that_it_can_be_written(file)
        except exports.ExportUnusable as error:
            fail(str(error), EXIT_USAGE)
        found = _run(work())
    _print_found(found, output)
    if output is not Format.TABLE:
        return
    if old_cluster_is_gone:
        typer.echo(f"wrote {file}: on every member of the new group, `las init --import {file}`")
    else:
        typer.echo("nothing was written. With --old-cluster-is-gone, what a new group begins with")
