"""Gives each peer of a run a machine's worth of its own, for root: network, disk, limits.

A *room* is what one peer runs in: a network namespace with an interface of its own on a common
bridge; a file system of its own on a loop device, whose statistics and free space are its alone;
control groups of its own for processors, memory and disk requests. So whatever an episode does to
a room (`models/lab/room_episodes.py`) is done by the kernel and felt by that peer only, and the
peer's collector sees it as it would on a host of its own. Processors and memory are the machine's.

Invariants:
- The run's process lives in a network and a mount namespace that nobody else uses
  (`own_namespaces`): what it makes there ends with it and its peers, however they end. Control
  groups alone outlive their process; `close` removes them.
- Nothing here changes a network, a mount or a limit of any process that a run did not start.

`why_not` says what this machine lacks; then runs of the rooms' plan are left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CGROUPS = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
# The kernel's shortest quota. Shares that are too small for it take a longer period.
CPU_QUOTA_US_MIN = 1_000
CPU_PERIOD_US_MAX = 1_000_000
# A run weighs as much as this many others on the machine: its rooms are one group to the kernel.
CPU_WEIGHT = 16
# limit: size of a peer's file system: 8 GiB, of which a run of five minutes fills a part.
DISK_BYTES = 8 << 30
# What a peer keeps free by default; with less it refuses appends.
RESERVE_BYTES = 1 << 30
NETWORK = "10.77.0"
BRIDGE_HOST = f"{NETWORK}.1"
NAMESPACED = "PEERD_LAB_NAMESPACED"
_PROGRAMS = ("ip", "mkfs.ext4", "mount", "nsenter", "unshare")
_FILES = ("/dev/net/tun", "/dev/loop-control")
_CONTROLLERS = ("cpu", "memory", "blkio")
_REMOVE_S_MAX = 5.0


class RoomError(Exception):
    """A room cannot be had; one line says why."""


def why_not() -> str:
    """Why this machine cannot have rooms; empty if it can."""
    if os.geteuid() != 0:
        return "they need root, for network namespaces, mounts and control groups"
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: iproute2, util-linux, e2fsprogs, mount)"
    for path in _FILES:
        if not Path(path).exists():
            return f"this kernel has no {path}"
    if cgroup_version() is None:
        return "no control groups for cpu, memory and disk requests (v1, or v2 with all three)"
    return ""


def cgroup_version(root: Path = CGROUPS) -> int | None:
    """1 or 2 by what is mounted at `root`; None when processors, memory or disk lack."""
    if all((root / name / "cgroup.procs").exists() for name in _CONTROLLERS):
        return 1
    with suppress(OSError):
        if {"cpu", "memory", "io"} <= set((root / "cgroup.controllers").read_text().split()):
            return 2
    return None


def own_namespaces(command: list[str]) -> list[str]:
    """The command, in a network and a mount namespace of its own."""
    return ["unshare", "--net", "--mount", "--propagation", "private", *command]


class Limits:
    """The control groups of one room, in the terms of either version of them."""

    def __init__(self, name: str, device: str, *, root: Path = CGROUPS, version: int = 1) -> None:
        """Makes the groups `name`; `device` is the disk as "major:minor"."""
        self._device = device
        self._version = version
        tops = [root / each for each in _CONTROLLERS] if version == 1 else [root]
        if version != 1:
            _enable(root, name)
        self.directories = [top / name for top in tops]
        for directory in self.directories:
            directory.mkdir(parents=True, exist_ok=True)

    def enter_command(self) -> str:
        """A line of shell by which the shell enters the groups, with all it starts."""
        return "; ".join(f'echo $$ > "{each / "cgroup.procs"}"' for each in self.directories)

    def enter(self) -> None:
        """Put this process into the groups, and what it starts from now on."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """Put this process back to where the groups were made."""
        for directory in self.directories:
            (directory.parent.parent / "cgroup.procs").write_text(str(os.getpid()))

    def set_weight(self, weight: int) -> None:
        """Give the groups' parent so much of contended processors; 1 is what one group gets."""
        parent = self.directories[0].parent
        if self._version == 1:
            (parent / "cpu.shares").write_text(str(1024 * weight))
        else:
            (parent / "cpu.weight").write_text(str(100 * weight))

    def set_cpu(self, cores: float | None) -> None:
        """Let it have so many cores and no more; None: all there are."""
        period_us, quota_us = CPU_PERIOD_US, None
        if cores is not None:
            if cores * period_us < CPU_QUOTA_US_MIN:
                period_us = CPU_PERIOD_US_MAX
            quota_us = max(round(cores * period_us), CPU_QUOTA_US_MIN)
        if self._version == 1:
            (self.directories[0] / "cpu.cfs_period_us").write_text(str(period_us))
            (self.directories[0] / "cpu.cfs_quota_us").write_text(str(quota_us or -1))
        else:
            (self.directories[0] / "cpu.max").write_text(f"{quota_us or 'max'} {period_us}")

    def set_memory(self, headroom_bytes: int) -> None:
        """Let it have so much more memory than it has now; beyond that the kernel ends it."""
        v1 = self._version == 1
        directory = self.directories[1 if v1 else 0]
        used = int((directory / ("memory.usage_in_bytes" if v1 else "memory.current")).read_text())
        limit = directory / ("memory.limit_in_bytes" if v1 else "memory.max")
        limit.write_text(str(used + headroom_bytes))

    def set_writes(self, writes_per_s: float | None) -> None:
        """Let its disk take so many writes a second and no more; None: any number."""
        rate = None if writes_per_s is None else max(round(writes_per_s), 1)
        if self._version == 1:
            path = self.directories[2] / "blkio.throttle.write_iops_device"
            path.write_text(f"{self._device} {rate or 0}")
        else:
            (self.directories[0] / "io.max").write_text(f"{self._device} wiops={rate or 'max'}")

    def close(self) -> None:
        """Remove the groups, once their processes have gone."""
        until_s = time.monotonic() + _REMOVE_S_MAX
        for directory in self.directories:
            while directory.exists():
                try:
                    directory.rmdir()
                except OSError:
                    if time.monotonic() > until_s:
                        break
                    time.sleep(0.05)
            with suppress(OSError):
                directory.parent.rmdir()  # the run's own, when this was the last room


