"""Single rules of the guard, frame by frame."""

import hashlib

import pytest
from raft_simulation import CLUSTER, CLUSTER_ID, Cluster

import las.raft.guard
import las.raft.library
import las.raft.transfer
from las.internal.v1 import raft_pb2
from las.raft.errors import LibraryChanged, PeerRefused
from las.raft.guard import Guards
from las.raft.library import SOURCE_SHA256, verify_library
from las.raft.links import check_hello
from las.raft.store import rejoin_directory

Frame = raft_pb2.RaftFrame


@pytest.fixture
def make(clock, tmp_path):
    made = []

    def make(size=3, **options):
        root = tmp_path / str(len(made))
        root.mkdir()
        made.append(Cluster(size, clock, root, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def led(cluster, name="A"):
    assert cluster.elect(name, [other for other in cluster.names if other != name])
    cluster.settle()
    return cluster


def give(cluster, target, source, **fields):
    """Hands a frame to a member as if `source` had sent it; returns what it answers."""
    cluster.network.queues[target, source].clear()
    cluster.take(source, target, Frame(**fields).SerializeToString())
    answers = [Frame.FromString(each) for each in cluster.network.queues[target, source]]
    cluster.network.queues[target, source].clear()
    return answers


# ---------------------------------------------------------------------- terms and votes


def test_a_member_votes_once_however_often_its_vote_comes(make):
    for guards, leads in ((None, False), (Guards(one_vote_per_member=False), True)):
        cluster = make(size=5, **({"guards": guards} if guards else {}))
        cluster.clock.now += 1.0
        cluster.set_private("A", "raftElectionDeadline", 0)
        cluster.step("A")
        for other in "BC":
            cluster.deliver("A", other)
            cluster.deliver(other, "A")
        term = cluster.term("A")
        assert term == 1
        give(cluster, "A", "B", term=term, vote_granted=raft_pb2.VoteGranted())
        give(cluster, "A", "B", term=term, vote_granted=raft_pb2.VoteGranted())
        assert cluster.leads("A") is leads


def test_an_old_leader_learns_that_it_is_one(make):
    """A member of a higher term that nobody elected: silence would keep it apart for ever."""
    cluster = led(make())
    answers = give(cluster, "C", "B", term=9, request_vote=raft_pb2.RequestVote())
    assert not answers
    assert cluster.term("C") == 9
    cluster.settle()
    assert cluster.term("A") == 9
    assert not cluster.leads("A")
    led(cluster)
    cluster.submit("A", "item")
    cluster.settle()
    assert cluster.items("C") == ["item"]


def test_a_candidate_learns_a_higher_term_before_it_stands(make):
    cluster = led(make())
    cluster.kill("A")
    give(cluster, "B", "A", term=7, request_vote=raft_pb2.RequestVote())
    assert cluster.elect("C", "B") or cluster.elect("C", "B")
    assert cluster.term("C") == 8


def test_nobody_who_hears_a_leader_says_yes(make):
    cluster = led(make())
    last = cluster.log("B")[-1]
    question = raft_pb2.PreVote(round=3, last_log_index=last[0], last_log_term=last[1])
    (refusal,) = give(cluster, "B", "C", term=1, pre_vote=question)
    assert (refusal.pre_vote_reply.round, refusal.pre_vote_reply.granted) == (3, False)
    (refusal,) = give(cluster, "A", "C", term=1, pre_vote=question)
    assert not refusal.pre_vote_reply.granted
    cluster.clock.now += cluster.timing.election_timeout_s[0]
    (grant,) = give(cluster, "B", "C", term=1, pre_vote=question)
    assert grant.pre_vote_reply.granted
    question.last_log_index -= 1
    (refusal,) = give(cluster, "B", "C", term=1, pre_vote=question)
    assert not refusal.pre_vote_reply.granted


def test_two_leaders_in_a_term_end_the_process(make):
    cluster = led(make())
    term, last = cluster.term("B"), cluster.log("B")[-1]
    append = raft_pb2.AppendEntries(previous_index=last[0], previous_term=last[1])
    give(cluster, "B", "C", term=term, append_entries=append)
    assert "both lead term" in cluster.failures[0]
    assert "B" not in cluster.nodes


# ---------------------------------------------------------------------- entries


def append(entries, previous=(2, 1), commit_index=0):
    return raft_pb2.AppendEntries(
        previous_index=previous[0],
        previous_term=previous[1],
        commit_index=commit_index,
        entries=[raft_pb2.Entry(index=index, term=term) for index, term in entries],
    )


@pytest.mark.parametrize(
    "bad",
    [
        append([(4, 1)]),
        append([(3, 1), (5, 1)]),
        append([(3, 0)]),
        append([(3, 9)]),
        append([], previous=(0, 0)),
        raft_pb2.AppendEntries(
            previous_index=2,
            previous_term=1,
            entries=[raft_pb2.Entry(index=3, term=1, command=raft_pb2.Command(body="{}"))],
        ),
    ],
)
def test_entries_that_make_no_sense_are_dropped(make, bad):
    cluster = led(make())
    before = cluster.log("B")
    assert give(cluster, "B", "A", term=1, append_entries=bad) == []
    assert cluster.log("B") == before
    assert cluster.nodes["B"].refused_frames == 1
    assert not cluster.failures


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hello": raft_pb2.Hello()},
        {"append_reply": raft_pb2.AppendReply(success=True, next_index=99)},
    ],
)
def test_frames_out_of_place_are_dropped(make, fields):
    cluster = led(make())
    assert give(cluster, "A", "B", term=1, **fields) == []
    assert cluster.nodes["A"].refused_frames == 1
    cluster.submit("A", "item")
    cluster.settle()
    assert cluster.items("B") == ["item"]


