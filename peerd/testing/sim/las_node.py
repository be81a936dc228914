"""A LAS node as an actor: it looks at what it knows to be committed, and commands what is missing.

Its decisions are the real ones: `las.core.planner` says what to do, `las.core.recovery` where a
segment ended, `las.core.apply` what a command does. Several nodes may believe that they lead, each
from a state that it saw a while ago; the guards of the commands are what keeps them apart.

Must not: help the protocol. A node knows its applied state, answers, reports and silence.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from las.core import commands as c
from las.core import planner, recovered, recovery
from las.core.holder_commands import AddHolderAgain
from las.core.holders import RELEASED_FEATURE_LEVEL
from las.core.index import indexed
from las.core.placement import FleetView, Limits, Placement
from las.core.state import (
    GAP_OFFSETS_MIN,
    JOINING_LEVEL,
    ClusterState,
    Node,
    NodeState,
)
from peerd.core import events as ev
from peerd.core.effects import (
    Declined,
    EpochAnswer,
    HasBegunAnswer,
    HigherPromise,
    PromiseAnswered,
    Reply,
    Report,
    SegmentOpened,
    Stall,
)
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, Tick
from peerd.core.shard_map import Plan, Segment, Shard
from peerd.testing.sim.process import Process

if TYPE_CHECKING:
    from peerd.testing.sim.las import Las

LOOK_MS = 40
COOLS_PER_S = 2.0
"""How often a node looks, about."""
SPREAD_MS = 400
"""What of the map got lost is told again after this."""
LEASE_MS = 150
"""A peer that is silent for so long is taken for down."""
HANG_MS = 900
"""A prepared segment that has not begun after this is asked for, and then fenced."""
STARVED_MS = 150
"""A primary that is to be left and did not hand over within this is not waited for (§4.1)."""
ANSWER_GRACE_MS = 20
"""A decision that is possible waits so long for more answers: each may be one more holder."""
SPLITS_PER_S = 1.0
"""How often a leader of a run with splits thinks of one."""
STALLED_MS = 500
"""A reported stall is believed for so long."""
LIMITS = Limits(repair_delay_ms=1_500, changes_max=8, copies_max=16)

OnResult = Callable[[c.Result | None], None]
"""Gets a command's result; None: the outcome is not known."""


