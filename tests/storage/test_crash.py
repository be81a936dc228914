"""G1: whatever was delivered as stored is there after `kill -9`, at whatever moment it comes."""

import random
import signal
import subprocess
import sys
from pathlib import Path

from peerd.core.ids import Offset, ShardId
from peerd.core.producer import TableSnapshot, extended
from peerd.storage import StorageOptions, Store, verify_store
from tests.storage import appender
from tests.storage.appender import EPOCH, SHARDS, batch_at

KILLS = 4


def run_and_kill(directory: Path, lines_wanted: int) -> list[tuple[int, int, int]]:
    """Let the child write until it has told so many outcomes; give all that it told."""
    child = subprocess.Popen(
        [sys.executable, appender.__file__, directory], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    told = [child.stdout.readline() for _ in range(lines_wanted)]
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL
    told.extend(line for line in rest.splitlines(keepends=True) if line.endswith("\n"))
    return [tuple(int(word) for word in line.split()) for line in told]


def check(store: Store, told: list[tuple[int, int, int]]) -> None:
    """Everything told is there, what is there is right, and the tables fit it."""
    for shard in range(SHARDS):
        state = store.shards[ShardId(shard)]
        segment = state.segments[EPOCH]
        mine = [(end, commit) for told_shard, end, commit in told if told_shard == shard]
        assert segment.end >= max((end for end, _ in mine), default=0)
        assert segment.commit >= max((commit for _, commit in mine), default=0)

        batches = store.read_batches(ShardId(shard), EPOCH, Offset(0), segment.end, 1 << 40)
        assert batches[-1].end == segment.end
        for batch in batches:
            assert batch == batch_at(shard, batch.base)
        below = [(batch.base, batch.header) for batch in batches if batch.end <= segment.commit]
        assert store.read_table(ShardId(shard)) == extended(
            TableSnapshot(as_of=Offset(0)), EPOCH, below
        )


def test_what_was_delivered_survives_kill_9(tmp_path):
    directory = tmp_path / "store"
    draw = random.Random(4)
    for _ in range(KILLS):
        told = run_and_kill(directory, draw.randrange(SHARDS, 400))
        report = verify_store(directory)
        assert report.sound, report
        store = Store.open(
            directory, StorageOptions(), deliver=lambda _: None, on_failure=lambda _: None
        )
        assert store.verified is not None
        check(store, told)
        assert store.close()
