"""Real processes under kill -9 and pause."""

from raft_torture import torture

SECONDS = 6.0


async def test_nothing_acknowledged_is_lost_under_kill_and_pause(tmp_path):
    await torture(SECONDS, 11, tmp_path)
