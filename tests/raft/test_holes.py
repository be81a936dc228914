"""Each hole of the stock library as a schedule that breaks it, and not what we made of it.

H1 to H12 are the holes that were found in pysyncobj 0.3.17; `las.raft.guard` has the table. Where a
rule of ours closes one, its schedule is run a third time with that rule switched off, which has to
break it again: otherwise the schedule would prove nothing.
"""

import gc
import os

import pytest
from raft_simulation import Cluster, StockCluster

import las.raft.guard
import las.raft.transfer
from las.raft.codec import text_of
from las.raft.errors import StoreCorrupt
from las.raft.guard import Guards

# The stock library leaves files to the garbage collector; `make` runs it before the test is over.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def make(clock, tmp_path):
    """Makes clusters and ends them."""
    made = []

    def make(kind, size=3, **options):
        root = tmp_path / f"{kind.__name__}-{len(made)}"
        root.mkdir()
        made.append(kind(size, clock, root, **options))
        return made[-1]

    yield make
    for cluster in made:
        for name in list(cluster.nodes):
            cluster.kill(name)
    made.clear()
    gc.collect()


# ---------------------------------------------------------------------- H1


def snapshot_over_an_uncommitted_tail(cluster):
    """A deposed leader with commands that nobody else has gets the first piece of a snapshot."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    cluster.submit("A", "kept")
    cluster.settle()
    cluster.cut("A", "B")
    cluster.cut("A", "C")
    cluster.submit("A", "lost-1")
    cluster.submit("A", "lost-2")
    cluster.tick("A", seconds=0.2)
    assert cluster.elect("B", "C")
    cluster.settle("BC")
    for number in range(6):
        cluster.submit("B", f"new-{number}")
    cluster.settle("BC")
    cluster.compact("B")
    cluster.settle("BC")
    cluster.connect("A", "B")
    cluster.tick("B", seconds=0.2)
    cluster.deliver("B", "A", 1)
    cluster.tick("A")
    cluster.connect("A", "C")
    cluster.settle()
    return cluster.lost("B", "C")


def test_h1_stock_commits_over_an_unmatched_tail(make):
    assert snapshot_over_an_uncommitted_tail(make(StockCluster)) == ["lost-1", "lost-2"]


def test_h1_guarded(make, monkeypatch):
    monkeypatch.setattr(las.raft.transfer, "CHUNK_BYTES", 64)
    cluster = make(Cluster)
    assert snapshot_over_an_uncommitted_tail(cluster) == []
    assert cluster.items("A") == cluster.items("B") == cluster.items("C")
    assert not cluster.failures


def test_h1_without_the_rule(make, monkeypatch):
    monkeypatch.setattr(las.raft.transfer, "CHUNK_BYTES", 64)
    cluster = make(Cluster, guards=Guards(snapshot_pieces_move_nothing=False))
    assert snapshot_over_an_uncommitted_tail(cluster)


# ---------------------------------------------------------------------- H2


def entries_sent_twice(cluster):
    """A follower gets entries in several messages, acknowledges them, and gets the first again."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    cluster.cut("A", "C")
    cluster.cut("B", "C")
    cluster.submit("A", "e1")
    cluster.tick("A", seconds=0.2)
    cluster.tick("A", seconds=0.2)
    cluster.deliver("A", "B")
    for number in range(2, 10):
        cluster.submit("A", f"e{number}" + "x" * 700)
    cluster.tick("A", seconds=0.2)
    cluster.tick("A", seconds=0.2)
    first_copies = len(cluster.network.queues["A", "B"])
    # The acknowledgement of e1 takes the leader back to e2: it sends the rest once more.
    cluster.deliver("B", "A")
    cluster.tick("A", seconds=0.2)
    assert len(cluster.network.queues["A", "B"]) > first_copies
    cluster.deliver("A", "B", first_copies)
    cluster.deliver("B", "A")
    cluster.tick("A", seconds=0.01)
    assert len(cluster.acknowledged()) == 9
    cluster.deliver("A", "B", 1)
    # The leader dies, and with it what was on its way.
    cluster.kill("A")
    cluster.connect("B", "C")
    assert cluster.elect("C", "B") or cluster.elect("B", "C")
    cluster.settle("BC")
    return cluster.lost("B", "C")


