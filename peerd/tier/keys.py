"""Keys of the tier: AES-256 from files, the first for writing, all of them for reading.

A key is called by its id, the first 8 bytes of its SHA-256: what was written with one says so, and
nobody has to name keys. Rotation is a new file put first; older ones stay as long as what they
wrote. Each object has a key of its own, derived from one of these and a random salt, so that no
nonce is ever used twice with one key.

Must not: log or show a key.
"""

import contextlib
import hashlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from peerd.tier.errors import NotConfigured, WrongKey

KEY_BYTES = 32
SALT_BYTES = 16
NO_KEY = ""
"""The id that says: not encrypted."""

_PURPOSE = b"peerd tier object 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRing:
    """Keys by id, and which of them writes; without one nothing is encrypted."""

    writing: str = NO_KEY
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def cipher(self, key_id: str, salt: bytes) -> AESGCM:
        """What encrypts and decrypts one object. Raises `WrongKey`."""
        key = self.keys.get(key_id)
        if key is None:
            raise WrongKey(
                f"the key {key_id} is not among those of this peer: add its file to tier.key_files"
            )
        derived = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=_PURPOSE).derive(key)
        return AESGCM(derived)


NO_KEYS = KeyRing()


def key_id(key: bytes) -> str:
    """What a key is called."""
    return hashlib.sha256(key).hexdigest()[:16]


def ring_of(keys: Sequence[bytes]) -> KeyRing:
    """The first one writes, all of them read."""
    return KeyRing(
        writing=key_id(keys[0]) if keys else NO_KEY, keys={key_id(each): each for each in keys}
    )


def read_keys(files: Sequence[Path]) -> KeyRing:
    """The keys of these files: 32 bytes, or 64 hexadecimal digits. Raises `NotConfigured`."""
    return ring_of([_read_key(file) for file in files])


def exposed(files: Sequence[Path]) -> list[Path]:
    """Those of these files that everybody on this host may read; of what cannot be seen none."""
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            if file.stat().st_mode & stat.S_IROTH:
                found.append(file)
    return found


def _read_key(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(KEY_BYTES * 4)
    except OSError as error:
        raise NotConfigured(f"the key file {file} cannot be read: {error.strerror}") from error
    if len(data) == KEY_BYTES:
        return data
    try:
        key = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise NotConfigured(
            f"the key file {file} holds neither 32 bytes nor 64 hexadecimal digits: "
            "make one with `openssl rand -hex 32`"
        )
    return key
