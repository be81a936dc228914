"""Who seems dead: each rule of docs/protocol.md §6 as a conversation with a clock in hand."""

import pytest

from las.core.commands import PrepareSegment, SetNodeState
from las.core.index import indexed
from las.core.state import ClusterState, NodeState
from las.daemon import detector as detector_module
from las.daemon.detector import (
    ACCUSERS_MAX,
    HEARTBEATS_PER_S_MAX,
    Ask,
    Detector,
    DetectorTiming,
    Judged,
    Verdict,
    fleet_heartbeat_ms,
    fleet_lease_ms,
)
from peerd.core.ids import Epoch, NodeName, ShardId, Tick
from tests.las_core.builders import (
    SHARD,
    done,
    fleet,
    name,
    plan_of,
    process,
    register,
    replica,
    with_log,
)

TIMING = DetectorTiming()
START = 10_000


class Watch:
    """A detector, the state it sees, and a clock that looks every 100 ms."""

    def __init__(self, state: ClusterState, **timing: int) -> None:
        self.state = state
        self.now = START
        self.detector = Detector(DetectorTiming(**timing), Tick(START))
        self.alive = {int(node.split("-")[1]) for node in state.nodes}
        self.look()

    def look(self) -> list[Verdict]:
        return self.detector.judge(self.state, indexed(self.state), Tick(self.now))

    def after(self, ms: int) -> list[Verdict]:
        """Let time pass; everybody alive sends heartbeats. What is said meanwhile, each once."""
        found: dict[Verdict, None] = {}
        for _ in range(ms // 100):
            self.now += 100
            for number in self.alive:
                self.detector.heard(name(number), process(number).boot, Tick(self.now))
            found.update(dict.fromkeys(self.look()))
        return list(found)

    def suspected(self, accuser: int, number: int, *, refused: bool = False) -> None:
        self.detector.suspected(
            name(accuser), name(number), process(number).boot, refused=refused, now=Tick(self.now)
        )

    def broken(self, number: int) -> None:
        self.alive.discard(number)
        self.detector.stream_broken(name(number), process(number).boot)

    def answered(self, ask: Ask, **silent_ms: int | None) -> Judged | None:
        """`peer_2=40`: peer-2 heard the suspect 40 ms ago."""
        silences = {NodeName(each.replace("_", "-")): ms for each, ms in silent_ms.items()}
        return self.detector.answered(ask, silences, Tick(self.now))

    def take(self, judged: Judged) -> None:
        """Commit a verdict."""
        self.state = done(
            self.state, SetNodeState(node=judged.node, boot=judged.boot, state=judged.state)
        )


def the_ask(verdicts: list[Verdict]) -> Ask:
    (ask,) = verdicts
    assert isinstance(ask, Ask)
    return ask


def the_judged(verdicts: list[Verdict]) -> Judged:
    (judged,) = verdicts
    assert isinstance(judged, Judged)
    return judged


# ---------------------------------------------------------------------------------- leases
def test_who_sends_heartbeats_is_left_alone():
    assert Watch(with_log()).after(10_000) == []


def test_a_new_leader_believes_everybody_alive_for_a_whole_lease():
    watch = Watch(with_log())
    watch.alive = set()
    assert watch.after(TIMING.lease_ms) == []
    assert {each.node for each in watch.after(100)} == set(map(name, (1, 2, 3)))


def test_silence_beyond_the_lease_is_asked_about_before_it_is_acted_on():
    watch = Watch(with_log())
    watch.alive.discard(1)
    ask = the_ask(watch.after(1_600))
    assert ask.node == name(1)
    assert set(ask.witnesses) == {name(2), name(3)}
    judged = watch.answered(ask, peer_2=1_700, peer_3=None)
    assert (judged.node, judged.boot, judged.state) == (
        name(1),
        process(1).boot,
        NodeState.DOWN,
    )
    assert judged.why == "is silent, and peer-2 and peer-3 cannot hear it"


def test_if_a_neighbour_hears_it_the_link_is_sick_and_nothing_moves():
    watch = Watch(with_log())
    watch.alive.discard(1)
    ask = the_ask(watch.after(1_600))
    assert watch.answered(ask, peer_2=1_700, peer_3=40) is None
    assert watch.after(900) == []
    the_ask(watch.after(200))


def test_a_question_is_not_asked_twice_at_once():
    watch = Watch(with_log())
    watch.alive.discard(1)
    ask = the_ask(watch.after(1_600))
    assert watch.after(200) == []
    assert watch.answered(ask) is None
    the_ask(watch.after(100))


def test_a_node_without_neighbours_is_judged_by_its_lease_alone():
    watch = Watch(fleet(3))
    watch.alive.discard(1)
    assert watch.after(1_500) == []
    assert the_judged(watch.after(100)).why.startswith("silent for 1600 ms, and nobody answers")


def test_if_no_witness_answers_for_long_the_silence_is_enough():
    watch = Watch(with_log())
    watch.alive.discard(1)
    for _ in range(TIMING.lease_ms * TIMING.unanswered_leases // 100):
        for verdict in watch.after(100):
            assert watch.answered(verdict) is None
    assert the_judged(watch.after(100)).state is NodeState.DOWN


def test_the_leaders_own_pause_is_given_back():
    watch = Watch(with_log())
    watch.now += 60_000
    assert watch.look() == []
    watch.alive = {1}
    assert watch.after(1_500) == []
    assert {each.node for each in watch.after(100)} == set(map(name, (2, 3)))


def test_if_most_of_the_fleet_is_silent_it_is_the_leader_that_is_cut_off():
    watch = Watch(with_log())
    watch.alive = {1, 2}
    judged: list[Verdict] = []
    for _ in range(TIMING.lease_ms * TIMING.isolated_leases // 100):
        for verdict in watch.after(100):
            if isinstance(verdict, Ask):
                assert watch.answered(verdict) is None
            else:
                judged.append(verdict)
    assert judged == []
    assert {each.node for each in watch.after(200)} >= set(map(name, (3, 4, 5)))


def test_a_node_that_is_heard_again_is_up_again():
    watch = Watch(fleet(3))
    watch.alive.discard(1)
    watch.take(the_judged(watch.after(1_600)))
    assert watch.after(1_000) == []
    assert watch.detector.view(watch.state, Tick(watch.now)).down_since == {name(1): START + 1_700}
    watch.alive.add(1)
    judged = the_judged(watch.after(100))
    assert (judged.state, judged.why) == (NodeState.UP, "heartbeats come again")
    watch.take(judged)
    assert watch.after(100) == []
    assert watch.detector.view(watch.state, Tick(watch.now)).down_since == {}


def test_a_new_process_has_a_whole_lease():
    watch = Watch(with_log())
    watch.alive.discard(1)
    watch.after(1_500)
    watch.state = done(watch.state, register(1, boot=2))
    assert watch.after(1_500) == []
    assert watch.detector.silent_ms(name(1), Tick(watch.now)) == 1_400


def test_a_failed_store_stays_failed_while_its_process_lives():
    watch = Watch(with_log())
    watch.take(Judged(node=name(1), boot=process(1).boot, state=NodeState.FAILED, why=""))
    assert watch.after(5_000) == []


# ---------------------------------------------------------------------------------- accusations
def test_a_closed_port_and_a_broken_stream_are_acted_on_at_once():
    watch = Watch(with_log())
    watch.broken(1)
    assert watch.look() == []
    watch.suspected(2, 1, refused=True)
    assert the_judged(watch.look()).why == "connections refused, say peer-2"


def test_a_port_closed_to_two_is_acted_on_at_once():
    watch = Watch(with_log())
    watch.suspected(2, 1, refused=True)
    watch.suspected(3, 1, refused=True)
    assert the_judged(watch.look()).state is NodeState.DOWN


def test_a_port_closed_to_one_is_asked_about_without_waiting_for_the_lease():
    watch = Watch(with_log())
    watch.suspected(2, 1, refused=True)
    ask = the_ask(watch.look())
    assert ask.witnesses == (name(3),), "its accuser has spoken already"
    assert watch.answered(ask, peer_3=150) is None, "it may have died since"
    ask = the_ask(watch.after(300))
    assert watch.answered(ask, peer_3=450).state is NodeState.DOWN


def test_a_neighbour_that_hears_it_since_ends_the_accusation():
    watch = Watch(with_log())
    watch.suspected(2, 1, refused=True)
    ask = the_ask(watch.look())
    watch.now += 100
    assert watch.answered(ask, peer_3=40) is None
    assert watch.after(5_000) == []


def test_one_neighbours_silence_alone_waits_for_the_lease():
    watch = Watch(with_log())
    watch.suspected(2, 1)
    assert watch.after(1_000) == []


def test_the_silence_of_two_neighbours_is_asked_about_before_the_lease():
    watch = Watch(with_log(nodes=5, rows=((0, 1, 2), (0, 3, 4))))
    watch.suspected(2, 1)
    watch.suspected(3, 1)
    ask = the_ask(watch.look())
    assert set(ask.witnesses) == {name(4), name(5)}
    assert watch.answered(ask, peer_4=600, peer_5=1_100) is None
    ask = the_ask(watch.after(100))
    assert watch.answered(ask, peer_4=1_000, peer_5=1_200).state is NodeState.DOWN


def test_an_accuser_of_two_whom_nobody_else_accuses_is_the_suspect():
    watch = Watch(with_log())
    watch.suspected(1, 2, refused=True)
    watch.suspected(1, 3, refused=True)
    ask = the_ask(watch.look())
    assert ask.node == name(1)
    assert watch.answered(ask, peer_2=1_000, peer_3=1_000).node == name(1)


def test_accusers_that_agree_are_believed():
    watch = Watch(with_log())
    for accused in (4, 5):
        watch.suspected(1, accused, refused=True)
        watch.suspected(2, accused, refused=True)
    assert {verdict.node for verdict in watch.look()} == {name(4), name(5)}


def test_an_accuser_is_believed_if_the_las_lost_one_of_them_too():
    watch = Watch(with_log())
    watch.broken(4)
    watch.suspected(1, 4, refused=True)
    watch.suspected(1, 5, refused=True)
    judged = [each for each in watch.look() if isinstance(each, Judged)]
    assert [each.node for each in judged] == [name(4)]


def test_one_accuser_alone_causes_one_replacement_in_five_seconds():
    watch = Watch(with_log(rows=((0, 1, 2), (2, 3, 4))))
    watch.suspected(3, 1, refused=True)
    judged = watch.answered(the_ask(watch.look()), peer_2=400)
    watch.alive.discard(1)
    watch.take(judged)
    watch.after(200)
    watch.detector._nodes[name(1)].accusations.clear()
    watch.suspected(3, 4, refused=True)
    (ask,) = (each for each in watch.look() if isinstance(each, Ask))
    assert watch.answered(ask, peer_5=400) is None
    (ask, *_) = (each for each in watch.after(5_000) if isinstance(each, Ask))
    watch.suspected(3, 4, refused=True)
    assert watch.answered(ask, peer_5=400).node == name(4)


def test_an_accusation_of_an_older_process_is_none():
    watch = Watch(done(with_log(), register(1, boot=2)))
    watch.suspected(2, 1, refused=True)
    watch.suspected(3, 1, refused=True)
    assert watch.look() == []


def test_accusations_are_forgotten():
    watch = Watch(with_log())
    watch.suspected(2, 1)
    watch.after(TIMING.accusation_ms + 100)
    watch.suspected(3, 1)
    assert watch.look() == []


def test_accusations_are_bounded():
    watch = Watch(with_log())
    for number in range(2, ACCUSERS_MAX + 10):
        watch.suspected(number, 1)
    assert len(watch.detector._nodes[name(1)].accusations) == ACCUSERS_MAX


def test_a_late_answer_about_an_older_process_is_dropped():
    watch = Watch(with_log())
    watch.suspected(2, 1, refused=True)
    ask = the_ask(watch.look())
    watch.state = done(watch.state, register(1, boot=2))
    watch.look()
    assert watch.answered(ask, peer_3=9_999) is None


def test_who_is_down_is_no_witness():
    watch = Watch(with_log())
    watch.take(Judged(node=name(3), boot=process(3).boot, state=NodeState.DOWN, why=""))
    watch.alive -= {1, 3}
    asks = [each for each in watch.after(1_600) if isinstance(each, Ask)]
    assert [each.witnesses for each in asks] == [(name(2),)]


# ---------------------------------------------------------------------------------- stalls
def stalls_in(watch: Watch) -> frozenset:
    return watch.detector.view(watch.state, Tick(watch.now)).stalled


def test_a_stalled_voter_is_known_to_the_planner_for_a_while():
    watch = Watch(with_log())
    assert watch.detector.stalled(name(1), SHARD, Epoch(1), replica(3), Tick(watch.now))
    assert stalls_in(watch) == {(SHARD, replica(3))}
    assert watch.detector.stalled_shards() == {SHARD}
    watch.after(TIMING.accusation_ms + 100)
    assert stalls_in(watch) == frozenset()


def test_a_stall_of_another_epoch_is_none():
    watch = Watch(with_log())
    watch.detector.stalled(name(1), SHARD, Epoch(7), replica(3), Tick(watch.now))
    watch.detector.stalled(name(1), ShardId(99), Epoch(1), replica(3), Tick(watch.now))
    assert stalls_in(watch) == frozenset()


def test_a_primary_that_accuses_all_its_voters_is_believed_about_one():
    watch = Watch(with_log(rows=((0, 1, 2), (0, 1, 2))))
    now = Tick(watch.now)
    assert watch.detector.stalled(name(1), SHARD, Epoch(1), replica(2), now)
    assert watch.detector.stalled(name(1), ShardId(2), Epoch(1), replica(2), now)
    assert not watch.detector.stalled(name(1), SHARD, Epoch(1), replica(3), now)
    watch.after(TIMING.accuser_ms)
    assert watch.detector.stalled(name(1), SHARD, Epoch(1), replica(3), Tick(watch.now))


def test_a_primary_that_accuses_all_its_voters_for_long_is_the_one_that_stalls():
    watch = Watch(with_log())
    for number in (2, 3):
        watch.detector.stalled(name(1), SHARD, Epoch(1), replica(number), Tick(watch.now))
    watch.detector.stalled(name(4), ShardId(2), Epoch(1), replica(4), Tick(watch.now))
    assert watch.detector.slow == frozenset()
    assert stalls_in(watch) == {(SHARD, replica(2))}
    watch.after(400)
    assert watch.detector.view(watch.state, Tick(watch.now)).slow == {name(1)}
    assert stalls_in(watch) == frozenset(), "its word counts for nothing"
    watch.detector.stalled(name(1), SHARD, Epoch(1), replica(1), Tick(watch.now))
    watch.after(TIMING.accuser_ms)
    watch.detector.stalled(name(1), SHARD, Epoch(1), replica(1), Tick(watch.now))
    assert stalls_in(watch) == {(SHARD, replica(1))}, "but of its own store it does"


def test_a_primary_that_is_busy_with_a_take_over_is_not():
    watch = Watch(with_log())
    watch.detector.busy = lambda now: [name(1)] if now < START + 1_000 else []
    for number in (2, 3):
        watch.detector.stalled(name(1), SHARD, Epoch(1), replica(number), Tick(watch.now))
    watch.after(900)
    assert watch.detector.slow == frozenset()
    watch.after(500)
    assert watch.detector.slow == {name(1)}


def test_stalls_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("las.daemon.detector.STALLS_MAX", 3)
    watch = Watch(with_log())
    for shard in range(1, 9):
        watch.detector.stalled(name(1), ShardId(shard), Epoch(1), replica(2), Tick(watch.now))
    assert watch.detector.stalled_shards() == {6, 7, 8}


def test_the_planner_is_told_of_free_space():
    watch = Watch(with_log())
    watch.detector.heard(name(1), process(1).boot, Tick(watch.now), free_bytes=7)
    assert watch.detector.view(watch.state, Tick(watch.now)).free_bytes == {name(1): 7}


def test_neighbours_are_found_in_prepared_segments_too():
    prepare = PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 4, 5))
    watch = Watch(done(with_log(), prepare))
    watch.alive.discard(4)
    ask = the_ask(watch.after(1_600))
    assert set(ask.witnesses) == {name(2), name(5)}


# ---------------------------------------------------------------------------------- large fleets
@pytest.mark.parametrize(
    ("nodes", "heartbeat_ms", "lease_ms"),
    [(5, 500, 1_500), (1_000, 500, 1_500), (4_000, 2_000, 6_000), (10_000, 5_000, 15_000)],
)
def test_a_large_fleet_beats_less_often_and_has_longer_leases(nodes, heartbeat_ms, lease_ms):
    assert fleet_heartbeat_ms(500, nodes) == heartbeat_ms
    assert fleet_lease_ms(1_500, nodes) == lease_ms
    assert nodes * 1_000 / fleet_heartbeat_ms(500, nodes) <= HEARTBEATS_PER_S_MAX


def test_the_lease_follows_the_fleet(monkeypatch):
    monkeypatch.setattr(detector_module, "HEARTBEATS_PER_S_MAX", 1)
    watch = Watch(with_log())
    watch.alive.discard(5)
    assert watch.after(3 * 5_000) == []
    assert watch.after(300)
