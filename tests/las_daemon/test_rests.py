"""A silent voter is asked less and less often, and at once when it comes back as a new process."""

from las.daemon.reconcile import RecoveryTiming, _Rests
from peerd.core.ids import BootId, NodeName, ProcessId, ReplicaId, StoreId

VOTER = ReplicaId(NodeName("peer-1"), StoreId("s" * 32))
TIMING = RecoveryTiming(retry_ms=100, retry_ms_max=1_000)


def process(boot: str) -> ProcessId:
    return ProcessId(VOTER.peer, VOTER.store, BootId(boot))


def test_the_rest_doubles_up_to_its_bound():
    rests, now_s, pauses = _Rests(TIMING), 0.0, []
    for _ in range(6):
        rests.silent(VOTER, process("a"), now_s)
        asked_s = now_s
        while not rests.rested(VOTER, process("a"), asked_s):
            asked_s = round(asked_s + 0.025, 3)
        pauses.append(round(asked_s - now_s, 1))
        now_s = asked_s
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_who_restarted_is_asked_at_once_and_rests_briefly_again():
    rests = _Rests(TIMING)
    for _ in range(5):
        rests.silent(VOTER, process("a"), 0.0)
    assert rests.rested(VOTER, process("b"), 0.0)
    rests.silent(VOTER, process("b"), 0.0)
    assert rests.rested(VOTER, process("b"), 0.1)
