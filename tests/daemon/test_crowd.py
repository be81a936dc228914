"""Lines that come by the hundred: the first as they are, the others as one, none in silence."""

import logging

import pytest

from peerd.daemon import crowd
from peerd.daemon.crowd import EACH_MAX, SHARDS_TOLD_MAX, Crowd
from tests.daemon.fleet import until


class Lines:
    def __init__(self) -> None:
        self.written: list[tuple[int, str, dict[str, object]]] = []

    def log(self, level: int, event: str, **facts: object) -> None:
        self.written.append((level, event, facts))


@pytest.fixture
def lines() -> Lines:
    return Lines()


async def test_a_few_lines_are_written_as_they_are(lines: Lines) -> None:
    told = Crowd(lines)
    for shard in range(EACH_MAX):
        told.tell(logging.INFO, "moved", shard=shard, epoch=3)
    told.flush()
    assert lines.written == [
        (logging.INFO, "moved", {"shard": shard, "epoch": 3}) for shard in range(EACH_MAX)
    ]


async def test_a_crowd_of_them_ends_in_one_line_for_each_event(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "PERIOD_S", 0.05)
    told = Crowd(lines)
    for shard in range(1_000):
        told.tell(logging.INFO, "moved", shard=shard)
    told.tell(logging.WARNING, "refused", shard=7)
    assert len(lines.written) == EACH_MAX + 1
    await until(lambda: len(lines.written) > EACH_MAX + 1, "the period is over")
    (level, event, facts) = lines.written[-1]
    assert (level, event, facts["count"]) == (logging.INFO, "moved", 1_000 - EACH_MAX)
    named, _, rest = str(facts["shards"]).partition(" and ")
    assert named.split() == [str(shard) for shard in range(EACH_MAX, EACH_MAX + SHARDS_TOLD_MAX)]
    assert rest == f"{1_000 - EACH_MAX - SHARDS_TOLD_MAX} more"
    # The next period begins anew.
    told.tell(logging.INFO, "moved", shard=1)
    assert lines.written[-1] == (logging.INFO, "moved", {"shard": 1})


async def test_what_waits_is_written_at_the_end(lines: Lines) -> None:
    told = Crowd(lines)
    for shard in range(EACH_MAX + 2):
        told.tell(logging.INFO, "moved", shard=shard)
    told.flush()
    assert lines.written[-1][2] == {"count": 2, "shards": f"{EACH_MAX} {EACH_MAX + 1}"}
    told.flush()
    assert len(lines.written) == EACH_MAX + 1
