"""The commands that change the committed state, and their results: plain values with a JSON form.

`las.core.apply` says for each when it is committed and what it does; docs/protocol.md §4 has the
table. A command is at most 64 KiB of JSON in the consensus log, so what is long names nodes and not
processes. A result never raises: a command that found something else than it expected is answered
`ok = False` with a `Reason`, and the one who sent it looks again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from las.core.access_commands import ACCESS_COMMANDS, AccessCommand
from las.core.codec import (
    CodecError,
    JsonValue,
    UnknownName,
    decode,
    encode,
    from_json,
    to_json,
)
from las.core.history import NOTHING_TAKEN, Cause, Outage, Taken
from las.core.holder_commands import HOLDER_COMMANDS, HolderCommand
from las.core.ledger import Case, Outcome
from las.core.model_registry import ModelHead
from las.core.rows import ChangeShards, StepShards
from las.core.state import NO_NODE, NO_SHARD, NodeState
from las.core.tier_commands import CoolShard, SetTier, TierShard
from peerd.core.check import InvariantViolation
from peerd.core.ids import (
    NO_EPOCH,
    BootId,
    Epoch,
    NodeName,
    Offset,
    ProcessId,
    ReplicaId,
    ShardId,
    StoreId,
)
from peerd.core.shard_map import Compression, Plan


# ---------------------------------------------------------------------------------- segments
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateLog:
    """A log with its shards; row i of `rows` names the replicas of shard i by index into `nodes`.

    The first of a row is the primary, all of a row vote. Each row has `copies` different nodes.
    """

    name: str
    copies: int
    acks: int
    nodes: tuple[NodeName, ...]
    rows: tuple[tuple[int, ...], ...]
    compression: Compression = Compression.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSegment:
    """Prepare a segment after the open one, `epoch`; its own epoch is in the result."""

    shard: ShardId
    epoch: Epoch
    plan: Plan
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSplit:
    """Prepare the closed segment after the open one, `epoch`; its own epoch is in the result.

    `key_hash` is the first of the upper child. `plan` is composed like any other; it is closed when
    the command is applied.
    """

    shard: ShardId
    epoch: Epoch
    key_hash: int
    plan: Plan
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOpened:
    """The prepared segment `epoch` began at `begin`; `holders` have the one before it whole."""

    shard: ShardId
    epoch: Epoch
    begin: Offset
    holders: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawSegment:
    """The process `declined_by`, primary of the open segment, will never switch to `epoch`."""

    shard: ShardId
    epoch: Epoch
    declined_by: ProcessId


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceSegment:
    """Fence the open segment `epoch`, and the prepared one if there is one. The result has f."""

    shard: ShardId
    epoch: Epoch
    prepared: Epoch = NO_EPOCH
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredSegment:
    """Where a segment ends by recovery, who has it whole, and how far it was known committed."""

    end: Offset
    known_commit: Offset
    holders: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSegment:
    """Finish the fence: seal e (and e′ if it was recovered) and open `fence` with `plan`."""

    shard: ShardId
    fence: Epoch
    plan: Plan
    ended: RecoveredSegment
    ended_prepared: RecoveredSegment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverWithGap:
    """A person finishes the fence with too few answers: as `OpenSegment`, and the shard goes on at
    `resume_at`. What lies between is a gap: lost for good.

    `given_up` are the voters whose answers are not waited for any more. `why` is one line for
    readers.
    """

    shard: ShardId
    fence: Epoch
    plan: Plan
    ended: RecoveredSegment
    ended_prepared: RecoveredSegment | None = None
    resume_at: Offset
    given_up: tuple[ReplicaId, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WantHolders:
    """The stores that shall fetch a sealed segment, in place of those wanted before."""

    shard: ShardId
    epoch: Epoch
    holders: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddHolder:
    """A store has a sealed segment whole and verified."""

    shard: ShardId
    epoch: Epoch
    holder: ReplicaId


@dataclass(frozen=True, slots=True, kw_only=True)
class DropHolder:
    """A store says that its copy of a sealed segment is damaged or gone."""

    shard: ShardId
    epoch: Epoch
    holder: ReplicaId


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimShard:
    """Nothing below `trimmed_to`, which lies in or at the end of `epoch`, is kept any more.

    Who sends it was told by the epoch's primary, or a holder, that batches meet there and that it
    is committed and, in the open segment, durable on every replica.
    """

    shard: ShardId
    epoch: Epoch
    trimmed_to: Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltShard:
    """`node` showed `epoch`, which is above all that was drawn; or its answer contradicts others to
    `fence`, the standing one (0: none does).
    """

    shard: ShardId
    epoch: Epoch
    node: NodeName
    why: str
    fence: Epoch = NO_EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseShards:
    """Shards that are held since the group began from older data, of which it is known now that
    nothing that was lost concerns them (`las.core.recovered.may_be_freed`).
    """

    shards: tuple[ShardId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUpSkipped:
    """A person gives up what lost commits may have opened; `why` is one line for readers."""

    shard: ShardId
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCopies:
    """How many copies of a log there are, and how many of them acknowledge."""

    log: str
    copies: int
    acks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteLog:
    """A log goes, with its records. `shards` are those that it has: a log of the same name that was
    made later has others.
    """

    log: str
    shards: tuple[ShardId, ...]


# ---------------------------------------------------------------------------------- retention
@dataclass(frozen=True, slots=True, kw_only=True)
class SetRetention:
    """How long the records of a log are kept; 0: for ever."""

    log: str
    retention_bytes: int
    retention_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCompression:
    """How clients pack what they append to a log from now on."""

    log: str
    compression: Compression


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkAges:
    """The clock of retention stands at `clock_ms`; up to where shards are committed by now."""

    clock_ms: int
    marks: tuple[tuple[ShardId, Offset], ...] = ()


# ---------------------------------------------------------------------------------- nodes
@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterNode:
    """A process announces itself. `stored` are epochs of its store that look too high (§4.4).

    `outlived` are known epochs that a lost commit has ended or opened, as the store shows (§4.6);
    `told_all` is False if there was more to tell of both than fits.
    `at_s` is the leader's wall time for the history of failures, 0: nothing is written there; and
    `ended_by` why the process before this one ended, if nobody has said so yet.
    """

    name: NodeName
    store: StoreId
    boot: BootId
    address: str
    labels: tuple[tuple[str, str], ...] = ()
    may_lead: bool = True
    feature_level: int = 1
    stored: tuple[tuple[ShardId, Epoch], ...] = ()
    outlived: tuple[tuple[ShardId, Epoch], ...] = ()
    told_all: bool = True
    at_s: int = 0
    ended_by: Cause = Cause.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class SetNodeState:
    """What is thought of the process `boot` of a node.

    `at_s` is the leader's wall time for the history of failures, 0: nothing is written there; and
    `cause` why the node is down, or was.
    """

    node: NodeName
    boot: BootId
    state: NodeState
    why: str = ""
    at_s: int = 0
    cause: Cause = Cause.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAtRisk:
    """The forecast's judgement of a node."""

    node: NodeName
    at_risk: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDraining:
    """An operator's wish for a node. `until_ms`: where the committed clock ends it; 0: nowhere."""

    node: NodeName
    draining: bool
    until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNode:
    """An operator takes a node out of the fleet."""

    node: NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceNode:
    """An operator puts a new store in the place of the one that a node registered with.

    `accept_loss`: also where records may be left on no store that is known.
    """

    node: NodeName
    store: StoreId
    accept_loss: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEvent:
    """A decision or outcome for a node's history. `timestamp_ms` is the leader's, for people."""

    node: NodeName
    kind: str
    text: str
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseCommandLevel:
    """All members of the group know the commands of `level`: they may be used from now on."""

    level: int


