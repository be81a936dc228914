"""Models as committed bytes: whole or not at all, in shadow until promoted, back at once."""

import base64

import pytest

from las.core import snapshot
from las.core.audit import words_of
from las.core.commands import (
    Audited,
    Caller,
    InstallModel,
    PromoteModel,
    Reason,
    RollBackModel,
    StoreModelPiece,
    Target,
    command_to_json,
)
from las.core.model_registry import (
    MODEL_BYTES_MAX,
    PIECE_BYTES_MAX,
    VERSIONS_MAX,
    ModelHead,
    digest_of,
    pieces_of,
)
from las.core.state import ClusterState
from tests.las_core.builders import do, done

INCIDENT, HISTORY = ModelHead.INCIDENT, ModelHead.HISTORY
EMPTY = ClusterState(cluster_id="c")


def pieces(content):
    digest = digest_of(content)
    return [
        StoreModelPiece(digest=digest, number=number, piece=piece)
        for number, piece in enumerate(pieces_of(content))
    ]


def install(content, head=INCIDENT, model_id="m"):
    return InstallModel(head=head, model_id=model_id, digest=digest_of(content), timestamp_ms=1)


def installed(state, content, head=INCIDENT):
    return done(state, *pieces(content), install(content, head))


def promote(version, head=INCIDENT):
    return PromoteModel(head=head, version=version)


def roll_back(version, head=INCIDENT):
    return RollBackModel(head=head, version=version)


def now(state, head=INCIDENT):
    found = state.models.of(head)
    return found.live, found.before, found.candidate


def test_a_model_of_many_pieces_is_whole_and_runs_in_shadow():
    content = bytes(range(256)) * 1_000
    assert len(pieces(content)) == 6
    for piece in pieces(content):
        assert len(command_to_json(piece).encode()) <= 64 * 1024
    state = installed(EMPTY, content)
    assert state.models.version(1).content == content
    assert now(state) == (0, None, 1)
    assert state.version == EMPTY.version  # no change of the map
    again, result = do(done(state, *pieces(content)), install(content))
    assert (result.version, result.text) == (1, "installed already")
    assert [each.version for each in again.models.versions] == [1]


def test_promotion_and_roll_back():
    state = installed(installed(EMPTY, b"one"), b"two")
    assert now(state) == (0, None, 2)
    state = done(state, promote(2))
    assert now(state) == (2, 0, None)
    state = done(installed(state, b"three"), promote(3))
    assert now(state) == (3, 2, None)
    assert do(state, promote(3))[0] is state  # a retry
    state, result = do(state, roll_back(3))
    assert (now(state), result.version) == ((2, None, None), 2)
    assert result.text == "version 2 answers"
    _, result = do(state, roll_back(3))  # a retry of one that was done
    assert result.reason is Reason.STATE_CHANGED
    assert "version 2 of the incident model answers by now" in result.text
    _, result = do(state, roll_back(2))
    assert "has none before it" in result.text
    state = done(state, promote(0))  # what is shipped answers again
    assert now(state) == (0, 2, None)
    assert now(done(state, roll_back(0))) == (2, None, None)
    assert words_of(state, Target(model="incident")) == "shipped answers, version 2 before it"


def test_heads_have_versions_of_their_own():
    state = installed(installed(EMPTY, b"one"), b"two", HISTORY)
    assert (now(state), now(state, HISTORY)) == ((0, None, 1), (0, None, 2))
    for wrong in (promote(1, HISTORY), promote(2), promote(9)):
        assert do(state, wrong)[1].reason is Reason.UNKNOWN_MODEL


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (StoreModelPiece(digest="d", number=0, piece="no base64!"), Reason.INVALID_ARGUMENT),
        (StoreModelPiece(digest="d", number=0, piece=""), Reason.INVALID_ARGUMENT),
        (StoreModelPiece(digest="d", number=1, piece="YQ=="), Reason.STATE_CHANGED),
        (StoreModelPiece(digest="d", number=-1, piece="YQ=="), Reason.STATE_CHANGED),
        (
            StoreModelPiece(
                digest="d",
                number=0,
                piece=base64.b64encode(bytes(PIECE_BYTES_MAX + 1)).decode(),
            ),
            Reason.INVALID_ARGUMENT,
        ),
        (install(b"never stored"), Reason.STATE_CHANGED),
        (roll_back(0), Reason.STATE_CHANGED),
    ],
)
def test_what_cannot_be_is_refused(command, reason):
    assert do(EMPTY, command)[1].reason is reason


def test_bytes_that_are_not_those_of_the_digest_are_refused():
    first = StoreModelPiece(digest=digest_of(b"one"), number=0, piece=pieces(b"two")[0].piece)
    state = done(EMPTY, first)
    assert "not those of its SHA-256" in do(state, install(b"one"))[1].text


def test_another_upload_takes_the_place_of_one_that_was_left():
    content = bytes(PIECE_BYTES_MAX + 1)
    first, second = pieces(content)
    state = done(EMPTY, first, *pieces(b"other"))
    assert do(state, second)[1].reason is Reason.STATE_CHANGED
    state = done(state, first, first, second, second)  # each repeated
    assert done(state, install(content)).models.version(1).content == content


def test_bytes_and_versions_are_bounded():
    large = bytes(MODEL_BYTES_MAX)
    *most, last = pieces(large + b"x")
    assert do(done(EMPTY, *most), last)[1].reason is Reason.LIMIT_REACHED
    state = EMPTY
    for number in range(VERSIONS_MAX + 3):
        state = installed(state, str(number).encode())
        if number == 0:
            state = done(state, promote(1))
    kept = [each.version for each in state.models.versions]
    assert len(kept) == VERSIONS_MAX
    assert kept[0] == 1  # it answers
    assert state.models.installed == VERSIONS_MAX + 3
    assert do(state, promote(2))[1].reason is Reason.UNKNOWN_MODEL


def test_without_room_nothing_that_is_needed_goes():
    state = EMPTY
    for head in (INCIDENT, HISTORY):
        for number in (1, 2):
            content = bytes([number, head is INCIDENT]) + bytes(MODEL_BYTES_MAX - 2)
            state = installed(state, content, head)
            state = done(state, promote(state.models.installed, head))
    third = bytes([3]) * MODEL_BYTES_MAX
    state = done(state, *pieces(third))
    assert do(state, install(third))[1].reason is Reason.LIMIT_REACHED
    assert {each.version for each in state.models.versions} == {1, 2, 3, 4}


def test_models_survive_a_snapshot_and_who_did_it_is_recorded():
    caller = Caller(who="ann", role="admin", what="model install", clock_ms=1, timestamp_ms=1)
    state = done(EMPTY, *pieces(b"one"), Audited(caller=caller, command=install(b"one")))
    state = done(state, promote(1), *pieces(b"half")[:1])
    back = snapshot.restore(snapshot.snapshot(state))
    assert back == state
    assert snapshot.snapshot(back) == snapshot.snapshot(state)
    (record,) = [state.audit[1]]
    assert (record.what, record.model) == ("model install", "incident")
    assert (record.before, record.after) == (
        "shipped answers",
        "shipped answers, version 1 in shadow",
    )
    assert b"has_models" not in snapshot.snapshot(EMPTY)  # as older programs wrote it
