"""Real processes in real trouble, for a short time; `make torture-las` is the long form."""

import pytest
from raft_torture import torture

SECONDS = 5.0


@pytest.mark.parametrize("count", [3, 5])
async def test_nothing_acknowledged_is_lost_under_kill_and_stop(tmp_path, count):
    await torture(SECONDS, 11, tmp_path, count=count)