# ---------------------------------------------------------------------------------- audit
@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks for `what`, by the certificate, and when.

    `clock_ms` is the leader's reading of the committed clock, `timestamp_ms` its wall clock, for
    people.
    """

    who: str
    role: str
    what: str
    clock_ms: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a call is about; what does not apply is empty or 0. `model` is the head of one."""

    node: NodeName = NO_NODE
    log: str = ""
    shard: ShardId = NO_SHARD
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A command that somebody asked for; never one that is audited already."""

    caller: Caller
    command: "Command"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRefusal:
    """What somebody asked for was refused before it became a command."""

    caller: Caller
    target: Target
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRejoin:
    """A LAS node came back with another directory, by `las rejoin`; `caller` names the node."""

    caller: Caller
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOutages:
    """Outages that somebody else has seen, for the history of failures."""

    outages: tuple[Outage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCase:
    """An alarm for the ledger. Number and outcome of `case` are given when it is applied."""

    case: Case


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseCase:
    """How the case `number` ended; see `las.core.ledger.Case` for the rest."""

    number: int
    outcome: Outcome
    closed_ms: int
    lead_ms: int = 0
    shielded_ms: int = -1
    expendable_ms: int = -1
    pause_ms: int = -1
    told: str = ""


# ---------------------------------------------------------------------------------- models
@dataclass(frozen=True, slots=True, kw_only=True)
class StoreModelPiece:
    """The piece `number`, from 0, of the file whose SHA-256 is `digest`; in base64."""

    digest: str
    number: int
    piece: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallModel:
    """The stored pieces are the model `model_id` of a head. `timestamp_ms` is for people."""

    head: ModelHead
    model_id: str
    digest: str
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteModel:
    """A version of a head answers from now on; 0: the shipped one."""

    head: ModelHead
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBackModel:
    """In place of `version` the one before it answers again."""

    head: ModelHead
    version: int


Command = (
    CreateLog
    | PrepareSegment
    | PrepareSplit
    | SegmentOpened
    | WithdrawSegment
    | FenceSegment
    | OpenSegment
    | ChangeShards
    | StepShards
    | RaiseCommandLevel
    | RecoverWithGap
    | WantHolders
    | AddHolder
    | DropHolder
    | HolderCommand
    | TrimShard
    | TierShard
    | CoolShard
    | HaltShard
    | ReleaseShards
    | GiveUpSkipped
    | SetCopies
    | DeleteLog
    | SetRetention
    | SetTier
    | SetCompression
    | MarkAges
    | RegisterNode
    | SetNodeState
    | SetAtRisk
    | SetDraining
    | RemoveNode
    | ReplaceNode
    | RecordEvent
    | OpenCase
    | CloseCase
    | StoreModelPiece
    | InstallModel
    | PromoteModel
    | RollBackModel
    | AccessCommand
    | Audited
    | RecordRefusal
    | RecordRejoin
    | RecordOutages
)

COMMANDS: Mapping[str, type[Command]] = {
    "create_log": CreateLog,
    "prepare_segment": PrepareSegment,
    "prepare_split": PrepareSplit,
    "segment_opened": SegmentOpened,
    "withdraw_segment": WithdrawSegment,
    "fence_segment": FenceSegment,
    "open_segment": OpenSegment,
    "change_shards": ChangeShards,
    "step_shards": StepShards,
    "raise_command_level": RaiseCommandLevel,
    "recover_with_gap": RecoverWithGap,
    "want_holders": WantHolders,
    "add_holder": AddHolder,
    "drop_holder": DropHolder,
    **HOLDER_COMMANDS,
    "trim_shard": TrimShard,
    "tier_shard": TierShard,
    "cool_shard": CoolShard,
    "halt_shard": HaltShard,
    "release_shards": ReleaseShards,
    "give_up_skipped": GiveUpSkipped,
    "set_copies": SetCopies,
    "delete_log": DeleteLog,
    "set_retention": SetRetention,
    "set_tier": SetTier,
    "set_compression": SetCompression,
    "mark_ages": MarkAges,
    "register_node": RegisterNode,
    "set_node_state": SetNodeState,
    "set_at_risk": SetAtRisk,
    "set_draining": SetDraining,
    "remove_node": RemoveNode,
    "replace_node": ReplaceNode,
    "record_event": RecordEvent,
    "open_case": OpenCase,
    "close_case": CloseCase,
    "store_model_piece": StoreModelPiece,
    "install_model": InstallModel,
    "promote_model": PromoteModel,
    "roll_back_model": RollBackModel,
    **ACCESS_COMMANDS,
    "audited": Audited,
    "record_refusal": RecordRefusal,
    "record_rejoin": RecordRejoin,
    "record_outages": RecordOutages,
}
"""Names of the commands in the consensus log. A name is never used again for something else."""

_NAMES = {kind: name for name, kind in COMMANDS.items()}
_AUDITED = _NAMES[Audited]


# ---------------------------------------------------------------------------------- results
class Reason(StrEnum):
    """Why a command changed nothing. The edges map these to `peerd.v1.ErrorReason`."""

    NONE = "none"
    MALFORMED = "malformed"
    INVALID_ARGUMENT = "invalid_argument"
    UNKNOWN_LOG = "unknown_log"
    UNKNOWN_SHARD = "unknown_shard"
    UNKNOWN_NODE = "unknown_node"
    UNKNOWN_SEGMENT = "unknown_segment"
    UNKNOWN_MODEL = "unknown_model"
    LOG_EXISTS = "log_exists"
    LIMIT_REACHED = "limit_reached"
    STATE_CHANGED = "state_changed"
    """The state is not what the command expected: look again."""
    FENCED = "fenced"
    """A fence stands; it is finished first."""
    HALTED = "halted"
    """The LAS does not change this shard until a person has looked."""
    STORE_ID_CHANGED = "store_id_changed"
    STALE_BOOT = "stale_boot"
    """The boot id is of a process that is proven dead, or not the one that registered last."""
    LAS_LOST_ITS_PAST = "las_lost_its_past"
    """A store knows shards that this LAS never created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """The outcome of one change of many; a text only if it was refused."""

    ok: bool = True
    reason: Reason = Reason.NONE
    text: str = ""
    epoch: Epoch = NO_EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a command. `ok`: the state is now as the command wants it.

    `epoch` is the epoch that was drawn, or the one that stands in the way. `shards` are those of a
    new log, or those that a registration halted. `taken` is what became of outages, `version` that
    of a model. `each` has the outcomes of a command for many shards, in the order of its tables of
    rows; it is itself ok whatever they are.
    """

    ok: bool
    reason: Reason = Reason.NONE
    text: str = ""
    epoch: Epoch = NO_EPOCH
    shards: tuple[ShardId, ...] = ()
    taken: Taken = NOTHING_TAKEN
    version: int = 0
    each: tuple[ShardResult, ...] = ()


# ---------------------------------------------------------------------------------- JSON
def command_to_json(command: Command) -> str:
    """The command as it stands in the consensus log."""
    return to_json(_command_value(command))


def _command_value(command: Command) -> JsonValue:
    if isinstance(command, Audited):
        inner = _command_value(command.command)
        return {"command": _AUDITED, "caller": encode(command.caller), "of": inner}
    return {"command": _NAMES[type(command)], **_fields(command)}


def command_from_json(text: str) -> Command:
    """The command of `text`.

    Raises:
        UnknownName: it is of another version of this program, as it seems.
        CodecError: it is none; `UnknownName` is one, too.
    """
    return _command_of(from_json(text))


def _command_of(value: JsonValue) -> Command:
    if not isinstance(value, dict):
        raise CodecError("a command is a JSON object")
    name = value.pop("command", None)
    if not isinstance(name, str):
        raise CodecError("a command has a name")
    kind = COMMANDS.get(name)
    if kind is None:
        raise UnknownName(f"no command is called {name!r}")
    try:
        if kind is Audited:
            return _audited_of(value)
        return decode(kind, value)
    except (InvariantViolation, ValueError) as violation:
        raise CodecError(f"{name}: {violation}") from violation


def _audited_of(value: dict[str, JsonValue]) -> Audited:
    inner = value.get("of")
    if value.keys() != {"caller", "of"} or not isinstance(inner, dict):
        raise CodecError("Audited: expected a caller and the command that it is of")
    if inner.get("command") == _AUDITED:
        raise CodecError("Audited: the command is audited already")
    return Audited(caller=decode(Caller, value["caller"]), command=_command_of(inner))


def result_to_json(result: Result) -> str:
    """The result as consensus hands it back."""
    return to_json(encode(result))


def result_from_json(text: str) -> Result:
    """The result of `text`. Raises `CodecError` for anything that is none."""
    return decode(Result, from_json(text))


def _fields(command: Command) -> dict[str, JsonValue]:
    value = encode(command)
    if not isinstance(value, dict):  # pragma: no cover - a command is a dataclass
        raise CodecError("a command is encoded as a JSON object")
    return value
