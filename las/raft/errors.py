"""What can go wrong in the Raft group, one class per reason that a caller would act on.

Invariant: an error that is not `OutcomeUnknown` proves that the command was not and never will be
applied. Must not carry objects of the library underneath.
"""


class RaftError(Exception):
    """Base of everything that `las.raft` raises on purpose; the message is one line for people."""


class NotLeader(RaftError):
    """This member does not lead; the command was not taken. `leader` is a name or None."""

    def __init__(self, leader: str | None) -> None:
        self.leader = leader
        hint = f"ask {leader}" if leader else "no leader is known, try again in a moment"
        super().__init__(f"this LAS node is not the leader: {hint}")


class OutcomeUnknown(RaftError):
    """The command may or may not be applied, now or later. Give it again with the same id."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"outcome unknown: {why}; give the command again with the same id")


class Overloaded(RaftError):
    """A bound was reached; the command was not taken. Wait `retry_after_ms` and try again."""

    def __init__(self, what: str, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(f"{what}; try again in {retry_after_ms} ms")


class CommandTooLarge(RaftError):
    """A command is above the bound; it was not taken. Cut it, or send the bulk beside it."""

    def __init__(self, size_bytes: int, size_bytes_max: int) -> None:
        self.size_bytes = size_bytes
        super().__init__(
            f"a command of {size_bytes} bytes is above {size_bytes_max}: cut it into several"
        )


class CommandInvalid(RaftError):
    """A command or its id cannot be written into the log; it was not taken."""


class CommandSuperseded(RaftError):
    """A later command of the same client was applied before; this one was not applied now.

    The first result of the given one, if it had one, is no longer kept: only the last one is.
    """

    def __init__(self, client: str, sequence: int, last_sequence: int) -> None:
        self.last_sequence = last_sequence
        super().__init__(
            f"command {sequence} of {client} came after {last_sequence}: "
            "a client has one command at a time"
        )


class NotRunning(RaftError):
    """The node was not started or is stopped; nothing was taken."""


class FrameRefused(RaftError):
    """A frame breaks the protocol; it is dropped and counted, the sender's stream stays."""


class PeerRefused(RaftError):
    """A member says something in its Hello that this one cannot live with; no frames are taken."""


class LibraryChanged(RaftError):
    """The consensus library is not the one this package was made and tested for."""


class StoreError(RaftError):
    """A data directory cannot be used; the message names it and says what to do."""


class DirectoryEmpty(StoreError):
    """There is no store in the directory. A lost one must not come back as a new one by itself."""


class DirectoryNotEmpty(StoreError):
    """A new store was asked for where something is."""


class DirectoryInUse(StoreError):
    """Another process holds the directory."""


class WrongCluster(StoreError):
    """The directory belongs to another cluster."""


class WrongMember(StoreError):
    """The directory belongs to another member, or to a group with other members."""


class StoreCorrupt(StoreError):
    """Bytes on disk are not those that were written. Never repaired by guessing: rejoin."""
