"""Small fleets and shards for the tests of the LAS core."""

from las.core.apply import apply
from las.core.commands import Command, CreateLog, RegisterNode, Result
from las.core.state import ClusterState, Node
from peerd.core.ids import BootId, NodeName, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import Plan, Shard

SHARD = ShardId(1)


def name(number: int) -> NodeName:
    return NodeName(f"peer-{number}")


def replica(number: int) -> ReplicaId:
    return ReplicaId(name(number), StoreId(f"store-{number}"))


def process(number: int, boot: int = 1) -> ProcessId:
    return ProcessId(name(number), StoreId(f"store-{number}"), BootId(f"boot-{number}-{boot}"))


def register(number: int, boot: int = 1, **changes: object) -> RegisterNode:
    facts: dict[str, object] = {
        "name": name(number),
        "store": StoreId(f"store-{number}"),
        "boot": BootId(f"boot-{number}-{boot}"),
        "address": f"127.0.0.1:{7400 + number}",
        "feature_level": 2,
        "labels": (("host", f"host-{number}"), ("zone", f"zone-{number % 3}")),
    }
    return RegisterNode(**(facts | changes))  # type: ignore[arg-type]


def plan_of(primary: int, *voters: int, non: tuple[int, ...] = (), acks: int = 2) -> Plan:
    """`plan_of(1, 1, 2, 3)`: peer-1 is primary, peers 1 to 3 vote."""
    return Plan(
        primary=process(primary),
        voters=tuple(replica(each) for each in voters),
        non_voters=tuple(replica(each) for each in non),
        acks=acks,
    )


def do(state: ClusterState, command: Command) -> tuple[ClusterState, Result]:
    """Apply, and show that a command that was refused changed nothing."""
    after, result = apply(state, command)
    if not result.ok:
        assert after is state
    return after, result


def done(state: ClusterState, *commands: Command) -> ClusterState:
    """The state after commands that must all be taken."""
    for command in commands:
        state, result = do(state, command)
        assert result.ok, result
    return state


def fleet(nodes: int) -> ClusterState:
    return done(
        ClusterState(cluster_id="cluster-1"), *(register(each) for each in range(1, nodes + 1))
    )


def with_log(
    nodes: int = 5,
    rows: tuple[tuple[int, ...], ...] = ((0, 1, 2),),
    copies: int = 3,
    acks: int = 2,
) -> ClusterState:
    """A fleet with the log `orders`; `rows` index nodes from 0, so 0 is peer-1."""
    return done(
        fleet(nodes),
        CreateLog(
            name="orders",
            copies=copies,
            acks=acks,
            nodes=tuple(name(each + 1) for each in range(nodes)),
            rows=rows,
        ),
    )


def shard_of(state: ClusterState) -> Shard:
    return state.shards[SHARD].shard


def node_of(state: ClusterState, number: int) -> Node:
    return state.nodes[name(number)]
