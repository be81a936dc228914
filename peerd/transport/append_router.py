"""A unary append on its way to the shard's primary: here, or one hop away, until the deadline.

While a shard has no primary that can be reached (a failover is under way), the accepting peer waits
for the map instead of failing: a client without our library should not have to know about it.

Invariants:
- An append is sent a second time only where that cannot store it twice: after refusals that all say
  *taken = no*, or under a producer id, by which the primary recognises it (G4).
- Where neither holds and the outcome is not known, the caller is told OUTCOME_UNKNOWN: neither
  success nor failure is ever guessed.
- Waiting ends at the deadline of the call.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio

from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Taken
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.append_edge import CheckedAppend
from peerd.transport.host_api import AppendHost, AppendOutcome
from peerd.transport.joining import AppendJoiner
from peerd.transport.limits import RETRY_AFTER_MS, RETRY_STEP_MS
from peerd.transport.map_cache import MapCache
from peerd.transport.router import Router, Target
from peerd.transport.status import (
    Refused,
    encode_refusal,
    reason_of,
    refusal,
    refusal_of_error,
)
from peerd.transport.waiting import is_cancelled, wait_for
from peerd.v1 import batch_pb2, errors_pb2, log_pb2

# What another try, here or elsewhere, may cure.
_TRY_AGAIN = frozenset(
    {
        Reason.NOT_PRIMARY,
        Reason.MOVED,
        Reason.FENCED,
        Reason.MAP_UNKNOWN,
        Reason.OUTCOME_UNKNOWN,
        Reason.STORE_FAILED,
        Reason.SHUTTING_DOWN,
    }
)

Answer = batch_pb2.Receipt | errors_pb2.Refusal


@dataclass(slots=True)
class _Attempts:
    """What is known after the tries so far. `deadline` is of `time.monotonic`, in seconds."""

    deadline: float
    maybe_taken: bool = False
    hint: Target | None = None
    last: errors_pb2.Refusal = field(default_factory=errors_pb2.Refusal)

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


class AppendRouter:
    """Brings checked appends to their primary."""

    def __init__(
        self, host: AppendHost, joiner: AppendJoiner, cache: MapCache, router: Router
    ) -> None:
        """`joiner` takes the appends that `host` orders."""
        self._host = host
        self._joiner = joiner
        self._cache = cache
        self._router = router

    async def append(
        self, append: CheckedAppend, *, timeout_s: float, is_forwarded: Callable[[], bool]
    ) -> batch_pb2.Receipt:
        """Returns the receipt.

        Args:
            append: What to append.
            timeout_s: How long to try; what is under way then is answered OUTCOME_UNKNOWN.
            is_forwarded: Whether the call was forwarded: one try, here. Asked only where it
                makes a difference.

        Raises:
            Refused: with what is known of the outcome in `taken`.
        """
        begun_s = time.monotonic()
        changed = self._cache.changed
        refused: errors_pb2.Refusal | None = None
        if self._host.is_primary(append.shard):
            # Nearly every append: nothing is made for it that only another try needs.
            answer = await self._here(append, timeout_s)
            if isinstance(answer, batch_pb2.Receipt):
                return answer
            refused = answer
        attempts = _Attempts(deadline=begun_s + timeout_s)
        may_forward = not is_forwarded()
        while True:
            if refused is None:
                changed = self._cache.changed
                answer = await self._attempt(append, attempts, may_forward=may_forward)
                if isinstance(answer, batch_pb2.Receipt):
                    return answer
                refused = answer
            attempts.last = refused
            attempts.maybe_taken |= refused.taken != errors_pb2.TAKEN_NO
            refused = None
            if not may_forward or not self._is_worth_another(append, attempts):
                raise Refused(_told(attempts))
            if not self._learn_leader(append, attempts):
                # Nobody to go to yet: the map will say, or the one that it names comes up.
                step_s = min(attempts.left_s, RETRY_STEP_MS / 1000)
                await wait_for(changed, step_s)
            if attempts.left_s <= 0:
                raise Refused(_told(attempts))

    def _is_worth_another(self, append: CheckedAppend, attempts: _Attempts) -> bool:
        if attempts.maybe_taken and not append.header.producer:
            return False
        return attempts.left_s > 0 and reason_of(attempts.last) in _TRY_AGAIN

    def _learn_leader(self, append: CheckedAppend, attempts: _Attempts) -> bool:
        """Takes the leader that a refusal names, unless it is the one that was just tried."""
        before = attempts.hint
        attempts.hint = self._router.target_at(append.shard, attempts.last.leader)
        return attempts.hint is not None and attempts.hint != before

    async def _attempt(
        self, append: CheckedAppend, attempts: _Attempts, *, may_forward: bool
    ) -> Answer:
        if not may_forward or self._host.is_primary(append.shard):
            return await self._here(append, attempts.left_s)
        target = attempts.hint or self._router.primary_of(append.shard)
        if target is None:
            # It is us according to the map, or nobody: the core knows which.
            return await self._here(append, attempts.left_s)
        step_s = min(attempts.left_s, RETRY_STEP_MS / 1000)
        if not await self._router.connected(target.address, step_s):
            attempts.hint = None
            return _not_reached(append, target)
        return await self._there(append, target, attempts.left_s)

    async def _here(self, append: CheckedAppend, timeout_s: float) -> Answer:
        if self._host.space_in_reserve and self._host.is_primary(append.shard):
            return disk_reserve()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[AppendOutcome | None] = loop.create_future()

        def done(result: AppendOutcome | None) -> None:
            # The time may be over meanwhile, or the caller gone.
            if not outcome.done():
                outcome.set_result(result)

        # Not `asyncio.timeout`, which takes several times as long, for each append.
        timer = loop.call_later(timeout_s, done, None)
        try:
            self._joiner.append(append, done)
            result = await outcome
        finally:
            timer.cancel()
        if result is None:
            return outcome_unknown(f"shard {append.shard} did not answer in time")
        if isinstance(result, AppendAccepted):
            return encode_receipt(append.log, result)
        return encode_refusal(result, self._router.address_of)

    async def _there(self, append: CheckedAppend, target: Target, timeout_s: float) -> Answer:
        call = self._router.unary(target.address, "Append", log_pb2.AppendResponse.FromString)(
            encode_append(append).SerializeToString(),
            timeout=timeout_s,
            metadata=self._router.forward_metadata,
        )
        self._router.watch(append.shard, target, call)
        try:
            response: log_pb2.AppendResponse = await call
        except grpc.aio.AioRpcError as error:
            return refusal_of_error(error) or outcome_unknown(
                f"{target.process.peer} ({target.address}): {error.code().name}"
            )
        except asyncio.CancelledError:
            if not self._router.unwatch(append.shard, call) or is_cancelled():
                raise
            return outcome_unknown(f"{target.process.peer} lost the shard before it answered")
        finally:
            self._router.unwatch(append.shard, call)
        return response.receipt


# ------------------------------------------------------------------------------ words and forms


def encode_receipt(log: str, accepted: AppendAccepted) -> batch_pb2.Receipt:
    """The wire form of a receipt."""
    return batch_pb2.Receipt(
        log=log,
        shard=accepted.shard,
        epoch=accepted.epoch,
        base_offset=accepted.base,
        record_count=accepted.record_count,
        durable_on=[replica.peer for replica in accepted.durable_on],
        duplicate=accepted.duplicate,
        timestamp_ms=accepted.timestamp_ms,
    )


def encode_append(append: CheckedAppend) -> log_bytes_pb2.AppendRequestBytes:
    """The request by which a checked append travels on, routed and with its checksum."""
    header = append.header
    return log_bytes_pb2.AppendRequestBytes(
        log=append.log,
        shard=append.shard,
        batch=append.payload,
        payload_crc=header.payload_crc,
        producer_id=header.producer,
        first_sequence=header.first_sequence,
        expected_offset=append.expected_offset,
    )


def outcome_unknown(why: str) -> errors_pb2.Refusal:
    """OUTCOME_UNKNOWN; `why` says what happened."""
    return refusal(
        Reason.OUTCOME_UNKNOWN,
        f"the batch was sent on and may be in the log: {why}; send the same sequence again",
        taken=Taken.UNKNOWN,
        retry_after_ms=RETRY_AFTER_MS,
    )


def disk_reserve() -> errors_pb2.Refusal:
    """DISK_RESERVE."""
    return refusal(
        Reason.DISK_RESERVE,
        "the primary's store has reached its space reserve (storage.reserve_bytes): appends resume "
        "when space is freed",
        retry_after_ms=1000,
    )


def _not_reached(append: CheckedAppend, target: Target) -> errors_pb2.Refusal:
    return refusal(
        Reason.NOT_PRIMARY,
        f"shard {append.shard} of {append.log!r} has no primary that can be reached "
        f"({target.process.peer} at {target.address} cannot): try again",
        retry_after_ms=RETRY_AFTER_MS,
    )


def _told(attempts: _Attempts) -> errors_pb2.Refusal:
    """The last refusal, with what is known over all tries: an earlier one may have been taken."""
    wire = errors_pb2.Refusal()
    wire.CopyFrom(attempts.last)
    if attempts.maybe_taken:
        wire.taken = errors_pb2.TAKEN_UNKNOWN
        if reason_of(wire) in _TRY_AGAIN - {Reason.OUTCOME_UNKNOWN}:
            return outcome_unknown(wire.message)
    return wire
