"""`peerctl log …`, `peerctl append`, `peerctl read`: what developers do."""

import asyncio
import datetime
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    INT64_MAX,
    UINT32_MAX,
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    document_of_many,
    fail,
    parsed_moment,
    print_document,
    print_table,
    whole_number,
)
from peerd.client.blocking import Client
from peerd.client.errors import PeerdError, RecordsMissing
from peerd.client.reading import StartAt
from peerd.client.values import NewRecord, Position, Receipt, Record, Tail
from peerd.core.shard_map import Compression, Segment, Shard
from peerd.transport.map_codec import LogEntry

log_app = typer.Typer(help="Create, split and look at logs.", no_args_is_help=True)

# limit: appends of stdin that are joined and waited for together; bounds what is held in memory
LINES_PER_ROUND_MAX = 10_000

CompressionOption = Annotated[
    Compression, typer.Option(help="How clients pack batches that do not say it themselves.")
]
LogName = Annotated[str, typer.Argument(help="Name of the log.")]


@log_app.command("create")
def create(  # noqa: PLR0917 -- the options of the command
    name: Annotated[str, typer.Argument(help="1 to 128 of a-z 0-9 . _ -")],
    shards: Annotated[
        int, typer.Option(min=1, max=1024, help="Parts that take appends apart.")
    ] = 4,
    copies: Annotated[
        int,
        typer.Option(
            min=0,
            max=UINT32_MAX,
            help="Copies of each record. 0: 3, or 2 where only two hosts are.",
        ),
    ] = 0,
    acks: Annotated[
        int,
        typer.Option(
            min=0, max=UINT32_MAX, help="Copies on disk before an append is answered. 0: 2."
        ),
    ] = 0,
    compression: CompressionOption = Compression.NONE,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Create a log. Example: peerctl log create orders --shards 8"""
    with connected(config) as client:
        log = client.create_log(
            name, shards=shards, copies=copies, acks=acks, compression=compression
        )
        if output is not Format.TABLE:
            print_document(output, _log_json(log))
        else:
            typer.echo(
                f"created {log.name}: {len(log.shards)} shards, {log.copies} copies, "
                f"answered when {log.acks} have it on disk"
            )


@log_app.command("list")
def list_logs(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """List all logs."""
    with connected(config) as client:
        logs = client.list_logs()
        if output is not Format.TABLE:
            print_document(output, [_log_json(log) for log in logs])
        elif not logs:
            typer.echo("no logs yet: peerctl log create NAME")
        else:
            rows = [
                [log.name, str(len(log.shards)), str(log.copies), str(log.acks)] for log in logs
            ]
            print_table(["log", "shards", "copies", "acks"], rows)


@log_app.command("describe")
def describe(
    name: LogName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """Show a log's shards: who orders them, who stores them, how far they are."""
    with connected(config) as client:
        log, shards = client.describe_log(name)
        tails = {tail.shard: tail.committed for tail in client.tail(name)}
        if output is not Format.TABLE:
            print_document(
                output, _log_json(log) | {"shards": [_shard_json(s, tails) for s in shards]}
            )
            return
        typer.echo(
            f"{log.name}: {log.copies} copies, answered when {log.acks} have it on disk; "
            f"{_retention(log)}{'; ' if log.hot_bytes else ''}{_hot(log)}{_packed(log)}"
        )
        columns = [
            "shard",
            "epoch",
            "primary",
            "voters",
            "non-voters",
            "first",
            "local",
            "tier",
            "end",
            "segments",
            "",
        ]
        print_table(columns, [_shard_row(log.name, shard, tails) for shard in shards])


def _records_in(client: Client, name: str) -> int | None:
    """How many records a log holds; None if it cannot be asked, as when its peers are gone."""
    try:
        return sum(tail.committed - tail.first_offset for tail in client.tail(name))
    except PeerdError:
        return None


@log_app.command("delete")
def delete(
    name: LogName,
    accept_data_loss: Annotated[
        bool,
        typer.Option("--accept-data-loss", help="Delete it; without this, say what would go."),
    ] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Delete a log with all its records, for good.

    Without --accept-data-loss it tells what would go and changes nothing. Example: peerctl log
    delete orders --accept-data-loss
    """
    with connected(config) as client:
        ahead = client.las.delete_log(name)
        records = _records_in(client, name)
        done = ahead
        if accept_data_loss:
            shards = client.describe_log(name)[0].shards
            done = client.las.delete_log(name, accept_loss=True, shards=shards)
        if output is not Format.TABLE:
            told = as_dict(done) | {"records": records, "shards": [s.shard for s in ahead.shards]}
            print_document(output, told)
            return
        count = "nobody can tell how many" if records is None else str(records)
        what = f"{len(ahead.shards)} shards with {count} records, on {', '.join(ahead.nodes)}"
        if not accept_data_loss:
            typer.echo(f"{name} would be deleted for good: {what}")
            typer.echo("nothing was changed; --accept-data-loss deletes it")
            return
        typer.echo(f"{name} is deleted: {what}; the space comes back by and by")
        if done.unheard:
            listed = ", ".join(done.unheard)
            typer.echo(f"not heard of it yet: {listed}; what they have goes when they do")


@log_app.command("split")
def split(
    shard: Annotated[str, typer.Argument(help="LOG/SHARD, e.g. orders/3.")],
    at: Annotated[
        str | None,
        typer.Option(help="First key hash of the upper child, e.g. 0xc000000000000000. Else half."),
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Split a shard into two, each with a part of its keys. Example: peerctl log split orders/3"""
    log, _, number = shard.rpartition("/")
    if not log or whole_number(number) is None:
        fail(f"{shard!r} is no shard: write LOG/SHARD, e.g. orders/3", EXIT_USAGE)
    try:
        key_hash = None if at is None else int(at, 0)
    except ValueError:
        fail(f"--at {at}: a key hash is a number, e.g. 0xc000000000000000", EXIT_USAGE)
    if key_hash is not None and not 0 <= key_hash < 1 << 64:
        fail(f"--at {at}: a key hash has 64 bits", EXIT_USAGE)
    with connected(config) as client:
        _, shards = client.describe_log(log)
        if int(number) not in {each.shard for each in shards}:
            listed = ", ".join(str(each.shard) for each in shards)
            fail(f"{log} has no shard {number}; it has {listed}", EXIT_REFUSED)
        children = client.split_shard(int(number), at_key_hash=key_hash)
        if output is not Format.TABLE:
            print_document(output, {"shard": int(number), "children": list(children)})
        else:
            typer.echo(f"{shard} is split into {' and '.join(f'{log}/{c}' for c in children)}")


@log_app.command("trim")
def trim(
    where: Annotated[str, typer.Argument(help="LOG, or LOG/SHARD, e.g. orders/3.")],
    before: Annotated[
        str,
        typer.Option(help="An offset (of one shard), or a time: 2026-11-28T12:00Z, or 2d for ago."),
    ],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Forget old records, by whole chunks of 64 MiB. There is no way back.

    Example: peerctl log trim orders/3 --before 1000000
    """
    log, _, number = where.rpartition("/")
    if not log:
        log, number = where, ""
    elif whole_number(number) is None:
        fail(f"{where!r} is no shard: write LOG/SHARD, e.g. orders/3", EXIT_USAGE)
    offset = whole_number(before)
    limit = parsed_moment(before, "--before") if offset is None else offset
    if isinstance(limit, int) and not number:
        fail("--before OFFSET needs LOG/SHARD: offsets are counted per shard", EXIT_USAGE)
    with connected(config) as client:
        _, shards = client.describe_log(log)
        known = [each.shard for each in shards]
        if number and int(number) not in known:
            listed = ", ".join(map(str, known))
            fail(f"{log} has no shard {number}; it has {listed}", EXIT_REFUSED)
        chosen = [int(number)] if number else known
        left = {shard: client.trim(log, shard, limit) for shard in chosen}
        if output is not Format.TABLE:
            print_document(
                output, [{"shard": shard, "first_offset": first} for shard, first in left.items()]
            )
        else:
            rows = [[f"{log}/{shard}", str(first)] for shard, first in left.items()]
            print_table(["shard", "first offset left"], rows)


@log_app.command("alter")
def alter(  # noqa: PLR0917 -- the options of the command
    log: LogName,
    copies: Annotated[int, typer.Option(min=0, max=UINT32_MAX, help="Copies. 0: as they are.")] = 0,
    acks: Annotated[
        int,
        typer.Option(
            min=0, max=UINT32_MAX, help="Copies that acknowledge an append. 0: as they are."
        ),
    ] = 0,
    compression: Annotated[
        Compression | None,
        typer.Option(help="How clients pack what they append from now on. Else as it is."),
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Change how many copies a log has, or how it is packed. Shards follow without a pause.

    Example: peerctl log alter orders --copies 3 --acks 2
    """
    if not (copies or acks or compression):
        fail("say what: --copies N, --acks N, --compression none|zstd", EXIT_USAGE)
    with connected(config) as client:
        if copies or acks:
            altered = client.set_copies(log, copies=copies, acks=acks)
        if compression is not None:
            altered = client.set_compression(log, compression)
        if output is not Format.TABLE:
            print_document(output, _log_json(altered))
            return
        followed = f"; `peerctl log describe {log}` shows how far its shards are"
        typer.echo(
            f"{log}: {altered.copies} copies, answered when {altered.acks} have it on disk"
            f"{_packed(altered)}{followed if copies or acks else ''}"
        )


@log_app.command("retain")
def retain(
    log: LogName,
    retention_bytes: Annotated[
        int | None,
        typer.Option("--bytes", min=0, max=INT64_MAX, help="Bytes that each shard keeps. 0: all."),
    ] = None,
    retention_ms: Annotated[
        int | None,
        typer.Option("--ms", min=0, max=INT64_MAX, help="Age in ms up to which it keeps. 0: any."),
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say how long records are kept. Older ones are forgotten by whole chunks of 64 MiB.

    Example: peerctl log retain orders --bytes 107374182400 --ms 604800000
    """
    if retention_bytes is None and retention_ms is None:
        fail("say how long: --bytes N, --ms N, or both", EXIT_USAGE)
    with connected(config) as client:
        kept = client.set_retention(log, retention_bytes=retention_bytes, retention_ms=retention_ms)
        if output is not Format.TABLE:
            print_document(output, _log_json(kept))
        else:
            typer.echo(f"{log}: {_retention(kept)}")


@log_app.command("tier")
def tier(
    log: LogName,
    hot_bytes: Annotated[
        int | None,
        typer.Option(
            "--hot-bytes", min=0, max=INT64_MAX, help="Bytes of each shard that peers keep. 0: all."
        ),
    ] = None,
    tier_file: Annotated[
        Path | None,
        typer.Option("--tier", help="List what is there: a configuration with the table `tier`."),
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say how much of a log stays on its peers' disks, or list what is in the tier.

    With --hot-bytes, what is older goes to the tier. The peers need a tier in their configuration
    (`tier.url`). With 0 nothing more goes there; what is there stays readable.

    With --tier, for each shard: which offsets and times are there, in how many objects, how large
    the records are and the objects, the id of the key, and what is not there yet. Exit status 1:
    of a shard it cannot be told, and why.

    Examples: peerctl log tier orders --hot-bytes 10737418240;
    peerctl log tier orders --tier /etc/peerd/peerd.toml
    """
    if (hot_bytes is None) == (tier_file is None):
        fail(
            "say how much stays on disks, --hot-bytes N, or list what is there, --tier FILE",
            EXIT_USAGE,
        )
    if tier_file is not None:
        _list_tier(log, tier_file, config, output)
        return
    with connected(config) as client:
        kept = client.set_tier(log, hot_bytes or 0)
        if output is not Format.TABLE:
            print_document(output, _log_json(kept))
        else:
            typer.echo(f"{log}: {_hot(kept) or 'its peers keep all'}")


def _list_tier(log: str, file: Path, config: Path | None, output: Format) -> None:
    from peerd.cli import tier_listing
    from peerd.cli.backup_commands import one_line_errors, opened_tier

    with one_line_errors(), connected(config) as client:
        found = asyncio.run(tier_listing.of_log(client, opened_tier(file).store, log))
    if output is not Format.TABLE:
        print_document(output, [tier_listing.as_document(each) for each in found])
    else:
        print_table(tier_listing.COLUMNS, [tier_listing.row(each) for each in found])
    for each in found:
        if each.error:
            typer.echo(f"peerctl: {log}/{each.shard}: {each.error}", err=True)
    if any(each.error for each in found):
        raise typer.Exit(EXIT_REFUSED)


def _hot(log: LogEntry) -> str:
    """What of a log its peers keep, in words; empty if all."""
    return f"the newest {log.hot_bytes} bytes of a shard on its peers" if log.hot_bytes else ""


def _retention(log: LogEntry) -> str:
    """How long a log keeps its records, in words."""
    if not (log.retention_bytes or log.retention_ms):
        return "keeps everything"
    kept = []
    if log.retention_bytes:
        kept.append(f"the newest {log.retention_bytes} bytes of each shard")
    if log.retention_ms:
        kept.append(f"what is younger than {datetime.timedelta(milliseconds=log.retention_ms)}")
    return f"keeps {', and '.join(kept)}"


def _packed(log: LogEntry) -> str:
    return "" if log.compression is Compression.NONE else f"; packed with {log.compression}"


def _shard_row(log: str, shard: Shard, tails: dict[int, int]) -> list[str]:
    plan = shard.open.plan
    note = ""
    if shard.split is not None and shard.split.is_committed:
        note = f"split into {' and '.join(map(str, shard.split.children))}"
    elif shard.fence:
        note = f"fenced by {shard.fence}"
    elif shard.split is not None:
        note = "being split"
    elif shard.prepared is not None:
        note = f"moving to {shard.prepared.plan.primary.peer}"
    elif shard.gaps:
        note = f"lost: {', '.join(f'{gap.begin} to {gap.end - 1}' for gap in shard.gaps)}"
    return [
        f"{log}/{shard.shard}",
        str(shard.open.epoch),
        plan.primary.peer,
        " ".join(replica.peer for replica in plan.voters),
        " ".join(replica.peer for replica in plan.non_voters) or "-",
        str(shard.kept_from),
        str(shard.trimmed_to),
        "-" if shard.tier is None else str(shard.tier.end),
        str(tails.get(shard.shard, "?")),
        str(len(shard.sealed) + 1),
        note,
    ]


def _log_json(log: LogEntry) -> dict[str, object]:
    return {
        "name": log.name,
        "copies": log.copies,
        "acks": log.acks,
        "shards": list(log.shards),
        "retention_bytes": log.retention_bytes,
        "retention_ms": log.retention_ms,
        "compression": log.compression,
        "hot_bytes": log.hot_bytes,
    }


def _shard_json(shard: Shard, tails: dict[int, int]) -> dict[str, object]:
    return {
        "shard": shard.shard,
        "key_hash_low": shard.key_hash_low,
        "key_hash_high": shard.key_hash_high,
        "first_offset": shard.kept_from,
        "stored_from": shard.trimmed_to,
        "tier": None
        if shard.tier is None
        else {
            "begin": shard.tier.begin,
            "end": shard.tier.end,
            "manifest": shard.tier.manifest,
        },
        "committed": tails.get(shard.shard),
        "open": _segment_json(shard.open),
        "prepared": None if shard.prepared is None else _segment_json(shard.prepared),
        "fence": shard.fence or None,
        "children": [] if shard.split is None else list(shard.split.children),
        "parent": None if shard.parent is None else shard.parent.shard,
        "sealed": [_segment_json(segment) for segment in shard.sealed],
        "lost_ranges": [{"begin": gap.begin, "end": gap.end, "why": gap.why} for gap in shard.gaps],
    }


def _segment_json(segment: Segment) -> dict[str, object]:
    return {
        "epoch": segment.epoch,
        "begin": segment.begin,
        "end": segment.end,
        "primary": segment.plan.primary.peer,
        "voters": [replica.peer for replica in segment.plan.voters],
        "non_voters": [replica.peer for replica in segment.plan.non_voters],
        "acks": segment.plan.acks,
        "holders": [replica.peer for replica in segment.holders],
        "wanted_holders": [replica.peer for replica in segment.wanted_holders],
    }


# ---------------------------------------------------------------------------------- append
def append(  # noqa: PLR0917 -- the options of the command
    log: LogName,
    value: Annotated[
        str | None, typer.Argument(help="The record. Absent or -: each line of stdin is one.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Key: chooses the shard, keeps order.")] = None,
    file: Annotated[Path | None, typer.Option(help="The record is this file's content.")] = None,
    expected_offset: Annotated[
        int | None,
        typer.Option(min=0, max=INT64_MAX, help="Only if this is the shard's end; needs --key."),
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Append records and print their receipts.

    Examples: peerctl append orders hello --key household-900; seq 1000 | peerctl append orders
    """
    key_bytes = None if key is None else key.encode()
    if file is not None and value is not None:
        fail("give the record as an argument or as --file, not both", EXIT_USAGE)
    if value in {None, "-"} and file is None:
        if expected_offset is not None:
            fail("--expected-offset is for a single record", EXIT_USAGE)
        _append_lines(log, key_bytes, config, output)
        return
    try:
        content = file.read_bytes() if file is not None else (value or "").encode()
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", EXIT_USAGE)
    with connected(config) as client:
        receipt = client.append(log, content, key=key_bytes, expected_offset=expected_offset)
        if output is not Format.TABLE:
            print_document(output, _receipt_json(receipt))
        else:
            typer.echo(str(receipt))


def _append_lines(log: str, key: bytes | None, config: Path | None, output: Format) -> None:
    appended = 0
    with connected(config) as client, Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("appending", total=None)
        for lines in _rounds():
            records = [NewRecord(value=line, key=key) for line in lines]
            receipts = client.append_many(log, records)
            appended += len(receipts)
            progress.update(task, completed=appended)
            if output is not Format.TABLE:
                for receipt in receipts:
                    typer.echo(document_of_many(output, _receipt_json(receipt)), nl=False)
    if output is Format.TABLE:
        typer.echo(f"appended {appended} records to {log}")


def _rounds() -> Iterator[list[bytes]]:
    """Lines of stdin without their ends, in bounded lists."""
    lines: list[bytes] = []
    for line in sys.stdin.buffer:
        lines.append(line.rstrip(b"\r\n"))
        if len(lines) == LINES_PER_ROUND_MAX:
            yield lines
            lines = []
    if lines:
        yield lines


def _receipt_json(receipt: Receipt) -> dict[str, object]:
    return {
        "log": receipt.log,
        "shard": receipt.shard,
        "epoch": receipt.epoch,
        "offset": receipt.offset,
        "record_count": receipt.record_count,
        "durable_on": list(receipt.durable_on),
        "duplicate": receipt.duplicate,
        "timestamp_ms": receipt.timestamp_ms,
    }


# ---------------------------------------------------------------------------------- read
def read(  # noqa: PLR0917 -- the options of the command
    log: LogName,
    shard: Annotated[
        int | None, typer.Option(min=1, max=INT64_MAX, help="Only this shard.")
    ] = None,
    start: Annotated[
        str, typer.Option("--from", help="earliest, latest, or an offset (with --shard).")
    ] = "earliest",
    moment: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="What was appended since then: 2026-11-29T07:00:00Z, or 90s, 15m, 3h, 2d ago.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new records, until Ctrl-C.")
    ] = False,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, max=INT64_MAX, help="Stop after N.")
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Read records, in order per key. With -o json, one document a line.

    What was lost, or trimmed meanwhile, is told on stderr with bounds and reason; the read goes on
    behind it, with exit status 1 at the end.

    Examples: peerctl read orders --follow; peerctl read orders --shard 3 --from 1042 -n 10;
    peerctl read orders --time 15m
    """
    where = _start(start, shard, moment)
    left, gaps = count, 0
    with connected(config) as client:
        while True:
            with client.read(log, start=where, shard=shard, follow=follow) as records:
                try:
                    for record in islice(records, left):
                        sys.stdout.write(_record_line(record, output))
                        if follow:
                            sys.stdout.flush()
                        left = None if left is None else left - 1
                except RecordsMissing as gap:
                    gaps += 1
                    sys.stdout.flush()
                    typer.echo(f"peerctl: {gap}", err=True)
                    where = Position({**records.position.offsets, gap.shard: gap.next_offset})
                else:
                    break
    if gaps:
        raise typer.Exit(EXIT_REFUSED)


def _start(start: str, shard: int | None, moment: str | None) -> StartAt:
    """Where a read begins; what cannot be one ends the command."""
    if moment is not None:
        if start != "earliest":
            fail("give --from or --time, not both", EXIT_USAGE)
        return parsed_moment(moment)
    if start == "earliest":
        return "earliest"
    if start == "latest":
        return "latest"
    offset = whole_number(start)
    if offset is None:
        fail(f"--from {start}: earliest, latest or an offset", EXIT_USAGE)
    if shard is None:
        fail("--from OFFSET needs --shard: offsets are counted per shard", EXIT_USAGE)
    return offset


def _record_line(record: Record, output: Format) -> str:
    key = None if record.key is None else record.key.decode("utf-8", "backslashreplace")
    value = record.value.decode("utf-8", "backslashreplace")
    if output is Format.TABLE:
        return (
            f"{record.log}/{record.shard} {record.offset}  {'-' if key is None else key}  {value}\n"
        )
    content = {
        "log": record.log,
        "shard": record.shard,
        "offset": record.offset,
        "epoch": record.epoch,
        "key": key,
        "value": value,
        "headers": [
            [name, value.decode("utf-8", "backslashreplace")] for name, value in record.headers
        ],
        "timestamp_ms": record.timestamp_ms,
        "appended_ms": record.appended_ms,
    }
    return document_of_many(output, content)


# ---------------------------------------------------------------------------------- tail
def tail(
    log: LogName,
    shard: Annotated[
        int | None, typer.Option(min=1, max=INT64_MAX, help="Only this shard.")
    ] = None,
    linearizable: Annotated[
        bool,
        typer.Option(
            "--linearizable", help="Confirmed now: nothing acknowledged before lies beyond it."
        ),
    ] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Show up to where a log's shards are committed.

    Examples: peerctl tail orders; peerctl tail orders --shard 3 --linearizable
    """
    with connected(config) as client:
        tails = client.tail(log, shard, linearizable=linearizable)
        if output is not Format.TABLE:
            print_document(output, [_tail_json(each) for each in tails])
            return
        columns = ["shard", "epoch", "committed", "answered by"]
        rows = [
            [f"{log}/{each.shard}", str(each.epoch), str(each.committed), each.peer]
            for each in tails
        ]
        print_table(columns, rows)


def _tail_json(tail: Tail) -> dict[str, object]:
    return {
        "shard": tail.shard,
        "epoch": tail.epoch,
        "committed": tail.committed,
        "first_offset": tail.first_offset,
        "peer": tail.peer,
    }
