"""Exactly once, within the bounds of what is remembered."""

import pytest

import las.raft.sessions
from las.raft.errors import CommandInvalid
from las.raft.sessions import (
    CLIENT_BYTES_MAX,
    RESULT_BYTES_MAX,
    SESSIONS_MAX,
    Envelope,
    Sessions,
    Superseded,
)


class Counter:
    def __init__(self):
        self.bodies = []

    def __call__(self, body):
        self.bodies.append(body)
        return str(len(self.bodies))


def give(sessions, machine, client, sequence, body="{}"):
    return sessions.apply(Envelope(client=client, sequence=sequence, body=body), machine)


def test_a_command_is_applied_once_and_answered_alike():
    sessions, machine = Sessions(), Counter()
    assert give(sessions, machine, "a", 5) == "1"
    assert give(sessions, machine, "b", 5) == "2"
    assert give(sessions, machine, "a", 5) == "1"
    assert give(sessions, machine, "a", 9) == "3"
    assert give(sessions, machine, "a", 5) == Superseded(client="a", sequence=5, last_sequence=9)
    assert len(machine.bodies) == 3


def test_the_table_survives_a_snapshot():
    sessions, machine = Sessions(), Counter()
    give(sessions, machine, "a", 1)
    give(sessions, machine, "b", 1)
    again = Sessions(sessions.freeze())
    assert give(again, machine, "a", 1) == "1"
    assert again.freeze() == sessions.freeze()


def test_the_client_that_was_quiet_longest_is_forgotten_first():
    sessions, machine = Sessions(), Counter()
    for number in range(SESSIONS_MAX):
        give(sessions, machine, f"c{number}", 1)
    give(sessions, machine, "c0", 2)
    give(sessions, machine, "new", 1)
    clients = [row[0] for row in sessions.freeze()]
    assert len(clients) == SESSIONS_MAX
    assert "c1" not in clients
    assert clients[-2:] == ["c0", "new"]


def test_results_are_bounded_and_the_last_one_stays(monkeypatch):
    monkeypatch.setattr(las.raft.sessions, "RESULT_BYTES_MAX", 100)
    sessions = Sessions()
    for number in range(10):
        sessions.apply(Envelope(client=f"c{number}", sequence=1, body=""), lambda body: "x" * 30)
    assert [row[0] for row in sessions.freeze()] == ["c7", "c8", "c9"]
    sessions.apply(Envelope(client="big", sequence=1, body=""), lambda body: "x" * 1000)
    assert [row[0] for row in sessions.freeze()] == ["big"]
    sessions.apply(Envelope(client="small", sequence=1, body=""), lambda body: "x")
    assert [row[0] for row in sessions.freeze()] == ["small"]
    assert RESULT_BYTES_MAX > 100


def test_envelopes_keep_what_they_carry():
    for body in ("", "{}", "a\nb\n\nc", "ü\x00"):
        envelope = Envelope(client="client/1", sequence=7, body=body)
        assert Envelope.from_text(envelope.to_text()) == envelope


@pytest.mark.parametrize(
    ("client", "sequence"),
    [("", 1), ("a\nb", 1), ("x" * (CLIENT_BYTES_MAX + 1), 1), ("a", 0), ("a", -1), ("a", 2**64)],
)
def test_ids_that_cannot_be_written_are_refused(client, sequence):
    with pytest.raises(CommandInvalid):
        Envelope(client=client, sequence=sequence, body="")
