"""Who calls: the name in the caller's certificate."""

from peerd.transport.status import Context
from peerd.transport.tls import identity_of


class Callers:
    """Names callers of one server. The authorization interceptor has judged them before."""

    def __init__(self, cluster: str, *, plaintext: bool) -> None:
        self._cluster = cluster
        self._plaintext = plaintext

    def name_of(self, context: Context) -> str:
        """The caller's name. Raises `IdentityError` where the interceptor would have refused."""
        return identity_of(context, self._cluster, plaintext=self._plaintext).name