def test_a_follower_acknowledges_what_it_was_asked_about_and_no_more(make):
    """Its log may go on with entries that the leader does not have."""
    cluster = led(make())
    for number in range(3):
        cluster.submit("A", f"item-{number}")
    cluster.settle()
    length = cluster.log("B")[-1][0]
    (reply,) = give(cluster, "B", "A", term=1, append_entries=append([]))
    assert reply.append_reply.success
    assert reply.append_reply.next_index == 3
    assert cluster.log("B")[-1][0] == length


def test_a_conflict_is_found_in_two_round_trips_whatever_its_length(make, monkeypatch):
    """The frames behind the conflicting one must not lead the leader in circles."""
    monkeypatch.setattr(las.raft.guard, "FRAME_BYTES_MAX", 100)
    cluster = led(make())
    cluster.cut("A", "B")
    cluster.cut("A", "C")
    for number in range(30):
        cluster.submit("A", f"lost-{number}")
    cluster.tick("A")
    assert cluster.elect("B", "C")
    for number in range(60):
        cluster.submit("B", f"kept-{number}")
    cluster.settle("BC")
    # A leader that takes A's log to be as long as its own when it begins.
    cluster.restart("B", "C")
    assert cluster.elect("C", "B")
    cluster.connect("A", "B")
    cluster.connect("A", "C")
    cluster.settle(rounds=5)
    assert cluster.items("A") == cluster.items("B")
    assert len(cluster.items("A")) == 60


def test_only_what_was_compared_counts_as_committed(make):
    """The leader has committed far more than it sends, and our log has a tail that it lacks."""
    cluster = led(make())
    cluster.submit("A", "lost")
    cluster.tick("A")
    end = cluster.log("A")[-1][0]
    frame = append([], commit_index=100)
    (reply,) = give(cluster, "A", "B", term=2, append_entries=frame)
    assert reply.append_reply.success
    assert cluster.nodes["A"].status().commit_index == 2
    assert cluster.log("A")[-1][0] == end
    assert cluster.acknowledged() == []


