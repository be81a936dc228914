"""The LAS's Raft group as its daemon sees it: give a command, wait for its result, know the leader.

Invariants:
- `submit` returns only results of committed commands; `OutcomeUnknown` is said whenever that is not
  known; every other error proves that the command is not applied.
- `barrier` returns only after a no-op that was given after the call was made has been applied: what
  was acknowledged before the call, by whomever, is in the local state machine then.
- All methods belong to one event loop; `on_change` is called in it.

Must not: know what commands mean.
"""

import asyncio
import itertools
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from las.raft.driver import RaftThread
from las.raft.errors import (
    CommandInvalid,
    CommandTooLarge,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    RaftError,
)
from las.raft.links import ChannelFactory, Metadata, OutgoingLink, RaftServicer
from las.raft.member import (
    OPEN_COMMANDS_MAX,
    OVERLOAD_RETRY_MS,
    Outcome,
    RaftMember,
    RaftStatus,
    StateMachine,
    Step,
    Timing,
)
from las.raft.sessions import Envelope
from las.raft.store import open_directory

logger = logging.getLogger(__name__)

# limit: bytes of one command; a thousand plans have to be cut, and no entry holds up a heartbeat
COMMAND_BYTES_MAX = 64 * 1024
# Exit status of a process that ends itself in doubt; an internal software error in sysexits.h.
FAIL_STOP_STATUS = 70


