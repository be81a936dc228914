"""Results of commands as typed refusals, and the refusal of calls that come later."""

from collections.abc import Mapping

from las.core.commands import Reason as Outcome
from las.core.commands import Result
from peerd.core.errors import Reason
from peerd.transport.status import Refused, refusal

REASONS: Mapping[Outcome, Reason] = {
    Outcome.MALFORMED: Reason.INTERNAL,
    Outcome.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
    Outcome.UNKNOWN_LOG: Reason.UNKNOWN_LOG,
    Outcome.UNKNOWN_SHARD: Reason.UNKNOWN_SHARD,
    Outcome.UNKNOWN_NODE: Reason.UNKNOWN_NODE,
    Outcome.UNKNOWN_MODEL: Reason.UNKNOWN_MODEL,
    Outcome.UNKNOWN_SEGMENT: Reason.STATE_CHANGED,
    Outcome.LOG_EXISTS: Reason.LOG_EXISTS,
    Outcome.LIMIT_REACHED: Reason.LIMIT_REACHED,
    Outcome.STATE_CHANGED: Reason.STATE_CHANGED,
    Outcome.FENCED: Reason.STATE_CHANGED,
    Outcome.HALTED: Reason.STATE_CHANGED,
    Outcome.STORE_ID_CHANGED: Reason.STORE_ID_CHANGED,
    Outcome.STALE_BOOT: Reason.PROCESS_SUPERSEDED,
    Outcome.LAS_LOST_ITS_PAST: Reason.LAS_LOST_ITS_PAST,
}
"""Why a command changed nothing -> why the call that wanted it is refused."""


def require_ok(result: Result) -> Result:
    """`result` if the state is now as the command wanted it.

    Raises:
        Refused: it is not; with the reason above and the command's own words.
    """
    if not result.ok:
        raise Refused(refusal(REASONS[result.reason], result.text, epoch=result.epoch))
    return result


def not_served_yet(call: str) -> Refused:
    """What calls of the contract that come later are answered."""
    return Refused(refusal(Reason.NOT_SERVED_YET, f"{call} is not served by this version yet"))


def invalid(message: str) -> Refused:
    """A field is missing, out of its range or contradicts another."""
    return Refused(refusal(Reason.INVALID_ARGUMENT, message))
