"""`peerctl bench …`: how fast a cluster is, and how long a failover takes."""

import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from peerd.bench.appending import AppendJob
from peerd.bench.clusters import throw_away
from peerd.bench.failover import FailoverResult, Kind, Rounds
from peerd.bench.machine import calibrate
from peerd.bench.machines import Machines, enter
from peerd.bench.runs import AppendResult, Told, disk_json, run_appends, run_reads
from peerd.bench.workers import CLIENTS_MAX, BenchFailed
from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    INT64_MAX,
    UINT32_MAX,
    ConfigOption,
    Format,
    FormatOption,
    config_path,
    connected,
    fail,
    one_line_errors,
    print_document,
    print_table,
)
from peerd.client.errors import UnknownLog
from peerd.testing.dev_cluster import DevClusterError

bench_app = typer.Typer(
    help="Measure a cluster; what else runs on its machines shows in the figures.",
    no_args_is_help=True,
)

DevOption = Annotated[
    int, typer.Option("--dev", min=0, max=32, help="Measure a throw-away cluster of N peers here.")
]
TlsOption = Annotated[bool, typer.Option(help="With --dev: mutual TLS, or plaintext.")]
LogOption = Annotated[str, typer.Option("--log", help="Log; created if it is not there, and kept.")]
ShardsOption = Annotated[
    int, typer.Option(min=1, max=1024, help="Shards of a log that is created.")
]
CopiesOption = Annotated[
    int, typer.Option(min=0, max=UINT32_MAX, help="Its copies. 0: as `log create`.")
]
AcksOption = Annotated[int, typer.Option(min=0, max=UINT32_MAX, help="Its acks. 0: 2.")]
SizeOption = Annotated[int, typer.Option(min=0, max=16 << 20, help="Bytes of a record.")]
DurationOption = Annotated[
    float, typer.Option(min=0.1, max=86_400.0, help="Seconds that are measured.")
]


