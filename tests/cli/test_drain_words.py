"""What `peerctl node drain` says while it waits."""

from types import SimpleNamespace

import pytest
import typer

from las.v1 import fleet_pb2
from peerd.cli import node_commands

LACK = "6 shards are with fewer healthy voters than copies"


def looked(*, votes=0, draining=True, expendable=False, warnings=()):
    node = fleet_pb2.NodeStatus(voting=votes, expendable=expendable)
    node.node.name, node.node.draining = "peer-2", draining
    return fleet_pb2.GetStatusResponse(nodes=[node], warnings=warnings)


@pytest.fixture
def wait(monkeypatch):
    """Waits for a drain that these looks show."""
    monkeypatch.setattr(node_commands, "DRAIN_POLL_S", 0.0)
    monkeypatch.setattr(node_commands, "DRAIN_STILL_S", 0.0)

    def run(*looks, quiet=False):
        left = iter(looks)
        client = SimpleNamespace(las=SimpleNamespace(status=lambda: next(left)))
        node_commands._wait_drained(client, "peer-2", quiet=quiet)

    return run


def test_a_drain_that_stands_still_says_what_may_hold_it_up_once(wait, capsys):
    still = looked(votes=6, warnings=[LACK])
    wait(still, still, still, looked(expendable=True))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "peer-2: 0 primaries, votes in 6, holds 0 sealed segments"
    assert lines[1] == f"!  {LACK}"
    assert "`peerctl node undrain peer-2` ends it" in lines[2]
    assert lines[3:] == ["peer-2: 0 primaries, votes in 0, holds 0 sealed segments"]


def test_programs_hear_the_end_alone(wait, capsys):
    wait(looked(votes=6), looked(votes=6), looked(expendable=True), quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (looked(draining=False), "ended before it was safe"),
        (fleet_pb2.GetStatusResponse(), "peer-2 is gone"),
    ],
)
def test_a_drain_that_never_will_be_safe_ends_the_command(wait, capsys, last, says):
    with pytest.raises(typer.Exit):
        wait(looked(votes=6), last)
    assert says in capsys.readouterr().err
