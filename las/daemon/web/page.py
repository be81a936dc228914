"""The page of the fleet: three files and one document, read-only, nothing from elsewhere.

Invariants:
- Nothing here changes anything: there are no other methods than GET.
- The browser is told to load nothing but these files (`Content-Security-Policy`), and what comes
  from outside (names, reasons) is set as text by the script, never as HTML.
- A document is made at most once in `FRESH_S`, however many look at it.
"""

import time
from collections.abc import Callable
from importlib import resources

from aiohttp import web

from las.daemon.web.fleet_document import Document

# A document serves everybody for this long. Seconds.
FRESH_S = 1.0
_FILES = {
    "/": ("fleet.html", "text/html"),
    "/fleet.css": ("fleet.css", "text/css"),
    "/fleet.js": ("fleet.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class FleetPage:
    """Gives `routes` to the HTTP endpoint. `document` makes what is shown."""

    def __init__(self, document: Callable[[], Document]) -> None:
        self._document = document
        self._made: Document = {}
        self._made_s = -FRESH_S
        package = resources.files("las.daemon.web")
        self._files = {
            path: (package.joinpath(name).read_text("utf-8"), kind)
            for path, (name, kind) in _FILES.items()
        }

    @property
    def routes(self) -> list[web.RouteDef]:
        """All that is served."""
        return [
            *(web.get(path, self._file) for path in self._files),
            web.get("/fleet.json", self._fleet),
        ]

    async def _file(self, request: web.Request) -> web.Response:
        text, kind = self._files[request.path]
        return web.Response(text=text, content_type=kind, charset="utf-8", headers=HEADERS)

    async def _fleet(self, _request: web.Request) -> web.Response:
        if time.monotonic() - self._made_s >= FRESH_S:
            self._made = self._document()
            self._made_s = time.monotonic()
        return web.json_response(self._made, headers=HEADERS)
