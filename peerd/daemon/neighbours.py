"""Who is heard: the times of the last frames of other peers, and the suspicions that follow.

docs/protocol.md §6. A neighbour is a peer with which this one shares an open or prepared segment:
frames travel between them, or will when one becomes primary. Two kinds of evidence go to the LAS:
- the stream broke and the address refuses connections: strong, told at once;
- no frame for `FRAMES_MISSING` periods, or no answer to what was sent to it: a peer to which
  nothing gets through is as useless as a dead one, and what it sends still comes for a while, until
  its TCP waits for an acknowledgement.

Invariants:
- Only a process that was heard before is suspected, and by the boot id that was heard: a report
  that comes late can never strike the process after it.
- A hang of *this* event loop is no silence of others: a late look starts all clocks anew.
- A wrong suspicion costs a pause, never a record; nothing here is needed for safety.

Must not: act on a suspicion. The LAS weighs it.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from peerd.core.ids import BootId, NodeName, ProcessId
from peerd.daemon.supervisor import Supervisor

# Frames that are missing when a neighbour counts as silent.
FRAMES_MISSING = 4
# Looks in the time of one frame: so much sooner is told what has lasted long enough.
LOOKS_PER_PERIOD = 5
# limit: frame periods that a look may come late; beyond it this process slept itself
OWN_LAG_PERIODS_MAX = 2
# A suspicion is told again this often while its reason lasts. Milliseconds.
SUSPECT_AGAIN_MS = 1_000
# How long one attempt to connect may take before it proves nothing. Seconds.
PROBE_TIMEOUT_S = 0.5

ReportSuspect = Callable[[NodeName, BootId, bool, int], None]
"""Called with peer, boot id, whether the connection was refused, and silence in milliseconds."""


@dataclass(slots=True)
class _Heard:
    boot: BootId
    at_ms: int
    answers: bool = False
    told_at_ms: int | None = None
    told_refused: bool = False


class Neighbours:
    """Used on the event loop alone. `now_ms` is a monotonic clock."""

    def __init__(
        self,
        *,
        frame_period_ms: int,
        now_ms: Callable[[], int],
        supervisor: Supervisor,
        report: ReportSuspect,
    ) -> None:
        self._frame_period_ms = frame_period_ms
        self.look_period_ms = frame_period_ms // LOOKS_PER_PERIOD
        """Milliseconds between two looks."""
        self._now_ms = now_ms
        self._supervisor = supervisor
        self._report = report
        self._addresses: Mapping[NodeName, str] = {}
        self._heard: dict[NodeName, _Heard] = {}
        self._probing: set[NodeName] = set()
        self._looked_at_ms = now_ms()

    def expect(self, addresses: Mapping[NodeName, str]) -> None:
        """These are the neighbours now; what was heard of others is forgotten."""
        self._addresses = addresses
        for peer in self._heard.keys() - addresses.keys():
            del self._heard[peer]

    def heard(self, process: ProcessId) -> None:
        """Something came from `process`; that counts for nothing once it answers pings."""
        known = self._heard.get(process.peer)
        if known is None or known.boot != process.boot or not known.answers:
            self._touch(process)

    def answered(self, process: ProcessId, *, a_ping: bool) -> None:
        """An answer came to what was sent to `process`; `a_ping`: to one of those of each period.

        From its first answered ping on, only answers count: they prove both ways of the link.
        """
        self._touch(process)
        if a_ping and (known := self._heard.get(process.peer)) is not None:
            known.answers = True

    def _touch(self, process: ProcessId) -> None:
        known = self._heard.get(process.peer)
        if known is not None and known.boot == process.boot:
            known.at_ms = self._now_ms()
            known.told_at_ms, known.told_refused = None, False
        elif process.peer in self._addresses:
            self._heard[process.peer] = _Heard(process.boot, self._now_ms())

    def silent_ms(self, peer: NodeName) -> int | None:
        """Milliseconds since `peer` was heard; None if it never was, or is no neighbour."""
        known = self._heard.get(peer)
        return None if known is None else self._now_ms() - known.at_ms

    def stream_broke(self, process: ProcessId) -> None:
        """A stream with `process` ended unexpectedly: see whether its address still accepts."""
        known = self._heard.get(process.peer)
        if known is not None and known.boot == process.boot:
            # Nothing is sent to it until there is another stream, so nothing can be answered.
            known.answers = False
            self._begin_probe(process.peer, process.boot)

    def look(self) -> None:
        """Tell of neighbours that fell silent; call it every `look_period_ms`."""
        now_ms = self._now_ms()
        late_ms = now_ms - self._looked_at_ms - self.look_period_ms
        self._looked_at_ms = now_ms
        slept = late_ms > OWN_LAG_PERIODS_MAX * self._frame_period_ms
        silence_ms = FRAMES_MISSING * self._frame_period_ms
        for peer, known in self._heard.items():
            if slept:
                known.at_ms = now_ms
            elif now_ms - known.at_ms >= silence_ms and self._may_tell(known, now_ms):
                self._tell(peer, known, now_ms, refused=False)
                self._begin_probe(peer, known.boot)

    def _may_tell(self, known: _Heard, now_ms: int) -> bool:
        return known.told_at_ms is None or now_ms - known.told_at_ms >= SUSPECT_AGAIN_MS

    def _tell(self, peer: NodeName, known: _Heard, now_ms: int, *, refused: bool) -> None:
        known.told_at_ms = now_ms
        self._report(peer, known.boot, refused, now_ms - known.at_ms)

    def _begin_probe(self, peer: NodeName, boot: BootId) -> None:
        if peer not in self._probing:
            self._probing.add(peer)
            self._supervisor.spawn(f"probe {peer}", self._probe(peer, boot))

    async def _probe(self, peer: NodeName, boot: BootId) -> None:
        try:
            refused = await refuses_connections(self._addresses.get(peer, ""))
        finally:
            self._probing.discard(peer)
        known = self._heard.get(peer)
        if not refused or known is None or known.boot != boot:
            return
        now_ms = self._now_ms()
        if not known.told_refused or self._may_tell(known, now_ms):
            known.told_refused = True
            self._tell(peer, known, now_ms, refused=True)


async def refuses_connections(address: str) -> bool:
    """Whether `address` (host:port) answers that nothing listens there.

    False when it accepts, does not answer in `PROBE_TIMEOUT_S`, or cannot be resolved.
    """
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, place = found[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setblocking(False)
                await loop.sock_connect(probe, place)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    return False
