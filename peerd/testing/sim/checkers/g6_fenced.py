"""G6: after a replica has promised f, nothing of an older epoch changes it or is acknowledged."""

from collections.abc import Sequence
from typing import cast

from peerd.core.durable import AdoptEpoch, AppendBatches, Outcome, Stored, StoredShard
from peerd.core.messages import Ack, Message
from peerd.testing.sim.checkers.base import Checker, broken
from peerd.testing.sim.store import SimStore


class Fenced(Checker):
    """Looks at each write in queue order, and at each `Ack`."""

    def stored(self, store: SimStore, before: StoredShard, outcomes: Sequence[Outcome]) -> None:  # noqa: ARG002
        """No adoption and no batch below the promise; promise and adoption never fall."""
        promised, adopted = before.promised, before.adopted
        for outcome in outcomes:
            operation, after = outcome.operation, outcome.state
            kind = type(operation)
            if (
                (kind is AppendBatches or kind is AdoptEpoch)
                and cast(AppendBatches, operation).epoch < promised
                and isinstance(outcome, Stored)
            ):
                broken("G6", f"{operation} was taken after {promised} was promised")
            if after.promised < promised or after.adopted < adopted:
                broken("G6", f"{operation}: the promise {promised} or the adoption was forgotten")
            promised, adopted = after.promised, after.adopted

    def said(self, stored: StoredShard, message: Message) -> None:
        """Nothing of an epoch below the promise is acknowledged."""
        if type(message) is Ack and message.epoch < stored.promised:
            broken("G6", f"{message} was said after {stored.promised} was promised")
