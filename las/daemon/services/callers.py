"""Who calls: name and role in the caller's certificate."""

from peerd.transport.status import Context
from peerd.transport.tls import Identity, identity_of


class Callers:
    """Names callers of one server. The authorization interceptor has judged them before."""

    def __init__(self, cluster: str, *, plaintext: bool) -> None:
        self._cluster = cluster
        self._plaintext = plaintext

    def name_of(self, context: Context) -> str:
        """The caller's name. Raises `IdentityError` where the interceptor would have refused."""
        return self.identity_of(context).name

    def identity_of(self, context: Context) -> Identity:
        """The caller's identity. Raises `IdentityError` as above."""
        return identity_of(context, self._cluster, plaintext=self._plaintext)
