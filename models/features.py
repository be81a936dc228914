"""What the incident head reads: metrics, their scales, the window and its spans.

Only metrics that are a node's own in the recordings may stand here: those of process scope, the
machine's identity, and what in rooms (`models/lab/room.py`) is each peer's own: the free space of
the disk and what TCP counts. The lab's peers share one kernel, so other host metrics would teach
nothing true; and `OF_ROOMS` are left out of what is learned from runs without rooms.
"""

WINDOW = 120
IDENTITY = "machine_identity"

# Metric, and the amount below which differences hardly count (its scale is log1p(value / amount)).
INPUTS: tuple[tuple[str, float], ...] = (
    ("commit_latency_ms_p50", 0.5),
    ("commit_latency_ms_p99", 1.0),
    ("commit_latency_ms_max", 2.0),
    ("commit_age_ms", 2.0),
    ("commit_stalls_per_s", 0.2),
    ("commits_per_s", 3.0),
    ("commit_bytes_per_s", 3e3),
    ("loop_lag_ms_max", 5.0),
    ("sample_delay_ms", 10.0),
    ("process_cpu_cores", 0.05),
    ("process_run_wait_share", 0.05),
    ("process_memory_anonymous_bytes", 1e7),
    ("process_memory_limit_share", 0.05),
    ("process_file_descriptors_share", 0.05),
    ("round_trip_ms_p50", 2.0),
    ("disk_free_share", 0.05),
    ("round_trip_ms_max", 5.0),
    ("tcp_retransmits_per_s", 1.0),
    ("tcp_timeouts_per_s", 0.5),
)
OF_ROOMS = ("disk_free_share", "tcp_retransmits_per_s", "tcp_timeouts_per_s")
# What runs out: how much of it is used follows from the metric, whose complement counts where it
# tells what is free. Lines are drawn through so many of the newest samples.
EXHAUSTIBLE = (
    ("process_memory_limit_share", False),
    ("process_file_descriptors_share", False),
    ("disk_free_share", True),
)
TREND_SAMPLES = (8, 20)
FEATURES = (*(name for name, _ in INPUTS), IDENTITY)

# Spans in seconds before the newest sample. The first ones are short: a fault of half a minute
# must show after a few seconds; the last ones hold the past that all is compared with.
SPANS = ((0, 3), (3, 6), (6, 10), (10, 16), (16, 28), (28, 60), (60, 120))
# What one half of the head reads: the rest did not exist, or meant something else, in the runs that
# it learns from.
OLDEST_INPUTS = tuple(name for name, _ in INPUTS[:13])
# Of the past beyond so many seconds every so many-th sample is read: a mean of a dozen is as good.
THINNED = ((28, 2), (60, 4))


def _kept() -> tuple[int, ...]:
    """Positions in a window, oldest first, of the samples that are read."""
    kept = []
    for newest, oldest in SPANS:
        every = max([step for beyond, step in THINNED if newest >= beyond], default=1)
        kept += range(newest, oldest, every)
    return tuple(sorted(WINDOW - 1 - age for age in kept))


KEPT = _kept()
