"""Certificates that may be replaced while a daemon or a client runs.

Whoever renews certificates replaces the files; nothing is restarted and no signal is sent. A server
looks at them with each connection that begins, a client before each call that needs a channel, at
most once in `LOOK_EVERY_S`. Connections that are open stay as they are, so nothing pauses.

Invariants:
- Files are taken together or not at all, and only when they are judged sound (`tls.validate`) and
  name the same identity as before. Until then the last sound ones stay in use: half a renewal, a
  truncated file or another daemon's certificate takes nobody off the network.
- What is wrong with new files is logged once for each state of them, not with each look.

Must not: keep a private key outside gRPC's own credentials.
"""

import datetime
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from peerd.pki import Identity, PkiError, TlsFiles, read_certificates
from peerd.transport.tls import TlsError, read_tls_file, validate

# How often the files are looked at, at most; a look is three calls of stat.
LOOK_EVERY_S = 1.0

# What tells one state of the three files from another: inode, size and time of change of each.
_State = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Pems:
    """The contents of the three files."""

    ca: bytes
    certificate: bytes
    key: bytes


def _no_words(_text: str) -> None:
    """For those who do not log."""


class Credentials:
    """The credentials of one daemon or client, from files that may change. Of any thread.

    `generation` grows with each renewal that was taken.
    """

    def __init__(
        self,
        files: TlsFiles,
        *,
        on_renewed: Callable[[str], None] = _no_words,
        on_refused: Callable[[str], None] = _no_words,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads the files.

        Args:
            files: CA, certificate and key.
            on_renewed: Told in one line what was taken.
            on_refused: Told in one line why changed files were not taken.
            clock: Seconds, monotonic.

        Raises:
            TlsError: a file cannot be read. Their contents are judged by `validate`, which the
                caller does with what it expects; later ones are judged here.
        """
        self._files = files
        self._on_renewed = on_renewed
        self._on_refused = on_refused
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_s = clock()
        self._state = _state_of(files)
        pems = _read(files)
        self._identity = _identity_of(files)
        self._take(pems)
        self.generation = 1

    def channel(self) -> tuple[int, grpc.ChannelCredentials]:
        """What to make a channel of, and its generation, after a look at the files."""
        with self._lock:
            self._look()
            return self.generation, self._channel

    def server(self) -> grpc.ServerCredentials:
        """Credentials of a server that refuses callers without a certificate of the CA.

        It takes renewed files with the next connection.
        """
        given = 0

        def fetch() -> "grpc.ServerCertificateConfiguration | None":
            nonlocal given
            with self._lock:
                self._look()
                if given == self.generation:
                    return None
                given = self.generation
                return self._server

        with self._lock:
            given = self.generation
            # None means "as before", which the stubs of the library do not know.
            return grpc.dynamic_ssl_server_credentials(
                self._server,
                fetch,  # type: ignore[arg-type]
                require_client_authentication=True,
            )

    def expires_in_s(self) -> float:
        """Seconds until the certificate in use, or the last of the authorities, is not valid."""
        with self._lock:
            self._look()
            return (self._expires - datetime.datetime.now(datetime.UTC)).total_seconds()

    def _look(self) -> None:
        """Takes the files if they have changed and are sound. The lock is held."""
        if self._clock() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = self._clock()
        state = _state_of(self._files)
        if state == self._state:
            return
        self._state = state
        try:
            pems = _read(self._files)
            identity = validate(self._files)
            if self._identity is not None and identity != self._identity:
                raise TlsError(
                    f"tls.certificate: {self._files.certificate} is for {identity.uri}, "
                    f"not for {self._identity.uri}"
                )
            if _read(self._files) != pems:
                raise TlsError(f"tls: {self._files.certificate} changes while it is read")
        except TlsError as error:
            self._on_refused(f"{error}; the certificate read before stays in use")
            return
        self._identity = identity
        self._take(pems)
        self.generation += 1
        self._on_renewed(f"{self._files.certificate}, valid until {self._expires:%Y-%m-%d %H:%M}")

    def _take(self, pems: _Pems) -> None:
        self._channel = grpc.ssl_channel_credentials(
            root_certificates=pems.ca, private_key=pems.key, certificate_chain=pems.certificate
        )
        self._server = grpc.ssl_server_certificate_configuration(
            [(pems.key, pems.certificate)], root_certificates=pems.ca
        )
        self._expires = _first_end(self._files)


def _state_of(files: TlsFiles) -> _State:
    """A missing file is a state, too."""
    return tuple(map(_state_of_one, (files.ca, files.certificate, files.key)))


def _state_of_one(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(files: TlsFiles) -> _Pems:
    return _Pems(
        ca=read_tls_file(files.ca, "tls.ca"),
        certificate=read_tls_file(files.certificate, "tls.certificate"),
        key=read_tls_file(files.key, "tls.key"),
    )


def _identity_of(files: TlsFiles) -> Identity | None:
    """Whom the files name; None if they are not sound, which others say in better words."""
    try:
        return validate(files)
    except TlsError:
        return None


def _first_end(files: TlsFiles) -> datetime.datetime:
    """When the certificate, or the last of the authorities that are trusted, ends."""
    try:
        certificate = read_certificates(files.certificate)[0].not_valid_after_utc
        authorities = [each.not_valid_after_utc for each in read_certificates(files.ca)]
    except PkiError:
        return datetime.datetime.now(datetime.UTC)
    return min(certificate, max(authorities))
