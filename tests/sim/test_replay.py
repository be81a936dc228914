"""`make sim SEED=n`: one seed, judged by the checkers and by the acceptor."""

from peerd.testing.acceptor import actions
from peerd.testing.sim.__main__ import replay


def test_a_replay_ends_with_the_trace(capsys):
    assert replay(17, verbose=False) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("trace ")


def test_a_replay_asks_the_acceptor(monkeypatch, capsys):
    monkeypatch.setattr(actions, "order", lambda *_: "no batch is ordered today")
    assert replay(17, verbose=False) == 1
    assert "BROKEN: the acceptor: refused at record" in capsys.readouterr().out
