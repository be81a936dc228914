"""Exactly once: who gave which command last, and what came of it.

A command travels through the log in an envelope with the id of the client that gave it and a
sequence number of that client. Applying looks at the number first:

| number is            | then                                                             |
| -------------------- | ---------------------------------------------------------------- |
| above the last one   | apply, keep number and result                                    |
| the last one         | the kept result again; the state does not change                 |
| below the last one   | `Superseded`; the state does not change                          |

A client has one unanswered command at a time (gaps in the numbers are fine). Only the commands that
a member numbers itself may overlap: they are never given twice.

Invariants: the table is part of the replicated state, so it follows from the log alone and is in
every snapshot; it forgets the client that was heard of longest ago, never by time.

Must not: know what a command does.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from las.raft.errors import CommandInvalid

# limit: clients whose last result is kept; far more than programs that give commands at a time,
# since a retry follows within seconds
SESSIONS_MAX = 4096
# limit: bytes of kept results; bounds the snapshot beside the state itself
RESULT_BYTES_MAX = 8 * 1024 * 1024
# limit: bytes of a client's id; ids are names or UUIDs
CLIENT_BYTES_MAX = 128
# limit: a number above this does not fit the wire (u64)
SEQUENCE_MAX = 2**64 - 1

_SEPARATOR = "\n"

# (client, sequence, result) in the order of last use, oldest first.
SessionRow = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A command with its id."""

    client: str
    sequence: int
    body: str

    def __post_init__(self) -> None:
        size = len(self.client.encode("utf-8", "replace"))
        if not 0 < size <= CLIENT_BYTES_MAX or _SEPARATOR in self.client:
            raise CommandInvalid(
                f"a client's id has 1 to {CLIENT_BYTES_MAX} bytes and no line break: "
                f"{self.client[:CLIENT_BYTES_MAX]!r}"
            )
        if not 0 < self.sequence <= SEQUENCE_MAX:
            raise CommandInvalid(f"sequence {self.sequence} is not in 1 … 2^64 - 1")

    def to_text(self) -> str:
        """Returns the envelope as the text that the log holds."""
        return f"{self.client}{_SEPARATOR}{self.sequence}{_SEPARATOR}{self.body}"

    @classmethod
    def from_text(cls, text: str) -> "Envelope":
        """Takes `to_text` apart. Raises ValueError or CommandInvalid if it is none."""
        client, sequence, body = text.split(_SEPARATOR, 2)
        return cls(client=client, sequence=int(sequence), body=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """Outcome of a command below its client's last one."""

    client: str
    sequence: int
    last_sequence: int


class Sessions:
    """The table; owned by the raft thread."""

    def __init__(self, rows: tuple[SessionRow, ...] = ()) -> None:
        self._rows: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._result_bytes = 0
        for client, sequence, result in rows:
            self._keep(client, sequence, result)

    def apply(self, envelope: Envelope, machine: Callable[[str], str]) -> str | Superseded:
        """Applies a committed command if it was not applied before; see the module's table."""
        kept = self._rows.get(envelope.client)
        if kept is not None:
            sequence, result = kept
            if envelope.sequence == sequence:
                return result
            if envelope.sequence < sequence:
                return Superseded(
                    client=envelope.client, sequence=envelope.sequence, last_sequence=sequence
                )
        result = machine(envelope.body)
        self._keep(envelope.client, envelope.sequence, result)
        return result

    def freeze(self) -> tuple[SessionRow, ...]:
        """Returns the table as immutable values; at most SESSIONS_MAX rows."""
        return tuple((client, row[0], row[1]) for client, row in self._rows.items())

    def _keep(self, client: str, sequence: int, result: str) -> None:
        _, replaced = self._rows.pop(client, (0, ""))
        self._rows[client] = (sequence, result)
        self._result_bytes += len(result) - len(replaced)
        while len(self._rows) > SESSIONS_MAX or (
            self._result_bytes > RESULT_BYTES_MAX and len(self._rows) > 1
        ):
            _, (_, forgotten) = self._rows.popitem(last=False)
            self._result_bytes -= len(forgotten)
