"""`las export` and `las recover`: from what is left of a group to what a new one begins with."""

import getpass
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from las.core.cluster import Cluster, UnknownCommand
from las.core.commands import Caller
from las.core.recovered import TooManyRecoveries, begun_anew
from las.daemon import exports
from las.daemon.config import LasConfig
from las.daemon.exports import Export, ExportUnusable, Origin
from las.raft import StoreError
from las.raft.offline import read_directory
from peerd.daemon.errors import StoreUnusable

NAMES_TOLD_MAX = 20
"""Names in one line of what is known."""


def from_directory(config: LasConfig) -> Export:
    """The newest state in the data directory of a member that is stopped.

    Raises:
        StoreUnusable: there is none, a process is using it, it is damaged, or a newer version wrote
            it.
    """
    machines: list[Cluster] = []

    def make_machine(cluster_id: str) -> Cluster:
        machines.append(Cluster(cluster_id))
        return machines[-1]

    try:
        _, position = read_directory(
            config.data_dir,
            cluster=config.cluster,
            name=config.name,
            members=config.members,
            make_machine=make_machine,
        )
    except (StoreError, UnknownCommand) as error:
        raise StoreUnusable(f"data_dir: {error}") from error
    origin = Origin(
        cluster=config.cluster,
        source=config.name,
        index=position.index,
        term=position.term,
        proven_index=position.snapshot_index,
    )
    return Export(origin=origin, state=machines[0].state)


def from_file(path: Path, cluster: str) -> Export:
    """An export of `cluster`. Raises `ExportUnusable`."""
    export = exports.read(path)
    if export.origin.cluster != cluster:
        raise ExportUnusable(f"{path}: of cluster {export.origin.cluster}, not of {cluster}")
    return export


def recovered(export: Export) -> Export:
    """What a new group begins with. Raises `ExportUnusable`: too often, or it is that already."""
    if export.is_recovered:
        raise ExportUnusable("`las recover` wrote it already: give it to `las init --import`")
    recovery_id = str(uuid.uuid4())
    now_ms = time.time_ns() // 1_000_000
    caller = Caller(
        who=f"{_user()}@{socket.gethostname()}",
        role="host",
        what="las recover",
        clock_ms=export.state.clock_ms,
        timestamp_ms=now_ms,
    )
    told = f"{reach(export.origin)}; what was committed after that is lost"
    try:
        state = begun_anew(export.state, recovery_id=recovery_id, caller=caller, told=told)
    except TooManyRecoveries as error:
        raise ExportUnusable(str(error)) from error
    return Export(origin=replace(export.origin, recovery_id=recovery_id), state=state)


def _user() -> str:
    """Who runs this, for the audit: a name, or a number where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def reach(origin: Origin) -> str:
    """How far a state goes, in words."""
    text = f"from {origin.source}, up to entry {origin.index} of term {origin.term}"
    unproven = origin.index - origin.proven_index
    return f"{text}, the last {unproven} of them taken as committed" if unproven else text


def report(export: Export) -> Iterator[str]:
    """What is left, what is lost and what follows, for a person who has to decide."""
    state = export.state
    yield f"what is left: {reach(export.origin)}"
    yield f"  map version {state.version}, shard ids below {state.next_shard}"
    yield f"  {len(state.nodes)} nodes: {_names(sorted(state.nodes))}"
    logs = [f"{log.name} ({len(log.shards)})" for _, log in sorted(state.logs.items())]
    yield f"  {len(logs)} logs (with their shards): {_names(logs)}"
    newest = state.audit.get(state.audited)
    if newest is not None:
        yield f"  the newest change that somebody asked for: {newest.what} by {newest.who}"
    yield "what is lost: every change of the map that was committed after that: logs that were"
    yield "  made, changed or deleted, nodes that joined, where segments were moved to"
    yield "what is not lost by it: records. Peers keep theirs, and go on with what they do"
    yield "what follows: a new group. Members of the old one, and of another import, are refused."
    yield "  The LAS changes no shard before it knows that the shard has not outlived this state;"
    yield "  one that has waits for you: `peerctl status`"


def _names(names: list[str]) -> str:
    more = len(names) - NAMES_TOLD_MAX
    told = ", ".join(names[:NAMES_TOLD_MAX]) or "none"
    return f"{told} and {more} more" if more > 0 else told
