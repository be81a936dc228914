"""The one table of health metrics, `TELEMETRY_SCHEMA`.

The collector fills a vector in this table's order, `/metrics` exports the table, heartbeats carry
the vector, the forecast reads its columns by name, and `docs/telemetry.md` is printed from it.
Nothing else may define a metric that the forecast reads.

Invariants:
- The order and the names are part of the version: two ends whose `version` is equal mean the same
  number by the same place. Changing a row, its unit or its scope changes the version.
- The table grows at its end alone: the version of an earlier table is that of its first rows, so
  that its vectors are the beginning of today's, and a model made for it reads what it was made for.
- A metric that cannot be had (an old kernel, no such device, no event in the interval that would
  define a latency) is NaN, never 0: "nothing measured" and "measured nothing" differ.
- `scope` says whom trouble concerns: `process` this peer alone, `disk` every peer on the device
  of its data directory, `host` every peer of the machine. Peers of one machine are compared with
  each other on process scope.

This module must stay free of IO and of anything outside the standard library: the LAS and the
training read it as well.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

EXPORTED_PREFIX = "peerd_"


class Scope(StrEnum):
    """Whom a metric's trouble concerns."""

    PROCESS = "process"
    DISK = "disk"
    HOST = "host"


class Kind(StrEnum):
    """How a number may be used."""

    LEVEL = "level"  # an amount at the moment of sampling
    RATE = "rate"  # events or amounts a second, over the interval since the last sample
    SHARE = "share"  # 0 to 1 of a named whole
    LATENCY = "latency"  # milliseconds, over the events of the interval; NaN without events
    IDENTITY = "identity"  # equal or not, never more or less


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row: `name` carries the unit last, `label` is what a person reads in a reason.

    A Prometheus that scrapes the peer has it as `exported_name`; one that scrapes node_exporter on
    the peer's machine has it as the PromQL `node_exporter`, empty where there is nothing like it.
    """

    name: str
    label: str
    unit: str
    scope: Scope
    kind: Kind
    source: str
    meaning: str
    node_exporter: str = ""

    @property
    def exported_name(self) -> str:
        """Its name at a peer's `/metrics`."""
        return EXPORTED_PREFIX + self.name


