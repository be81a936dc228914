"""Carries frames between members over gRPC: one stream per ordered pair, dialled by the sender.

Invariants:
- A stream carries frames only after both sides said who they are: the dialler by its certificate
  (`identify`) and Hello, the other by the certificate that its address was verified with and Hello;
  both are of one cluster and came with the directory that is known of them.
- Frames of one member are handed on in the order of one stream; a second stream ends the first.
- Everything that waits is bounded: frames that come (INBOX_FRAMES_MAX) by not reading on, frames
  that go (OUTBOX_BYTES_MAX) by giving the stream up. Raft repairs what is lost.

Must not: look into frames other than Hello.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

import grpc
import grpc.aio

from las.internal.v1 import raft_pb2, raft_pb2_grpc
from las.raft.driver import RaftThread
from las.raft.errors import NotRunning, PeerRefused
from las.raft.member import RaftMember

logger = logging.getLogger(__name__)

# limit: frames of one member that wait for the raft thread; at most 1 MiB each, and a member
# that is behind by more than this gains nothing from more
INBOX_FRAMES_MAX = 64
# limit: bytes that wait for one member; twice the journal at which a snapshot becomes due, so that
# a whole journal can be sent again
OUTBOX_BYTES_MAX = 32 * 1024 * 1024
# Seconds for connecting and both Hellos; a host without power answers nothing.
HELLO_TIMEOUT_S = 3.0
# limit: seconds between dials, growing from the first to the second; a restarted member should be
# back within its first second, one that is down for long should not be asked often
REDIAL_S_MIN, REDIAL_S_MAX = 0.1, 1.0

ChannelFactory = Callable[[str], grpc.aio.Channel]
Metadata = tuple[tuple[str, str], ...]
Frame = raft_pb2.RaftFrame


class _LinkError(Exception):
    """A stream is over, for a reason that is worth one line."""


class OutgoingLink:
    """The stream that this member dials to one other."""

    def __init__(
        self,
        *,
        peer: str,
        address: str,
        channel_factory: ChannelFactory,
        metadata: Metadata,
        thread: RaftThread,
        rng: random.Random,
    ) -> None:
        self._peer = peer
        self._address = address
        self._channel_factory = channel_factory
        self._metadata = metadata
        self._thread = thread
        self._rng = rng
        self._outbox: deque[Frame] = deque()
        self._outbox_bytes = 0
        self._wake = asyncio.Event()
        self._is_up = False
        self._last_reason = ""

    def put(self, frame: Frame) -> None:
        """Queues a frame; without a stream it is lost, as on any network."""
        if not self._is_up:
            return
        self._outbox.append(frame)
        self._outbox_bytes += frame.ByteSize()
        self._wake.set()

    async def run(self) -> None:
        """Dials again and again until it is cancelled."""
        pause_s = REDIAL_S_MIN
        while True:
            was_up = False
            try:
                was_up = await self._dial()
            except _LinkError as ended:
                self._note(str(ended))
            except Exception as error:  # noqa: BLE001  e.g. certificates that are being replaced
                self._note(f"{self._peer} at {self._address}: {type(error).__name__}: {error}")
            pause_s = REDIAL_S_MIN if was_up else min(2 * pause_s, REDIAL_S_MAX)
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))

    async def _dial(self) -> bool:
        """Opens a stream and carries frames until it ends; tells whether it was ever up."""
        channel = self._channel_factory(self._address)
        was_up = False
        try:
            call = raft_pb2_grpc.RaftServiceStub(channel).Exchange(metadata=self._metadata)
            await self._greet(call)
            self._outbox.clear()
            self._outbox_bytes = 0
            self._is_up = was_up = True
            self._note(f"connected to {self._peer} at {self._address}")
            self._thread.post(lambda member: member.link_up(self._peer))
            await self._carry(call)
        except grpc.aio.AioRpcError as error:
            self._note(f"{self._peer} at {self._address}: {error.code().name} {error.details()}")
        finally:
            self._is_up = False
            if was_up:
                self._thread.post(lambda member: member.link_down(self._peer))
            await channel.close()
        return was_up

    async def _greet(self, call: "grpc.aio.StreamStreamCall[Frame, Frame]") -> None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = await self._thread.call(RaftMember.hello)
                hello.hello.receiver = self._peer
                await call.write(hello)
                answer = await call.read()
                if not isinstance(answer, Frame):
                    # Raises AioRpcError with the reason if the other side refused.
                    await call.wait_for_connection()
                    raise _LinkError(f"{self._peer} ended the stream before its Hello")
                check_hello(answer, name=self._peer, own=hello.hello)
                await self._thread.call(lambda member: member.meet(self._peer, answer))
        except TimeoutError:
            raise _LinkError(
                f"{self._peer} at {self._address} does not answer within {HELLO_TIMEOUT_S} s"
            ) from None
        except asyncio.InvalidStateError:
            raise _LinkError(f"the stream to {self._peer} ended") from None
        except (PeerRefused, NotRunning) as error:
            raise _LinkError(str(error)) from error

    async def _carry(self, call: "grpc.aio.StreamStreamCall[Frame, Frame]") -> None:
        """Writes what is queued until either side ends the stream."""
        end = asyncio.ensure_future(call.read())
        end.add_done_callback(lambda _: self._wake.set())
        try:
            while not end.done():
                if self._outbox_bytes > OUTBOX_BYTES_MAX:
                    raise _LinkError(f"{self._peer} does not take frames fast enough")
                if self._outbox:
                    frame = self._outbox.popleft()
                    self._outbox_bytes -= frame.ByteSize()
                    await call.write(frame)
                else:
                    self._wake.clear()
                    await self._wake.wait()
            if end.result() is not grpc.aio.EOF:
                raise _LinkError(f"{self._peer} sent something after its Hello")
        except asyncio.InvalidStateError:
            raise _LinkError(f"the stream to {self._peer} ended") from None
        finally:
            end.cancel()
            call.cancel()
            await asyncio.gather(end, return_exceptions=True)

    def _note(self, reason: str) -> None:
        """Logs a state of the link once, not once per dial."""
        if reason != self._last_reason:
            logger.info("raft link: %s", reason)
            self._last_reason = reason


class RaftServicer(raft_pb2_grpc.RaftServiceServicer):
    """The other end of the streams that the members dial; the daemon adds it to its server."""

    def __init__(
        self,
        *,
        name: str,
        peers: Mapping[str, str],
        identify: Callable[[grpc.aio.ServicerContext], str],
    ) -> None:
        """
        Args:
            name: This member.
            peers: The other members.
            identify: Returns the member that a call's certificate names, or raises.
        """
        self._name = name
        self._peers = frozenset(peers)
        self._identify = identify
        self._thread: RaftThread | None = None
        self._newest: dict[str, object] = {}

    def serve(self, thread: RaftThread | None) -> None:
        """Takes frames for `thread` from now on; refuses them if it is None."""
        self._thread = thread

    async def Exchange(
        self,
        request_iterator: AsyncIterator[Frame],
        context: "grpc.aio.ServicerContext[Frame, Frame]",
    ) -> AsyncIterator[Frame]:
        """Serves one stream; see raft.proto."""
        thread = self._thread
        if thread is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this LAS node is not running")
        peer = await self._authenticated(context)
        try:
            yield await self._greeted(thread, peer, request_iterator)
        except (PeerRefused, NotRunning, TimeoutError) as error:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, str(error) or "no Hello in time"
            )
        stream = object()
        self._newest[peer] = stream
        room = asyncio.Semaphore(INBOX_FRAMES_MAX)
        async for frame in request_iterator:
            await room.acquire()
            if self._newest[peer] is not stream or self._thread is not thread:
                return
            try:
                self._hand_on(thread, peer, frame, room)
            except NotRunning:
                return  # this node stops; the stream's end tells the other side

    @staticmethod
    def _hand_on(thread: RaftThread, peer: str, frame: Frame, room: asyncio.Semaphore) -> None:
        def event(member: RaftMember) -> None:
            member.receive(peer, frame)
            thread.after_step(room.release)

        thread.post(event)

    async def _authenticated(self, context: "grpc.aio.ServicerContext[Frame, Frame]") -> str:
        try:
            peer = self._identify(context)
        except Exception as error:  # noqa: BLE001  any doubt about who calls is a refusal
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if peer not in self._peers:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"{peer} is not another member of this group"
            )
        return peer

    async def _greeted(self, thread: RaftThread, peer: str, frames: AsyncIterator[Frame]) -> Frame:
        """Takes the caller's Hello and returns ours."""
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(aiter(frames), None)
            if first is None:
                raise PeerRefused(f"{peer} ended the stream before its Hello")
            answer = await thread.call(RaftMember.hello)
            answer.hello.receiver = peer
            check_hello(first, name=peer, own=answer.hello)
            await thread.call(lambda member: member.meet(peer, first))
            return answer


def check_hello(frame: Frame, *, name: str, own: raft_pb2.Hello) -> None:
    """Compares a Hello with what is known of the other side.

    Raises:
        PeerRefused: it is none, of another member, of another cluster, or meant for another one.
    """
    if frame.WhichOneof("body") != "hello":
        raise PeerRefused(f"{name} did not begin with a Hello")
    hello = frame.hello
    if hello.name != name or hello.receiver != own.name:
        raise PeerRefused(
            f"{name} was expected to talk to {own.name}, it is {hello.name} and means "
            f"{hello.receiver}"
        )
    if hello.cluster_id != own.cluster_id:
        raise PeerRefused(
            f"{name} is of the group {hello.cluster_id}, {own.name} of {own.cluster_id}: a group "
            "that began from an import has no members of the one before; `las rejoin` the one that "
            "has the wrong directory"
        )