def test_h2_stock_cuts_without_a_conflict(make):
    assert entries_sent_twice(make(StockCluster, appendEntriesBatchSizeBytes=2000))


def test_h2_guarded(make, monkeypatch):
    monkeypatch.setattr(las.raft.guard, "FRAME_BYTES_MAX", 2000)
    assert entries_sent_twice(make(Cluster)) == []


def test_h2_without_the_rule(make, monkeypatch):
    """The journal is the second line: it ends the process rather than remove what is committed."""
    monkeypatch.setattr(las.raft.guard, "FRAME_BYTES_MAX", 2000)
    cluster = make(Cluster, guards=Guards(cut_only_on_conflict=False))
    lost = None
    try:
        lost = entries_sent_twice(cluster)
    except AssertionError:
        pass
    assert lost or cluster.failures


# ---------------------------------------------------------------------- H3


def acknowledgement_of_an_older_leadership(cluster):
    """B's acknowledgement of term 1 reaches A after A has lost and regained the leadership."""
    network = cluster.network
    assert cluster.elect("A", "BCDE")
    cluster.settle()
    for other in "CDE":
        cluster.cut("A", other)
    for number in range(6):
        cluster.submit("A", f"old-{number}")
    cluster.tick("A", seconds=0.2)
    cluster.tick("A", seconds=0.2)
    cluster.deliver("A", "B")
    late = list(network.queues["B", "A"])
    network.queues["B", "A"].clear()
    assert cluster.elect("C", "DE")
    cluster.connect("A", "C")
    for _ in range(4):
        # C's no-op replaces the six entries at A and B.
        cluster.tick("C", seconds=0.2)
        for other in "ADEB":
            cluster.deliver("C", other)
            cluster.deliver(other, "C")
    cluster.connect("A", "D")
    cluster.connect("A", "E")
    cluster.settle("ACDE", rounds=6)
    cluster.cut("B", "C")
    cluster.cut("A", "C")
    network.queues["A", "B"].clear()
    network.queues["B", "A"].clear()
    assert cluster.elect("A", "DE")
    network.queues["A", "D"].clear()
    network.queues["A", "E"].clear()
    cluster.cut("A", "D")
    for number in range(6):
        cluster.submit("A", f"false-{number}")
    for _ in range(6):
        # Only E hears A: two of five hold the entries.
        cluster.tick("A", seconds=0.2)
        cluster.deliver("A", "E")
        cluster.deliver("E", "A")
        network.queues["A", "B"].clear()
    network.queues["B", "A"].extend(late)
    cluster.deliver("B", "A")
    cluster.tick("A", seconds=0.01)
    holders = [name for name in cluster.names if cluster.log(name)[-1] == cluster.log("A")[-1]]
    assert holders == ["A", "E"]
    return [item for item in cluster.acknowledged() if item.startswith("false")]


def test_h3_stock_counts_old_acknowledgements(make):
    assert acknowledgement_of_an_older_leadership(make(StockCluster, size=5))


def test_h3_guarded(make):
    assert acknowledgement_of_an_older_leadership(make(Cluster, size=5)) == []


def test_h3_without_the_rule(make):
    cluster = make(Cluster, size=5, guards=Guards(acknowledgements_carry_term=False))
    assert acknowledgement_of_an_older_leadership(cluster)


# ---------------------------------------------------------------------- H4


