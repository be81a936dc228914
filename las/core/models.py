"""The commands for forecast models: install, promote, roll back; see `las.core.model_registry`."""

from dataclasses import replace

from las.core import commands as c
from las.core.commands import Reason, Result
from las.core.model_registry import (
    MODEL_BYTES_MAX,
    MODELS_BYTES_MAX,
    PIECE_BYTES_MAX,
    SHIPPED,
    VERSIONS_MAX,
    ModelVersion,
    Upload,
    decoded_bytes,
    digest_of,
    upload_bytes,
    version_words,
)
from las.core.segments import Applied, refuse
from las.core.state import ClusterState


def store_model_piece(state: ClusterState, command: c.StoreModelPiece) -> Applied:
    """A piece of a model's file.

    | `StoreModelPiece(digest, number, piece)` | it is the first of a file, or the next of the one
    under way; the file stays within 1 MiB | it is kept until the file is installed, or another one
    begins; no change of the map. |
    """
    size = decoded_bytes(command.piece)
    if not size or size > PIECE_BYTES_MAX:
        text = f"a piece of a model is 1 to {PIECE_BYTES_MAX} bytes in base64"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    upload = state.models.upload
    held = upload.pieces if upload is not None and upload.digest == command.digest else ()
    if 0 <= command.number < len(held) and held[command.number] == command.piece:
        return state, Result(ok=True, text="stored already")
    if command.number not in {0, len(held)}:
        text = f"piece {command.number} of a model whose pieces up to {len(held)} are known"
        return refuse(state, Reason.STATE_CHANGED, f"{text}: another one is being installed")
    pieces = (*held, command.piece) if command.number else (command.piece,)
    if sum(decoded_bytes(each) or 0 for each in pieces) > MODEL_BYTES_MAX:
        text = f"a model is at most {MODEL_BYTES_MAX >> 20} MiB"
        return refuse(state, Reason.LIMIT_REACHED, text)
    after = replace(state.models, upload=Upload(digest=command.digest, pieces=pieces))
    return replace(state, models=after), Result(ok=True)


def install_model(state: ClusterState, command: c.InstallModel) -> Applied:
    """A model whose pieces are all there becomes a version.

    | `InstallModel(head, model id, digest)` | the stored pieces are that file, by its SHA-256;
    there is room | it is the newest version and runs beside the one that answers; older versions
    that nothing needs make room; no change of the map. |
    """
    models = state.models
    for known in models.versions:
        if known.digest == command.digest and known.head is command.head:
            return state, Result(ok=True, text="installed already", version=known.version)
    if models.upload is None or models.upload.digest != command.digest:
        text = "its bytes are not here: another model is being installed, try again"
        return refuse(state, Reason.STATE_CHANGED, text)
    content = upload_bytes(models.upload.pieces)
    if digest_of(content) != command.digest:
        text = "the bytes are not those of its SHA-256: try again"
        return refuse(state, Reason.STATE_CHANGED, text)
    version = ModelVersion(
        version=models.installed + 1,
        head=command.head,
        model_id=command.model_id,
        digest=command.digest,
        size_bytes=len(content),
        timestamp_ms=command.timestamp_ms,
        pieces=models.upload.pieces,
    )
    after = models.with_version(version)
    if after is None:
        text = (
            f"no room: at most {VERSIONS_MAX} versions and {MODELS_BYTES_MAX >> 20} MiB are kept, "
            "and all that are kept answer, answered before or run in shadow"
        )
        return refuse(state, Reason.LIMIT_REACHED, text)
    return replace(state, models=after), Result(ok=True, text="installed", version=version.version)


def promote_model(state: ClusterState, command: c.PromoteModel) -> Applied:
    """Another version of a head answers.

    | `PromoteModel(head, version)` | the version is kept and of that head, or 0: the shipped one |
    it answers on every LAS node; what answered is what a roll-back goes to; no change of the
    map. |
    """
    chosen = state.models.version(command.version)
    if command.version != SHIPPED and (chosen is None or chosen.head is not command.head):
        text = f"no {command.head} model has the version {command.version}: see `las model list`"
        return refuse(state, Reason.UNKNOWN_MODEL, text)
    now = state.models.of(command.head)
    if now.live == command.version:
        return state, Result(ok=True, text="it answers already", version=command.version)
    candidate = None if now.candidate == command.version else now.candidate
    after = replace(now, live=command.version, before=now.live, candidate=candidate)
    models = state.models.with_head(after)
    return replace(state, models=models), Result(ok=True, text=after.words, version=after.live)


def roll_back_model(state: ClusterState, command: c.RollBackModel) -> Applied:
    """The version that answered before answers again.

    | `RollBackModel(head, version)` | that version answers, and one did before | the one before
    answers on every LAS node; no change of the map. |
    """
    now = state.models.of(command.head)
    if now.live != command.version:
        text = f"{version_words(now.live)} of the {command.head} model answers by now: look again"
        return refuse(state, Reason.STATE_CHANGED, text)
    if now.before is None:
        text = (
            f"{version_words(now.live)} of the {command.head} model has none before it: "
            "`las model promote` takes any version of `las model list`"
        )
        return refuse(state, Reason.STATE_CHANGED, text)
    after = replace(now, live=now.before, before=None)
    models = state.models.with_head(after)
    return replace(state, models=models), Result(ok=True, text=after.words, version=after.live)
