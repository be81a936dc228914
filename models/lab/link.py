"""A network link that falls sick: delays and drops what a peer sends, for root.

    python -m models.lab.link INTERFACE HOST     (in the peer's network namespace)

Linux has a queueing discipline for this (netem), but not every kernel is built with it; this needs
a tunnel device and a packet socket. All that the peer sends to its network goes through the tunnel
from now on, whole IP packets, is held back, and is sent out by the interface that it had before;
some packets are not. TCP, its timers and its retransmissions are the kernel's own, and the peer's
counters (/proc/net) count what they cost. Orders come on standard input, one a line:

    DELAY_MS LOSS_SHARE

The link ends, and all goes its old way, when standard input ends.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from models.lab.room import NETWORK, Room, command, mac, python

_DEVICE = "sick0"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_ETHERTYPE_IP = 0x0800
_PACKET_BYTES_MAX = 65_536
# limit: packets that are held back at once; beyond it they are dropped, as a full queue does
HELD_MAX = 20_000
_NEXT_HOPS = (f"{NETWORK}.0/25", f"{NETWORK}.128/25")  # narrower than the network's own route
_MORE_PACKETS = 64


class SickLink:
    """A peer's link, sick from now on. `set` says how, `close` makes it well."""

    def __init__(self, room: Room) -> None:
        """Puts it into the room's way out."""
        self._process = subprocess.Popen(
            [*room.inside, *python("models.lab.link", room.interface, room.host)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    def set(self, *, delay_ms: float, loss_share: float) -> None:
        """From now on, each packet is so late, or lost with this probability."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay_ms:.3f} {loss_share:.5f}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """Let everything go its old way."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Holder:
    """Packets that wait for their time. Pure: seconds come from the caller."""

    def __init__(self, seed: int = 0) -> None:
        self.delay_s = 0.0
        self.loss_share = 0.0
        self._held: list[tuple[float, int, bytes]] = []
        self._count = 0
        self._random = random.Random(seed)

    def take(self, now_s: float, packet: bytes) -> None:
        """A packet was sent; it is held, or lost."""
        if self._random.random() < self.loss_share or len(self._held) >= HELD_MAX:
            return
        self._count += 1
        heapq.heappush(self._held, (now_s + self.delay_s, self._count, packet))

    def due(self, now_s: float) -> list[bytes]:
        """Those whose time has come, in order."""
        due = []
        while self._held and self._held[0][0] <= now_s:
            due.append(heapq.heappop(self._held)[2])
        return due

    def wait_s(self, now_s: float) -> float | None:
        """Until the next is due; None when nothing is held."""
        return max(self._held[0][0] - now_s, 0.0) if self._held else None


def _open_tunnel(host: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, name)
    command("ip", "link", "set", _DEVICE, "txqueuelen", "10000", "up")
    for hop in _NEXT_HOPS:
        command("ip", "route", "add", hop, "dev", _DEVICE, "src", host)
    return descriptor


def main() -> int:
    """Hold packets back until standard input ends."""
    interface, host = sys.argv[1:3]
    out = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPE_IP))
    # Of what arrives it wants nothing: that takes its usual way.
    out.bind((interface, 0))
    orders = sys.stdin.fileno()
    os.set_blocking(orders, False)
    holder = Holder()
    tunnel = _open_tunnel(host)
    said = b""
    while True:
        ready, _, _ = select.select([tunnel, orders], [], [], holder.wait_s(time.monotonic()))
        if orders in ready:
            told = os.read(orders, _PACKET_BYTES_MAX)
            if not told:
                return 0
            *lines, said = (said + told).split(b"\n")
            if lines:
                delay_ms, loss_share = lines[-1].split()
                holder.delay_s, holder.loss_share = float(delay_ms) / 1000.0, float(loss_share)
        if tunnel in ready:
            _read_some(tunnel, holder)
        for packet in holder.due(time.monotonic()):
            _send(out, interface, packet)


def _read_some(tunnel: int, holder: Holder) -> None:
    for _ in range(_MORE_PACKETS):
        try:
            holder.take(time.monotonic(), os.read(tunnel, _PACKET_BYTES_MAX))
        except BlockingIOError:
            return


def _send(out: socket.socket, interface: str, packet: bytes) -> None:
    if packet[0] >> 4 != 4:
        return  # the kernel greets each new device over IPv6
    # Its last byte names the neighbour (`models.lab.room.mac`).
    neighbour = bytes.fromhex(mac(packet[19]).replace(":", ""))
    try:
        out.sendto(packet, (interface, _ETHERTYPE_IP, 0, 0, neighbour))
    except OSError:
        return  # as a link does: what cannot be sent is lost


if __name__ == "__main__":
    sys.exit(main())