@bench_app.command("append")
def append(  # noqa: PLR0917 -- the options of the command
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Closed loop: appends under way per client. 64."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1_000_000.0,
            help="Open loop instead: appends a second, all clients together.",
        ),
    ] = None,
    size: SizeOption = 256,
    batch: Annotated[int, typer.Option(min=1, max=65_536, help="Records of each append.")] = 1,
    keys: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Keys that records have in turn. 0: none.")
    ] = 0,
    clients: Annotated[int, typer.Option(min=1, max=CLIENTS_MAX, help="Client processes.")] = 1,
    duration: DurationOption = 5.0,
    log: LogOption = "bench",
    shards: ShardsOption = 1,
    copies: CopiesOption = 0,
    acks: AcksOption = 0,
    dev: DevOption = 0,
    tls: TlsOption = True,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Append, and tell how many a second were acknowledged, and how late.

    A closed loop keeps --in-flight appends under way; an open loop sends --rate a second whatever
    happens, and counts each latency from the moment at which the append was due.

    Examples: peerctl bench append --in-flight 256; peerctl bench append --rate 5000 --duration 60
    """
    if in_flight is not None and rate is not None:
        fail("--in-flight is a closed loop, --rate an open one: choose one", EXIT_USAGE)
    with bench_cluster(config, dev, tls=tls) as place, _progress("appends") as told:
        have_log(place, log, shards=shards, copies=copies, acks=acks)
        job = AppendJob(
            config=str(place),
            log=log,
            size=size,
            batch=batch,
            keys=keys,
            in_flight=in_flight or 64,
            rate_per_s=rate,
            duration_s=duration,
        )
        result = run_appends(job, clients, told)
    if output is not Format.TABLE:
        print_document(output, result.as_json())
    else:
        _print_appends(result, clients)


def _print_appends(result: AppendResult, clients: int) -> None:
    counts, job = result.counts, result.job
    late = counts.latencies
    how = f"{job.in_flight} in flight" if job.rate_per_s is None else f"{job.rate_per_s:g} a second"
    typer.echo(
        f"{clients} client{'s' if clients > 1 else ''}, {how}, {job.batch} × {job.size} B: "
        f"{result.appends_per_s:,.0f} appends/s, {result.records_per_s:,.0f} records/s, "
        f"{result.mb_per_s:.1f} MB/s"
    )
    rows = [
        [f"{late.percentile_ms(percent):.2f}" for percent in (50, 99, 99.9)]
        + [f"{late.max_ms:.2f}", f"{counts.longest_pause_s * 1000:.1f}"]
        + [str(counts.errors.total())]
    ]
    print_table(["p50 ms", "p99 ms", "p99.9 ms", "max ms", "longest pause ms", "errors"], rows)
    for kind, count in sorted(counts.errors.items()):
        typer.echo(f"{count} × {kind}: {counts.examples[kind]}", err=True)
    cores = {"client": counts.client_cpu_s} | (result.servers_cpu_s or {})
    used = ", ".join(f"{name} {used_s / job.duration_s:.2f}" for name, used_s in cores.items())
    typer.echo(f"cores used: {used}")
    typer.echo(disk_text(result.as_json()["disk_fdatasync_ms"]))


def disk_text(disk: object) -> str:
    """The calibration in words."""
    if not isinstance(disk, dict):
        return "the cluster is not on this machine: its disks were not calibrated"
    return f"the disk by itself: 4 KiB write + fdatasync p50 {disk['p50']} ms, p99 {disk['p99']} ms"


@bench_app.command("read")
def read(  # noqa: PLR0917 -- the options of the command
    records: Annotated[
        int,
        typer.Option(min=1, max=INT64_MAX, help="The log is filled up to so many records first."),
    ] = 200_000,
    size: SizeOption = 256,
    rate: Annotated[
        float, typer.Option(min=1.0, max=100_000.0, help="Appends a second that are followed.")
    ] = 500.0,
    cold: Annotated[
        bool, typer.Option("--cold", help="Drop the page cache before each pass; needs root.")
    ] = False,
    duration: DurationOption = 3.0,
    log: LogOption = "bench-read",
    shards: ShardsOption = 1,
    copies: CopiesOption = 0,
    acks: AcksOption = 0,
    dev: DevOption = 0,
    tls: TlsOption = True,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Read a log as batches and as objects, then follow appends to it.

    Example: peerctl bench read --dev 2 --records 1000000
    """
    with bench_cluster(config, dev, tls=tls) as place, _progress("records") as told:
        have_log(place, log, shards=shards, copies=copies, acks=acks)
        result = run_reads(
            str(place),
            log,
            records=records,
            size=size,
            rate_per_s=rate,
            duration_s=duration,
            cold=cold,
            told=told,
        )
    if output is not Format.TABLE:
        print_document(output, result.as_json())
        return
    how = "after dropping the page cache" if cold else "hot"
    typer.echo(f"{result.records:,} records of {size} B, {how}")
    rows = [
        [name, f"{counts.records_per_s:,.0f}", f"{counts.mb_per_s:.0f}"]
        + [
            f"{used_s / counts.records * 1e6:.2f}" if used_s is not None else "?"
            for used_s in (counts.client_cpu_s, counts.servers_cpu_s)
        ]
        for name, counts in (("batches", result.batches), ("objects", result.objects))
    ]
    print_table(["as", "records/s", "MB/s", "CPU µs/record: client", "servers"], rows)
    late = result.follow.latencies
    typer.echo(
        f"followed {rate:g} appends/s: seen after the acknowledgement in p50 "
        f"{late.percentile_ms(50):.2f} ms, p99 {late.percentile_ms(99):.2f} ms, "
        f"at most {late.max_ms:.2f} ms; {result.follow.unseen} not seen"
    )
    typer.echo(disk_text(result.as_json()["disk_fdatasync_ms"]))