def test_entries_join_one_frame_and_a_large_log_is_cut_into_several(make, monkeypatch):
    cluster = led(make())
    for number in range(20):
        cluster.submit("A", f"item-{number}")
    cluster.step("A")
    queue = cluster.network.queues["A", "B"]
    sizes = [len(Frame.FromString(each).append_entries.entries) for each in queue]
    assert sizes == [20]
    cluster.settle()
    monkeypatch.setattr(las.raft.guard, "FRAME_BYTES_MAX", 300)
    for number in range(20):
        cluster.submit("A", f"more-{number}")
    cluster.step("A")
    sizes = [len(Frame.FromString(each).append_entries.entries) for each in queue]
    assert sum(sizes) == 20
    assert len(sizes) > 3
    cluster.settle()
    assert len(cluster.items("B")) == 40


# ---------------------------------------------------------------------- snapshots


def far_behind(cluster):
    """C is cut off, and A's log begins behind C's end."""
    led(cluster)
    cluster.cut("A", "C")
    cluster.cut("B", "C")
    for number in range(10):
        cluster.submit("A", f"item-{number}")
    cluster.settle("AB")
    cluster.compact("A")
    cluster.settle("AB")
    return cluster


def test_a_snapshot_goes_in_windows_and_keeps_the_leader_in_office(make, monkeypatch):
    monkeypatch.setattr(las.raft.transfer, "CHUNK_BYTES", 20)
    monkeypatch.setattr(las.raft.transfer, "WINDOW_BYTES", 60)
    cluster = far_behind(make())
    cluster.kill("B")
    cluster.connect("A", "C")
    cluster.tick("A", seconds=0.2)
    assert len(cluster.network.queues["A", "C"]) == 3
    # Slower than an election: every chunk and answer is a sign of life for both.
    for _ in range(200):
        if cluster.items("C") == cluster.items("A"):
            break
        cluster.tick(seconds=0.2)
        cluster.deliver("A", "C", 1)
        cluster.deliver("C", "A", 1)
    assert cluster.items("C") == cluster.items("A")
    assert cluster.leads("A")
    cluster.submit("A", "later")
    cluster.settle("AC")
    assert cluster.items("C")[-1] == "later"


def test_a_snapshot_begins_anew_on_a_new_link(make, monkeypatch):
    monkeypatch.setattr(las.raft.transfer, "CHUNK_BYTES", 20)
    cluster = far_behind(make())
    cluster.connect("A", "C")
    cluster.tick("A", seconds=0.2)
    cluster.deliver("A", "C", 2)
    cluster.cut("A", "C")
    cluster.connect("A", "C")
    cluster.settle()
    assert cluster.items("C") == cluster.items("A")


def test_a_transfer_without_answers_is_given_up(make):
    cluster = far_behind(make())
    cluster.connect("A", "C")
    cluster.tick("A", seconds=0.2)
    sender = cluster.nodes["A"]._sender
    assert sender.is_busy("C")
    cluster.network.queues["A", "C"].clear()
    cluster.tick("A", seconds=las.raft.transfer.STALL_S + 0.1)
    cluster.settle()
    assert cluster.items("C") == cluster.items("A")
    assert not sender.is_busy("C")


def test_damaged_foreign_and_disordered_snapshots_are_given_up(make, monkeypatch):
    monkeypatch.setattr(las.raft.transfer, "CHUNK_BYTES", 50)
    cluster = far_behind(make())
    cluster.connect("A", "C")
    cluster.tick("A", seconds=0.2)
    frames = [Frame.FromString(each) for each in cluster.network.queues["A", "C"]]
    assert len(frames) > 3

    def give_all(frames):
        return [
            answer.snapshot_reply
            for frame in frames
            for answer in give(cluster, "C", "A", term=1, snapshot_chunk=frame.snapshot_chunk)
        ]

    assert give_all(frames[1:2])[-1].aborted
    assert give_all([frames[0], frames[2]])[-1].aborted
    damaged = Frame.FromString(frames[-1].SerializeToString())
    damaged.snapshot_chunk.data = damaged.snapshot_chunk.data[:-1] + b"\0"
    assert give_all([*frames[:-1], damaged])[-1].aborted
    (stale,) = give(cluster, "C", "A", term=0, snapshot_chunk=frames[0].snapshot_chunk)
    assert stale.snapshot_reply.aborted
    assert stale.term == 1
    assert cluster.items("C") == []
    # The right one is taken in spite of all that.
    assert [reply.held for reply in give_all(frames)][-1]
    assert cluster.items("C") == cluster.items("A")
    assert not cluster.failures


