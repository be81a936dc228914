"""Consensus among the LAS nodes: pysyncobj, made safe from the outside.

The library as it ships loses acknowledged commands. This package keeps its elections and log, and
replaces everything around them: durable journal and snapshots, a transport that repairs its
messages, pre-vote, exactly-once commands, one owning thread, frames over the LAS's own gRPC. Start
reading at `member` (the order of a step), then `guard` (the table of holes and rules).
"""

from las.raft.errors import (
    CommandInvalid,
    CommandSuperseded,
    CommandTooLarge,
    DirectoryEmpty,
    DirectoryInUse,
    DirectoryNotEmpty,
    LibraryChanged,
    NotLeader,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    RaftError,
    StoreCorrupt,
    StoreError,
    WrongCluster,
    WrongMember,
)
from las.raft.links import RaftServicer
from las.raft.member import RaftStatus, StateMachine
from las.raft.node import COMMAND_BYTES_MAX, RaftNode, RaftOptions
from las.raft.snapshot import Begin
from las.raft.store import Manifest, init_directory, open_directory, rejoin_directory

__all__ = [
    "COMMAND_BYTES_MAX",
    "Begin",
    "CommandInvalid",
    "CommandSuperseded",
    "CommandTooLarge",
    "DirectoryEmpty",
    "DirectoryInUse",
    "DirectoryNotEmpty",
    "LibraryChanged",
    "Manifest",
    "NotLeader",
    "NotRunning",
    "OutcomeUnknown",
    "Overloaded",
    "RaftError",
    "RaftNode",
    "RaftOptions",
    "RaftServicer",
    "RaftStatus",
    "StateMachine",
    "StoreCorrupt",
    "StoreError",
    "WrongCluster",
    "WrongMember",
    "init_directory",
    "open_directory",
    "rejoin_directory",
]
