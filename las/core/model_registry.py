"""The forecast models of a cluster: their bytes, and which version of each head answers.

A model travels as committed commands: its pieces (`StoreModelPiece`), then `InstallModel`, which
takes them only if they are, joined, what its SHA-256 says. So whatever LAS node leads next has the
bytes, one that was down gets them with the log or the snapshot, and all judge alike. Whether a file
is a model at all is checked by who sends the command, and again by each node before it uses it:
here are bytes.

Invariants:
- A version has all its bytes, and they never change. Numbers count from 1 and are never used twice;
  `SHIPPED` (0) is the model that each node has from its own package or configuration.
- What answers changes by `PromoteModel` and `RollBackModel` alone; an installed model is the head's
  candidate, which runs beside the live one and moves nothing.
- Versions that answer, that answered before, or that are candidates are never dropped.

Bounds: `MODEL_BYTES_MAX` a model, `MODELS_BYTES_MAX` and `VERSIONS_MAX` all together, one upload.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

# limit: bytes of one installed model; the largest that is shipped has less than half.
MODEL_BYTES_MAX = 1 << 20
# limit: bytes of all versions that are kept: each snapshot of the LAS has them.
MODELS_BYTES_MAX = 4 << 20
# limit: versions that are kept, of all heads together.
VERSIONS_MAX = 12
# limit: bytes of a model in one command, which has 64 KiB of JSON: these are 60 KiB in base64.
PIECE_BYTES_MAX = 45 * 1024

SHIPPED = 0
"""The version that each node has without any installed one."""


class ModelHead(StrEnum):
    """The kinds of model; see `las.forecast.contract`."""

    INCIDENT = "incident"
    HARDWARE = "hardware"
    HISTORY = "history"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A model that was installed. `digest` is the SHA-256 of its bytes, `pieces` are in base64.

    `timestamp_ms` is a wall clock, for people.
    """

    version: int
    head: ModelHead
    model_id: str
    digest: str
    size_bytes: int
    timestamp_ms: int
    pieces: tuple[str, ...]

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return _joined(self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadVersions:
    """Which version of a head answers, which one did before, which one runs beside it."""

    head: ModelHead
    live: int = SHIPPED
    before: int | None = None
    candidate: int | None = None

    @property
    def needed(self) -> frozenset[int]:
        """Versions that must not be dropped."""
        return frozenset(each for each in (self.live, self.before, self.candidate) if each)

    @property
    def words(self) -> str:
        """In one line, for people."""
        parts = [f"{version_words(self.live)} answers"]
        if self.before is not None:
            parts.append(f"{version_words(self.before)} before it")
        if self.candidate is not None:
            parts.append(f"{version_words(self.candidate)} in shadow")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Pieces of a model that is not installed yet."""

    digest: str
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRegistry:
    """All of it. `installed` is the newest version's number.

    A head without an entry is as shipped.
    """

    installed: int = 0
    versions: tuple[ModelVersion, ...] = ()
    heads: tuple[HeadVersions, ...] = ()
    upload: Upload | None = None

    def of(self, head: ModelHead) -> HeadVersions:
        """What answers for `head`."""
        for each in self.heads:
            if each.head is head:
                return each
        return HeadVersions(head=head)

    def version(self, number: int | None) -> ModelVersion | None:
        """The installed version of that number, if it is kept."""
        for each in self.versions:
            if each.version == number:
                return each
        return None

    def with_head(self, changed: HeadVersions) -> "ModelRegistry":
        """The same with another entry for a head."""
        others = [each for each in self.heads if each.head is not changed.head]
        return replace(self, heads=tuple(sorted([*others, changed], key=lambda each: each.head)))

    def with_version(self, version: ModelVersion) -> "ModelRegistry | None":
        """The same with a version more, the candidate of its head; older ones make room.

        None if too many are needed to make room for it.
        """
        beside = replace(self.of(version.head), candidate=version.version)
        after = replace(self, installed=version.version, upload=None).with_head(beside)
        needed = frozenset[int]().union(*(each.needed for each in after.heads))
        kept = [*self.versions, version]
        while len(kept) > VERSIONS_MAX or _bytes(kept) > MODELS_BYTES_MAX:
            spare = next((each for each in kept if each.version not in needed), None)
            if spare is None:
                return None
            kept.remove(spare)
        return replace(after, versions=tuple(kept))


NO_MODELS = ModelRegistry()


def pieces_of(content: bytes) -> tuple[str, ...]:
    """A file's bytes as pieces for commands."""
    return tuple(
        base64.b64encode(content[at : at + PIECE_BYTES_MAX]).decode()
        for at in range(0, len(content), PIECE_BYTES_MAX)
    )


def digest_of(content: bytes) -> str:
    """What names a file: its SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def decoded_bytes(piece: str) -> int | None:
    """How many bytes a piece stands for; None if it is no piece."""
    try:
        return len(base64.b64decode(piece.encode(), validate=True))
    except (binascii.Error, UnicodeError):
        return None


def upload_bytes(pieces: Iterable[str]) -> bytes:
    """The bytes of checked pieces."""
    return _joined(pieces)


def version_words(version: int) -> str:
    """A version for people: `shipped`, or its number."""
    return "shipped" if version == SHIPPED else f"version {version}"


def _bytes(versions: Iterable[ModelVersion]) -> int:
    return sum(each.size_bytes for each in versions)


def _joined(pieces: Iterable[str]) -> bytes:
    return b"".join(base64.b64decode(piece) for piece in pieces)
