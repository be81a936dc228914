"""Replicas in a usual state."""

import pytest

from peerd.core import events as ev
from tests.core.words import FIRST_MAP, A, B, C, Peer


@pytest.fixture
def primary() -> Peer:
    """a, primary of epoch 1 with voters a, b, c and 2 acks; all have adopted."""
    peer = Peer(A)
    peer.learn(FIRST_MAP)
    peer.fsync()
    for other in (B, C):
        peer.tell(ev.StreamUp(replica=other.replica))
        peer.ack(other, 0)
    peer.forget()
    return peer


@pytest.fixture
def shadow() -> Peer:
    """b, which knows the map and has stored nothing yet."""
    peer = Peer(B)
    peer.learn(FIRST_MAP)
    peer.fsync()
    peer.forget()
    return peer