def crash_between_snapshot_and_journal(cluster, compact_and_crash):
    """B's snapshot is in place, its journal is not yet trimmed, and the process dies."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    for number in range(5):
        cluster.submit("A", f"before-{number}")
    cluster.settle()
    cluster.cut("A", "C")
    cluster.cut("B", "C")

    def acknowledge_more():
        for number in range(5):
            cluster.submit("A", f"after-{number}")
        for _ in range(6):
            cluster.tick("A", seconds=0.2)
            cluster.deliver("A", "B")
            cluster.deliver("B", "A")

    compact_and_crash(cluster, acknowledge_more)
    assert len(cluster.acknowledged()) == 10
    cluster.start("B")
    cluster.kill("A")
    cluster.connect("B", "C")
    assert cluster.elect("B", "C") or cluster.elect("C", "B")
    cluster.settle("BC")
    return cluster.lost("B", "C")


def test_h4_stock_throws_the_journal_away(make):
    def compact_and_crash(cluster, acknowledge_more):
        cluster.compact("B")
        cluster.nodes["B"].doTick(0)
        acknowledge_more()
        cluster.kill("B")

    assert crash_between_snapshot_and_journal(make(StockCluster), compact_and_crash)


def test_h4_guarded(make):
    def compact_and_crash(cluster, acknowledge_more):
        disk = cluster.disk("B")
        whole = disk.replace

        def crash_after(source, target):
            whole(source, target)
            if target.name == "snapshot":
                cluster.nodes["B"]._fatal("the power is gone")

        acknowledge_more()
        cluster.compact("B")
        disk.replace = crash_after
        cluster.tick("B")
        cluster.tick("B")
        assert "B" not in cluster.nodes
        assert (cluster.root / "B" / "snapshot").exists()
        disk.replace = whole

    assert crash_between_snapshot_and_journal(make(Cluster), compact_and_crash) == []


# ---------------------------------------------------------------------- H5


def power_cut_everywhere(cluster):
    """All members lose power after commands were acknowledged, and come back."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    for number in range(5):
        cluster.submit("A", f"item-{number}")
    cluster.settle()
    assert len(cluster.acknowledged()) == 5
    for name in cluster.names:
        cluster.cut_power(name)
    for name in cluster.names:
        cluster.start(name)
    for first, second in ("AB", "AC", "BC"):
        cluster.connect(first, second)
    assert cluster.elect("A", "BC")
    cluster.submit("A", "later")
    cluster.settle()
    return cluster.lost(*cluster.names)


