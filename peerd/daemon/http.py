"""The peer's HTTP side: `/metrics` for Prometheus, `/healthz` and `/readyz` for process managers.

`/healthz` says that the event loop turns; `/readyz` that the peer serves (200) or not (503), with
the reason in one line. Nothing here changes anything, and nothing here needs a certificate: listen
on loopback, or behind what guards the monitoring network.
"""

from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from peerd.daemon.errors import PortInUse

# How long open requests may take to end when the peer stops, in seconds.
SHUTDOWN_TIMEOUT_S = 1.0


class HttpEndpoint:
    """Serves one registry. `why_not_ready` gives None when the peer serves, else one line."""

    def __init__(
        self,
        registry: CollectorRegistry,
        why_not_ready: Callable[[], str | None],
        routes: Iterable[web.RouteDef] = (),
    ) -> None:
        """`routes` are served as well."""
        self._registry = registry
        self._why_not_ready = why_not_ready
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_routes(routes)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port. Raises `PortInUse`."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise PortInUse.from_os_error("http_listen", f"{host}:{port}", error) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and end open requests."""
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        why = self._why_not_ready()
        if why is None:
            return web.Response(text="serving\n")
        return web.Response(status=503, text=f"{why}\n")
