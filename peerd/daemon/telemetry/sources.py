"""Reads the kernel's files. One function a source; each returns plain numbers, or raises.

Nothing here keeps state or computes a rate: counters come out as the kernel has them. A file that
does not exist or has another form raises `OSError`, `ValueError`, `IndexError` or `KeyError`
(`SOURCE_ERRORS`), which the collector turns into missing metrics.
"""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

SOURCE_ERRORS = (OSError, ValueError, IndexError, KeyError)

# The largest file read here is /proc/vmstat with some 5 kB.
_READ_BYTES_MAX = 65_536
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BYTES_PER_KIB = 1024


def read_text(path: str) -> str:
    """The file's content, in one read."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, _READ_BYTES_MAX).decode("ascii", "replace")
    finally:
        os.close(handle)


def machine_identity() -> float:
    """24 bits of the kernel's boot id: whole numbers that a float32 holds exactly."""
    boot_id = read_text("/proc/sys/kernel/random/boot_id").strip()
    return float(int.from_bytes(hashlib.sha256(boot_id.encode()).digest()[:3], "big"))


def cpu() -> dict[str, float]:
    """Seconds of all cores together since boot: total, idle, iowait, steal."""
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(word) / _TICKS_PER_S for word in read_text("/proc/stat").partition("\n")[0].split()[1:9]
    )
    total = user + nice + system + idle + iowait + irq + softirq + steal
    return {"cpu_total": total, "cpu_idle": idle, "cpu_iowait": iowait, "cpu_steal": steal}


def load_per_core() -> float:
    """The one-minute load average by core."""
    return float(read_text("/proc/loadavg").split()[0]) / (os.cpu_count() or 1)


def pressure(resource_name: str) -> dict[str, float]:
    """Seconds stalled since boot (`some`, `full`) and the kernel's 10 s mean, as shares."""
    stalled = {}
    for line in read_text(f"/proc/pressure/{resource_name}").splitlines():
        kind, *pairs = line.split()
        fields = dict(pair.split("=") for pair in pairs)
        stalled[kind] = int(fields["total"]) / 1e6
        stalled[f"{kind}_avg10"] = float(fields["avg10"]) / 100.0
    return stalled


def memory() -> dict[str, float]:
    """Available memory and used swap as shares; no swap, no such key."""
    kib = {}
    for line in read_text("/proc/meminfo").splitlines():
        name, value = line.split()[:2]
        kib[name] = int(value)
    shares = {"memory_available_share": kib["MemAvailable:"] / kib["MemTotal:"]}
    if kib["SwapTotal:"]:
        shares["swap_used_share"] = 1.0 - kib["SwapFree:"] / kib["SwapTotal:"]
    return shares


def virtual_memory_events() -> dict[str, float]:
    """Major faults and OOM kills since boot."""
    events = dict(line.split() for line in read_text("/proc/vmstat").splitlines())
    return {"major_faults": int(events["pgmajfault"]), "oom_kills": int(events["oom_kill"])}


def tcp_retransmits() -> float:
    """TCP segments sent again since boot."""
    names, values = (
        line.split() for line in read_text("/proc/net/snmp").splitlines() if line.startswith("Tcp:")
    )
    return float(values[names.index("RetransSegs")])


def tcp_troubles() -> dict[str, float]:
    """Timeouts, connections given up and connections not taken since boot."""
    names, values = (
        line.split()
        for line in read_text("/proc/net/netstat").splitlines()
        if line.startswith("TcpExt:")
    )
    return {
        counter: float(values[names.index(name)])
        for counter, name in (
            ("tcp_timeouts", "TCPTimeouts"),
            ("tcp_aborts", "TCPAbortOnTimeout"),
            ("tcp_listen_drops", "ListenDrops"),
        )
    }


def network() -> dict[str, float]:
    """Bytes, and errors and drops of both directions, since boot, all devices but loopback."""
    received = sent = errors = 0
    for line in read_text("/proc/net/dev").splitlines()[2:]:
        device, _, rest = line.partition(":")
        if device.strip() != "lo":
            fields = [int(word) for word in rest.split()]
            received += fields[0]
            sent += fields[8]
            errors += fields[2] + fields[3] + fields[10] + fields[11]
    return {
        "network_receive_bytes": float(received),
        "network_transmit_bytes": float(sent),
        "network_errors": float(errors),
    }


