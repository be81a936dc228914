"""A linearizable read in a trace: acks voters confirm after it came in, and the tail is new."""

import pytest

from peerd.core import events as ev
from peerd.core.effects import ConfirmAnswer, Step, TailAnswered
from peerd.core.ids import BootId, Epoch, ProcessId, RequestId, ShardId
from peerd.core.messages import ConfirmEpoch
from peerd.testing import trace
from peerd.testing.acceptor import Judge
from peerd.testing.sim import Options, Simulation

SHARD = ShardId(1)
REQUEST = RequestId(10**9)


class Reader:
    """A settled run, and a read of the tail at its primary."""

    def __init__(self) -> None:
        self.judge = Judge()
        self.simulation = Simulation(7, Options(), self.judge.hear)
        self.simulation.run()
        assert self.judge.verdict.accepted, str(self.judge.verdict)
        self.open = self.simulation.las.state.shards[SHARD].shard.open
        self.state = self.judge.shards[SHARD].state
        self.tail = self.state.epochs[self.open.epoch].acknowledged

    def handled(self, process, event, *replies) -> str:
        return self.judge.take(trace.Handled(0, process, SHARD, event, Step(reply=replies)))

    def ask(self) -> str:
        return self.handled(self.open.plan.primary, ev.TailAsked(request=REQUEST, now=0))

    def confirm(self, epoch: Epoch) -> str:
        other = next(each for each in self.open.plan.voters if each != self.primary)
        process = ProcessId(other.peer, other.store, BootId("of now"))
        message = ConfirmEpoch(shard=SHARD, epoch=epoch, round=1)
        event = ev.ConfirmReceived(request=RequestId(10**9 + 1), message=message)
        reply = ConfirmAnswer(request=event.request, round=1, promised=epoch)
        return self.handled(process, event, reply)

    @property
    def primary(self):
        return self.open.plan.primary.replica

    def answer(self, tail: int) -> str:
        reply = TailAnswered(request=REQUEST, epoch=self.open.epoch, tail=tail)
        return self.handled(self.open.plan.primary, ev.Ticked(now=0), reply)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_a_confirmed_read_is_accepted(reader):
    assert not reader.ask()
    assert not reader.confirm(reader.open.epoch)
    assert not reader.answer(reader.tail)


def test_too_few_voters_are_refused(reader):
    assert not reader.ask()
    assert reader.answer(reader.tail) == "acks voters confirm a read of the tail"


def test_what_was_confirmed_before_the_request_serves_nobody(reader):
    assert not reader.confirm(reader.open.epoch)
    assert not reader.ask()
    assert reader.answer(reader.tail) == "acks voters confirm a read of the tail"


def test_an_older_tail_is_refused(reader):
    assert not reader.ask()
    assert not reader.confirm(reader.open.epoch)
    assert reader.answer(reader.tail - 1) == "the tail is a commit offset of after the request"


def test_an_answer_to_nobody_is_refused(reader):
    assert reader.answer(reader.tail) == "only a read that was asked is answered"
