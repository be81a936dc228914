"""Runs the demo: `python -m peerd.cli.demo`, or `make demo`. See `scenario` for its settings.

Exit status: 0 all is well; 1 something acknowledged is lost, duplicated or reordered; 2 it could
not run.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from peerd.grpc_core import EXPERIMENTS

# Before grpc is imported: nothing forks once it is up, and its free text is no use to a reader.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import peerd.aio
from peerd.cli.demo import load, transactions
from peerd.cli.demo.account import Account, compare, pauses_ms
from peerd.cli.demo.disk_probe import DiskProbe
from peerd.cli.demo.report import Result, write
from peerd.cli.demo.scenario import (
    Fault,
    Scenario,
    ScenarioError,
    from_environment,
    telemetry_of,
)
from peerd.cli.demo.trouble import DELAY_MS_FIRST, DELAY_MS_WORST, Kill, Trouble, disks
from peerd.cli.demo.watch import Watcher
from peerd.client.asynchronous import Client
from peerd.client.errors import PeerdError
from peerd.client.options import ClientOptions
from peerd.client.values import Record
from peerd.testing.dev_cluster import DevCluster, DevClusterError, Shape
from peerd.testing.ports import free_address
from peerd.testing.prometheus_server import (
    PrometheusServer,
    PrometheusServerError,
    prometheus_settings,
    targets_of,
)
from peerd.testing.slow_disk import SlowDiskError

EXIT_LOST = 1
EXIT_CANNOT_RUN = 2
LOG = "retail"
SPIKE_LOG = "spike"
SPIKE_FACTOR = 2.0
SPIKE_S = 15.0
# The whole of what an append may wait; far beyond any pause that is acceptable.
APPEND_TIMEOUT_S = 60.0
SCRAPE_MS = 5_000


class Telling:
    """Lines and a bar on a terminal, lines alone elsewhere."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("appending", total=None)

    def line(self, text: str = "") -> None:
        """A line of its own."""
        self.console.print(text, markup=False)

    def at(self, time_s: float, text: str) -> None:
        """A line of the story, with its time."""
        minutes, seconds = divmod(time_s, 60.0)
        self.line(f"  {int(minutes):02d}:{seconds:04.1f}  {text}")

    def appending(self, total: int) -> Progress:
        """The bar, as a context."""
        self._bar.update(self._task, total=total)
        return self._bar

    def answered(self, sent: load.Sent) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=len(sent.acked_s))


async def run(scenario: Scenario, cluster: DevCluster, directory: Path, tell: Telling) -> Result:
    """Play the scenario on a running cluster. Raises `PeerdError` if the cluster does not work."""
    rows = await asyncio.to_thread(transactions.load, scenario.transactions)
    options = ClientOptions(append_timeout_s=APPEND_TIMEOUT_S)
    async with peerd.aio.connect(credentials=cluster.peerctl_toml, options=options) as client:
        await client.create_log(LOG, shards=scenario.shards)
        await client.create_log(SPIKE_LOG, shards=scenario.shards)
        victim = await _victim(client, scenario)
        loop = asyncio.get_running_loop()
        start = loop.time()
        kill = None
        if scenario.kill_s is not None:
            kill = Kill(cluster.member(victim), time.monotonic() + scenario.kill_s)
        watcher = Watcher(client, LOG, victim, start=start, tell=tell.at)
        watching = asyncio.create_task(watcher.run(), name="watcher")
        troubling = asyncio.create_task(
            _trouble(scenario, cluster, victim, client, rows, start, tell), name="trouble"
        )
        try:
            with DiskProbe(directory) as probe, tell.appending(len(rows)):
                sent = await load.append_all(
                    client,
                    LOG,
                    rows,
                    appends_per_s=scenario.appends_per_s,
                    start=start,
                    progress=tell.answered,
                )
            await troubling
        finally:
            if kill is not None:
                kill.cancel()
            for task in (watching, troubling):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        ended_s = max(sent.acked_s.values(), default=scenario.append_s)
        read = [record async for record in client.read(LOG)]
        killed_s = None if kill is None or kill.done_at is None else kill.done_at - start
        return Result(
            scenario=scenario,
            victim=victim,
            account=_account(scenario, rows, sent, watcher, read),
            story=watcher.story,
            sent=sent,
            killed_s=killed_s,
            disk_stall_ms_max=probe.stall_ms_max,
            appends_per_s=len(sent.acked_s) / ended_s,
        )


def _account(
    scenario: Scenario,
    rows: Sequence[transactions.Transaction],
    sent: load.Sent,
    watcher: Watcher,
    read: Sequence[Record],
) -> Account:
    lost, duplicated, reordered = compare(rows, sent, read)
    return Account(
        sent=sent.sent,
        acked=len(sent.acked_s),
        lost=lost,
        duplicated=duplicated,
        reordered=reordered,
        pause_ms=pauses_ms(sent, scenario, watcher.story),
    )


async def _victim(client: Client, scenario: Scenario) -> str:
    """One of the peers that order the log's shards, by the seed's draw."""
    _, shards = await client.las.describe_log(LOG)
    primaries = sorted({str(shard.open.plan.primary.peer) for shard in shards})
    return primaries[int(scenario.victim_draw * len(primaries))]