def fail_stop(reason: str) -> None:
    """Ends the process at once: no clean-up may write anything, no handler may go on."""
    logger.critical("fail-stop: %s", reason)
    logging.shutdown()
    os._exit(FAIL_STOP_STATUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftOptions:
    """Settings of one member.

    Attributes:
        name: This member, as in its certificate.
        members: Name to "host:port" of all members, this one included.
        directory: Its data directory, made by `las init` or `las rejoin`.
        cluster: The cluster's name.
        seed: Of timers and back-offs; another one on each member.
        tick_ms: Longest time between two looks at the timers.
        heartbeat_ms: The leader's silence is never longer.
        election_timeout_ms: A follower that hears nothing asks for an election after a time drawn
            from this range. More than three heartbeats; a new leader takes about the middle of it.
        leader_fallback_ms: A leader that no majority answers steps down after this time.
        compaction_entries: A snapshot is due after so many entries.
        command_level: Highest level of commands that the state machine knows.
    """

    name: str
    members: Mapping[str, str]
    directory: Path
    cluster: str
    seed: int
    tick_ms: int = 20
    heartbeat_ms: int = 100
    election_timeout_ms: tuple[int, int] = (600, 1200)
    leader_fallback_ms: int = 1000
    compaction_entries: int = 5000
    command_level: int = 1

    def __post_init__(self) -> None:
        if self.name not in self.members:
            raise RaftError(f"{self.name!r} is not among the members {', '.join(self.members)}")
        shortest, longest = self.election_timeout_ms
        if not 3 * self.heartbeat_ms < shortest < longest:
            raise RaftError(
                f"election_timeout_ms {self.election_timeout_ms} has to be a range above three "
                f"heartbeats of {self.heartbeat_ms} ms"
            )
        if self.leader_fallback_ms <= self.heartbeat_ms:
            raise RaftError("leader_fallback_ms has to be longer than heartbeat_ms")

    def timing(self) -> Timing:
        """Returns the times in seconds."""
        shortest, longest = self.election_timeout_ms
        return Timing(
            heartbeat_s=self.heartbeat_ms / 1000,
            election_timeout_s=(shortest / 1000, longest / 1000),
            leader_fallback_s=self.leader_fallback_ms / 1000,
            compaction_entries=self.compaction_entries,
        )


class RaftNode:
    """One member with its thread and its links."""

    def __init__(
        self,
        options: RaftOptions,
        machine: StateMachine,
        *,
        channel_factory: ChannelFactory,
        identify: Callable[[grpc.aio.ServicerContext], str],
        on_change: Callable[[RaftStatus], None],
        metadata: Metadata = (),
        clock: Callable[[], float] = time.monotonic,
        fatal: Callable[[str], None] = fail_stop,
    ) -> None:
        """
        Args:
            options: See RaftOptions.
            machine: In its initial state; from `start` on owned by the raft thread.
            channel_factory: Makes a channel to an address, with this member's credentials. It must
                verify that the server is the one of that address.
            identify: Returns the member's name that the certificate of a call names (role `las`),
                or raises.
            on_change: Called after term, leader, links or vote changed (not for each commit).
            metadata: Goes with each stream that is dialled; where no certificate names the caller
                (plaintext on loopback), it does. Not by an interceptor: gRPC leaves tasks behind
                when an intercepted stream breaks.
            clock: Seconds, monotonic; the one that the library reads, except in tests.
            fatal: Ends the process when going on could lose a command.
        """
        self._options = options
        self._machine = machine
        self._channel_factory = channel_factory
        self._on_change = on_change
        self._metadata = metadata
        self._clock = clock
        self._fatal = fatal
        peers = {name: at for name, at in options.members.items() if name != options.name}
        self.servicer = RaftServicer(name=options.name, peers=peers, identify=identify)
        self._peers = peers
        self._rng = random.Random(options.seed)
        self._thread: RaftThread | None = None
        self._status: RaftStatus | None = None
        self._background: ThreadPoolExecutor | None = None
        self._links: dict[str, OutgoingLink] = {}
        self._dialling: list[asyncio.Task[None]] = []
        self._tokens = itertools.count(1)
        self._sequences = itertools.count(1)
        # Numbers begin anew with each process, so its name must be new, too.
        self._client = f"{options.name}/{secrets.token_hex(8)}"
        self._open: dict[int, Callable[[Outcome], None]] = {}
        self._barrier_running = False
        self._barrier_waiting: list[asyncio.Future[Outcome]] = []

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Opens the directory, loads it, and joins the group.

        Raises:
            StoreError: the directory cannot be used; its subclasses say why.
            LibraryChanged: the installed pysyncobj is another one.
            NotRunning: it was started before.
        """
        if self._thread is not None:
            raise NotRunning("a node is started once")
        self._background = ThreadPoolExecutor(1, thread_name_prefix="las-snapshot")
        thread = RaftThread(
            self._make_member,
            tick_s=self._options.tick_ms / 1000,
            on_step=self._on_step,
            fatal=self._fatal,
        )
        try:
            await thread.start()
        except BaseException:
            self._background.shutdown()
            raise
        self._thread = thread
        # Each step hands over its status before what waited for that step. The answer itself is
        # not taken: on a busy loop it is older than what came since, and what came is told once.
        await thread.call(RaftMember.status)
        self.servicer.serve(thread)
        for peer, address in self._peers.items():
            self._links[peer] = OutgoingLink(
                peer=peer,
                address=address,
                channel_factory=self._channel_factory,
                metadata=self._metadata,
                thread=thread,
                rng=self._rng,
            )
            dialling = asyncio.create_task(self._links[peer].run(), name=f"raft-link-{peer}")
            self._dialling.append(dialling)

    async def stop(self) -> None:
        """Leaves the group; open commands end as `OutcomeUnknown`. A second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.servicer.serve(None)
        for dialling in self._dialling:
            dialling.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        for token, outcome in await thread.stop():
            self._resolve(token, outcome)
        for token in list(self._open):
            self._resolve(token, OutcomeUnknown("this LAS node stops"))
        if self._background is not None:
            self._background.shutdown()

    def _make_member(self) -> RaftMember:
        options = self._options
        if self._background is None:
            raise NotRunning("the node was not started")
        store = open_directory(
            options.directory,
            cluster=options.cluster,
            name=options.name,
            members=options.members,
        )
        try:
            return RaftMember(
                store=store,
                machine=self._machine,
                seed=options.seed,
                clock=self._clock,
                background=self._background,
                fatal=self._fatal,
                timing=options.timing(),
                command_level=options.command_level,
            )
        except BaseException:
            store.close()
            raise

    # ------------------------------------------------------------------ commands

    async def submit(
        self, command: str, *, timeout_ms: int, command_id: tuple[str, int] | None = None
    ) -> str:
        """Lets the group apply a command and returns its result.

        Args:
            command: JSON text for the state machine, at most COMMAND_BYTES_MAX in UTF-8.
            timeout_ms: How long to wait for the outcome.
            command_id: (client, sequence). With the same one a command is applied once, however
                often it is given and to whichever leader, and each time the first result is
                returned. A client has one unanswered command at a time, and its sequence grows.
                None: an id of this process; such a command cannot be given again.

        Raises:
            NotLeader: not taken here; `leader` says where to go, if known.
            OutcomeUnknown: no outcome in time, or the leadership was lost: give it again, with the
                same `command_id`.
            CommandSuperseded: the client has had a later command applied already.
            Overloaded, CommandTooLarge, CommandInvalid, NotRunning: not taken.
        """
        size_bytes = len(command.encode("utf-8", "replace"))
        if size_bytes > COMMAND_BYTES_MAX:
            raise CommandTooLarge(size_bytes, COMMAND_BYTES_MAX)
        thread = self._running()
        if len(self._open) >= OPEN_COMMANDS_MAX:
            raise Overloaded(f"{OPEN_COMMANDS_MAX} commands are open", OVERLOAD_RETRY_MS)
        client, sequence = command_id or (self._client, next(self._sequences))
        envelope = Envelope(client=client, sequence=sequence, body=command)
        try:
            envelope.to_text().encode("utf-8")
        except UnicodeEncodeError as error:
            raise CommandInvalid(f"a command is UTF-8 text: {error}") from error
        token, waiter = self._await_outcome()
        thread.post(lambda member: member.propose(token, envelope))
        outcome = await self._within(waiter, timeout_ms)
        if not isinstance(outcome, str):
            raise outcome or RaftError("a command ended without a result")
        return outcome

    async def barrier(self, *, timeout_ms: int) -> None:
        """Returns once the local state machine holds all that was acknowledged before this call.

        One no-op serves all callers that wait when it is given; who comes later waits for the next,
        since the one on its way may be older than what the caller has seen.

        Raises:
            NotLeader: this member does not lead; ask `leader`.
            OutcomeUnknown: not reached in time, or the leadership was lost. Nothing has changed.
            NotRunning: the node is not running.
        """
        self._running()
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._barrier_waiting.append(waiter)
        if not self._barrier_running:
            self._start_barrier()
        outcome = await self._within(waiter, timeout_ms)
        if isinstance(outcome, RaftError):
            raise outcome

    def status(self) -> RaftStatus:
        """Returns what this member knew after its last step. Raises NotRunning before `start`."""
        if self._status is None:
            raise NotRunning("the node was not started")
        return self._status

    def _start_barrier(self) -> None:
        waiting, self._barrier_waiting = self._barrier_waiting, []
        self._barrier_running = True
        token = next(self._tokens)

        def done(outcome: Outcome) -> None:
            self._barrier_running = False
            for waiter in waiting:
                _set_outcome(waiter, outcome)
            if self._barrier_waiting:
                if self._thread is None:
                    self._barrier_running = True
                    late, self._barrier_waiting = self._barrier_waiting, []
                    for waiter in late:
                        _set_outcome(waiter, NotRunning("this LAS node stops"))
                else:
                    self._start_barrier()

        self._open[token] = done
        self._running().post(lambda member: member.barrier(token))

    def _running(self) -> RaftThread:
        if self._thread is None:
            raise NotRunning("this LAS node is not running")
        return self._thread

    def _await_outcome(self) -> tuple[int, asyncio.Future[Outcome]]:
        token = next(self._tokens)
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._open[token] = lambda outcome: _set_outcome(waiter, outcome)
        return token, waiter

    async def _within(self, waiter: asyncio.Future[Outcome], timeout_ms: int) -> Outcome:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await waiter
        except TimeoutError:
            return OutcomeUnknown(f"no outcome within {timeout_ms} ms")

    # ------------------------------------------------------------------ from the raft thread

    def _on_step(self, step: Step) -> None:
        for peer, frame in step.frames:
            link = self._links.get(peer)
            if link is not None:
                link.put(frame)
        before, self._status = self._status, step.status
        for token, outcome in step.outcomes:
            self._resolve(token, outcome)
        if before is None or _essence(before) != _essence(step.status):
            self._on_change(step.status)

    def _resolve(self, token: int, outcome: Outcome) -> None:
        resolve = self._open.pop(token, None)
        if resolve is not None:
            resolve(outcome)


def _set_outcome(waiter: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not waiter.done():
        waiter.set_result(outcome)


def _essence(status: RaftStatus) -> tuple[object, ...]:
    """What `on_change` is called for."""
    mine = (status.term, status.leader, status.is_leader)
    what = (status.members_up, status.voting, status.rejoined, status.command_level)
    return (*mine, *what)
