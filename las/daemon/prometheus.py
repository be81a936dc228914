"""A Prometheus server asked for the samples of the fleet, over its HTTP API.

Invariants:
- Nothing that the server answers raises anything but `PrometheusError`: slow, huge, HTML, another
  type, another shape. Its `kind` is counted and shown; the LAS goes on with what it has.
- A round has one deadline, and an answer a size from which it is not read on.
- A token is sent to the configured server alone: redirects are not followed, proxies of the
  environment are not used.
- What is not in an answer is missing, NaN, never 0.

Must not: know of windows or forecasts; `las.daemon.scraped` does.
"""

import asyncio
import json
import math
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp

from las.daemon.config import Telemetry

# limit: bytes of a token file; tokens of common issuers have some 2 KB.
TOKEN_BYTES_MAX = 64 * 1024
# limit: characters of a server's own words that are passed on to an operator.
WORDS_MAX = 200
_CHUNK_BYTES = 64 * 1024


class Kind(StrEnum):
    """What went wrong with a round."""

    CREDENTIALS = "credentials"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    STATUS = "status"
    NOT_JSON = "not_json"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    REFUSED = "refused"


class PrometheusError(Exception):
    """No usable answer; the message says what to look at."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of an answer: its labels, and values by the second of their step."""

    labels: Mapping[str, str]
    values: Mapping[int, float]


class PrometheusClient:
    """Used on the event loop. `close` it at the end."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._address = telemetry.url.rstrip("/") + "/api/v1/query_range"
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End open connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def query_range(
        self, queries: Sequence[str], *, begin_s: int, end_s: int
    ) -> list[list[Series]]:
        """The answers to `queries`, a value a second from `begin_s` to `end_s`, one deadline.

        Raises:
            PrometheusError: one of them has no usable answer.
        """
        try:
            async with asyncio.timeout(self._telemetry.timeout_ms / 1000):
                return [await self._query(query, begin_s, end_s) for query in queries]
        except TimeoutError as error:
            await self.close()
            text = f"{self._telemetry.url} did not answer within {self._telemetry.timeout_ms} ms"
            raise PrometheusError(Kind.TIMEOUT, text) from error
        except PrometheusError:
            # A certificate or a connection may be at fault: the next round begins anew.
            await self.close()
            raise

    async def _query(self, query: str, begin_s: int, end_s: int) -> list[Series]:
        form = {"query": query, "start": str(begin_s), "end": str(end_s), "step": "1"}
        session = self._session = self._session or await self._open()
        headers = await asyncio.to_thread(self._authorization)
        try:
            async with session.post(
                self._address, data=form, headers=headers, allow_redirects=False
            ) as response:
                body = await self._body(response)
                self._check(response, body)
        except (aiohttp.ClientError, OSError) as error:
            text = f"{self._telemetry.url} cannot be asked: {_clipped(error)}"
            raise PrometheusError(Kind.UNREACHABLE, text) from error
        # A large fleet's answer takes a while to parse, in which heartbeats would wait.
        return await asyncio.to_thread(parse_matrix, body)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        parts = []
        size = 0
        async for part in response.content.iter_chunked(_CHUNK_BYTES):
            size += len(part)
            if size > self._telemetry.answer_bytes_max:
                raise PrometheusError(
                    Kind.TOO_LARGE,
                    f"{self._telemetry.url} answers with more than "
                    f"{self._telemetry.answer_bytes_max} bytes: narrow telemetry.matchers, or "
                    "raise telemetry.answer_bytes_max",
                )
            parts.append(part)
        return b"".join(parts)

    def _check(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        if response.content_type != "application/json":
            kind = Kind.STATUS if response.status != 200 else Kind.NOT_JSON
            raise PrometheusError(
                kind,
                f"{self._telemetry.url} answers {response.status} with {response.content_type}, "
                "not JSON: is it a Prometheus server, and is the token right?",
            )
        if response.status != 200:
            raise PrometheusError(
                Kind.REFUSED,
                f"{self._telemetry.url} refuses the query ({response.status}): {_reason(body)}",
            )

    def _authorization(self) -> dict[str, str]:
        path = self._telemetry.bearer_token_file
        if path is None:
            return {}
        try:
            with path.open("rb") as file:
                token = file.read(TOKEN_BYTES_MAX).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PrometheusError(
                Kind.CREDENTIALS, f"bearer_token_file {path} cannot be read: {_clipped(error)}"
            ) from error
        if not token or not token.isprintable():
            raise PrometheusError(Kind.CREDENTIALS, f"bearer_token_file {path} holds no token")
        return {"Authorization": f"Bearer {token}"}

    async def _open(self) -> aiohttp.ClientSession:
        context = await asyncio.to_thread(_tls, self._telemetry)
        connector = aiohttp.TCPConnector(ssl=context, limit=1)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _tls(telemetry: Telemetry) -> ssl.SSLContext:
    """Raises `PrometheusError` for files that are none."""
    try:
        context = ssl.create_default_context(cafile=telemetry.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if telemetry.certificate_file is not None:
            context.load_cert_chain(telemetry.certificate_file, telemetry.key_file)
    except OSError as error:  # ssl.SSLError is one
        files = [telemetry.ca_file, telemetry.certificate_file, telemetry.key_file]
        named = ", ".join(str(Path(each)) for each in files if each is not None)
        raise PrometheusError(
            Kind.CREDENTIALS, f"{named} cannot be used: {_clipped(error)}"
        ) from error
    return context


def parse_matrix(body: bytes) -> list[Series]:
    """The series of a `query_range` answer. Raises `PrometheusError`: MALFORMED."""
    try:
        answer = json.loads(body)
        data = answer["data"]
        if answer["status"] != "success" or data["resultType"] != "matrix":
            raise ValueError(f"status {answer['status']!r}, type {data['resultType']!r}")
        return [_series(each) for each in data["result"]]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        text = f"the server's answer is no matrix of samples: {_clipped(error)}"
        raise PrometheusError(Kind.MALFORMED, text) from error


def _series(value: Mapping[str, object]) -> Series:
    labels, values = value["metric"], value["values"]
    if not isinstance(labels, dict) or not isinstance(values, list):
        raise ValueError("a series without labels or values")
    return Series(
        labels={str(name): str(text) for name, text in labels.items()},
        values={round(float(at)): _finite(text) for at, text in values},
    )


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.nan


def _reason(body: bytes) -> str:
    try:
        answer = json.loads(body)
        return _clipped(answer["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no reason given"


def _clipped(words: object) -> str:
    """In one printable line."""
    line = "".join(each if each.isprintable() else " " for each in str(words))
    return line[:WORDS_MAX]
