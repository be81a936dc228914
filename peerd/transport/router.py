"""Who is primary of a shard, how to reach that peer, and the one hop by which a call is forwarded.

A forwarded call carries `peerd-forwarded`, and its receiver never forwards again: what it cannot
serve it refuses, and the first peer looks at the map anew. So no loop is possible, whatever two
peers believe of each other.

Must not: decide what to send again; that depends on the call.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from peerd.core.ids import NodeName, ProcessId, ShardId
from peerd.transport.host_api import ShardHost
from peerd.transport.map_cache import MapCache, MapChange

FORWARDED_KEY = "peerd-forwarded"
Metadata = tuple[tuple[str, str], ...]


class ChannelSource(Protocol):
    """Channels to other peers; `peerd.transport.channels.Channels` is one."""

    @property
    def metadata(self) -> Metadata:
        """Call metadata that goes with each call (the identity, where there is no TLS)."""

    def to(self, address: str) -> grpc.aio.Channel:
        """The channel to `address`, which connects by itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """A process to go to, and where it listens."""

    process: ProcessId
    address: str


class Cancellable(Protocol):
    """A call under way."""

    def cancel(self) -> bool:
        """Ends it."""


class Router:
    """Looks up primaries and keeps an eye on the calls that were forwarded to them."""

    def __init__(self, host: ShardHost, cache: MapCache, channels: ChannelSource) -> None:
        self._host = host
        self._cache = cache
        self._channels = channels
        self._calls: dict[ShardId, dict[Cancellable, ProcessId]] = {}
        self._stop = cache.subscribe(self._on_change)

    def close(self) -> None:
        """Stops listening to the map."""
        self._stop()

    # -------------------------------------------------------------------------- looking up

    @property
    def forward_metadata(self) -> Metadata:
        """Metadata of a forwarded call."""
        return (*self._channels.metadata, (FORWARDED_KEY, "1"))

    def primary_of(self, shard: ShardId) -> Target | None:
        """The primary as the map has it, if it is another process and its address is known."""
        entry = self._cache.shards.get(shard)
        if entry is None or entry.open.plan.primary == self._host.me:
            return None
        return self._target(entry.open.plan.primary)

    def target_at(self, shard: ShardId, address: str) -> Target | None:
        """The target for a leader hint; None if the address is ours or of no known peer."""
        entry = self._cache.shards.get(shard)
        if entry is None or not address:
            return None
        for segment in (entry.prepared, entry.open):
            if segment is not None:
                target = self._target(segment.plan.primary)
                if target is not None and target.address == address:
                    return target
        # Our map lags behind the one who gave the hint.
        for node in self._cache.nodes.values():
            if node.address == address:
                return self._target(node.process)
        return None

    def _target(self, process: ProcessId) -> Target | None:
        if process.peer == self._host.me.peer:
            return None
        address = self._cache.address_of(process.peer)
        return None if address is None else Target(process, address)

    def address_of(self, peer: NodeName) -> str | None:
        """Address of a peer by name."""
        return self._cache.address_of(peer)

    # -------------------------------------------------------------------------- reaching

    async def connected(self, address: str, timeout_s: float) -> bool:
        """Waits until the channel to `address` is usable; False after `timeout_s` seconds.

        What is sent on a channel that was never connected is known not to have arrived; after
        that a failure tells nothing.
        """
        channel = self._channels.to(address)
        state = channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while state is not grpc.ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return True

    def unary(
        self, address: str, method: str, response_deserializer: Callable[[bytes], Any]
    ) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, Any]":
        """A unary call of `LogService` to a peer; the request is given serialized."""
        return self._channels.to(address).unary_unary(
            f"/peerd.v1.LogService/{method}", None, response_deserializer
        )

    def server_stream(
        self, address: str, method: str, response_deserializer: Callable[[bytes], Any]
    ) -> "grpc.aio.UnaryStreamMultiCallable[bytes, Any]":
        """The same for a call that answers with a stream."""
        return self._channels.to(address).unary_stream(
            f"/peerd.v1.LogService/{method}", None, response_deserializer
        )

    # -------------------------------------------------------------------------- watching over calls

    def watch(self, shard: ShardId, target: Target, call: Cancellable) -> None:
        """Cancels `call` when the map says that `target` is not the shard's primary any more.

        A peer that hangs answers nothing, and its connection stays open: only the map tells.
        """
        self._calls.setdefault(shard, {})[call] = target.process

    def unwatch(self, shard: ShardId, call: Cancellable) -> bool:
        """Ends that; True if the call had been cancelled by it."""
        calls = self._calls.get(shard, {})
        abandoned = calls.pop(call, None) is None
        if not calls:
            self._calls.pop(shard, None)
        return abandoned

    def _on_change(self, change: MapChange) -> None:
        for shard in (*change.shards, *change.removed_shards):
            calls = self._calls.get(shard)
            if not calls:
                continue
            entry = self._cache.shards.get(shard)
            valid = set() if entry is None else {entry.open.plan.primary}
            if entry is not None and entry.prepared is not None:
                valid.add(entry.prepared.plan.primary)
            for call in [call for call, process in calls.items() if process not in valid]:
                del calls[call]
                call.cancel()
