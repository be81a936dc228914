"""The trace of a simulated run: the records that `peerd.testing.trace` describes."""

from las.core import commands as c
from peerd.core import events as ev
from peerd.core.effects import Step
from peerd.testing import trace
from peerd.testing.cluster import SHARD, Options, SimPeer, Simulation


class Recorded(Simulation):
    """A simulation that keeps what happens."""

    def __init__(self, seed: int, options: Options) -> None:
        self.records: list[trace.Record] = []
        super().__init__(seed, options)
        self._las_commit = self.las.commit
        self.las.commit = self._commit
        for peer in self.peers.values():
            self._record_store(peer)

    def _commit(self, command: c.Command) -> c.Result:
        result = self._las_commit(command)
        entry = self.las.state.shards.get(SHARD)
        if entry is not None:
            self.records.append(trace.MapCommitted(self.now, entry.shard, command, result))
        return result

    def _record_store(self, peer: SimPeer) -> None:
        commit = peer.store.commit

        def committed():
            outcomes = commit()
            stored = trace.Stored(self.now, peer.process, SHARD, tuple(outcomes))
            self.records.append(stored)
            return outcomes

        peer.store.commit = committed

    def _boot(self, peer: SimPeer) -> None:
        if peer.lost or peer.replica is not None:
            return
        super()._boot(peer)
        process = peer.process
        self.records.append(trace.Booted(self.now, process, SHARD, peer.store.state))
        handle = peer.replica.handle

        def handled(event: ev.Event) -> Step:
            step = handle(event)
            self.records.append(trace.Handled(self.now, process, SHARD, event, step))
            return step

        peer.replica.handle = handled

    def _kill(self, peer: SimPeer) -> None:
        if peer.replica is not None:
            self.records.append(trace.Died(self.now, peer.process))
        super()._kill(peer)

    def _lose_some(self) -> None:
        super()._lose_some()
        for peer in self.peers.values():
            lost = trace.StoreLost(self.now, peer.process.replica)
            if peer.lost and not any(
                isinstance(r, trace.StoreLost) and r.replica == lost.replica for r in self.records
            ):
                self.records.append(lost)
