"""The certificates of a daemon, and what its log says when they are renewed."""

from peerd.daemon.logging import get_logger
from peerd.settings import ConfigError
from peerd.transport.credentials import Credentials
from peerd.transport.endpoint import Endpoint
from peerd.transport.tls import TlsError

_log = get_logger("certificates")


def daemon_credentials(endpoint: Endpoint) -> Credentials | None:
    """Those that the settings name; None for plaintext on loopback. Raises `ConfigError`."""
    files = endpoint.tls_files()
    if files is None:
        return None
    try:
        return Credentials(
            files,
            on_renewed=lambda what: _log.info("certificate renewed", what=what),
            on_refused=lambda why: _log.warning("certificate not renewed", why=why),
        )
    except TlsError as error:
        raise ConfigError(str(error)) from error