def test_h5_stock_never_syncs(make, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert len(power_cut_everywhere(make(StockCluster))) == 5
    assert not synced


def test_h5_guarded(make):
    assert power_cut_everywhere(make(Cluster)) == []


def test_h5_without_the_rule(make):
    assert power_cut_everywhere(make(Cluster, guards=Guards(sync_before_sending=False)))


# ---------------------------------------------------------------------- H6


def damaged_snapshot(cluster, path):
    """B's snapshot file is cut in half; B starts, and A goes on."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    for number in range(5):
        cluster.submit("A", f"item-{number}")
    cluster.settle()
    for name in cluster.names:
        cluster.compact(name)
    cluster.settle()
    cluster.kill("B")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    cluster.restart("B", "AC")
    cluster.settle()
    cluster.submit("A", "later")
    cluster.settle()


def test_h6_stock_serves_a_state_with_holes(make):
    cluster = make(StockCluster)
    damaged_snapshot(cluster, cluster.root / "B.dump")
    assert cluster.items("B") != cluster.items("A")


def test_h6_guarded_refuses_to_start(make):
    cluster = make(Cluster)
    with pytest.raises(StoreCorrupt, match="las rejoin"):
        damaged_snapshot(cluster, cluster.root / "B" / "snapshot")


# ---------------------------------------------------------------------- H7


def compaction_then_restart_of_all(cluster):
    assert cluster.elect("A", "BC")
    cluster.settle()
    for number in range(5):
        cluster.submit("A", f"item-{number}")
    cluster.settle()
    for name in cluster.names:
        cluster.compact(name)
    cluster.settle()
    for name in cluster.names:
        cluster.kill(name)
    for name in cluster.names:
        cluster.start(name)
    for first, second in ("AB", "AC", "BC"):
        cluster.connect(first, second)
    assert cluster.elect("A", "BC")
    cluster.submit("A", "later")
    cluster.settle()
    return cluster.lost(*cluster.names)


def test_h7_stock_journal_without_dump_file(make):
    assert compaction_then_restart_of_all(make(StockCluster, fullDumpFile=None))


def test_h7_guarded(make):
    assert compaction_then_restart_of_all(make(Cluster)) == []


# ---------------------------------------------------------------------- H8


def test_h8_stock_is_wedged_by_a_raising_method(make):
    cluster = make(StockCluster)
    assert cluster.elect("A", "BC")
    cluster.settle()
    cluster.submit("A", "raise")
    raised = 0
    for _ in range(20):
        cluster.clock.now += 0.11
        for name in cluster.names:
            try:
                cluster.nodes[name].doTick(0)
            except ValueError:
                raised += 1
            cluster.hold(name)
        for source in cluster.names:
            for target in cluster.names:
                cluster.deliver(source, target)
    cluster.submit("A", "never applied")
    # Every tick of every member raises, and none of them gets any further.
    assert raised > 10
    assert not cluster.acknowledged()


def test_h8_guarded_domain_errors_are_results_and_defects_stop(make):
    cluster = make(Cluster)
    assert cluster.elect("A", "BC")
    cluster.settle()
    cluster.submit("A", "refuse this")
    cluster.submit("A", "item")
    cluster.settle()
    assert [ack[2] for ack in cluster.acks] == ["refused", "1"]
    cluster.submit("A", "raise")
    cluster.settle()
    assert sorted(cluster.nodes) == ["B", "C"]
    assert cluster.acks[-1][3] == "OutcomeUnknown"
    # The entry is in the log: every member that applies it stops, none is wedged or diverges.
    assert cluster.elect("B", "C")
    cluster.settle()
    assert sorted(cluster.nodes) == ["C"]
    assert cluster.items("C") == ["item"]
    assert all("the state machine raised" in reason for reason in cluster.failures)


# ---------------------------------------------------------------------- H9


def test_h9_stock_applies_twice_when_a_callback_raises(make):
    cluster = make(StockCluster)
    assert cluster.elect("A", "BC")
    cluster.settle()

    def callback(result, reason):
        raise RuntimeError("the event loop is closed")

    cluster.nodes["A"].append("once", callback=callback)
    for _ in range(12):
        cluster.clock.now += 0.11
        for name in cluster.names:
            try:
                cluster.nodes[name].doTick(0)
            except RuntimeError:
                pass
            cluster.hold(name)
        for source in cluster.names:
            for target in cluster.names:
                cluster.deliver(source, target)
    assert cluster.items("A").count("once") > 1
    assert cluster.items("B").count("once") == 1


def test_h9_guarded_outcomes_leave_after_the_step(make, monkeypatch):
    cluster = make(Cluster)
    assert cluster.elect("A", "BC")
    cluster.settle()

    def fail(token, outcome):
        raise RuntimeError("the event loop is closed")

    monkeypatch.setattr(cluster, "on_outcome", fail)
    cluster.submit("A", "once")
    with pytest.raises(RuntimeError):
        cluster.settle()
    monkeypatch.undo()
    cluster.settle()
    assert cluster.items("A") == cluster.items("B") == cluster.items("C") == ["once"]


# ---------------------------------------------------------------------- H10


def test_h10_stock_changes_members_twice_at_once(make):
    cluster = make(StockCluster, dynamicMembershipChange=True)
    assert cluster.elect("A", "BC")
    cluster.settle()
    library = cluster.nodes["A"]
    commit_index = library.raftCommitIndex
    for name in "XY":
        library.addNodeToCluster(type(library.selfNode)(name))
    # The first change is not committed (nothing was delivered), and the second is in force.
    cluster.tick("A", seconds=0.01)
    members = {node.id for node in library.otherNodes}
    assert library.raftCommitIndex == commit_index
    assert {"X", "Y"} <= members


def test_h10_guarded_membership_is_static(make):
    cluster = make(Cluster)
    assert cluster.elect("A", "BC")
    library = cluster.library("A")
    with pytest.raises(Exception, match="dynamicMembershipChange is disabled"):
        library.addNodeToCluster("X")
    # And the command of such a change is no command of this group, on disk or from a peer.
    with pytest.raises(ValueError, match="not a command"):
        text_of(b"\x02\x80\x02]q\x00.")


# ---------------------------------------------------------------------- H11


def write_at_a_new_leader(cluster):
    """A is cut off and does not know it; B leads and commits."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    cluster.submit("A", "first")
    cluster.settle()
    cluster.cut("A", "B")
    cluster.cut("A", "C")
    assert cluster.elect("B", "C")
    cluster.settle("BC")
    cluster.submit("B", "second")
    cluster.settle("BC")


def test_h11_stock_leader_serves_the_past(make):
    cluster = make(StockCluster)
    write_at_a_new_leader(cluster)
    assert cluster.leads("A")
    assert cluster.nodes["A"].isReady()
    assert cluster.items("A") == ["first"]
    assert cluster.items("B") == ["first", "second"]


def test_h11_guarded_barrier_does_not_pass(make):
    cluster = make(Cluster)
    write_at_a_new_leader(cluster)
    assert cluster.leads("A")
    cluster.barrier("A")
    cluster.tick("A", seconds=0.2)
    assert not cluster.barriers
    cluster.connect("A", "B")
    cluster.connect("A", "C")
    cluster.settle()
    assert not cluster.barriers
    assert cluster.acks[-1][3] in {"NotLeader", "OutcomeUnknown"}
    assert cluster.items("A") == ["first", "second"]
    cluster.barrier("B")
    cluster.settle()
    assert [name for name, _ in cluster.barriers] == ["B"]


def answer_lost_with_its_leader(cluster, submit):
    """A replicates a command and is cut off before it says so; C leads, and it is given again."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    submit("A")
    cluster.tick("A", seconds=0.2)
    cluster.tick("A", seconds=0.2)
    cluster.deliver("A", "C")
    cluster.cut("A", "B")
    cluster.cut("A", "C")
    assert cluster.elect("C", "B")
    cluster.settle("BC")
    submit("C")
    cluster.settle("BC")
    return cluster.items("C").count("command")


def test_h11_stock_retry_is_applied_twice(make):
    cluster = make(StockCluster)
    assert answer_lost_with_its_leader(cluster, lambda name: cluster.submit(name, "command")) == 2


def test_h11_guarded_retry_gets_the_first_result(make):
    cluster = make(Cluster)

    def submit(name):
        cluster.submit(name, "command", command_id=("operator", 1))

    assert answer_lost_with_its_leader(cluster, submit) == 1
    assert [ack[2] for ack in cluster.acks if ack[0] == "C"] == ["1"]


def test_h11_without_the_rule(make):
    cluster = make(Cluster, guards=Guards(apply_once=False))

    def submit(name):
        cluster.submit(name, "command", command_id=("operator", 1))

    assert answer_lost_with_its_leader(cluster, submit) == 2


# ---------------------------------------------------------------------- H12


def badly_connected_member(cluster):
    """C hears only B; its timer runs out again and again. Returns by how much terms grew."""
    assert cluster.elect("A", "BC")
    cluster.settle()
    cluster.cut("A", "C")
    before = cluster.term("A")
    for number in range(5):
        if cluster.leads("A"):
            cluster.submit("A", f"item-{number}")
        cluster.settle("AB", rounds=4)
        cluster.elect("C", "B", unheard=False)
        cluster.settle("AB", rounds=2)
    return max(map(cluster.term, cluster.names)) - before


def test_h12_stock_is_deposed_by_it(make):
    cluster = make(StockCluster)
    assert badly_connected_member(cluster) == 5
    assert len(cluster.acknowledged()) < 5


def test_h12_guarded(make):
    cluster = make(Cluster)
    assert badly_connected_member(cluster) == 0
    assert cluster.leads("A")
    assert len(cluster.acknowledged()) == 5


def test_h12_without_the_rule(make):
    assert badly_connected_member(make(Cluster, guards=Guards(ask_before_standing=False))) > 0
