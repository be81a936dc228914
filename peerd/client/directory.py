"""What the client knows of the cluster: channels, the map, and who keeps it up to date.

Invariants:
- The map is watched at two addresses at once where there are two: one that hangs says nothing, and
  its connection stays open, so one alone could leave us with an old map for many seconds.
- An update of whichever source is taken only if it is newer (`MapCache`).

Must not: give up. While the client is open, a watch that ends begins anew at the next address.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from las.v1 import shard_map_pb2, shard_map_pb2_grpc
from peerd.client.credentials import Access
from peerd.client.errors import (
    AccessDenied,
    ConnectFailed,
    PeerdError,
    Unavailable,
    error_of_call,
)
from peerd.pki import PkiError
from peerd.transport.channels import Channels
from peerd.transport.credentials import Credentials
from peerd.transport.map_cache import MapCache, MapForeign
from peerd.transport.map_codec import MapMalformed
from peerd.transport.tls import explain_connect_failure

# limit: watches of the map open at once
WATCHES_MAX = 2
# limit: addresses that may serve the map: those given, then peers of the map
ADDRESSES_MAX = 64
# limit: addresses of which is told why they do not answer
ADDRESSES_EXPLAINED_MAX = 3
# Between two watches: short, because a failover is waited for; it is one small call to one address.
WATCH_RETRY_MS = 50
# How long an address may take to give the map before the next one is tried.
GET_TIMEOUT_MS = 1_000


class Directory:
    """The map as the client knows it. `start` before use, `close` after."""

    def __init__(self, access: Access, channels: Channels) -> None:
        self.cache = MapCache(_clock_ms)
        self._access = access
        self._channels = channels
        self._turn = 0
        self._watches: list[asyncio.Task[None]] = []
        self._refreshing: asyncio.Task[bool] | None = None

    async def start(self, timeout_s: float) -> None:
        """Gets the map from the first address that gives it, and goes on watching.

        Raises:
            ConnectFailed: nobody gave it within `timeout_s` seconds.
            AccessDenied: the cluster refuses this client.
        """
        deadline = time.monotonic() + timeout_s
        errors: dict[str, PeerdError] = {}
        while self.cache.version == 0:
            for address in self._access.addresses:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise ConnectFailed(await self._why(errors))
                try:
                    await self._get(address, min(left_s, GET_TIMEOUT_MS / 1000))
                    break
                except AccessDenied:
                    raise
                except PeerdError as error:
                    # One that the end of the time cut off says less than the one before it.
                    if time.monotonic() < deadline or address not in errors or error.reason:
                        errors[address] = error
            else:
                await asyncio.sleep(WATCH_RETRY_MS / 1000)
        self._warm()
        self._watches = [
            asyncio.create_task(self._watch(), name=f"peerd map watch {number}")
            for number in range(min(WATCHES_MAX, len(self.addresses)))
        ]

    async def close(self) -> None:
        """Ends the watches."""
        tasks: list[asyncio.Task[Any]] = [*self._watches]
        if self._refreshing is not None:
            tasks.append(self._refreshing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def addresses(self) -> Sequence[str]:
        """Who may serve the map: the addresses given, then the peers of the map that are up."""
        known = dict.fromkeys(self._access.addresses)
        known.update({node.address: None for node in self.cache.nodes.values() if node.up})
        return list(known)[:ADDRESSES_MAX]

    def refresh(self) -> "asyncio.Task[bool]":
        """Asks the next address for the map, unless that is under way; for when it seems old.

        The task that is returned tells whether that address answered.
        """
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="peerd map refresh")
        return self._refreshing

    async def _refresh(self) -> bool:
        try:
            await self._get(self._next_address(), GET_TIMEOUT_MS / 1000)
        except PeerdError:
            # The next one is asked next time.
            return False
        return True

    def _next_address(self) -> str:
        addresses = self.addresses
        self._turn += 1
        return addresses[self._turn % len(addresses)]

    async def _get(self, address: str, timeout_s: float) -> None:
        stub = shard_map_pb2_grpc.ShardMapServiceStub(self._channels.to(address))
        request = shard_map_pb2.GetMapRequest(known_version=self.cache.version)
        try:
            response = await stub.GetMap(request, timeout=timeout_s, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, f"{address}: the shard map") from error
        self._apply(response.map, address)

    async def _watch(self) -> None:
        while True:
            address = self._next_address()
            stub = shard_map_pb2_grpc.ShardMapServiceStub(self._channels.to(address))
            try:
                request = shard_map_pb2.WatchMapRequest(known_version=self.cache.version)
                async for response in stub.WatchMap(request):
                    self._apply(response.map, address)
            except (grpc.aio.AioRpcError, PeerdError):
                # It went away, refuses, or serves another cluster: the next one may not.
                await asyncio.sleep(WATCH_RETRY_MS / 1000)

    def _apply(self, update: shard_map_pb2.MapUpdate, address: str) -> None:
        try:
            change = self.cache.apply(update)
        except (MapForeign, MapMalformed) as error:
            raise ConnectFailed(f"{address}: {error}") from error
        if change.nodes:
            self._warm()

    def _warm(self) -> None:
        for node in self.cache.nodes.values():
            if node.up and node.address:
                self._channels.warm(node.address)

    async def _why(self, errors: dict[str, PeerdError]) -> str:
        """One line on why nobody answered: of each of the first addresses, once for those alike."""
        asked = self._access.addresses[:ADDRESSES_EXPLAINED_MAX]
        told = await asyncio.gather(*(self._why_not(each, errors.get(each)) for each in asked))
        alike: dict[str, list[str]] = {}
        for address, words in zip(asked, told, strict=True):
            about = words.removeprefix(f"{address}: ")
            alike.setdefault(about, []).extend([address] if about != words else [])
        lines = [": ".join([", ".join(at), about]) if at else about for about, at in alike.items()]
        return f"cannot connect: {'; '.join(lines)}"

    async def _why_not(self, address: str, error: PeerdError | None) -> str:
        """Why one did not answer; what gRPC calls unavailable is looked at more closely."""
        if error is not None and error.reason:
            return f"{address}: {error}"
        if error is not None and not isinstance(error, Unavailable):
            return str(error)
        tls = self._access.tls
        return await asyncio.to_thread(explain_connect_failure, address, tls)


def make_channels(access: Access) -> Channels:
    """The channels of a client.

    Raises:
        ConnectFailed: a TLS file cannot be read.
    """
    try:
        return Channels(None if access.tls is None else Credentials(access.tls))
    except PkiError as error:
        raise ConnectFailed(str(error)) from error


def _clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000