class LasNode:
    """One node. `state` is what it has applied; its group keeps it up to date."""

    def __init__(self, las: "Las", name: NodeName) -> None:
        self.name = name
        self.state = ClusterState(cluster_id="simulation", command_level=JOINING_LEVEL)
        self.alive = True
        self.leading = False
        self._las = las
        self._world = las.world
        self._clock = las.world.clock
        self._busy: dict[object, int] = {}
        self._answers: dict[tuple[ShardId, Epoch], dict[ReplicaId, recovery.Answer]] = {}
        self._decidable: dict[tuple[ShardId, Epoch], int] = {}
        self._stalled: dict[tuple[ShardId, ReplicaId], int] = {}
        self.moving: set[tuple[ShardId, Epoch, ReplicaId]] = set()
        self.givers: dict[tuple[ShardId, Epoch], ReplicaId] = {}
        self._down_since: dict[NodeName, Tick] = {}
        self._prepared_since: dict[tuple[ShardId, Epoch], int] = {}
        self._planned: tuple[int, int] = (-1, 0)
        self._pushed_version = -1
        self._spread_at = 0
        self._nodes_of = self.state.nodes
        self._nodes: tuple[Node, ...] = ()

    def restart(self) -> None:
        """All that is not committed is forgotten."""
        for known in (self._busy, self._answers, self._decidable, self._stalled):
            known.clear()
        self._down_since.clear()
        self.moving.clear()
        self.givers.clear()
        self._prepared_since.clear()
        self._planned = (-1, 0)
        self._pushed_version = -1
        self.leading = False

    # -------------------------------------------------------------- commands
    def command(self, command: c.Command, key: object, then: OnResult | None = None) -> None:
        """Have a command committed, unless one of the same key is under way."""
        now = self._clock.now
        if self._busy.get(key, 0) > now:
            return
        self._busy[key] = now + 200

        def done(result: c.Result | None) -> None:
            self._busy.pop(key, None)
            if then is not None:
                then(result)

        self._las.group.submit(self, command, done)

    # -------------------------------------------------------------- looking
    def look(self, _: None = None) -> None:
        """Look now, and again a little later."""
        self._clock.later(LOOK_MS + int(self._world.random() * LOOK_MS), self.look, None)
        if not (self.alive and self.leading):
            return
        self._judge()
        self.push()
        now, version = self._clock.now, self.state.version
        due = version != self._planned[0] or now >= self._planned[1]
        if due and self.state.shards:
            self._planned = (version, now + 500)
            self._plan()
        if self._world.troubled:
            self._whim()
            self._split()
            options = self._las.options
            looks_per_s = options.trims_per_s or COOLS_PER_S * options.tier
            self._las.trims.look(self, looks_per_s * LOOK_MS * 1.5 / 1_000)
        else:
            self.moving.clear()
            self.givers.clear()
            self._calm()
        if self._las.options.releases_per_s:
            self._las.releases.look(self)

    def _judge(self) -> None:
        """Silence beyond the lease, or a voice again."""
        if self._nodes_of is not self.state.nodes:
            self._nodes_of = self.state.nodes
            self._nodes = tuple(self.state.nodes.values())
        for node in self._nodes:
            silent_ms = self._las.silent_ms(self.name, node.name)
            if silent_ms is None:
                continue
            dead = silent_ms > LEASE_MS or self._world.draws(self._las.options.false_suspicions)
            wanted = NodeState.DOWN if dead else NodeState.UP
            if node.state is NodeState.FAILED or node.state is wanted:
                continue
            if wanted is NodeState.DOWN:
                self._down_since.setdefault(node.name, Tick(self._clock.now))
            else:
                self._down_since.pop(node.name, None)
            judged = c.SetNodeState(node=node.name, boot=node.boot, state=wanted)
            self.command(judged, ("judge", node.name))

    def _view(self) -> FleetView:
        now = self._clock.now
        self._stalled = {key: at for key, at in self._stalled.items() if now - at < STALLED_MS}
        return FleetView(
            now=Tick(now),
            down_since=dict(self._down_since),
            stalled=frozenset(self._stalled),
            moving=frozenset(self.moving),
        )

    def _plan(self) -> None:
        for action in planner.plan(self.state, self._view(), LIMITS):
            if isinstance(action, planner.Recover):
                self._recover(action.shard)
            elif isinstance(action, planner.Prepare):
                prepare = c.PrepareSegment(
                    shard=action.shard, epoch=action.epoch, plan=action.plan, why=action.why
                )
                self.command(prepare, action.shard)
            elif isinstance(action, planner.Want):
                want = c.WantHolders(shard=action.shard, epoch=action.epoch, holders=action.holders)
                self.command(want, (action.shard, action.epoch))
        for shard, entry in self.state.shards.items():
            if self._hangs(entry.shard):
                self._recover(shard)

    def _hangs(self, shard: Shard) -> bool:
        """A prepared segment that neither began nor was declined in time, or waits for a primary
        that is to be left and seems not to get on (§4.1), rightly or not.
        """
        if shard.prepared is None or shard.fence != NO_EPOCH:
            return False
        key = (shard.shard, shard.prepared.epoch)
        since = self._prepared_since.setdefault(key, self._clock.now)
        old = self.state.nodes[shard.open.plan.primary.peer]
        is_left = old.at_risk or old.draining
        return self._clock.now - since > (STARVED_MS if is_left else HANG_MS)

    # -------------------------------------------------------------- recovery (§4.2)
    def _recover(self, shard: ShardId) -> None:
        """The next step: ask N, fence, ask voters, decide, open."""
        entry = self.state.shards[shard].shard
        if entry.fence != NO_EPOCH:
            self._pursue_fence(entry)
        elif entry.prepared is not None and self._runs(entry.prepared.plan.primary):
            self._ask_begun(entry, entry.prepared)
        else:
            self._fence(entry)

    def _runs(self, process: ProcessId) -> bool:
        node = self.state.nodes[process.peer]
        return node.process == process and node.state is NodeState.UP

    def _fence(self, entry: Shard) -> None:
        prepared = entry.prepared.epoch if entry.prepared is not None else NO_EPOCH
        fence = c.FenceSegment(shard=entry.shard, epoch=entry.open.epoch, prepared=prepared)
        self.command(fence, entry.shard)

    def _ask_begun(self, entry: Shard, prepared: Segment) -> None:
        """§4.2: "If e′ is prepared, the LAS first asks N whether it has begun"."""
        key = ("begun", entry.shard, prepared.epoch)
        if self._busy.get(key, 0) > self._clock.now:
            return
        self._busy[key] = self._clock.now + 200

        def answered(reply: Reply) -> None:
            if not isinstance(reply, HasBegunAnswer):
                return
            if reply.begun:
                self._opened(entry.shard, prepared.epoch, reply)
            else:
                self._fence(entry)

        def asked(process: Process) -> ev.Event:
            request = process.ask(self._las.reply_to, (self, process, answered))
            return ev.HasBegunAsked(request=request, epoch=prepared.epoch)

        primary = prepared.plan.primary
        if not self._las.call(self, primary.replica, entry.shard, asked, boot=primary):
            self._fence(entry)

    def _opened(self, shard: ShardId, epoch: Epoch, told: HasBegunAnswer | SegmentOpened) -> None:
        opened = c.SegmentOpened(shard=shard, epoch=epoch, begin=told.begin, holders=told.holders)
        self.command(opened, (shard, "opened"))

    def _pursue_fence(self, entry: Shard) -> None:
        """Ask every voter that has not answered yet."""
        answers = self._answers.setdefault((entry.shard, entry.fence), {})
        for voter in recovery.voters_to_ask(entry):
            key = ("promise", entry.shard, entry.fence, voter)
            if voter not in answers and self._busy.get(key, 0) <= self._clock.now:
                self._busy[key] = self._clock.now + 80
                self._ask_promise(entry, voter)
        self._decide((entry.shard, entry.fence))

    def _ask_promise(self, entry: Shard, voter: ReplicaId) -> None:
        prepared = entry.prepared.epoch if entry.prepared is not None else NO_EPOCH

        def answered(reply: Reply) -> None:
            if isinstance(reply, PromiseAnswered):
                self._answers.setdefault((entry.shard, entry.fence), {})[voter] = recovery.Answer(
                    replica=voter,
                    promised=reply.promised,
                    open=_translated(reply.open),
                    prepared=_translated(reply.prepared),
                )
                self._decide((entry.shard, entry.fence))

        def asked(process: Process) -> ev.Event:
            return ev.PromiseReceived(
                request=process.ask(self._las.reply_to, (self, process, answered)),
                fence=entry.fence,
                epoch=entry.open.epoch,
                prepared=prepared,
            )

        self._las.call(self, voter, entry.shard, asked)

    def _decide(self, key: tuple[ShardId, Epoch]) -> None:
        """Where the segment ended, as soon as the answers allow it and a grace is over."""
        shard, fence = key
        if not self.leading:
            return  # a node that began anew may not even have the shard yet
        entry = self.state.shards[shard].shard
        if entry.fence != fence:
            return
        answers = self._answers.get(key, {})
        decision = recovery.decide(entry, answers.values())
        if isinstance(decision, recovery.Contradiction):
            # A node that leads no more may see one where there is none: the guard of the command
            # knows. Where it is true the shard is halted, and the run is over.
            self.command(decision.halt(entry), ("halt", shard))
            return
        if not isinstance(decision, recovery.Recovered):
            self._give_up_lost(entry, answers)
            return
        now = self._clock.now
        since = self._decidable.setdefault(key, now)
        if now - since < ANSWER_GRACE_MS and len(answers) < len(recovery.voters_to_ask(entry)):
            self._clock.later(ANSWER_GRACE_MS, self._decide, key)
            return
        plan = self._recovery_plan(shard, decision, frozenset(answers))
        if plan is not None:
            opened = c.OpenSegment(
                shard=shard,
                fence=fence,
                plan=plan,
                ended=decision.ended,
                ended_prepared=decision.ended_prepared,
            )
            self.command(opened, shard)

    def _give_up_lost(self, entry: Shard, answers: Mapping[ReplicaId, recovery.Answer]) -> None:
        """A person looks: who has not answered has lost its directory, so nothing is waited for."""
        silent = [each for each in recovery.voters_to_ask(entry) if each not in answers]
        lost = [each for each in silent if self._las.peers[each.peer].lost]
        if not self._las.options.gaps or not lost or len(lost) < len(silent):
            return
        kept = recovery.decide_with_gap(entry, answers.values())
        if not isinstance(kept, recovery.Recovered):
            return
        plan = self._recovery_plan(entry.shard, kept, frozenset(answers))
        if plan is not None:
            given_up = c.RecoverWithGap(
                shard=entry.shard,
                fence=entry.fence,
                plan=plan,
                ended=kept.ended,
                ended_prepared=kept.ended_prepared,
                resume_at=Offset(kept.begin + GAP_OFFSETS_MIN),
                given_up=tuple(lost),
                why="the directories are gone",
            )
            self.command(given_up, entry.shard)

    def _recovery_plan(
        self, shard: ShardId, decision: recovery.Recovered, answered: frozenset[ReplicaId]
    ) -> Plan | None:
        if self._world.draws(self._las.options.whims_per_s / 10):
            return self._las.random_plan(self, shard)
        return planner.recovery_plan(
            self.state,
            Placement(self.state, self._view(), LIMITS, indexed(self.state)),
            shard=shard,
            recovered=decision,
            answered=answered,
        )

    # -------------------------------------------------------------- whims
    def _whim(self) -> None:
        """Sometimes change something without any reason: it must be as harmless as with one."""
        rate = self._las.options.whims_per_s * LOOK_MS * 1.5 / 1_000
        if not self._world.draws(rate) or not self.state.shards:
            return
        rng = self._world.rng
        shard = rng.choice(sorted(self.state.shards))
        entry = self.state.shards[shard].shard
        kind = rng.choice(("plan", "plan", "plan", "fence", "risk", "drain"))
        if kind == "plan" and entry.prepared is None:
            plan = self._las.random_plan(self, shard)
            if plan is not None:
                self.command(
                    c.PrepareSegment(shard=shard, epoch=entry.open.epoch, plan=plan), shard
                )
        elif kind == "fence":
            self._fence(entry)
        elif kind in {"risk", "drain"}:
            node = self.state.nodes[rng.choice(sorted(self.state.nodes))]
            if kind == "risk":
                self.command(
                    c.SetAtRisk(node=node.name, at_risk=not node.at_risk), ("whim", node.name)
                )
            else:
                self.command(
                    c.SetDraining(node=node.name, draining=not node.draining), ("whim", node.name)
                )

    def _split(self) -> None:
        """Sometimes split a shard, wherever its keys lie."""
        most, las = self._las.options.splits, self._las
        if not most or not self._world.draws(SPLITS_PER_S * LOOK_MS * 1.5 / 1_000):
            return
        able = [each.shard for each in self.state.shards.values() if each.shard.split is None]
        if not able or len(self.state.shards) >= las.options.shards + 2 * most:
            return
        entry = self._world.rng.choice(able)
        plan = las.random_plan(self, entry.shard)
        if plan is not None:
            key_hash = self._world.rng.randint(entry.key_hash_low + 1, entry.key_hash_high)
            split = c.PrepareSplit(
                shard=entry.shard, epoch=entry.open.epoch, key_hash=key_hash, plan=plan
            )
            self.command(split, entry.shard)

    def _calm(self) -> None:
        """After the healing nobody is at risk or drained any more."""
        for node in self._nodes:
            if node.at_risk:
                self.command(c.SetAtRisk(node=node.name, at_risk=False), ("risk", node.name))
            if node.draining:
                self.command(c.SetDraining(node=node.name, draining=False), ("drain", node.name))

    # -------------------------------------------------------------- what peers tell
    def registered(self, process: Process) -> None:
        """§4.4: a process announces itself, and the epochs of its store."""
        stored = tuple(
            (shard, max(store.state.promised, store.state.adopted))
            for shard, store in process.peer.disk.shards.items()
            if store.state.promised != NO_EPOCH
        )
        register = c.RegisterNode(
            name=process.id.peer,
            store=process.id.store,
            boot=process.id.boot,
            address=f"{process.id.peer}:7400",
            feature_level=RELEASED_FEATURE_LEVEL,
            labels=(("host", process.id.peer),),
            stored=recovered.suspicious(self.state, stored),
        )

        def done(result: c.Result | None) -> None:
            if result is not None and result.ok:
                process.registered = True
                if process.registered_version is None:
                    process.registered_version = self.state.version
            elif result is not None and result.reason is c.Reason.STALE_BOOT:
                process.superseded()
            self.push()

        self.command(register, ("register", process.id), done)

    def reported(self, report: Report) -> None:
        """A core told something; the same may come again and again."""
        handler = REPORTS.get(type(report))
        if handler is not None and report.shard in self.state.shards:
            handler(self, report)

    def took_over(self, report: SegmentOpened) -> None:
        """N has begun."""
        self._opened(report.shard, report.epoch, report)

    def declined(self, report: Declined) -> None:
        """P will never switch."""
        withdraw = c.WithdrawSegment(
            shard=report.shard, epoch=report.prepared, declined_by=report.process
        )
        self.command(withdraw, report.shard)

    def met_higher(self, report: HigherPromise) -> None:
        """A fence may be half done: finish it."""
        entry = self.state.shards[report.shard].shard
        if report.promised > entry.open.epoch and entry.fence == NO_EPOCH:
            self._fence(entry)

    def stalled(self, report: Stall) -> None:
        """§6: a stalled voter is replaced by 4.1 with N = P."""
        if report.epoch == self.state.shards[report.shard].shard.open.epoch:
            self._stalled[report.shard, report.replica] = self._clock.now
            self._planned = (-1, 0)

    def holder(
        self, shard: ShardId, epoch: Epoch, holder: ReplicaId, *, whole: bool, version: int
    ) -> None:
        """A store has a sealed segment whole, or not any more."""
        entry = self.state.shards.get(shard)
        sealed = () if entry is None else entry.shard.sealed
        if whole and any(each.epoch == epoch and each.release_of(holder) for each in sealed):
            again = AddHolderAgain(shard=shard, epoch=epoch, holder=holder, version=version)
            self.command(again, (shard, epoch, holder))
            return
        kind = c.AddHolder if whole else c.DropHolder
        self.command(kind(shard=shard, epoch=epoch, holder=holder), (shard, epoch, holder))

    # -------------------------------------------------------------- the map
    def push(self, _: None = None) -> None:
        """Tell every process what of the map changed; now and then what it may have missed."""
        now = self._clock.now
        if not (self.alive and self.leading):
            return
        if self.state.version == self._pushed_version and now < self._spread_at:
            return
        if now >= self._spread_at:
            self._spread_at = now + SPREAD_MS
        self._pushed_version = self.state.version
        entries = [entry.shard for entry in self.state.shards.values()]
        for peer in self._las.peers.values():
            if peer.process is not None:
                self._check_registration(peer.process)
                self._push_to(peer.process, entries)

    def _check_registration(self, process: Process) -> None:
        """A registration that came late from a process that is dead may have taken the place of the
        living one's: a heartbeat tells, and it registers again.
        """
        node = self.state.nodes.get(process.id.peer)
        if process.registered and node is not None and node.boot != process.id.boot:
            process.registered = False
            self._las.register(process)

    def _push_to(self, process: Process, entries: list[Shard]) -> None:
        for entry in entries:
            known = process.maps.get(entry.shard)
            if known is not entry and known != entry:
                self._las.tell_map(self, process, entry, self.state.version)


REPORTS: dict[type, Callable[[LasNode, Report], None]] = {
    SegmentOpened: lambda node, report: node.took_over(cast(SegmentOpened, report)),
    Declined: lambda node, report: node.declined(cast(Declined, report)),
    HigherPromise: lambda node, report: node.met_higher(cast(HigherPromise, report)),
    Stall: lambda node, report: node.stalled(cast(Stall, report)),
}
"""What a LAS node makes of each kind of report: a new one is one entry."""


def _translated(answer: EpochAnswer | None) -> recovery.EpochAnswer:
    if answer is None or not answer.adopted:
        return recovery.EpochAnswer()
    return recovery.EpochAnswer(
        adopted=True, begin=answer.begin, end=answer.end, commit=answer.commit
    )