@dataclass(frozen=True)
class TelemetrySchema:
    """An ordered set of metrics with a version that follows from its content."""

    metrics: tuple[Metric, ...]

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ValueError("two metrics have the same name")

    def __len__(self) -> int:
        return len(self.metrics)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.metrics)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The metrics' names in vector order."""
        return tuple(metric.name for metric in self.metrics)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Name to place in the vector."""
        return {name: position for position, name in enumerate(self.names)}

    @cached_property
    def version(self) -> int:
        """A 32-bit number, equal exactly where names, units, scopes and kinds are equal."""
        return self._version_of(len(self.metrics))

    def metrics_of(self, version: int) -> int | None:
        """How many of the first metrics a table of `version` had; None if this never was one."""
        return self._lengths.get(version)

    @cached_property
    def _lengths(self) -> dict[int, int]:
        return {self._version_of(count): count for count in range(1, len(self.metrics) + 1)}

    def _version_of(self, count: int) -> int:
        rows = (f"{m.name}|{m.unit}|{m.scope}|{m.kind}\n" for m in self.metrics[:count])
        digest = hashlib.sha256("".join(rows).encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def metric(self, name: str) -> Metric:
        """The row of that name; `KeyError` where there is none."""
        return self.metrics[self.positions[name]]


# What node_exporter has of the same, for a Prometheus that scrapes it, too. `$by` groups by the
# labels that name node and host, `$range` is some scrapes. Of disks there is nothing: which one
# holds a peer's data, the peer alone knows.
_CPU = "sum $by (rate(node_cpu_seconds_total$range))"
_NODE_EXPORTER = {
    "cpu_busy_share": (
        '1 - sum $by (rate(node_cpu_seconds_total{mode=~"idle|iowait"}$range)) / ' + _CPU
    ),
    "cpu_iowait_share": ('sum $by (rate(node_cpu_seconds_total{mode="iowait"}$range)) / ' + _CPU),
    "cpu_steal_share": 'sum $by (rate(node_cpu_seconds_total{mode="steal"}$range)) / ' + _CPU,
    "load_per_core": ('sum $by (node_load1) / count $by (node_cpu_seconds_total{mode="idle"})'),
    "pressure_cpu_some_share": "sum $by (rate(node_pressure_cpu_waiting_seconds_total$range))",
    "pressure_memory_some_share": (
        "sum $by (rate(node_pressure_memory_waiting_seconds_total$range))"
    ),
    "pressure_memory_full_share": (
        "sum $by (rate(node_pressure_memory_stalled_seconds_total$range))"
    ),
    "pressure_io_some_share": "sum $by (rate(node_pressure_io_waiting_seconds_total$range))",
    "pressure_io_full_share": "sum $by (rate(node_pressure_io_stalled_seconds_total$range))",
    "memory_available_share": (
        "sum $by (node_memory_MemAvailable_bytes) / sum $by (node_memory_MemTotal_bytes)"
    ),
    "swap_used_share": (
        "1 - sum $by (node_memory_SwapFree_bytes) / sum $by (node_memory_SwapTotal_bytes > 0)"
    ),
    "major_faults_per_s": "sum $by (rate(node_vmstat_pgmajfault$range))",
    "oom_kills_per_s": "sum $by (rate(node_vmstat_oom_kill$range))",
    "tcp_retransmits_per_s": "sum $by (rate(node_netstat_Tcp_RetransSegs$range))",
    "memory_errors_corrected_per_s": ("sum $by (rate(node_edac_correctable_errors_total$range))"),
    "memory_errors_uncorrected_per_s": (
        "sum $by (rate(node_edac_uncorrectable_errors_total$range))"
    ),
    "tcp_timeouts_per_s": "sum $by (rate(node_netstat_TcpExt_TCPTimeouts$range))",
    "tcp_listen_drops_per_s": "sum $by (rate(node_netstat_TcpExt_ListenDrops$range))",
    "network_receive_bytes_per_s": (
        'sum $by (rate(node_network_receive_bytes_total{device!="lo"}$range))'
    ),
    "network_transmit_bytes_per_s": (
        'sum $by (rate(node_network_transmit_bytes_total{device!="lo"}$range))'
    ),
    "network_errors_per_s": " + ".join(
        f'sum $by (rate(node_network_{what}_total{{device!="lo"}}$range))'
        for what in ("receive_errs", "receive_drop", "transmit_errs", "transmit_drop")
    ),
}


def _rows(scope: Scope, table: str) -> tuple[Metric, ...]:
    """Read rows of two lines: `name | label | unit | kind | source`, then the meaning."""
    lines = table.strip().splitlines()
    rows = []
    for head, meaning in zip(lines[::2], lines[1::2], strict=True):
        name, label, unit, kind, source = (cell.strip() for cell in head.split("|"))
        rows.append(
            Metric(
                name=name,
                label=label,
                unit=unit,
                scope=scope,
                kind=Kind(kind),
                source=source,
                meaning=meaning.strip(),
                node_exporter=_NODE_EXPORTER.get(name, ""),
            )
        )
    return tuple(rows)


# What peerd measures of its own work, and what the kernel says of its process.
_PROCESS = _rows(
    Scope.PROCESS,
    """
commit_latency_ms_p50 | fsync p50 | ms | latency | storage writer
    half of the commits of the interval took no longer
commit_latency_ms_p99 | fsync p99 | ms | latency | storage writer
    99 of 100 commits of the interval took no longer
commit_latency_ms_max | slowest fsync | ms | latency | storage writer
    the slowest commit of the interval
commit_age_ms | commit under way for | ms | level | storage writer
    age of the commit that has not returned yet; 0 when none is under way
commits_per_s | commits | 1/s | rate | storage writer
    write transactions that reached the disk
commit_stalls_per_s | commit stalls | 1/s | rate | storage writer
    commits of 100 ms or more
commit_bytes_per_s | committed bytes | B/s | rate | storage writer
    payload bytes that reached the disk
append_records_per_s | appended records | 1/s | rate | log service
    records accepted from clients
append_bytes_per_s | appended bytes | B/s | rate | log service
    payload bytes accepted from clients
replication_ack_ms_p99 | shadow ack p99 | ms | latency | replication
    from sending a frame to its acknowledgement, all shadows together
