"""The stage of the fleet's scripts: the committed state, its commands, and the planner's policy.

Nodes are called by a letter each and lie on a host of that name, or on the one that is given.
"""

from dataclasses import replace

from las.core import commands as c
from las.core.apply import apply
from las.core.index import indexed
from las.core.placement import FleetView, Limits, Placement
from las.core.planner import (
    Action,
    Prepare,
    Recover,
    Want,
    initial_plans,
    plan,
    recovery_plan,
    resolve_policy,
    switch_plan,
)
from las.core.protection import is_expendable, is_mirrored, is_shielded
from las.core.recovery import Recovered
from las.core.state import CLOSED_SEGMENTS_LEVEL, ClusterState, NodeState, ShardEntry
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, Offset, ShardId, Tick
from peerd.core.shard_map import Plan
from tests.core.words import process as process_of
from tests.scripts import wording
from tests.scripts.script import Command


class Fleet:
    """A LAS without peers."""

    def __init__(self) -> None:
        self.state = ClusterState(cluster_id="scripts")
        self.view = FleetView(now=Tick(0))
        self.limits = Limits()
        self.boots: dict[str, int] = {}

    def play(self, command: Command) -> list[str]:
        """Do what a line says; the trace."""
        return getattr(self, f"do_{command.verb}")(command)

    def commit(self, command: c.Command) -> list[str]:
        self.state, result = apply(self.state, command)
        return [result.text or "ok" if result.ok else f"refused: {result.reason}: {result.text}"]

    def entry(self, command: Command) -> ShardEntry:
        return self.state.shards[ShardId(int(command.options.get("shard", 1)))]

    # -------------------------------------------------------------- nodes
    def do_register(self, command: Command) -> list[str]:
        """register a b: new processes of these nodes; host=, zone=, lead=no, store=, level=1."""
        lines, options = [], command.options
        for name in command.words:
            self.boots[name] = self.boots.get(name, -1) + 1
            process = process_of(name, int(options.get("boot", self.boots[name])))
            labels = [("host", options.get("host", name))]
            labels += [(key, options[key]) for key in ("rack", "zone") if key in options]
            stored = tuple(
                (ShardId(int(shard)), Epoch(int(epoch)))
                for shard, epoch in (each.split(":") for each in options.get("has", "").split())
            )
            command_ = c.RegisterNode(
                name=NodeName(name),
                store=replace(process, store=options.get("store", process.store)).store,
                boot=process.boot,
                address=f"{name}:7400",
                labels=tuple(labels),
                may_lead=options.get("lead") != "no",
                feature_level=int(options.get("level", CLOSED_SEGMENTS_LEVEL)),
                stored=stored,
            )
            lines.append(f"{name}: {self.commit(command_)[0]}")
        return lines

    def do_set(self, command: Command) -> list[str]:
        """set a down|up|failed."""
        name, state = command.words
        node = self.state.nodes[NodeName(name)]
        self.view = replace(
            self.view, down_since={**self.view.down_since, node.name: self.view.now}
        )
        return self.commit(c.SetNodeState(node=node.name, boot=node.boot, state=NodeState(state)))

    def do_risk(self, command: Command) -> list[str]:
        """risk a on|off: the forecast's judgement."""
        name, flag = command.words
        return self.commit(c.SetAtRisk(node=NodeName(name), at_risk=flag == "on"))

    def do_drain(self, command: Command) -> list[str]:
        """drain a on|off: an operator's wish."""
        name, flag = command.words
        return self.commit(c.SetDraining(node=NodeName(name), draining=flag == "on"))

    def do_stall(self, command: Command) -> list[str]:
        """stall b: this voter of the shard stalls, as its primary says."""
        stalled = {(ShardId(1), process_of(each, 0).replica) for each in command.words}
        self.view = replace(self.view, stalled=frozenset(stalled))
        return ["ok"]

    def do_wait(self, command: Command) -> list[str]:
        """wait 600000: time passes at the leader."""
        self.view = replace(self.view, now=Tick(self.view.now + int(command.words[0])))
        return [f"it is {self.view.now} ms"]

    def do_note(self, command: Command) -> list[str]:
        """note a kind text: something for the history of a node."""
        name, kind, *text = command.words
        return self.commit(
            c.RecordEvent(node=NodeName(name), kind=kind, text=" ".join(text), timestamp_ms=0)
        )

    def do_nodes(self, _command: Command) -> list[str]:
        """nodes: the fleet."""
        lines = []
        for node in sorted(self.state.nodes.values(), key=lambda each: each.name):
            flags = [node.state.value]
            flags += ["at risk"] if node.at_risk else []
            flags += ["draining"] if node.draining else []
            flags += ["mirrored"] if is_mirrored(self.state, node.name) else []
            flags += ["shielded"] if is_shielded(self.state, node.name) else []
            flags += ["expendable"] if is_expendable(self.state, node.name) else []
            lines.append(f"{node.name}: {', '.join(flags)}; {node.boot}")
        return lines

    # -------------------------------------------------------------- logs and segments
    def do_create(self, command: Command) -> list[str]:
        """create orders a,b,c b,c,d: a log with one shard for each row."""
        name, *rows = command.words
        nodes = sorted({each for row in rows for each in row.split(",")})
        return self.commit(
            c.CreateLog(
                name=name,
                copies=int(command.options.get("copies", len(rows[0].split(",")))),
                acks=int(command.options.get("acks", 2)),
                nodes=tuple(NodeName(each) for each in nodes),
                rows=tuple(tuple(nodes.index(each) for each in row.split(",")) for row in rows),
            )
        )

    def do_policy(self, command: Command) -> list[str]:
        """policy copies=0 acks=0: what a new log gets."""
        options = command.options
        policy = resolve_policy(
            self.state, int(options.get("copies", 0)), int(options.get("acks", 0))
        )
        if isinstance(policy, str):
            return [policy]
        return [f"{policy[0]} copies, {policy[1]} acks"]

    def do_place(self, command: Command) -> list[str]:
        """place shards=2 copies=3: where a new log goes."""
        options = command.options
        placed = initial_plans(
            self.state,
            self.view,
            self.limits,
            shards=int(options["shards"]),
            copies=int(options["copies"]),
        )
        if isinstance(placed, str):
            return [placed]
        return [" ".join(placed.nodes[at] for at in row) for row in placed.rows]

    def plan_of(self, command: Command) -> Plan:
        options = command.options
        name = command.words[0]
        return Plan(
            primary=process_of(name, int(options.get("boot", self.boots.get(name, 0)))),
            voters=tuple(process_of(each, 0).replica for each in options["voters"]),
            non_voters=tuple(process_of(each, 0).replica for each in options.get("non", "")),
            acks=int(options.get("acks", 2)),
        )

    def do_prepare(self, command: Command) -> list[str]:
        """prepare b voters=bcd: after the open segment, or after=1."""
        entry = self.entry(command)
        after = Epoch(int(command.options.get("after", entry.shard.open.epoch)))
        return self.commit(
            c.PrepareSegment(
                shard=entry.shard.shard, epoch=after, plan=self.plan_of(command), why="asked"
            )
        )

    def do_split(self, command: Command) -> list[str]:
        """split a voters=abc key=99: prepare the closed segment that splits the shard there."""
        entry = self.entry(command)
        return self.commit(
            c.PrepareSplit(
                shard=entry.shard.shard,
                epoch=entry.shard.open.epoch,
                key_hash=int(command.options["key"]),
                plan=self.plan_of(command),
                why="asked",
            )
        )

    def do_opened(self, command: Command) -> list[str]:
        """opened 2 at=5 by=abc: epoch 2 began there; these have what came before."""
        holders = tuple(process_of(each, 0).replica for each in command.options["by"])
        return self.commit(
            c.SegmentOpened(
                shard=self.entry(command).shard.shard,
                epoch=Epoch(int(command.words[0])),
                begin=Offset(int(command.options["at"])),
                holders=holders,
            )
        )

    def do_withdraw(self, command: Command) -> list[str]:
        """withdraw 2 by=a: a declined it."""
        by = command.options["by"]
        process = process_of(by, int(command.options.get("boot", self.boots.get(by, 0))))
        return self.commit(
            c.WithdrawSegment(
                shard=self.entry(command).shard.shard,
                epoch=Epoch(int(command.words[0])),
                declined_by=process,
            )
        )

    def do_fence(self, command: Command) -> list[str]:
        """fence 1: open is 1 and nothing is prepared, or prepared=2 is."""
        return self.commit(
            c.FenceSegment(
                shard=self.entry(command).shard.shard,
                epoch=Epoch(int(command.words[0])),
                prepared=Epoch(int(command.options.get("prepared", NO_EPOCH))),
                why="asked",
            )
        )

    def ended(self, text: str) -> c.RecoveredSegment:
        """`5/3/ab`: ended at 5, known commit 3, holders a and b."""
        end, known, holders = text.split("/")
        return c.RecoveredSegment(
            end=Offset(int(end)),
            known_commit=Offset(int(known)),
            holders=tuple(process_of(each, 0).replica for each in holders),
        )

    def do_open(self, command: Command) -> list[str]:
        """open b fence=3 ended=5/3/ab voters=bc: finish the fence; prepared=7/5/b if it was
        recovered, too.
        """
        options = command.options
        recovered = options.get("prepared")
        return self.commit(
            c.OpenSegment(
                shard=self.entry(command).shard.shard,
                fence=Epoch(int(options["fence"])),
                plan=self.plan_of(command),
                ended=self.ended(options["ended"]),
                ended_prepared=self.ended(recovered) if recovered else None,
            )
        )

    def do_want(self, command: Command) -> list[str]:
        """want 1 d e: these shall fetch sealed segment 1."""
        epoch, *names = command.words
        return self.commit(
            c.WantHolders(
                shard=self.entry(command).shard.shard,
                epoch=Epoch(int(epoch)),
                holders=tuple(process_of(each, 0).replica for each in names),
            )
        )

    def do_hold(self, command: Command) -> list[str]:
        """hold 1 d: d has it whole and verified."""
        return self._holder(command, c.AddHolder)

    def do_damaged(self, command: Command) -> list[str]:
        """damaged 1 d: d's copy is damaged."""
        return self._holder(command, c.DropHolder)

    def _holder(self, command: Command, kind: type[c.AddHolder] | type[c.DropHolder]) -> list[str]:
        return self.commit(
            kind(
                shard=self.entry(command).shard.shard,
                epoch=Epoch(int(command.words[0])),
                holder=process_of(command.words[1], 0).replica,
            )
        )

    def do_halt(self, command: Command) -> list[str]:
        """halt 9 a: a showed epoch 9."""
        return self.commit(
            c.HaltShard(
                shard=self.entry(command).shard.shard,
                epoch=Epoch(int(command.words[0])),
                node=NodeName(command.words[1]),
                why="it promised more",
            )
        )

    def do_map(self, command: Command) -> list[str]:
        """map: a shard's committed entry."""
        entry = self.entry(command)
        halted = [f"halted: {entry.halted}"] if entry.halted else []
        wanted = [
            f"{each.epoch} is wanted by {wording.names(each.wanted_holders)}"
            for each in entry.shard.sealed
            if each.wanted_holders
        ]
        return [*wording.chain(entry.shard), *wanted, f"drawn {entry.drawn}", *halted]

    # -------------------------------------------------------------- policy
    def do_plan(self, _command: Command) -> list[str]:
        """plan: what the planner wants done now."""
        actions = plan(self.state, self.view, self.limits)
        return [self._words(action) for action in actions] or ["nothing to do"]

    def _words(self, action: Action) -> str:
        where = f"shard {action.shard}"
        if isinstance(action, Prepare):
            return f"{where}: prepare {wording.plan(action.plan)} ({action.why})"
        if isinstance(action, Recover):
            return f"{where}: recover ({action.why})"
        if isinstance(action, Want):
            tail = ", a kept tail" if action.kept_tail else ""
            who = wording.names(action.holders)
            return f"{where}: {who} shall fetch {action.epoch} ({action.why}{tail})"
        return f"{where}: stuck ({action.why})"

    def do_carry(self, _command: Command) -> list[str]:
        """carry: commit what the planner wants, as far as it is one command."""
        lines = []
        for action in plan(self.state, self.view, self.limits):
            if isinstance(action, Prepare):
                lines += self.commit(
                    c.PrepareSegment(
                        shard=action.shard, epoch=action.epoch, plan=action.plan, why=action.why
                    )
                )
            elif isinstance(action, Want):
                lines += self.commit(
                    c.WantHolders(shard=action.shard, epoch=action.epoch, holders=action.holders)
                )
        return lines or ["nothing"]

    def do_switch(self, command: Command) -> list[str]:
        """switch b: the plan that makes b the primary on an operator's word."""
        shard = ShardId(int(command.options.get("shard", 1)))
        made = switch_plan(self.state, self.view, self.limits, shard, NodeName(command.words[0]))
        return [made if isinstance(made, str) else wording.plan(made)]

    def do_heir(self, command: Command) -> list[str]:
        """heir ended=5/3/bc answered=bc: the plan after a fence that these answered."""
        recovered = Recovered(ended=self.ended(command.options["ended"]))
        placement = Placement(self.state, self.view, self.limits, indexed(self.state))
        made = recovery_plan(
            self.state,
            placement,
            shard=self.entry(command).shard.shard,
            recovered=recovered,
            answered=frozenset(process_of(each, 0).replica for each in command.options["answered"]),
        )
        return [wording.plan(made) if made is not None else "no plan"]
