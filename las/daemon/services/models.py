"""`las.v1.ModelService`: forecast models are installed, listed, promoted and rolled back.

Invariants:
- A file is tried (`las.forecast.trial`) before anything of it is committed; one that is refused
  changes nothing.
- What is promoted was tried on the leader again, and did not fail in shadow here.
- A call that ends in doubt may be repeated: the same file gets the same version, and a version that
  answers already may be promoted.
"""

import asyncio
import time

from las.core import commands as c
from las.core.model_registry import (
    MODEL_BYTES_MAX,
    SHIPPED,
    ModelHead,
    ModelRegistry,
    ModelVersion,
    digest_of,
    pieces_of,
)
from las.daemon.audit import Auditor
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.model import Model
from las.daemon.services.results import invalid, require_ok
from las.forecast.comparison import Comparison
from las.forecast.contract import ModelRefused
from las.forecast.trial import Trial, tried
from las.v1 import model_pb2, model_pb2_grpc
from peerd.core.errors import Reason
from peerd.transport.status import Context, Refused, refusal


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Serves on the leader; others name it."""

    def __init__(
        self, group: Group, leadership: Leadership, auditor: Auditor, model: Model
    ) -> None:
        self._group = group
        self._leadership = leadership
        self._auditor = auditor
        self._model = model

    async def InstallModel(
        self, request: model_pb2.InstallModelRequest, context: Context
    ) -> model_pb2.InstallModelResponse:
        """Take a file.

        Raises:
            Refused: MODEL_REFUSED, INVALID_ARGUMENT (no such head), LIMIT_REACHED, STATE_CHANGED
                (another one is being installed), NOT_LAS_LEADER, LAS_UNAVAILABLE (call again).
        """
        async with self._auditor.call(context, "model install", model=request.head) as call:
            if request.head:
                _head(request.head)
            size = len(request.content)
            if size > MODEL_BYTES_MAX:
                text = f"the file has {size} bytes, a model is at most {MODEL_BYTES_MAX >> 20} MiB"
                raise Refused(refusal(Reason.LIMIT_REACHED, text))
            contract = (await _tried(request.content, request.head)).contract
            digest = digest_of(request.content)
            known = any(each.digest == digest for each in self._group.state.models.versions)
            if not known:
                for number, piece in enumerate(pieces_of(request.content)):
                    stored = c.StoreModelPiece(digest=digest, number=number, piece=piece)
                    require_ok(await self._group.submit(stored))
            result = require_ok(
                await call.submit(
                    c.InstallModel(
                        head=ModelHead(contract.head),
                        model_id=contract.model_id,
                        digest=digest,
                        timestamp_ms=int(time.time() * 1000),
                    )
                )
            )
        return model_pb2.InstallModelResponse(
            version=result.version, head=contract.head, model_id=contract.model_id, known=known
        )

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        """All versions. Raises `Refused`: NOT_LAS_LEADER."""
        self._leadership.require()
        models = self._group.state.models
        return model_pb2.ListModelsResponse(
            heads=[self._head_models(models, head) for head in ModelHead]
        )

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.GetModelResponse:
        """A version's file. Raises `Refused`: UNKNOWN_MODEL, NOT_LAS_LEADER."""
        self._leadership.require()
        version = self._group.state.models.version(request.version)
        if version is None:
            text = f"no version {request.version} is kept: see `las model list`"
            raise Refused(refusal(Reason.UNKNOWN_MODEL, text))
        return model_pb2.GetModelResponse(
            content=version.content, head=version.head, model_id=version.model_id
        )

    async def PromoteModel(
        self, request: model_pb2.PromoteModelRequest, context: Context
    ) -> model_pb2.PromoteModelResponse:
        """Let a version answer.

        Raises:
            Refused: UNKNOWN_MODEL, INVALID_ARGUMENT, MODEL_REFUSED, NOT_LAS_LEADER,
                LAS_UNAVAILABLE.
        """
        async with self._auditor.call(context, "model promote", model=request.head) as call:
            version = self._group.state.models.version(request.version)
            head = _head(request.head) if request.head else ModelHead.INCIDENT
            if version is not None and not request.head:
                head = version.head
            if version is not None and version.head is head:
                self._require_sound(version)
                await _tried(version.content, head)
            command = c.PromoteModel(head=head, version=request.version)
            result = require_ok(await call.submit(command))
        return model_pb2.PromoteModelResponse(head=head, text=result.text)

    async def RollBackModel(
        self, request: model_pb2.RollBackModelRequest, context: Context
    ) -> model_pb2.RollBackModelResponse:
        """Let the version before answer again.

        Raises:
            Refused: STATE_CHANGED, INVALID_ARGUMENT, NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        async with self._auditor.call(context, "model rollback", model=request.head) as call:
            head = _head(request.head or ModelHead.INCIDENT)
            command = c.RollBackModel(head=head, version=request.version)
            result = require_ok(await call.submit(command))
        return model_pb2.RollBackModelResponse(version=result.version, text=result.text)

    # ------------------------------------------------------------------ telling

    def _require_sound(self, version: ModelVersion) -> None:
        """Raise MODEL_REFUSED if the version failed in shadow on this leader."""
        _, given_up = self._shadow(version.head)
        if given_up and self._group.state.models.of(version.head).candidate == version.version:
            text = f"version {version.version} failed in shadow: {given_up}"
            raise Refused(refusal(Reason.MODEL_REFUSED, text))

    def _shadow(self, head: ModelHead) -> tuple[Comparison | None, str]:
        shadow = (
            self._model.shadow
            if head is ModelHead.INCIDENT
            else self._model.heads.shadows.get(head)
        )
        return (None, "") if shadow is None else (shadow.comparison, shadow.given_up)

    def _head_models(self, models: ModelRegistry, head: ModelHead) -> model_pb2.HeadModels:
        now = models.of(head)
        incident = head is ModelHead.INCIDENT
        heads = self._model.heads
        shipped = self._model.base_id if incident else heads.shipped(head)
        told = [model_pb2.Model(version=SHIPPED, model_id=shipped, state="kept")]
        told += [
            model_pb2.Model(
                version=each.version,
                model_id=each.model_id,
                digest=each.digest,
                size_bytes=each.size_bytes,
                installed_ms=each.timestamp_ms,
                state="kept",
            )
            for each in models.versions
            if each.head is head
        ]
        states = {now.candidate: "shadow", now.before: "before", now.live: "live"}
        for each in told:
            each.state = states.get(each.version, "kept")
            if each.state == "shadow":
                each.comparison.CopyFrom(_comparison(*self._shadow(head)))
        return model_pb2.HeadModels(
            head=head,
            models=told,
            answering=self._model.model_id if incident else heads.answering(head),
            note=self._model.incident_note if incident else heads.notes.get(head, ""),
        )


async def _tried(content: bytes, head: str) -> Trial:
    """The trial of a file, off the event loop. Raises `Refused`: MODEL_REFUSED."""
    try:
        return await asyncio.to_thread(tried, content, head)
    except ModelRefused as error:
        text = f"the model is refused: {error}; nothing is changed"
        raise Refused(refusal(Reason.MODEL_REFUSED, text)) from error


def _head(name: str) -> ModelHead:
    """The head of that name. Raises `Refused`: INVALID_ARGUMENT."""
    if name not in set(ModelHead):
        raise invalid(f"no head is called {name!r}: {', '.join(ModelHead)}")
    return ModelHead(name)


def _comparison(comparison: Comparison | None, given_up: str) -> model_pb2.ModelComparison:
    if comparison is None:
        return model_pb2.ModelComparison(given_up=given_up)
    seen = comparison.figures()
    return model_pb2.ModelComparison(
        rounds=seen.rounds,
        forecasts=seen.forecasts,
        difference_mean=seen.difference_mean,
        difference_max=seen.difference_max,
        alarms=seen.alarms,
        alarms_shadow=seen.alarms_shadow,
        scored=seen.scored,
        came_true=seen.came_true,
        brier=seen.brier,
        brier_shadow=seen.brier_shadow,
        horizon_s=seen.horizon_s,
        given_up=given_up,
    )