def test_a_snapshot_that_is_held_already_is_not_installed(make):
    cluster = far_behind(make())
    cluster.connect("A", "C")
    cluster.tick("A", seconds=0.2)
    chunk = Frame.FromString(cluster.network.queues["A", "C"][0]).snapshot_chunk
    cluster.settle()
    cluster.submit("A", "later")
    cluster.settle()
    before = cluster.log("C")
    (reply,) = give(cluster, "C", "A", term=1, snapshot_chunk=chunk)
    assert reply.snapshot_reply.held
    assert cluster.log("C") == before
    assert cluster.items("C")[-1] == "later"


def test_a_snapshot_above_the_bound_is_refused(make, monkeypatch):
    cluster = far_behind(make())
    monkeypatch.setattr(las.raft.transfer, "SNAPSHOT_BYTES_MAX", 10)
    cluster.connect("A", "C")
    cluster.settle(rounds=3)
    assert cluster.items("C") == []
    assert cluster.nodes["C"].refused_frames
    assert cluster.leads("A")


# ---------------------------------------------------------------------- members without a memory


def lose_disk(cluster, name):
    cluster.wipe(name)
    rejoin_directory(
        cluster.root / name,
        CLUSTER,
        name,
        cluster.names,
        cluster_id=CLUSTER_ID,
        disk=cluster.disk(name),
    )
    cluster.start(name)


def acknowledged_by_two(cluster):
    """A and B have a command that was acknowledged; C has never heard of it."""
    led(cluster)
    cluster.cut("A", "C")
    cluster.cut("B", "C")
    cluster.submit("A", "kept")
    cluster.settle("AB")
    assert cluster.acknowledged() == ["kept"]


def test_a_member_that_lost_its_disk_does_not_vote_a_command_away(make):
    cluster = make()
    acknowledged_by_two(cluster)
    cluster.kill("A")
    lose_disk(cluster, "B")
    cluster.connect("B", "C")
    assert not cluster.elect("C", "B")
    assert not cluster.elect("B", "C")
    # The one that remembers comes back, and with it everything.
    cluster.restart("A", "BC")
    assert cluster.elect("A", "BC")
    cluster.settle()
    assert cluster.items("B") == cluster.items("C") == ["kept"]
    status = cluster.nodes["B"].status()
    assert status.voting
    # From now on B's vote counts again.
    cluster.kill("A")
    assert cluster.elect("B", "C")


def test_without_the_rule_it_does(make):
    cluster = make(guards=Guards(rejoin_without_vote=False))
    acknowledged_by_two(cluster)
    cluster.kill("A")
    lose_disk(cluster, "B")
    cluster.connect("B", "C")
    assert cluster.elect("C", "B")


def test_it_votes_again_only_after_it_heard_both_others(make):
    cluster = make()
    acknowledged_by_two(cluster)
    lose_disk(cluster, "B")
    cluster.connect("A", "B")
    cluster.settle("AB")
    assert cluster.items("B") == ["kept"]
    assert not cluster.nodes["B"].status().voting
    cluster.connect("B", "C")
    cluster.settle("AB")
    assert cluster.nodes["B"].status().voting
    # And never in a term in which the lost directory may have voted.
    term = cluster.term("B")
    last = cluster.log("B")[-1]
    request = raft_pb2.RequestVote(last_log_index=last[0], last_log_term=last[1])
    assert give(cluster, "B", "C", term=term, request_vote=request) == []
    answers = give(cluster, "B", "C", term=term + 1, request_vote=request)
    assert [answer.WhichOneof("body") for answer in answers] == ["vote_granted"]


