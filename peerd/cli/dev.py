"""`peerd dev`: a whole small cluster in one command, to develop against. Ctrl-C ends it."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from peerd.testing.dev_cluster import (
    PORT_BASE,
    DevCluster,
    DevClusterError,
    Shape,
)

# limit: front workers of a peer, as in its configuration.
WORKERS_MAX = 32

EXIT_FAILED = 1
EXIT_CANNOT_START = 2
_WATCH_S = 0.5


def dev(
    *,
    peers: Annotated[int, typer.Option(help="Number of peers.")] = 5,
    las: Annotated[int, typer.Option(help="Number of LAS nodes: 1, 3 or 5.")] = 3,
    directory: Annotated[
        Path, typer.Option("--dir", help="Directory of the cluster; a stopped one goes on.")
    ] = Path("build/dev"),
    zones: Annotated[
        str, typer.Option(help="Zones, over which the peers are spread in turn.")
    ] = "zone-a,zone-b,zone-c",
    workers: Annotated[
        int,
        typer.Option(
            min=0, max=WORKERS_MAX, help="Front workers of each peer, for many small clients."
        ),
    ] = 0,
    port_base: Annotated[
        int,
        typer.Option(
            help="First port: peers from here, LAS nodes a hundred above.", min=1, max=64_000
        ),
    ] = PORT_BASE,
) -> None:
    """Run LAS nodes and peers on loopback with throw-away certificates, until Ctrl-C."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    try:
        shape = Shape(peers=peers, las=las, zones=tuple(zones.split(",")), workers=workers)
        cluster = DevCluster(directory, shape, port_base=port_base)
        typer.echo(f"starting {las} LAS nodes and {peers} peers in {directory} …")
        with cluster:
            typer.echo(_welcome(cluster))
            died = _until_end(cluster, asked)
            typer.echo("stopping …")
    except DevClusterError as error:
        typer.echo(f"peerd dev: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT_START) from None
    if died is not None:
        typer.echo(f"peerd dev: {died}", err=True)
        raise typer.Exit(EXIT_FAILED)


def _until_end(cluster: DevCluster, asked: threading.Event) -> str | None:
    """Wait for a signal; what ends meanwhile is told once. None unless everything ended."""
    told: set[str] = set()
    while not asked.wait(_WATCH_S):
        ended = [member for member in cluster.members if not member.running]
        for member in ended:
            if member.id not in told:
                told.add(member.id)
                status = member.wait()
                typer.echo(f"{member.id} ended, status {status}; log: {member.log}", err=True)
        if len(ended) == len(cluster.members):
            return "all processes have ended"
    return None


def _welcome(cluster: DevCluster) -> str:
    first = cluster.peers[0].address
    copies = len(cluster.peers)
    clients = [member.client_address for member in cluster.peers if member.client_address]
    lines = [
        f"peers  {', '.join(member.address for member in cluster.peers)}",
        *([f"       {', '.join(clients)} for small clients"] if clients else []),
        f"LAS    {', '.join(member.address for member in cluster.las)}",
        f"page   http://{cluster.las[0].metrics_address}/",
        "",
        "  import peerd",
        f'  with peerd.connect("{first}", credentials="{cluster.peerctl_toml}") as client:',
        f'      client.create_log("orders", shards=4{", copies=1" if copies == 1 else ""})',
        '      print(client.append("orders", b"hello", key=b"household-900"))',
        "",
        f"  peerctl -c {cluster.peerctl_toml} status",
        "",
    ]
    if copies == 1:
        lines.append("one peer: logs need copies=1, and what it has is lost with it")
    elif copies == 2:
        lines.append("two peers: logs get 2 copies, both needed for each append")
    return "\n".join([*lines, "Ctrl-C stops everything"])
