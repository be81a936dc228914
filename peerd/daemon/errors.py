"""Why the daemon cannot start or go on, as one-line errors with a stable exit status."""

import errno

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CANNOT_START = 2
EXIT_BUG = 70
EXIT_STORAGE_FAILED = 74


class DaemonError(Exception):
    """The process has to end; the message is one line that says why and what to do."""

    exit_status = EXIT_FAILED


class CannotStart(DaemonError):
    """Configuration, certificates, directory or ports do not fit; nothing was begun."""

    exit_status = EXIT_CANNOT_START


class PortInUse(CannotStart):
    """An address cannot be listened on."""

    @classmethod
    def from_os_error(cls, key: str, address: str, error: OSError) -> "PortInUse":
        """The error for configuration key `key`, which names `address`."""
        if error.errno == errno.EADDRINUSE:
            return cls(
                f"{key}: {address} is in use by another process: stop it or choose another port"
            )
        return cls(f"{key}: cannot listen on {address}: {error.strerror or error}")


class RegistrationRefused(CannotStart):
    """The LAS does not accept this peer, and trying again would not change that."""


class Superseded(DaemonError):
    """The LAS takes this process for dead, for good; one that is started anew has another boot id.

    So the exit status is one after which a supervisor starts it again.
    """


class StoreUnusable(CannotStart):
    """The data directory cannot be opened as this peer's store."""


class StoreBroken(DaemonError):
    """The store failed for good, or is damaged; it must be verified before it is used again."""

    exit_status = EXIT_STORAGE_FAILED


class BrokenInvariant(DaemonError):
    """A bug, or a store or peer that contradicts the protocol; going on could lose a record."""

    exit_status = EXIT_BUG