errors_per_s | errors | 1/s | rate | daemon
    refusals and failures that are not the client's fault
loop_lag_ms_max | event loop lag | ms | latency | daemon
    the latest wake-up of a 50 ms timer on the event loop
sample_delay_ms | sampling delay | ms | level | collector
    how much later than planned this sample was taken
process_cpu_cores | own CPU | cores | level | /proc/self/stat
    user and system time a second of real time
process_run_wait_share | waiting for a core | share | share | /proc/self/schedstat
    time the main thread was runnable but not running
process_memory_rss_bytes | resident memory | B | level | /proc/self/status
    VmRSS, the LMDB map's resident pages included
process_memory_anonymous_bytes | own memory | B | level | /proc/self/status
    RssAnon: memory that only this process can give back
process_memory_limit_share | memory limit used | share | share | getrlimit, cgroup
    the fullest of: data segment of RLIMIT_DATA, cgroup usage of its limit; NaN without a limit
process_major_faults_per_s | own major faults | 1/s | rate | /proc/self/stat
    page faults that waited for a disk
process_file_descriptors_share | file descriptors used | share | share | /proc/self/fd
    open descriptors of RLIMIT_NOFILE
process_switches_involuntary_per_s | preemptions | 1/s | rate | /proc/self/status
    times the main thread was taken off its core
""",
)

_DISK = _rows(
    Scope.DISK,
    """
disk_busy_share | disk busy | share | share | /sys/dev/block
    time with at least one request under way
disk_read_latency_ms | disk read latency | ms | latency | /sys/dev/block
    mean time of a read
disk_write_latency_ms | disk write latency | ms | latency | /sys/dev/block
    mean time of a write
disk_flush_latency_ms | disk flush latency | ms | latency | /sys/dev/block
    mean time of a cache flush (Linux 5.5)
disk_queue_requests | disk queue | requests | level | /sys/dev/block
    mean number of requests under way or waiting
disk_free_share | free disk space | share | share | statvfs
    space left for peerd on the data directory's file system
""",
)

_HOST = _rows(
    Scope.HOST,
    """
machine_identity | machine | id | identity | boot_id
    24 bits of the kernel's boot id: peers with equal values share one kernel
cpu_busy_share | CPU busy | share | share | /proc/stat
    all cores, neither idle nor waiting for a disk
cpu_iowait_share | CPU waiting for disks | share | share | /proc/stat
    idle with a disk request of its own under way
cpu_steal_share | CPU stolen | share | share | /proc/stat
    the hypervisor ran someone else
load_per_core | load per core | 1 | level | /proc/loadavg
    runnable and uninterruptible tasks, 1 min mean, per core
pressure_cpu_some_share | CPU pressure | share | share | /proc/pressure/cpu
    time in which some task waited for a core
pressure_memory_some_share | memory pressure | share | share | /proc/pressure/memory
    time in which some task waited for memory
pressure_memory_full_share | full memory pressure | share | share | /proc/pressure/memory
    time in which all tasks waited for memory
pressure_io_some_share | io pressure | share | share | /proc/pressure/io
    time in which some task waited for a disk
pressure_io_full_share | full io pressure | share | share | /proc/pressure/io
    time in which all tasks waited for a disk
pressure_io_full_avg10_share | full io pressure, 10 s | share | share | /proc/pressure/io
    the kernel's own mean over 10 s
memory_available_share | memory available | share | share | /proc/meminfo
    MemAvailable of MemTotal
swap_used_share | swap used | share | share | /proc/meminfo
    of SwapTotal; NaN without swap
major_faults_per_s | major faults | 1/s | rate | /proc/vmstat
    page faults of all processes that waited for a disk
oom_kills_per_s | OOM kills | 1/s | rate | /proc/vmstat
    processes ended by the kernel for want of memory
tcp_retransmits_per_s | TCP retransmits | 1/s | rate | /proc/net/snmp
    segments sent again
network_errors_per_s | network errors | 1/s | rate | /proc/net/dev
    errors and drops of all devices but loopback
""",
)

# What came later stands at the end: see the module's docstring.
_PROCESS_LATER = _rows(
    Scope.PROCESS,
    """
round_trip_ms_p50 | round trip | ms | latency | replication
    from a ping on a stream of frames to its answer, half of those of the interval, all peers
