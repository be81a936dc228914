"""Calls to the LAS: whichever node answers leads to the leader.

Only people and set-up need it; appends and reads never wait for it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import grpc
import grpc.aio

from las.v1 import (
    access_pb2,
    access_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    forecast_pb2,
    forecast_pb2_grpc,
    history_pb2,
    history_pb2_grpc,
    log_admin_pb2,
    log_admin_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from peerd.client.credentials import Access
from peerd.client.errors import (
    InvalidRequest,
    LasUnavailable,
    LogExists,
    PeerdError,
    UnknownLog,
    error_of_call,
)
from peerd.client.options import SLOW_RETRY_STEP_S, compression_named
from peerd.core.errors import Reason
from peerd.core.shard_map import Shard
from peerd.transport.channels import Channels
from peerd.transport.map_codec import LogEntry, decode_log, decode_shard, encode_compression
from peerd.transport.status import reason_of, refusal_of_error

# How long one node may take before another one is asked; a commit takes milliseconds, an election
# about a second.
TRY_TIMEOUT_S = 3.0
# How long one may take to be connected to while others have not been tried: a process that is
# starved or stopped takes for ever.
CONNECT_S = 0.5
# An export is one message a MiB: some 60 for 100,000 shards.
EXPORT_TIMEOUT_S = 300.0

Answer = TypeVar("Answer")
Call = Callable[[grpc.aio.Channel, float], Awaitable[Answer]]


class LasCalls:
    """The LAS services as the client uses them."""

    def __init__(self, access: Access, channels: Channels, timeout_s: float) -> None:
        """`timeout_s` bounds each call, tries at several nodes included."""
        self._channels = channels
        self._timeout_s = timeout_s
        # A LAS node may be among the addresses that the client was given.
        self._addresses = list(dict.fromkeys(access.las or access.addresses))
        self._leader = self._addresses[0]
        self.is_configured = bool(access.las)
        """Whether addresses of LAS nodes were given; else they are looked for among the others."""

    # -------------------------------------------------------------------------- logs

    async def create_log(
        self, name: str, *, shards: int, copies: int, acks: int, compression: str = "none"
    ) -> LogEntry:
        """See `Client.create_log`."""
        request = log_admin_pb2.CreateLogRequest(
            name=name,
            shards=shards,
            copies=copies,
            acks=acks,
            compression=encode_compression(compression_named(compression)),
        )
        in_doubt: list[PeerdError] = []
        try:
            response = await self.call(
                lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(
                    channel
                ).CreateLog(request, timeout=timeout_s),
                f"creating log {name!r}",
                in_doubt,
            )
        except LogExists:
            # An earlier try whose answer was lost may have created it.
            log, _ = await self.describe_log(name)
            if in_doubt and len(log.shards) == shards:
                return log
            raise
        return decode_log(response.log)

    async def list_logs(self) -> list[LogEntry]:
        """See `Client.list_logs`."""
        request = log_admin_pb2.ListLogsRequest()
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).ListLogs(
                request, timeout=timeout_s
            ),
            "listing logs",
        )
        return [decode_log(log) for log in response.logs]

    async def describe_log(self, name: str) -> tuple[LogEntry, tuple[Shard, ...]]:
        """See `Client.describe_log`."""
        request = log_admin_pb2.DescribeLogRequest(name=name)
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).DescribeLog(
                request, timeout=timeout_s
            ),
            f"describing log {name!r}",
        )
        return decode_log(response.log), tuple(decode_shard(shard) for shard in response.shards)

    async def switch_primary(self, shard: int, node: str) -> int:
        """Hands a shard over to `node` by plan; returns the epoch of the prepared segment."""
        request = log_admin_pb2.SwitchPrimaryRequest(shard=shard, node=node)
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(
                channel
            ).SwitchPrimary(request, timeout=timeout_s),
            f"handing shard {shard} over to {node}",
        )
        return response.epoch

    async def split_shard(self, shard: int, *, at_key_hash: int | None = None) -> tuple[int, ...]:
        """See `Client.split_shard`."""
        request = log_admin_pb2.SplitShardRequest(shard=shard, at_key_hash=at_key_hash)
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).SplitShard(
                request, timeout=timeout_s
            ),
            f"splitting shard {shard}",
        )
        return tuple(response.children)

    async def recover_shard(
        self, shard: int, *, why: str = "", accept_loss: bool = False
    ) -> log_admin_pb2.RecoverShardResponse:
        """Lets a shard go on whose quorum is lost for good, behind a gap.

        Without `accept_loss` it says what would be given up and changes nothing. `why` is one line
        for readers of the gap.
        """
        request = log_admin_pb2.RecoverShardRequest(shard=shard, why=why, accept_loss=accept_loss)
        return await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).RecoverShard(
                request, timeout=timeout_s
            ),
            f"recovering shard {shard}",
        )

    async def set_copies(self, name: str, *, copies: int, acks: int) -> LogEntry:
        """See `Client.set_copies`."""
        request = log_admin_pb2.AlterLogRequest(name=name, copies=copies, acks=acks)
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).AlterLog(
                request, timeout=timeout_s
            ),
            f"changing the copies of {name!r}",
        )
        return decode_log(response.log)

    async def set_retention(
        self, name: str, *, retention_bytes: int | None, retention_ms: int | None
    ) -> LogEntry:
        """See `Client.set_retention`."""
        request = log_admin_pb2.AlterLogRequest(
            name=name, retention_bytes=retention_bytes, retention_ms=retention_ms
        )
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).AlterLog(
                request, timeout=timeout_s
            ),
            f"changing the retention of {name!r}",
        )
        return decode_log(response.log)

    async def set_tier(self, name: str, hot_bytes: int) -> LogEntry:
        """See `Client.set_tier`."""
        request = log_admin_pb2.AlterLogRequest(name=name, hot_bytes=hot_bytes)
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).AlterLog(
                request, timeout=timeout_s
            ),
            f"changing the tier of {name!r}",
        )
        return decode_log(response.log)

    async def set_compression(self, name: str, compression: str) -> LogEntry:
        """See `Client.set_compression`."""
        request = log_admin_pb2.AlterLogRequest(
            name=name, compression=encode_compression(compression_named(compression))
        )
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).AlterLog(
                request, timeout=timeout_s
            ),
            f"changing the compression of {name!r}",
        )
        return decode_log(response.log)

    async def trim_shard(self, log: str, shard: int, before: int) -> int:
        """Forgets records below an offset, by whole chunks; the first one left."""
        request = log_admin_pb2.TrimShardRequest(log=log, shard=shard, before_offset=before)
        response = await self.call(
            lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(channel).TrimShard(
                request, timeout=timeout_s
            ),
            f"trimming {log}/{shard}",
        )
        return response.first_offset

    async def delete_log(
        self, name: str, *, accept_loss: bool = False, shards: Sequence[int] = ()
    ) -> log_admin_pb2.DeleteLogResponse:
        """Deletes a log with its records, for good.

        Without `accept_loss` it says what would go and changes nothing. `shards` are those that a
        look ahead told: a log of that name with others is left alone.
        """
        request = log_admin_pb2.DeleteLogRequest(name=name, accept_loss=accept_loss, shards=shards)
        in_doubt: list[PeerdError] = []
        try:
            return await self.call(
                lambda channel, timeout_s: log_admin_pb2_grpc.LogAdminServiceStub(
                    channel
                ).DeleteLog(request, timeout=timeout_s),
                f"deleting log {name!r}",
                in_doubt,
            )
        except UnknownLog:
            # An earlier try whose answer was lost may have deleted it.
            if in_doubt and accept_loss:
                return log_admin_pb2.DeleteLogResponse(deleted=True)
            raise

    # -------------------------------------------------------------------------- access

    async def access(self) -> access_pb2.GetAccessResponse:
        """Grants and revocations, and which peers have not heard of the newest."""
        request = access_pb2.GetAccessRequest()
        return await self.call(
            lambda channel, timeout_s: access_pb2_grpc.AccessServiceStub(channel).GetAccess(
                request, timeout=timeout_s
            ),
            "asking for the grants",
        )

    async def set_access(self, *, required: bool) -> access_pb2.SetAccessResponse:
        """Says whether clients need grants."""
        request = access_pb2.SetAccessRequest(required=required)
        return await self.call(
            lambda channel, timeout_s: access_pb2_grpc.AccessServiceStub(channel).SetAccess(
                request, timeout=timeout_s
            ),
            "saying whether clients need grants",
        )

    async def add_grant(self, grant: access_pb2.Grant) -> access_pb2.AddGrantResponse:
        """Gives rights."""
        request = access_pb2.AddGrantRequest(grant=grant)
        return await self.call(
            lambda channel, timeout_s: access_pb2_grpc.AccessServiceStub(channel).AddGrant(
                request, timeout=timeout_s
            ),
            f"granting on {grant.log!r}",
        )

    async def remove_grant(self, grant: access_pb2.Grant) -> access_pb2.RemoveGrantResponse:
        """Takes rights back."""
        request = access_pb2.RemoveGrantRequest(grant=grant)
        return await self.call(
            lambda channel, timeout_s: access_pb2_grpc.AccessServiceStub(channel).RemoveGrant(
                request, timeout=timeout_s
            ),
            f"taking rights on {grant.log!r} back",
        )

    async def revoke(self, revocation: access_pb2.Revocation) -> access_pb2.RevokeResponse:
        """Refuses a certificate everywhere."""
        request = access_pb2.RevokeRequest(revocation=revocation)
        return await self.call(
            lambda channel, timeout_s: access_pb2_grpc.AccessServiceStub(channel).Revoke(
                request, timeout=timeout_s
            ),
            "revoking a certificate",
        )

    async def end_revocation(
        self, revocation: access_pb2.Revocation
    ) -> access_pb2.EndRevocationResponse:
        """Ends that."""
        request = access_pb2.EndRevocationRequest(revocation=revocation)
        return await self.call(
            lambda channel, timeout_s: access_pb2_grpc.AccessServiceStub(channel).EndRevocation(
                request, timeout=timeout_s
            ),
            "ending a revocation",
        )

    # -------------------------------------------------------------------------- nodes

    async def status(self) -> fleet_pb2.GetStatusResponse:
        """The fleet at a glance."""
        request = fleet_pb2.GetStatusRequest()
        return await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).GetStatus(
                request, timeout=timeout_s
            ),
            "asking for the status",
        )

    async def finalize_upgrade(self) -> fleet_pb2.FinalizeUpgradeResponse:
        """The cluster may use what all its nodes know; after that no node goes back."""
        request = fleet_pb2.FinalizeUpgradeRequest()
        return await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).FinalizeUpgrade(
                request, timeout=timeout_s
            ),
            "finalising the upgrade",
        )

    async def drain(self, node: str, *, for_s: float | None = None) -> None:
        """Moves everything off a node and keeps it off, until `undrain` or for `for_s` seconds."""
        for_ms = None if for_s is None else int(for_s * 1000)
        request = fleet_pb2.DrainRequest(node=node, for_ms=for_ms)
        await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).Drain(
                request, timeout=timeout_s
            ),
            f"draining {node}",
        )

    async def remove_node(self, node: str) -> None:
        """Takes a node that is down out of the fleet, once nothing needs what it has."""
        request = fleet_pb2.RemoveNodeRequest(node=node)
        await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).RemoveNode(
                request, timeout=timeout_s
            ),
            f"removing {node}",
        )

    async def replace_node(self, node: str, store_id: str, *, accept_loss: bool = False) -> None:
        """Accepts a node's new store in place of the old one, whose copies then count as gone.

        `accept_loss`: also where records may be left on no store that is known.
        """
        request = fleet_pb2.ReplaceNodeRequest(
            node=node, store_id=store_id, accept_loss=accept_loss
        )
        await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).ReplaceNode(
                request, timeout=timeout_s
            ),
            f"replacing the store of {node}",
        )

    async def workload(self, node: str = "", log: str = "") -> fleet_pb2.GetWorkloadResponse:
        """What clients do to each shard, of a node or log, or of all; the busiest first."""
        request = fleet_pb2.GetWorkloadRequest(node=node, log=log)
        return await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).GetWorkload(
                request, timeout=timeout_s
            ),
            "asking for the workload",
        )

    async def rebalance(self, *, dry_run: bool = False) -> fleet_pb2.RebalanceResponse:
        """Moves votes, leads and copies until nodes are alike, or tells what would be moved."""
        request = fleet_pb2.RebalanceRequest(dry_run=dry_run)
        return await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).Rebalance(
                request, timeout=timeout_s
            ),
            "asking what is to be moved",
        )

    async def check_stop(self, node: str) -> fleet_pb2.CheckStopResponse:
        """What stopping a node now would cost."""
        request = fleet_pb2.CheckStopRequest(node=node)
        return await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).CheckStop(
                request, timeout=timeout_s
            ),
            f"asking what stopping {node} would cost",
        )

    async def undrain(self, node: str) -> None:
        """Ends a drain."""
        request = fleet_pb2.UndrainRequest(node=node)
        await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).Undrain(
                request, timeout=timeout_s
            ),
            f"ending the drain of {node}",
        )

    async def audit(
        self, *, since_ms: int = 0, node: str = "", log: str = "", limit: int = 0
    ) -> fleet_pb2.ListAuditResponse:
        """Who changed what: the newest `limit` records (0: 1,000) that fit, oldest first."""
        request = fleet_pb2.ListAuditRequest(since_ms=since_ms, node=node, log=log, limit=limit)
        return await self.call(
            lambda channel, timeout_s: fleet_pb2_grpc.FleetServiceStub(channel).ListAudit(
                request, timeout=timeout_s
            ),
            "asking who changed what",
        )

    async def export_state(self) -> bytes:
        """All that the LAS has committed, as the file that `las recover --from` takes."""
        request = fleet_pb2.ExportStateRequest()

        async def read(channel: grpc.aio.Channel, _timeout_s: float) -> bytes:
            stub = fleet_pb2_grpc.FleetServiceStub(channel)
            call = stub.ExportState(request, timeout=EXPORT_TIMEOUT_S)
            return b"".join([answer.chunk async for answer in call])

        return await self.call(read, "exporting the state of the LAS")

    # -------------------------------------------------------------------------- forecasts

    async def forecasts(self, node: str = "") -> Sequence[forecast_pb2.NodeForecast]:
        """The newest forecast of a node, or of all."""
        request = forecast_pb2.GetForecastRequest(node=node)
        response = await self.call(
            lambda channel, timeout_s: forecast_pb2_grpc.ForecastServiceStub(channel).GetForecast(
                request, timeout=timeout_s
            ),
            "asking for the forecast",
        )
        return response.forecasts

    async def report_forecast(
        self, node: str, probabilities: Mapping[int, float], *, source: str = "", age_s: float = 0.0
    ) -> None:
        """Says what an outside forecaster expects of a node; counts for a minute from when made.

        `probabilities` of failing are by horizon in seconds and never fall with it; `source` names
        the model, `age_s` is how long ago it answered. Needs a certificate of role `forecaster`.
        Raises `InvalidRequest` for what is none, and what else the LAS says.
        """
        try:
            horizons = [
                forecast_pb2.Horizon(horizon_s=at_s, probability=probabilities[at_s])
                for at_s in sorted(probabilities)
            ]
            request = forecast_pb2.ReportForecastRequest(
                node=node, source=source, horizons=horizons, age_ms=int(age_s * 1000)
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(
                f"this is no forecast of {node}: {error}; horizons are whole seconds, "
                "probabilities numbers from 0 to 1, age_s is not negative"
            ) from error
        await self.call(
            lambda channel, timeout_s: forecast_pb2_grpc.ForecastServiceStub(
                channel
            ).ReportForecast(request, timeout=timeout_s),
            f"reporting a forecast of {node}",
        )

    async def explain(self, node: str = "", *, shard: int = 0) -> forecast_pb2.ExplainResponse:
        """What was seen of a node or a shard, and what was decided why."""
        request = forecast_pb2.ExplainRequest(node=node, shard=shard)
        return await self.call(
            lambda channel, timeout_s: forecast_pb2_grpc.ForecastServiceStub(channel).Explain(
                request, timeout=timeout_s
            ),
            f"explaining {node or f'shard {shard}'}",
        )

    async def ledger(self, node: str = "", limit: int = 0) -> Sequence[forecast_pb2.LedgerCase]:
        """The newest alarms of a node, or of all, with what became of them; the newest last."""
        request = forecast_pb2.GetLedgerRequest(node=node, limit=limit)
        response = await self.call(
            lambda channel, timeout_s: forecast_pb2_grpc.ForecastServiceStub(channel).GetLedger(
                request, timeout=timeout_s
            ),
            "reading the ledger",
        )
        return response.cases

    async def effect(self) -> forecast_pb2.GetEffectResponse:
        """What anticipation saves, by the built-in experiment."""
        request = forecast_pb2.GetEffectRequest()
        return await self.call(
            lambda channel, timeout_s: forecast_pb2_grpc.ForecastServiceStub(channel).GetEffect(
                request, timeout=timeout_s
            ),
            "asking for the effect",
        )

    # -------------------------------------------------------------------------- history

    async def list_outages(
        self, node: str = "", *, count_max: int = 0
    ) -> Sequence[history_pb2.Outage]:
        """Outages of a node, or of all, the newest first; at most `count_max`, 0: all."""
        request = history_pb2.ListOutagesRequest(node=node, count_max=count_max)

        async def listed(channel: grpc.aio.Channel, timeout_s: float) -> list[history_pb2.Outage]:
            stub = history_pb2_grpc.HistoryServiceStub(channel)
            answers = stub.ListOutages(request, timeout=timeout_s)
            return [outage async for answer in answers for outage in answer.outages]

        return await self.call(listed, "listing outages")

    async def import_outages(
        self, outages: Sequence[history_pb2.Outage]
    ) -> history_pb2.ImportOutagesResponse:
        """Adds at most 1,000 outages that were seen elsewhere, each of which counts once."""
        request = history_pb2.ImportOutagesRequest(outages=outages)
        return await self.call(
            lambda channel, timeout_s: history_pb2_grpc.HistoryServiceStub(channel).ImportOutages(
                request, timeout=timeout_s
            ),
            "importing outages",
        )

    async def failure_patterns(self) -> history_pb2.GetPatternsResponse:
        """What the history of failures shows."""
        request = history_pb2.GetPatternsRequest()
        return await self.call(
            lambda channel, timeout_s: history_pb2_grpc.HistoryServiceStub(channel).GetPatterns(
                request, timeout=timeout_s
            ),
            "asking for patterns of failures",
        )

    # -------------------------------------------------------------------------- models

    async def models(self) -> Sequence[model_pb2.HeadModels]:
        """The forecast models by head, and how those in shadow compare."""
        request = model_pb2.ListModelsRequest()
        answer = await self.call(
            lambda channel, timeout_s: model_pb2_grpc.ModelServiceStub(channel).ListModels(
                request, timeout=timeout_s
            ),
            "listing models",
        )
        return answer.heads

    async def install_model(
        self, content: bytes, *, head: str = ""
    ) -> model_pb2.InstallModelResponse:
        """Gives all LAS nodes a model file, of at most 1 MiB, to run in shadow.

        Raises:
            ModelRejected: the file is no model that may be used; nothing is changed.
            LimitReached: it is too large, or there is no room.
        """
        request = model_pb2.InstallModelRequest(content=content, head=head)
        return await self.call(
            lambda channel, timeout_s: model_pb2_grpc.ModelServiceStub(channel).InstallModel(
                request, timeout=timeout_s
            ),
            "installing a model",
        )

    async def get_model(self, version: int) -> model_pb2.GetModelResponse:
        """The file of a version that was installed. Raises `UnknownModel`."""
        request = model_pb2.GetModelRequest(version=version)
        return await self.call(
            lambda channel, timeout_s: model_pb2_grpc.ModelServiceStub(channel).GetModel(
                request, timeout=timeout_s
            ),
            "getting a model",
        )

    async def promote_model(
        self, version: int, *, head: str = ""
    ) -> model_pb2.PromoteModelResponse:
        """Lets a version answer; 0 is the shipped one of `head`. Raises `UnknownModel`."""
        request = model_pb2.PromoteModelRequest(version=version, head=head)
        return await self.call(
            lambda channel, timeout_s: model_pb2_grpc.ModelServiceStub(channel).PromoteModel(
                request, timeout=timeout_s
            ),
            "promoting a model",
        )

    async def roll_back_model(self, head: str, version: int) -> model_pb2.RollBackModelResponse:
        """In place of `version` the one before answers again. Raises `StateConflict`."""
        request = model_pb2.RollBackModelRequest(head=head, version=version)
        return await self.call(
            lambda channel, timeout_s: model_pb2_grpc.ModelServiceStub(channel).RollBackModel(
                request, timeout=timeout_s
            ),
            "rolling back a model",
        )

    async def watch_forecasts(self) -> AsyncGenerator[forecast_pb2.WatchForecastResponse, None]:
        """All forecasts, again after each evaluation; begins anew at the leader when it changes.

        Raises:
            PeerdError: no LAS leader was found for as long as a call may take.
        """
        request = forecast_pb2.WatchForecastRequest()
        while True:
            # The leader is found by a call that every node answers or refuses at once.
            await self.forecasts()
            stub = forecast_pb2_grpc.ForecastServiceStub(self._channels.to(self._leader))
            try:
                async for evaluation in stub.WatchForecast(request):
                    yield evaluation
            except grpc.aio.AioRpcError:
                await asyncio.sleep(SLOW_RETRY_STEP_S)

    # -------------------------------------------------------------------------- finding the leader

    async def call(
        self, call: Call[Answer], what: str, in_doubt: list[PeerdError] | None = None
    ) -> Answer:
        """Makes `call` at the leader, wherever that is.

        Args:
            call: Makes the call on a channel, with a timeout in seconds.
            what: Names the call in errors.
            in_doubt: Gets the errors after which nobody knows whether a command was committed.

        Raises:
            LasUnavailable: no leader answered in time.
            PeerdError: what the leader refused it with.
        """
        deadline = time.monotonic() + self._timeout_s
        last: PeerdError | None = None
        tried = 0
        while (left_s := deadline - time.monotonic()) > 0:
            untried = tried < len(self._addresses) - 1
            if untried and not await self._channels.answers(self._leader, CONNECT_S):
                self._turn()
                tried += 1
                continue
            try:
                return await call(self._channels.to(self._leader), min(left_s, TRY_TIMEOUT_S))
            except grpc.aio.AioRpcError as error:
                last = error_of_call(error, f"{what} at {self._leader}")
                if not self._find_another(error):
                    raise last from error
                if in_doubt is not None and not _is_surely_not_done(error):
                    in_doubt.append(last)
            tried += 1
            if tried % len(self._addresses) == 0:
                await asyncio.sleep(SLOW_RETRY_STEP_S)
        raise LasUnavailable(
            f"{what}: no LAS leader answered within {self._timeout_s:.0f} s (last: {last}); "
            "appends and reads go on without it, try again",
            reason="LAS_UNAVAILABLE",
        )

    def _find_another(self, error: grpc.aio.AioRpcError) -> bool:
        """Turns to the node to ask next; False if the answer was the leader's."""
        refusal = refusal_of_error(error)
        reason = None if refusal is None else reason_of(refusal)
        if reason == Reason.NOT_LAS_LEADER and refusal is not None and refusal.leader:
            self._leader = refusal.leader
            return True
        is_elsewhere = (
            error.code() in _ELSEWHERE if refusal is None else reason in _ELSEWHERE_REASONS
        )
        if is_elsewhere:
            self._turn()
        return is_elsewhere

    def _turn(self) -> None:
        known = self._addresses
        at = known.index(self._leader) if self._leader in known else -1
        self._leader = known[(at + 1) % len(known)]


# A peer does not serve the LAS's services; a node that is gone or hangs does not answer.
_ELSEWHERE = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
_ELSEWHERE_REASONS = frozenset(
    {Reason.NOT_LAS_LEADER, Reason.LAS_UNAVAILABLE, Reason.SHUTTING_DOWN}
)


def _is_surely_not_done(error: grpc.aio.AioRpcError) -> bool:
    refusal = refusal_of_error(error)
    if refusal is not None:
        return reason_of(refusal) == Reason.NOT_LAS_LEADER
    return error.code() == grpc.StatusCode.UNIMPLEMENTED
