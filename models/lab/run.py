"""One run of the lab: peers that serve, a plan that is carried out, a recording that results.

`carry_out` knows peers only as `LabPeer`s and load only as a callable, so that it can be tried on
anything that samples and commits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.dataset import NodeTruth, Run, RunTruth
from models.lab.episodes import GIVEN_UP, EpisodeThread, limit_memory, run_shared
from models.lab.plan import Episode, RunPlan, Shared
from models.lab.watch import LabPeer, PeerWatch
from peerd.daemon.telemetry.collector import SAMPLE_PERIOD_MS
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.daemon.telemetry.window import Recording, read_recording

# Data memory that a leak may take before the process is at its limit, and 15 % for its work.
MEMORY_HEADROOM_BYTES = 460_000_000
_SHARED_BY_LOAD = ("load_spike", "large_batches", "lull")


class RunSpoiled(Exception):
    """The run cannot be used; the message says what went wrong. It is to be done again."""


# A load's part in a shared event: begins it, blocks until it ends.
LoadEvent = Callable[[Shared, threading.Event], None]


def carry_out(
    plan: RunPlan,
    peers: Sequence[LabPeer],
    scratch: Path,
    *,
    load_event: LoadEvent,
    restart: Callable[[str], None],
) -> Run:
    """Do what the plan says to the peers and return the recording. Blocks for the run's length.

    `restart` starts a killed peer again, by its name. The run's seconds count from the peers' first
    samples, or from this call where those came later: a plan's onset never lies before its second.

    Raises `RunSpoiled` when a peer that nothing was done to did not live to the end.
    """
    begun_s = time.monotonic()
    ending = threading.Event()
    if plan.limit_memory:
        for peer in peers:
            if peer.room is not None and peer.room.limits is not None:
                peer.room.limits.set_memory(MEMORY_HEADROOM_BYTES)
            else:
                limit_memory(peer, MEMORY_HEADROOM_BYTES)
    episodes = [
        EpisodeThread(
            episode=episode,
            peer=peers[episode.peer],
            run_begun_s=begun_s,
            ending=ending,
            restart=restart,
        )
        for episode in (*plan.faults, *plan.look_alikes)
    ]
    expected = {e.peer for e in plan.faults} | {
        e.peer for e in plan.look_alikes if e.kind == "restart"
    }
    bystanders = set(range(len(peers))) - expected
    watches = [PeerWatch(peers[index]) for index in bystanders]
    shared = [
        threading.Thread(
            target=_do_shared,
            args=(event, begun_s),
            kwargs={
                "directories": [peer.data_directory for peer in peers],
                "scratch": scratch,
                "load_event": load_event,
                "ending": ending,
            },
        )
        for event in plan.shared
    ]
    threads: list[EpisodeThread | threading.Thread] = [*episodes, *shared]
    for thread in threads:
        thread.start()
    try:
        _wait_for_end(plan, episodes, begun_s)
    finally:
        ending.set()
        for thread in threads:
            thread.join()
        died = [watch.peer.name for watch in watches if watch.gone()]
        for watch in watches:
            watch.close()
    if died:
        raise RunSpoiled(f"{', '.join(died)} ended although nothing was done to it")
    for episode in episodes:
        check_episode(episode)
    return assemble(plan, peers, episodes, begun_s)


def check_episode(thread: EpisodeThread) -> None:
    """Raise `RunSpoiled` if what was to be done to a peer was not, or did not do what it should."""
    kind, peer, outcome = thread.episode.kind, thread.peer, thread.outcome
    if outcome.error is not None:
        raise RunSpoiled(f"{kind} on {peer.name}: {outcome.error}")
    if peer.room is not None and outcome.why == GIVEN_UP:
        raise RunSpoiled(f"{kind} on {peer.name} did not stop it: its label would be wrong")


def _wait_for_end(plan: RunPlan, episodes: Sequence[EpisodeThread], begun_s: float) -> None:
    """Until the plan's length is over and every fault has come to its end."""
    faulty = [e for e in episodes if e.episode in plan.faults]
    nothing = threading.Event()
    while time.monotonic() < begun_s + plan.length_s:
        nothing.wait(0.5)
    for fault in faulty:
        fault.join()
    nothing.wait(1.5)  # the others' last samples


def _do_shared(
    event: Shared,
    begun_s: float,
    *,
    directories: list[Path],
    scratch: Path,
    load_event: LoadEvent,
    ending: threading.Event,
) -> None:
    if ending.wait(max(begun_s + event.start_s - time.monotonic(), 0.0)):
        return
    if event.kind in _SHARED_BY_LOAD:
        load_event(event, ending)
    else:
        run_shared(event, directories, scratch, ending)


def assemble(
    plan: RunPlan,
    peers: Sequence[LabPeer],
    episodes: Sequence[EpisodeThread],
    begun_s: float,
) -> Run:
    """The run from the peers' recordings and what the episodes saw; it began at `begun_s`."""
    recordings = [read_recording(peer.record_file) for peer in peers]
    first_ms = min(int(recording.tick_ms[0]) for recording in recordings)
    first = min(first_ms, int(begun_s * 1000)) // SAMPLE_PERIOD_MS
    ended = int(time.monotonic() * 1000) // SAMPLE_PERIOD_MS
    values = np.stack([_values(recording, first, ended - first) for recording in recordings])
    nodes = [
        NodeTruth(peer=peer.name, kind="healthy", onset_s=None, stop_s=None, parameters={})
        for peer in peers
    ]
    for thread in episodes:
        nodes[thread.episode.peer] = _truth(thread, peers, first)
    return Run(
        truth=RunTruth(
            number=plan.number,
            seed=plan.seed,
            load={
                "appends_per_s": plan.appends_per_s,
                "record_bytes": float(plan.record_bytes),
                "shards": float(plan.shards),
            }
            | ({"in_rooms": 1.0} if plan.in_rooms else {}),
            shared=[
                {
                    "kind": event.kind,
                    "start_s": event.start_s,
                    "duration_s": event.duration_s,
                    "strength": event.strength,
                }
                for event in plan.shared
            ],
            nodes=nodes,
        ),
        values=values,
    )


def _truth(thread: EpisodeThread, peers: Sequence[LabPeer], first: int) -> NodeTruth:
    episode: Episode = thread.episode
    outcome = thread.outcome

    def second(moment_s: float | None) -> float | None:
        return None if moment_s is None else round(moment_s - first * SAMPLE_PERIOD_MS / 1000.0, 2)

    return NodeTruth(
        peer=peers[episode.peer].name,
        kind=episode.kind,
        onset_s=second(outcome.begun_s),
        stop_s=second(outcome.stopped_s),
        parameters=episode.parameters
        | {
            "planned_duration_s": episode.duration_s,
            "grow_s": episode.grow_s,
            "why": outcome.why,
        },
    )


def _values(recording: Recording, first: int, seconds: int) -> npt.NDArray[np.float32]:
    """A peer's samples on the run's seconds: [seconds, metrics], NaN where there is none."""
    values = np.full((seconds, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)
    places = recording.tick_ms // SAMPLE_PERIOD_MS - first
    inside = (places >= 0) & (places < seconds)
    values[places[inside]] = recording.values[inside]
    return values