async def _trouble(  # noqa: PLR0917 -- all that the fault needs to know
    scenario: Scenario,
    cluster: DevCluster,
    victim: str,
    client: Client,
    rows: Sequence[transactions.Transaction],
    start: float,
    tell: Telling,
) -> None:
    """Play the fault at its time, until the kill, and tell both."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(start + scenario.onset_s - loop.time())
    if scenario.fault is Fault.LOOK_ALIKE:
        tell.at(scenario.onset_s, f"a harmless load spike begins, for {SPIKE_S:.0f} s")
        rate = SPIKE_FACTOR * scenario.appends_per_s
        await load.spike(client, SPIKE_LOG, rows, rate=rate, duration_s=SPIKE_S)
        return
    assert scenario.kill_s is not None
    sick = {
        Fault.SLOW_STORAGE: f"its storage grows slower ({DELAY_MS_FIRST:.0f} → "
        f"{DELAY_MS_WORST:.0f} ms a write)",
        Fault.SLOW_DISK: f"its disk grows slower ({DELAY_MS_FIRST:.0f} → "
        f"{DELAY_MS_WORST:.0f} ms a write)",
        Fault.PAUSES: "it is stopped again and again, longer and longer",
    }
    if scenario.fault in sick:
        tell.at(scenario.onset_s, f"{victim} falls sick: {sick[scenario.fault]}")
    with Trouble(scenario, cluster.member(victim)):
        await asyncio.sleep(start + scenario.kill_s - loop.time())
    tell.at(scenario.kill_s, f"kill -9 {victim}")


def _print_account(result: Result, directory: Path, tell: Telling) -> None:
    account = result.account
    tell.line()
    tell.line(
        f"  acked {account.acked:,}   lost {account.lost}   duplicated {account.duplicated}   "
        f"reordered {account.reordered}"
    )
    spike = result.scenario.fault is Fault.LOOK_ALIKE
    fault = "during the spike" if spike else "while sick"
    words = {"fault": fault, "hand_over": "at the hand-over", "kill": "at the kill"}
    slowest = [
        f"{value:,.0f} ms {words[name]}"
        for name, value in account.pause_ms.items()
        if value is not None
    ]
    tell.line(f"  slowest append  {', '.join(slowest)}")
    tell.line(f"  the disk itself stalled for up to {result.disk_stall_ms_max:,.0f} ms meanwhile")
    lead = result.lead_time_s
    if result.killed_s is None:
        moved = ", ".join(sorted(result.story.moved))
        tell.line(f"  moved           {moved or 'nothing, as it should be'}")
    elif lead["expendable"] is not None and lead["shielded"] is not None:
        tell.line(
            f"  foreseen        {lead['shielded']:.1f} s before the kill (shielded), "
            f"{lead['expendable']:.1f} s (expendable)"
        )
    else:
        tell.line("  foreseen        no")
    failed = len(result.sent.failed)
    if failed:
        example = next(iter(result.sent.failed.values()))
        tell.line(f"  not acknowledged: {failed}, for example: {example}")
    tell.line(f"  the story with pictures: {directory / 'report.html'}")


def _cluster(
    directory: Path, telemetry: str, tell: Telling
) -> tuple[DevCluster, AbstractContextManager[object]]:
    """The cluster, and the Prometheus server that scrapes it, if it is to have one."""
    if telemetry != "prometheus":
        return DevCluster(directory, Shape(), port_base=None), nullcontext()
    address = free_address()
    settings = prometheus_settings(address, interval_ms=SCRAPE_MS)
    cluster = DevCluster(directory, Shape(), port_base=None, las_settings=settings)
    tell.line(f"  telemetry from Prometheus alone, a scrape each {SCRAPE_MS / 1000:.0f} s")
    server = PrometheusServer(
        directory / "prometheus",
        targets_of(cluster),
        address=address,
        interval_ms=SCRAPE_MS,
    )
    return cluster, server


def main() -> int:
    """Run the demo that the environment asks for; returns the exit status."""
    tell = Telling()
    try:
        scenario, directory = from_environment(os.environ, transactions.available())
        directory.mkdir(parents=True, exist_ok=True)
        cluster_directory = directory / "cluster"
        if cluster_directory.exists():
            DevCluster.refuse_living(cluster_directory)
            shutil.rmtree(cluster_directory)
        cluster, scraping = _cluster(cluster_directory, telemetry_of(os.environ), tell)
        on_disks = disks(cluster) if scenario.fault is Fault.SLOW_DISK else nullcontext()
        with on_disks, scraping, cluster:
            tell.line("  3 LAS and 5 peers on loopback, mTLS on" + _announcement(scenario))
            tell.line(
                f"  appending {scenario.transactions:,} retail transactions "
                f"in {scenario.append_s:.0f} s"
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(run(scenario, cluster, directory, tell))
    except (ScenarioError, transactions.TransactionsMissing, DevClusterError, PeerdError) as error:
        tell.line(f"demo: {error}")
        return EXIT_CANNOT_RUN
    except PrometheusServerError as error:
        tell.line(f"demo: DEMO_TELEMETRY=prometheus: {error}")
        return EXIT_CANNOT_RUN
    except SlowDiskError as error:
        tell.line(f"demo: DEMO_FAULT={Fault.SLOW_DISK}: {error}")
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        tell.line("demo: broken off")
        return EXIT_CANNOT_RUN
    write(result, directory)
    _print_account(result, directory, tell)
    return 0 if result.account.clean else EXIT_LOST


def _announcement(scenario: Scenario) -> str:
    seed = f"          seed {scenario.seed}: "
    if scenario.kill_s is None:
        return f"{seed}a load spike at {scenario.onset_s:.0f} s, and no kill"
    minutes, seconds = divmod(scenario.kill_s, 60.0)
    at = f"kill at {int(minutes):02d}:{seconds:02.0f}"
    if scenario.fault is Fault.SUDDEN:
        return f"{seed}{at}, out of the blue"
    return f"{seed}{at}, {scenario.kill_s - scenario.onset_s:.0f} s after the onset"


if __name__ == "__main__":
    sys.exit(main())