@bench_app.command("failover")
def failover(  # noqa: PLR0917 -- the options of the command
    kind: Annotated[Kind, typer.Option(help="What happens to the primary in each round.")],
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="How often.")] = 5,
    rate: Annotated[
        float, typer.Option(min=10.0, max=10_000.0, help="Appends a second meanwhile.")
    ] = 500.0,
    peers: Annotated[int, typer.Option(min=3, max=32, help="Peers of the cluster.")] = 4,
    las: Annotated[int, typer.Option(min=1, max=5, help="LAS nodes of it: 1, 3 or 5.")] = 3,
    output: FormatOption = Format.TABLE,
) -> None:
    """Change the primary of a shard under load, on a throw-away cluster: how long is the pause?

    Only a cluster that this command started itself is hurt. Every acknowledged record is read back.
    Exit status 1 if one is lost or an append failed.

    host-off and one-way cut links of network namespaces that this command makes: as root, on Linux.

    Example: peerctl bench failover --kind kill --rounds 20
    """
    with one_line_errors():
        try:
            if kind.cuts_links:
                enter("peerd.cli.peerctl", sys.argv[1:])
            names = [f"peer-{at + 1}" for at in range(peers)]
            machines = Machines(names) if kind.cuts_links else None
            with (
                _progress("rounds") as told,
                throw_away(peers, las=las, machines=machines) as cluster,
            ):
                disk_ms = calibrate(cluster.directory)
                result = Rounds(cluster, kind, told, machines).run(rounds, rate)
                disk_ms += calibrate(cluster.directory)
        except (BenchFailed, DevClusterError) as error:
            fail(str(error), EXIT_REFUSED)
    if output is not Format.TABLE:
        print_document(output, result.as_json() | {"disk_fdatasync_ms": disk_json(disk_ms)})
    else:
        pauses = ", ".join(f"{pause:.0f}" for pause in result.pauses_ms)
        typer.echo(
            f"{rounds} × {kind}, {rate:g} appends/s: pauses of {pauses} ms; median "
            f"{statistics.median(result.pauses_ms):.0f} ms\n"
            f"{result.acknowledged:,} acknowledged, {result.lost} lost, "
            f"{len(result.errors)} errors"
        )
        typer.echo(disk_text(disk_json(disk_ms)))
    if result.lost or result.errors:
        fail(_what_went_wrong(result), EXIT_REFUSED)


def _what_went_wrong(result: FailoverResult) -> str:
    if result.lost:
        return f"{result.lost} acknowledged records cannot be read back"
    return f"{len(result.errors)} appends failed, the first one: {result.errors[0]}"


# ---------------------------------------------------------------------------------- common


@contextmanager
def bench_cluster(config: Path | None, dev: int, *, tls: bool) -> Iterator[Path]:
    """The `peerctl.toml` of the cluster to measure; failures end the command with one line."""
    with one_line_errors(), ExitStack() as stack:
        if dev and config is not None:
            fail("--dev measures a cluster of its own: leave --config out", EXIT_USAGE)
        if not dev and not tls:
            fail("--no-tls is for --dev: a running cluster is as it is", EXIT_USAGE)
        try:
            if dev:
                yield stack.enter_context(throw_away(dev, tls=tls)).peerctl_toml
            else:
                yield config_path(config)
        except (BenchFailed, DevClusterError) as error:
            fail(str(error), EXIT_REFUSED)


def have_log(config: Path, log: str, *, shards: int, copies: int, acks: int) -> None:
    """Create the log unless it is there."""
    with connected(config) as client:
        try:
            client.describe_log(log)
        except UnknownLog:
            client.create_log(log, shards=shards, copies=copies, acks=acks)


@contextmanager
def _progress(what: str) -> Iterator[Told]:
    """A line on the terminal that says how much is done; nothing where nobody looks."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda count: progress.update(task, description=f"{count:,} {what}")
