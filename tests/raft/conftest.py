"""Fixtures of the Raft tests: simulated time, and the helper modules beside this file."""

import random
import sys
from pathlib import Path

import pysyncobj.syncobj
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from raft_simulation import Clock


@pytest.fixture
def clock(monkeypatch):
    """Simulated time, also for the library; what the stock one draws at random is repeatable."""
    clock = Clock()
    monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", clock)
    random.seed(7)
    return clock
