"""A LAS written by hand, and real peers around it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.fleet import Fleet, StandInLas


@pytest.fixture
async def las() -> AsyncIterator[StandInLas]:
    las = StandInLas()
    await las.start()
    yield las
    await las.stop()


@pytest.fixture
async def fleet(tmp_path: Path, las: StandInLas) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path, las)
    yield fleet
    await fleet.stop()