def test_the_right_to_vote_is_never_ahead_of_what_it_rests_on(make):
    """The power goes right after the manifest says that B votes again."""
    cluster = make()
    acknowledged_by_two(cluster)
    lose_disk(cluster, "B")
    cluster.connect("B", "C")
    disk, whole = cluster.disk("B"), cluster.disk("B").replace

    def fail_after(source, target):
        whole(source, target)
        if '"rejoining": false' in target.read_text(errors="ignore"):
            cluster.nodes["B"]._fatal("the power is gone")

    disk.replace = fail_after
    cluster.connect("A", "B")
    cluster.settle("AB")
    assert "B" not in cluster.nodes
    disk.cut_power(cluster.root / "B")
    disk.replace = whole
    cluster.kill("A")
    cluster.start("B")
    cluster.connect("B", "C")
    assert cluster.nodes["B"].status().voting
    assert not cluster.elect("C", "B")
    assert cluster.elect("B", "C")
    cluster.settle("BC")
    assert cluster.items("C") == ["kept"]


def test_a_member_that_was_away_accepts_the_new_directory_later(make):
    cluster = led(make(size=5))
    cluster.kill("E")
    lose_disk(cluster, "B")
    for other in "ACD":
        cluster.connect("B", other)
    cluster.settle("ABCD")
    assert cluster.nodes["B"].status().voting
    cluster.restart("E", "ABCD")
    assert not cluster.refusals
    cluster.kill("A")
    assert cluster.elect("E", "BCD")


def test_a_wiped_member_that_was_initialised_again_is_not_listened_to(make):
    cluster = make()
    acknowledged_by_two(cluster)
    cluster.connect("B", "C")
    cluster.kill("A")
    cluster.wipe("B")
    las.raft.init_directory(
        cluster.root / "B",
        CLUSTER,
        "B",
        cluster.names,
        cluster_id=CLUSTER_ID,
        disk=cluster.disk("B"),
    )
    cluster.start("B")
    cluster.connect("B", "C")
    assert "its directory was replaced" in cluster.refusals[0]
    assert not cluster.elect("C", "B")


# ---------------------------------------------------------------------- who speaks


def hello(**changes):
    fields = {"cluster_id": "x", "name": "b", "receiver": "a", "store_id": "s", **changes}
    return Frame(hello=raft_pb2.Hello(**fields))


def test_a_hello_is_compared_with_what_is_known():
    own = raft_pb2.Hello(cluster_id="x", name="a")
    check_hello(hello(), name="b", own=own)
    for frame, reason in (
        (hello(name="c"), "was expected"),
        (hello(receiver="c"), "means c"),
        (hello(cluster_id="y"), "is of the group y"),
        (Frame(), "did not begin with a Hello"),
    ):
        with pytest.raises(PeerRefused, match=reason):
            check_hello(frame, name="b", own=own)


# ---------------------------------------------------------------------- the library underneath


def test_the_installed_library_is_the_one_that_was_tested(monkeypatch):
    verify_library()
    monkeypatch.setitem(SOURCE_SHA256, "syncobj.py", hashlib.sha256(b"").hexdigest())
    with pytest.raises(LibraryChanged, match=r"syncobj\.py.*pysyncobj==0\.3\.17"):
        verify_library()


def test_a_library_without_an_attribute_that_is_replaced_is_refused(make, monkeypatch):
    monkeypatch.setattr(
        las.raft.library, "PRIVATE_NAMES", (*las.raft.library.PRIVATE_NAMES, "gone")
    )
    with pytest.raises(LibraryChanged, match="lacks gone"):
        make()


def test_commands_that_wait_are_bounded(make):
    cluster = led(make())
    for number in range(1100):
        cluster.submit("A", f"item-{number}")
    cluster.settle()
    outcomes = {ack[3] for ack in cluster.acks}
    assert outcomes == {"SUCCESS", "Overloaded"}
    assert len(cluster.acknowledged()) == 1024
