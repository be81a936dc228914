"""What this peer has to tell the LAS, kept until it is answered.

Facts (a segment opened, a holder added) are committed before they are answered; evidence (stalls,
suspicions) is answered at once. They wait in two queues, so that evidence, on which a pause
depends, never waits for a commit.

Invariants:
- The same fact is kept once, in its newest form, and is removed only by the answer to that form.
- At most `REPORTS_MAX` wait in a queue; beyond it new ones are dropped and counted, since their
  owners tell them again while they hold.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from las.v1 import fleet_pb2
from peerd.core import effects
from peerd.transport.map_codec import encode_replica

# limit: facts that wait for the LAS; more than a peer with 1,000 shards has to tell after a long
# absence
REPORTS_MAX = 4_096
# limit: reports of one call, as the contract says
REPORTS_PER_CALL_MAX = 1_024

_EVIDENCE = frozenset({"stall", "suspect"})

ReportKey = tuple[str | int, ...]
SendReports = Callable[[Sequence[fleet_pb2.PeerReport]], Awaitable[bool]]
"""Sends reports; True if they were answered, False to try them again."""


class ReportQueue:
    """Reports of one kind. Used on the event loop."""

    def __init__(self) -> None:
        self._reports: dict[ReportKey, fleet_pb2.PeerReport] = {}
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._reports)

    def add(self, report: fleet_pb2.PeerReport) -> None:
        """Keep `report` until it is answered."""
        key = report_key(report)
        if key not in self._reports and len(self._reports) >= REPORTS_MAX:
            self.dropped += 1
            return
        if self._reports.get(key) != report:
            # The same words again are no newer form: then the answer to the first ones is enough.
            self._reports[key] = report
        self._none.clear()
        self._some.set()

    async def answered(self) -> None:
        """Wait until none is left."""
        await self._none.wait()

    async def send_all(self, send: SendReports) -> None:
        """Send what waits and what comes, for ever; whatever `send` raises ends it."""
        while True:
            await self._some.wait()
            sent = list(self._reports.items())[:REPORTS_PER_CALL_MAX]
            if not await send([report for _, report in sent]):
                continue
            for key, report in sent:
                # A newer form of the fact has come meanwhile if it is another object.
                if self._reports.get(key) is report:
                    del self._reports[key]
            if not self._reports:
                self._some.clear()
                self._none.set()


def is_evidence(report: fleet_pb2.PeerReport) -> bool:
    """Whether the LAS only weighs it, and commits nothing."""
    return report.WhichOneof("kind") in _EVIDENCE


def report_key(report: fleet_pb2.PeerReport) -> ReportKey:
    """What a report is about: a later one with the same key replaces it."""
    kind = report.WhichOneof("kind") or ""
    fact = getattr(report, kind)
    match kind:
        case "segment_opened" | "holder_added" | "holder_lost" | "higher_promise":
            return (kind, fact.shard, fact.epoch)
        case "declined":
            return (kind, fact.shard, fact.prepared)
        case "stall":
            return (kind, fact.shard, fact.epoch, fact.voter.peer, fact.voter.store_id)
        case "suspect":
            return (kind, fact.peer, fact.boot_id, fact.connection_refused)
        case _:
            return (kind,)


def encode_report(report: effects.Report) -> fleet_pb2.PeerReport:
    """A core's report in its wire form."""
    if isinstance(report, effects.SegmentOpened):
        return fleet_pb2.PeerReport(
            segment_opened=fleet_pb2.SegmentOpened(
                shard=report.shard,
                epoch=report.epoch,
                begin=report.begin,
                holders=[encode_replica(replica) for replica in report.holders],
            )
        )
    if isinstance(report, effects.Declined):
        return fleet_pb2.PeerReport(
            declined=fleet_pb2.Declined(
                shard=report.shard,
                epoch=report.epoch,
                prepared=report.prepared,
                why=f"{report.process.peer} goes on with epoch {report.epoch}",
            )
        )
    if isinstance(report, effects.Stall):
        return fleet_pb2.PeerReport(
            stall=fleet_pb2.Stall(
                shard=report.shard,
                epoch=report.epoch,
                voter=encode_replica(report.replica),
                stalled_ms=report.stalled_ms,
            )
        )
    return fleet_pb2.PeerReport(
        higher_promise=fleet_pb2.HigherPromise(
            shard=report.shard, epoch=report.epoch, promised=report.promised
        )
    )