def _enable(root: Path, name: str) -> None:
    """Hand the controllers of version 2 down to the parent of group `name`."""
    directory = root
    for part in (*Path(name).parts[:-1], ""):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.subtree_control").write_text("+cpu +memory +io")
        directory = directory / part


class Room:
    """One peer's room. `index` counts from 0 and gives its address."""

    def __init__(self, index: int, disk: Path, image: Path) -> None:
        """A room whose file system is shown at `disk` and kept in the file `image`."""
        self.index = index
        self.disk = disk
        self.host = host(index)
        self.interface = "eth0"
        self.descriptors_max = 1024
        self._image = image
        self._keeper: subprocess.Popen[bytes] | None = None
        self.limits: Limits | None = None

    def open(self, group: str) -> None:
        """Make it. Raises `RoomError`."""
        self._open_network()
        self._open_disk()
        status = self.disk.stat()
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        version = cgroup_version()
        if version is None:
            raise RoomError(why_not())
        self.limits = Limits(f"{group}/room-{self.index}", device, version=version)

    def close(self) -> None:
        """End what does not end with the run's process, and let the directory go."""
        if self.disk.is_mount():
            command("umount", "--lazy", str(self.disk))
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
        if self.limits is not None:
            self.limits.close()

    @property
    def inside(self) -> tuple[str, ...]:
        """What to put before a command that shall run in the room's network."""
        assert self._keeper is not None
        return ("nsenter", f"--net=/proc/{self._keeper.pid}/ns/net", "--")

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before the peer's command: its network and its limits."""
        assert self.limits is not None
        script = f'{self.limits.enter_command()}; ulimit -n {self.descriptors_max}; exec "$@"'
        return ("sh", "-c", script, "room", *self.inside)

    def _open_network(self) -> None:
        # Something must hold the namespace while no peer runs in it.
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        mine = Path("/proc/self/ns/net").readlink()
        until_s = time.monotonic() + _REMOVE_S_MAX
        while Path(f"/proc/{self._keeper.pid}/ns/net").readlink() == mine:
            if time.monotonic() > until_s:
                raise RoomError("a network namespace could not be made")
            time.sleep(0.01)
        outside = f"room{self.index}"
        number = self.index + FIRST_HOST
        command(
            *("ip", "link", "add", outside, "type", "veth", "peer", "name", self.interface),
            *("address", mac(number), "netns", str(self._keeper.pid)),
        )
        command("ip", "link", "set", outside, "master", "lab", "up")
        command(*self.inside, "ip", "link", "set", "lo", "up")
        command(*self.inside, "ip", "link", "set", self.interface, "up")
        command(*self.inside, "ip", "addr", "add", f"{self.host}/24", "dev", self.interface)

    def _open_disk(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(DISK_BYTES)
        command("mkfs.ext4", "-q", "-m", "0", "-N", "4096", str(self._image))
        self.disk.mkdir(parents=True, exist_ok=True)
        command("mount", "-o", "loop", str(self._image), str(self.disk))
        (self.disk / "lost+found").rmdir()


FIRST_HOST = 11


def host(index: int) -> str:
    """The address of a room, by its index."""
    return f"{NETWORK}.{index + FIRST_HOST}"


def mac(number: int) -> str:
    """The hardware address that belongs to `NETWORK.number`."""
    return f"02:00:00:00:00:{number:02x}"


class Rooms:
    """All rooms of a run and the bridge between them. A context manager.

    To be opened in a process started by `own_namespaces`.
    """

    def __init__(self, disks: list[Path], scratch: Path) -> None:
        """A room for each of `disks`, where its file system is to be seen."""
        self.rooms = [
            Room(index, disk, scratch / f"disk-{index}.img") for index, disk in enumerate(disks)
        ]
        self._group = f"peerd-lab-{os.getpid()}"
        self._outside: Limits | None = None

    def __enter__(self) -> Self:
        """Make them. Raises `RoomError`."""
        if wrong := why_not():
            raise RoomError(wrong)
        if not os.environ.get(NAMESPACED):
            raise RoomError("not in namespaces of its own; start it by `python -m models.lab`")
        try:
            for room in self.rooms:
                room.open(self._group)
            self._outside = Limits(f"{self._group}/outside", "", version=cgroup_version() or 1)
            self._outside.enter()
            self._outside.set_weight(CPU_WEIGHT)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        if self._outside is not None:
            self._outside.leave()
            self._outside.close()
        for room in self.rooms:
            room.close()


def open_bridge() -> None:
    """What all rooms of this network namespace are plugged into; the LAS and clients live here."""
    command("ip", "link", "set", "lo", "up")
    command("ip", "link", "add", "lab", "address", mac(1), "type", "bridge")
    command("ip", "link", "set", "lab", "up")
    command("ip", "addr", "add", f"{BRIDGE_HOST}/24", "dev", "lab")


def command(*words: str) -> None:
    """Run a program of the system. Raises `RoomError` with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RoomError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")


def python(*words: str) -> tuple[str, ...]:
    """A module of this project as a command."""
    return (sys.executable, "-m", *words)
