"""Peers on machines of their own, as far as the network knows: links to cut without a word.

Each peer runs in a network namespace with one link to a bridge, on which everybody else is. A cut
loses frames; nothing is reset, refused or told, as when a host is off or a cable is half broken.

Invariants:
- All of it happens in a network and mount namespace that `enter` made for this process, and whose
  only interfaces are those made here. The kernel removes it when the last process in it has ended.
- A cut that is mended leaves nothing behind.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peerd.bench.workers import BenchFailed

# Set for the process in the namespaces.
ENTERED = "PEERD_BENCH_NAMESPACES"
BRIDGE = "peers"
# Addresses of a network that is nobody's (RFC 2544); the bridge has the last one.
NETWORK = "198.18.0"
BRIDGE_HOST = 254
# limit: machines of one network
MACHINES_MAX = 200
# Frames to it reach nobody: no interface has it.
NOBODY = "02:00:00:00:00:ff"
_NAMES = Path("/run/netns")
# Cuts under way of what a place sends to an address: two machines' may have some in common.
_cuts: Counter[tuple[tuple[str, ...], str]] = Counter()


def enter(module: str, arguments: Sequence[str]) -> None:
    """Go on as `python -m module arguments` in namespaces of its own; return if this is there.

    Raises:
        BenchFailed: this machine or user cannot make namespaces.
    """
    if os.environ.get(ENTERED):
        return
    if sys.platform != "linux":
        raise BenchFailed("cutting links needs network namespaces, which Linux has")
    if os.geteuid() != 0:
        raise BenchFailed("cutting links needs root, for network namespaces: run this with sudo")
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            raise BenchFailed(f"cutting links needs `{program}` (packages util-linux, iproute2)")
    separate = ["unshare", "--net", "--mount", "--propagation", "private", "--"]
    probe = subprocess.run([*separate, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        raise BenchFailed(f"namespaces cannot be made here: {probe.stderr.strip()}")
    os.environ[ENTERED] = "1"
    # In place of this process, so that signals and exit status are those of the command.
    os.execvp("unshare", [*separate, sys.executable, "-m", module, *arguments])  # noqa: S606


class Machines:
    """A machine for each of `names`, and one, the bridge's, for all others. Made once."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises `BenchFailed`: a namespace, link or address cannot be made."""
        if len(names) > MACHINES_MAX:
            raise BenchFailed(f"{len(names)} machines: at most {MACHINES_MAX}")
        self._addresses = {
            name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=1)
        }
        _NAMES.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "peerd-bench", str(_NAMES))
        _ip("link", "set", "lo", "up")
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.{BRIDGE_HOST}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for name, address in self._addresses.items():
            self._make(name, address)

    @staticmethod
    def _make(name: str, address: str) -> None:
        _ip("netns", "add", name)
        _ip("link", "add", _link(name), "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", _link(name), "master", BRIDGE, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "eth0", "up")

    def host(self, name: str) -> str:
        """The IP address of the machine `name`; the bridge's if there is none."""
        return self._addresses.get(name, f"{NETWORK}.{BRIDGE_HOST}")

    def prefix(self, name: str) -> tuple[str, ...]:
        """What a command begins with that shall run on the machine `name`."""
        return ("ip", "netns", "exec", name) if name in self._addresses else ()

    @contextmanager
    def off(self, name: str) -> Iterator[None]:
        """Within it nothing passes the link of a machine, either way."""
        _ip("link", "set", _link(name), "down")
        try:
            yield
        finally:
            _ip("link", "set", _link(name), "up")

    @contextmanager
    def mute(self, name: str) -> Iterator[None]:
        """Within it what a machine sends is lost; what is sent to it arrives."""
        others = [f"{NETWORK}.{BRIDGE_HOST}"]
        others += [each for other, each in self._addresses.items() if other != name]
        with _misled(("-n", name), "eth0", others):
            yield

    @contextmanager
    def deaf(self, name: str) -> Iterator[None]:
        """Within it what is sent to a machine is lost; what it sends arrives."""
        address = [self._addresses[name]]
        with _misled((), BRIDGE, address):
            for other in self._addresses.keys() - {name}:
                _mislead(("-n", other), "eth0", address)
            try:
                yield
            finally:
                for other in self._addresses.keys() - {name}:
                    _mend(("-n", other), "eth0", address)


@contextmanager
def _misled(place: tuple[str, ...], device: str, addresses: Sequence[str]) -> Iterator[None]:
    _mislead(place, device, addresses)
    try:
        yield
    finally:
        _mend(place, device, addresses)


def _mislead(place: tuple[str, ...], device: str, addresses: Sequence[str]) -> None:
    """Let what goes to `addresses` go to nobody."""
    for each in addresses:
        _cuts[place, each] += 1
        entry = ("neigh", "replace", each, "lladdr", NOBODY, "dev", device, "nud", "permanent")
        _ip(*place, *entry)


def _mend(place: tuple[str, ...], device: str, addresses: Sequence[str]) -> None:
    for each in addresses:
        _cuts[place, each] -= 1
        if not _cuts[place, each]:
            _ip(*place, "neigh", "del", each, "dev", device)


def _link(name: str) -> str:
    """The bridge's end of a machine's link; a name of an interface has at most 15 characters."""
    return f"to-{name}"[:15]


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
