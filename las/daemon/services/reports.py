"""Reports of peers: facts become commands, suspicions are handed to the detector.

Facts of one call are given to consensus in the order in which they came. A command that finds the
state changed meanwhile is of no use any more: the report counts as answered.
"""

import asyncio
import logging
from collections.abc import Sequence

from las.core.commands import (
    AddHolder,
    Command,
    DropHolder,
    HaltShard,
    SegmentOpened,
    SetNodeState,
    WithdrawSegment,
)
from las.core.history import Cause
from las.core.holder_commands import AddHolderAgain
from las.core.many_steps import ShardStep
from las.core.state import Node, NodeState
from las.core.tier_commands import TierShard
from las.daemon.group import Group
from las.daemon.services.results import invalid
from las.daemon.term import Term, wall_ms
from las.v1 import fleet_pb2
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.daemon.crowd import Crowd
from peerd.daemon.logging import get_logger
from peerd.transport.map_codec import decode_replica

# limit: reports of one call, as the contract says.
REPORTS_PER_CALL_MAX = 1_024
# limit: other commands of one call than steps of planned changes, which are joined, that wait for
# consensus at a time; a group takes 1,024 of all callers.
COMMANDS_WAITING_MAX = 64

_log = get_logger("reports")
_crowd = Crowd(_log)


class Reports:
    """Takes the reports of one call of the registered process of `reporter`."""

    def __init__(self, group: Group, term: Term, reporter: Node) -> None:
        self._group = group
        self._term = term
        self._reporter = reporter

    async def take(self, reports: Sequence[fleet_pb2.PeerReport]) -> None:
        """Returns when all of them are answered.

        Raises:
            Refused: INVALID_ARGUMENT, or what consensus refuses a command with.
        """
        if len(reports) > REPORTS_PER_CALL_MAX:
            raise invalid(f"{len(reports)} reports in one call: at most {REPORTS_PER_CALL_MAX}")
        commands = [command for report in reports if (command := self._command(report))]
        room = asyncio.Semaphore(COMMANDS_WAITING_MAX)
        async with asyncio.TaskGroup() as waiting:
            for command in commands:
                waiting.create_task(self._commit(command, room))

    async def _commit(self, command: Command, room: asyncio.Semaphore) -> None:
        if isinstance(command, ShardStep):
            result = await self._term.steps.submit(command)
        else:
            async with room:
                result = await self._group.submit(command)
        level = logging.INFO if result.ok else logging.WARNING
        facts = {"reporter": self._reporter.name, "outcome": result.text}
        if isinstance(command, ShardStep):
            _crowd.tell(
                level, type(command).__name__, shard=command.shard, epoch=command.epoch, **facts
            )
            return
        _log.log(
            level,
            type(command).__name__,
            shard=getattr(command, "shard", None),
            epoch=getattr(command, "epoch", None),
            **facts,
        )

    def _command(self, report: fleet_pb2.PeerReport) -> Command | None:
        """The command of a fact; None for what is only weighed."""
        me = self._reporter
        match report.WhichOneof("kind"):
            case "segment_opened":
                return self._opened(report.segment_opened)
            case "declined":
                declined = report.declined
                return WithdrawSegment(
                    shard=ShardId(declined.shard),
                    epoch=Epoch(declined.prepared),
                    declined_by=me.process,
                )
            case "holder_added":
                added = report.holder_added
                return self._added(ShardId(added.shard), Epoch(added.epoch), added.map_version)
            case "holder_lost":
                lost = report.holder_lost
                return DropHolder(
                    shard=ShardId(lost.shard), epoch=Epoch(lost.epoch), holder=me.replica
                )
            case "shard_tiered":
                tiered = report.shard_tiered
                return TierShard(
                    shard=ShardId(tiered.shard),
                    epoch=Epoch(tiered.epoch),
                    by=me.process,
                    follows=tiered.follows,
                    begin=Offset(tiered.begin),
                    end=Offset(tiered.end),
                    manifest=tiered.manifest,
                )
            case "higher_promise":
                return self._higher_promise(report.higher_promise)
            case "storage_failed":
                why = report.storage_failed.why
                _log.error("storage failed", node=me.name, why=why)
                return SetNodeState(
                    node=me.name,
                    boot=me.boot,
                    state=NodeState.FAILED,
                    why=why,
                    at_s=wall_ms() // 1000,
                    cause=Cause.DISK,
                )
            case "leaving":
                _log.info("leaving", node=me.name)
                self._term.leaving(me.name, me.boot)
            case "stall":
                self._term.stall(me, report.stall)
            case "suspect":
                self._term.suspect(me, report.suspect)
            case _:
                raise invalid(f"a report of {me.name} says nothing that this version knows")
        return None

    def _added(self, shard: ShardId, epoch: Epoch, version: int) -> Command:
        """Who was told to let the segment go says with which map it has looked (§8.4)."""
        me = self._reporter.replica
        entry = self._group.state.shards.get(shard)
        sealed = () if entry is None else entry.shard.sealed
        if any(each.epoch == epoch and each.release_of(me) is not None for each in sealed):
            return AddHolderAgain(shard=shard, epoch=epoch, holder=me, version=version)
        return AddHolder(shard=shard, epoch=epoch, holder=me)

    def _opened(self, opened: fleet_pb2.SegmentOpened) -> Command | None:
        if (halt := self._lost(opened.shard, opened.epoch)) is not None:
            return halt
        if self._is_known(opened):
            return None
        return SegmentOpened(
            shard=ShardId(opened.shard),
            epoch=Epoch(opened.epoch),
            begin=Offset(opened.begin),
            holders=tuple(sorted(map(decode_replica, opened.holders))),
        )

    def _is_known(self, opened: fleet_pb2.SegmentOpened) -> bool:
        """Whether the committed map shows it already: peers say it again until they see that."""
        entry = self._group.state.shards.get(ShardId(opened.shard))
        return entry is not None and (
            entry.shard.open.epoch == opened.epoch and entry.shard.open.begin == opened.begin
        )

    def _higher_promise(self, met: fleet_pb2.HigherPromise) -> Command | None:
        """An epoch that the LAS never drew means that it lost its past (docs/protocol.md §4.4).

        One that it drew is a fence: it stands and is finished, or it was finished meanwhile.
        """
        shard, promised = ShardId(met.shard), Epoch(met.promised)
        entry = self._group.state.shards.get(shard)
        if entry is None or promised <= entry.drawn:
            return self._lost(met.shard, met.promised)
        return HaltShard(
            shard=shard,
            epoch=promised,
            node=self._reporter.name,
            why="a replica has promised an epoch that this LAS never drew",
        )

    def _lost(self, shard: int, epoch: int) -> Command | None:
        """A report of an epoch that only a lost commit can have drawn stops the shard (§4.6)."""
        entry = self._group.state.shards.get(ShardId(shard))
        if entry is None or not entry.shows_skipped(Epoch(epoch)):
            return None
        return HaltShard(
            shard=ShardId(shard),
            epoch=Epoch(epoch),
            node=self._reporter.name,
            why="a commit that is lost drew the epoch",
        )