round_trip_ms_max | slowest round trip | ms | latency | replication
    the slowest of them, also of one that is not answered yet
""",
)

_DISK_LATER = _rows(
    Scope.DISK,
    """
disk_io_errors_per_s | disk errors | 1/s | rate | /sys/dev/block
    requests that the device failed (SCSI and SATA)
disk_smart_failed_share | disk says it fails | 1 | level | smartctl
    1: the disk's own judgement, or a critical warning; 0: it is content
disk_temperature_celsius | disk temperature | °C | level | smartctl
    of the disk's own sensor
disk_reallocated_sectors | reallocated sectors | sectors | level | smartctl
    ATA attribute 5: sectors that were replaced
disk_pending_sectors | pending sectors | sectors | level | smartctl
    ATA attribute 197: sectors that could not be read and wait to be replaced
disk_media_errors | media errors | errors | level | smartctl
    ATA attribute 187, or NVMe media errors: what could not be read or written
disk_wear_share | disk worn | share | share | smartctl
    NVMe: of the life that its vendor expects; may exceed 1
disk_spare_share | disk spare left | share | share | smartctl
    NVMe: of its spare blocks
""",
)

_HOST_LATER = _rows(
    Scope.HOST,
    """
memory_errors_corrected_per_s | corrected memory errors | 1/s | rate | edac
    of all memory controllers; NaN where the machine does not count them
memory_errors_uncorrected_per_s | uncorrected memory errors | 1/s | rate | edac
    the same, of those that no code could mend
tcp_timeouts_per_s | TCP timeouts | 1/s | rate | /proc/net/netstat
    times that a connection waited for its retransmission timer
tcp_aborts_per_s | TCP connections given up | 1/s | rate | /proc/net/netstat
    connections that ended because the other end did not answer
tcp_listen_drops_per_s | TCP connections dropped | 1/s | rate | /proc/net/netstat
    connections that came and were not taken
network_receive_bytes_per_s | bytes received | B/s | rate | /proc/net/dev
    all devices but loopback
network_transmit_bytes_per_s | bytes sent | B/s | rate | /proc/net/dev
    all devices but loopback
network_carrier_losses_per_s | links lost | 1/s | rate | /sys/class/net
    times that a network device lost its link
""",
)

TELEMETRY_SCHEMA = TelemetrySchema(
    _PROCESS + _DISK + _HOST + _PROCESS_LATER + _DISK_LATER + _HOST_LATER
)

# Present in every sample that was taken, whatever else is missing: tells a sample from a gap.
ALWAYS_PRESENT = "sample_delay_ms"


def reference() -> str:
    """The table as the Markdown page `docs/telemetry.md`."""
    lines = [
        "# Telemetry",
        "",
        "Sampled once a second on every peer, kept there for two minutes, carried by heartbeats",
        "to the LAS leader, exported at `/metrics` with the prefix `peerd_`, read by the forecast.",
        "A metric that cannot be had is missing (NaN), never zero. Printed from",
        "`peerd/daemon/telemetry/schema.py` by `python -m peerd.daemon.telemetry.schema`.",
        "",
        "A Prometheus server can stand in for the heartbeats (`telemetry.source` of the LAS): it",
        "scrapes the peers' `/metrics`, and what it lacks there is taken from node_exporter where",
        "there is something like it: see the last table.",
        "",
        "`process` concerns this peer alone, `disk` every peer on the device of its data",
        "directory, `host` every peer of the machine.",
        "",
        f"Schema version `{TELEMETRY_SCHEMA.version}`, {len(TELEMETRY_SCHEMA)} metrics.",
    ]
    for scope in Scope:
        lines += ["", f"## {scope.value}", "", "| metric | unit | kind | source | meaning |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        lines += [
            f"| `{m.name}` | {m.unit} | {m.kind.value} | {m.source} | {m.meaning} |"
            for m in TELEMETRY_SCHEMA
            if m.scope is scope
        ]
    lines += ["", "## From node_exporter", "", "| metric | PromQL |", "| --- | --- |"]
    lines += [
        f"| `{m.name}` | `{m.node_exporter.replace('|', chr(92) + '|')}` |"
        for m in TELEMETRY_SCHEMA
        if m.node_exporter
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
