"""Clients of a simulated cluster: they append until they are told, and read what they may.

A client with a producer id sends each batch again and again, to whoever may be primary, until an
answer comes; the one without sends it once. A reader takes from any store what that store may
serve. Whatever they see goes to the `History`.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Protocol

from peerd.core.batch import NO_PRODUCER, BatchHeader
from peerd.core.effects import AppendAccepted, AppendRefused, Reply
from peerd.core.errors import Reason, Taken
from peerd.core.events import AppendRequested, Event
from peerd.core.ids import NodeName, ProducerId, RequestId, Tick
from peerd.core.replica import Replica
from peerd.testing.history import BrokenPromise, History, Sent
from peerd.testing.sim_store import SimStore

IN_FLIGHT_MAX = 4
"""Unanswered batches of a client."""
READ_EVERY_MS = 25
"""Some store is read this often."""


class Peer(Protocol):
    """What a client meets of a peer."""

    name: NodeName
    store: SimStore
    replica: Replica | None
    clock_skew_ms: int
    lost: bool


class Cluster(Protocol):
    """What clients need of the simulation."""

    rng: random.Random
    history: History

    @property
    def now(self) -> int:
        """Virtual milliseconds."""

    def some_peers(self) -> list[Peer]:
        """All peers, dead or alive."""

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later."""

    def send(self, to: NodeName, answered: Callable[[Reply], None], event: "ToEvent") -> None:
        """Give a process a request, unless it gets lost; `answered` gets the reply, once."""

    def lost(self) -> bool:
        """Whether a message is lost."""


ToEvent = Callable[[RequestId, Tick], Event]


class SimClient:
    """One client's batches."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.producer = ProducerId(bytes([number]) * 16) if number > 0 else NO_PRODUCER
        self.next_sequence = 0
        self.made = 0
        self.outstanding: dict[bytes, Sent] = {}
        self.leader: NodeName | None = None


class SimClients:
    """Some clients, the first of which has no producer id, and one reader."""

    def __init__(self, cluster: Cluster, clients: int, appends_per_client: int) -> None:
        self._cluster = cluster
        self._appends = appends_per_client
        self._clients = [SimClient(number) for number in range(clients)]
        self._every_ms = 1

    def start(self, every_ms: int) -> None:
        """Each client appends about every `every_ms`."""
        self._every_ms = every_ms
        for client in self._clients:
            self._step(client)
        self._read()

    def unanswered(self) -> str:
        """What is still to be done, in words; empty if nothing is."""
        for client in self._clients:
            if client.made < self._appends or client.outstanding:
                return f"client {client.number} waits for {list(client.outstanding)[:3]}"
        return ""

    # -------------------------------------------------------------- appending
    def _step(self, client: SimClient) -> None:
        """Send something new, as long as there is something to send."""
        rng = self._cluster.rng
        if client.made < self._appends and len(client.outstanding) < IN_FLIGHT_MAX:
            count = rng.choice((1, 1, 2, 5))
            sent = Sent(
                producer=client.producer,
                first_sequence=client.next_sequence if client.producer else 0,
                record_count=count,
                payload=f"{client.number}:{client.made}".encode(),
                floor=self._cluster.history.acked_end,
            )
            client.made += 1
            client.next_sequence += count
            client.outstanding[sent.payload] = sent
            self._append(client, sent)
        self._cluster.later(rng.randint(5, 2 * self._every_ms), partial(self._step, client))

    def _append(self, client: SimClient, sent: Sent) -> None:
        """Send one batch to whoever may be primary, and again after a while."""
        if sent.payload not in client.outstanding:
            return
        rng = self._cluster.rng
        peers = {peer.name: peer for peer in self._cluster.some_peers()}
        known = client.leader is not None and rng.random() < 0.8
        name = client.leader if known and client.leader is not None else rng.choice(sorted(peers))
        skew_ms = peers[name].clock_skew_ms
        header = BatchHeader(
            record_count=sent.record_count,
            payload_crc=0,
            producer=sent.producer,
            first_sequence=sent.first_sequence,
            payload_bytes=len(sent.payload),
        )

        def event(request: RequestId, now: Tick) -> AppendRequested:
            return AppendRequested(
                request=request,
                header=header,
                payload=sent.payload,
                expected_offset=None,
                now_ms=1_000_000 + now + skew_ms,
                now=now,
            )

        self._cluster.send(name, partial(self._appended, client, sent, name), event)
        if sent.producer:
            self._cluster.later(rng.choice((20, 80, 300)), partial(self._append, client, sent))
        else:
            # At least once, and not again: without a producer nobody can tell a retry.
            self._cluster.later(1_500, partial(self._forget, client, sent))

    def _forget(self, client: SimClient, sent: Sent) -> None:
        client.outstanding.pop(sent.payload, None)

    def _appended(self, client: SimClient, sent: Sent, name: NodeName, reply: Reply) -> None:
        if isinstance(reply, AppendAccepted):
            copies = self._copies_of(reply, sent)
            self._cluster.history.acknowledged(sent, reply, copies)
            if not self._cluster.lost():
                client.outstanding.pop(sent.payload, None)
                client.leader = name
        elif isinstance(reply, AppendRefused):
            refusal = reply.refusal
            client.leader = refusal.leader.peer if refusal.leader is not None else None
            if refusal.reason in {Reason.PRODUCER_STATE_LOST, Reason.SEQUENCE_TOO_OLD}:
                raise BrokenPromise(f"G4: {sent}: {refusal}")
            if refusal.taken is Taken.NO and not sent.producer:
                self._cluster.later(20, partial(self._append, client, sent))

    def _copies_of(self, receipt: AppendAccepted, sent: Sent) -> int:
        """How many stores have the batch on disk now, also those that were lost since."""
        return sum(
            1
            for peer in self._cluster.some_peers()
            if (batch := peer.store.batches.get(receipt.epoch, {}).get(receipt.base)) is not None
            and bytes(batch.payload) == sent.payload
        )

    # -------------------------------------------------------------- reading
    def _read(self) -> None:
        """Take from some store everything that it may serve of some epoch."""
        rng = self._cluster.rng
        peer = rng.choice(self._cluster.some_peers())
        if peer.replica is not None and peer.replica.stored.segments:
            epoch = rng.choice(sorted(peer.replica.stored.segments))
            limit = peer.replica.readable_limit(epoch)
            if limit is not None:
                begin = peer.replica.stored.segments[epoch].begin
                for batch in peer.store.read(epoch, begin, limit):
                    self._cluster.history.served(epoch, batch)
        self._cluster.later(READ_EVERY_MS, self._read)