def network_carrier_losses(directory: str = "/sys/class/net") -> float:
    """Times that a device lost its link since boot."""
    return float(_sum_of(directory, "*/carrier_down_count"))


def memory_errors(directory: str = "/sys/devices/system/edac/mc") -> dict[str, float]:
    """Memory errors since boot, of all controllers; raises where there is none."""
    return {
        "memory_errors_corrected": float(_sum_of(directory, "mc*/ce_count")),
        "memory_errors_uncorrected": float(_sum_of(directory, "mc*/ue_count")),
    }


def _sum_of(directory: str, pattern: str) -> int:
    paths = list(Path(directory).glob(pattern))
    if not paths:
        raise FileNotFoundError(f"{directory}/{pattern}")
    return sum(int(read_text(str(path))) for path in paths)


def disk_io_errors(device: int) -> float:
    """Requests that the device failed since it was found; raises where it does not count."""
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    below = "/../device/ioerr_cnt" if Path(f"{path}/partition").exists() else "/device/ioerr_cnt"
    return float(int(read_text(path + below).strip(), 16))


def disk(device: int) -> dict[str, float]:
    """Counters since boot of the block device with this `st_dev`: times in ms."""
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    fields = [int(word) for word in read_text(path).split()]
    counters = {
        "reads": fields[0],
        "read_ms": fields[3],
        "writes": fields[4],
        "write_ms": fields[7],
        "busy_ms": fields[9],
        "queue_ms": fields[10],
    }
    if len(fields) >= 17:  # Linux 5.5 added flushes
        counters |= {"flushes": fields[15], "flush_ms": fields[16]}
    return {name: float(value) for name, value in counters.items()}


def disk_free_share(directory: Path) -> float:
    """Space that an unprivileged writer still has on the directory's file system."""
    space = os.statvfs(directory)
    return space.f_bavail / space.f_blocks


def process() -> dict[str, float]:
    """This process: CPU seconds, major faults, memory in bytes, preemptions."""
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    fields = read_text("/proc/self/stat").rpartition(")")[2].split()
    status = {}
    for line in read_text("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        status[name] = value
    return {
        "major_faults": float(fields[9]),
        "cpu_s": (int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        "rss_bytes": float(status["VmRSS"].split()[0]) * _BYTES_PER_KIB,
        "anonymous_bytes": float(status["RssAnon"].split()[0]) * _BYTES_PER_KIB,
        "data_bytes": float(status["VmData"].split()[0]) * _BYTES_PER_KIB,
        "switches_involuntary": float(status["nonvoluntary_ctxt_switches"]),
    }


def run_wait_s() -> float:
    """Seconds that the main thread was ready to run and had no core."""
    return int(read_text("/proc/self/schedstat").split()[1]) / 1e9


def file_descriptors_share() -> float:
    """Open descriptors of the soft limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        raise ValueError("no limit of file descriptors")
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) / limit


class MemoryLimit:
    """The limits that would end this process: RLIMIT_DATA and the memory cgroup's.

    The cgroup's files are looked up once; its limit is read each time, since it can be changed.
    """

    def __init__(self) -> None:
        self._cgroup = _cgroup_files()

    def used_share(self, data_bytes: float) -> float:
        """The fullest of the limits; `ValueError` when there is none."""
        shares = []
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if limit != resource.RLIM_INFINITY:
            shares.append(data_bytes / limit)
        if self._cgroup is not None:
            usage_path, limit_path = self._cgroup
            cgroup_limit = read_text(limit_path).strip()
            # "max" (v2), or a number beyond any machine (v1), stand for no limit.
            if cgroup_limit != "max" and int(cgroup_limit) < 1 << 60:
                shares.append(int(read_text(usage_path)) / int(cgroup_limit))
        if not shares:
            raise ValueError("no limit of memory")
        return max(shares)


def _cgroup_files() -> tuple[str, str] | None:
    """Paths of usage and limit of this process's memory cgroup; None when there is none."""
    try:
        lines = read_text("/proc/self/cgroup").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = (f"/sys/fs/cgroup{path}/memory.current", f"/sys/fs/cgroup{path}/memory.max")
        elif "memory" in controllers.split(","):
            base = f"/sys/fs/cgroup/memory{path}"
            names = (f"{base}/memory.usage_in_bytes", f"{base}/memory.limit_in_bytes")
        else:
            continue
        if all(Path(name).exists() for name in names):
            return names
    return None
