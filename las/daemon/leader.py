"""What only the leader does, and for how long: one `Term` from election to loss.

Invariants:
- A term begins after a barrier: its first look at the state shows all that was ever acknowledged.
- A term ends in the very call that tells of the loss of leadership; nothing of it acts afterwards,
  but for commands under way, which the consensus log refuses or which were as good as committed.
- Nothing is carried over: a new leader gives each node a whole lease before it counts as silent,
  and learns health from the windows that peers send on their new streams.

Must not: decide anything about shards or nodes itself.
"""

import asyncio
from collections.abc import Callable, Coroutine

from las.daemon.group import Group
from las.daemon.term import Term
from las.raft import RaftStatus
from peerd.daemon.logging import get_logger
from peerd.daemon.supervisor import Supervisor
from peerd.transport.status import Refused

_log = get_logger("leader")

TermMaker = Callable[[int], Term]


class Leadership:
    """Begins and ends terms. Used on the event loop."""

    def __init__(self, group: Group, supervisor: Supervisor, make_term: TermMaker) -> None:
        """`make_term` gets the number of the consensus term."""
        self._group = group
        self._supervisor = supervisor
        self._make_term = make_term
        self._term: Term | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted = asyncio.Event()
        group.on_status(self._status_changed)

    @property
    def term(self) -> Term | None:
        """The term under way, if this node leads."""
        return self._term

    def require(self) -> Term:
        """The term under way. Raises `Refused`: NOT_LAS_LEADER."""
        if self._term is None:
            raise self._group.not_leader()
        return self._term

    async def run(self) -> None:
        """Begin a term whenever this node is elected; ends never."""
        self._status_changed(self._group.status)
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            status = self._group.status
            if not status.is_leader or self._term is not None:
                continue
            try:
                await self._group.barrier()
            except Refused as refused:
                _log.info("leadership not confirmed", term=status.term, why=str(refused))
                self._try_again()
                continue
            # The loss may have been told while the barrier was under way.
            if self._group.status.is_leader and self._group.status.term == status.term:
                self._begin(status.term)
            else:
                self._wanted.set()

    def _try_again(self) -> None:
        asyncio.get_running_loop().call_later(RETRY_S, self._wanted.set)

    def _begin(self, number: int) -> None:
        term = self._term = self._make_term(number)
        _log.info("leading", term=number)
        for name, work in term.works():
            self._tasks.append(self._supervisor.start(f"{name} of term {number}", work))

    def _status_changed(self, status: RaftStatus) -> None:
        term = self._term
        if term is not None and (not status.is_leader or status.term != term.number):
            self._end(term)
        if status.is_leader and self._term is None:
            self._wanted.set()

    def _end(self, term: Term) -> None:
        self._term = None
        term.end()
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        _log.warning("no longer leading", term=term.number)

    def begin_anew(self) -> None:
        """End the term under way, and begin another one of the same number."""
        if self._term is not None:
            self._end(self._term)
            self._wanted.set()

    def stop(self) -> None:
        """End the term under way, if there is one."""
        if self._term is not None:
            self._end(self._term)


# Pause before a leader whose barrier failed tries again, in seconds.
RETRY_S = 0.1
Work = Coroutine[None, None, None]
