"""The account shows each way in which records can go wrong, and the pauses of each phase."""

import pytest

from peerd.cli.demo.account import Account, compare, pauses_ms
from peerd.cli.demo.load import Sent
from peerd.cli.demo.scenario import Fault, draw
from peerd.cli.demo.transactions import Transaction
from peerd.cli.demo.watch import Story
from peerd.client.values import Record

ROWS = [Transaction(row, f"k{row % 2}".encode(), f"v{row}".encode()) for row in range(6)]
SENT = Sent(
    intended_s=[row / 10 for row in range(6)], acked_s={row: row / 10 + 0.01 for row in range(6)}
)


def read(*rows: int) -> list[Record]:
    return [record(ROWS[row].key, ROWS[row].value) for row in rows]


def record(key: bytes, value: bytes) -> Record:
    return Record(
        log="retail",
        shard=1,
        offset=0,
        epoch=1,
        key=key,
        value=value,
        headers=(),
        timestamp_ms=None,
        appended_ms=0,
    )


def test_everything_once_in_order_is_clean():
    assert compare(ROWS, SENT, read(0, 1, 2, 3, 4, 5)) == (0, 0, 0)
    assert compare(ROWS, SENT, read(1, 3, 5, 0, 2, 4)) == (0, 0, 0), "order counts per key"


def test_what_is_missing_is_lost_if_it_was_acknowledged():
    assert compare(ROWS, SENT, read(0, 1, 3, 4, 5)) == (1, 0, 0)
    unknown = Sent(intended_s=SENT.intended_s, acked_s={0: 0.01}, failed={2: "outcome unknown"})
    assert compare(ROWS, unknown, read(0, 1, 3, 4, 5)) == (0, 0, 0)


def test_what_is_there_twice_is_a_duplicate_and_not_reordered():
    assert compare(ROWS, SENT, read(0, 1, 2, 0, 3, 4, 5, 5)) == (0, 2, 0)


def test_what_comes_after_a_later_one_of_its_key_is_reordered():
    assert compare(ROWS, SENT, read(2, 1, 0, 3, 4, 5)) == (0, 0, 1)
    assert compare(ROWS, SENT, read(4, 2, 0, 1, 3, 5)) == (0, 0, 2)


def test_what_was_altered_is_lost():
    altered = [*read(0, 1, 2, 3, 4), record(ROWS[5].key, b"v5!")]
    assert compare(ROWS, SENT, altered) == (1, 0, 0)
    moved = [*read(0, 1, 2, 3, 4), record(b"k0", ROWS[5].value)]
    assert compare(ROWS, SENT, moved) == (1, 0, 0)


@pytest.mark.parametrize(
    ("figures", "clean"),
    [((0, 0, 0), True), ((1, 0, 0), False), ((0, 1, 0), False), ((0, 0, 1), False)],
)
def test_only_zeros_are_clean(figures, clean):
    lost, duplicated, reordered = figures
    account = Account(
        sent=6, acked=6, lost=lost, duplicated=duplicated, reordered=reordered, pause_ms={}
    )
    assert account.clean is clean


# ---------------------------------------------------------------------------------- pauses
def sent_with(*slow: tuple[float, float]) -> Sent:
    """An append each 0.1 s that takes 1 ms, but for `slow`: (intended, seconds)."""
    intended = [row / 10 for row in range(750)]
    sent = Sent(intended_s=intended, acked_s={row: at + 0.001 for row, at in enumerate(intended)})
    for at_s, took_s in slow:
        sent.acked_s[round(at_s * 10)] = round(at_s, 1) + took_s
    return sent


def rounded(pauses) -> dict[str, float | None]:
    return {name: None if value is None else round(value) for name, value in pauses.items()}


def test_each_phase_has_its_own_longest_pause():
    scenario = draw(7, Fault.SLOW_STORAGE, 100_000)
    assert scenario.kill_s is not None
    decided = scenario.onset_s + 6
    story = Story(at_risk_s=decided, handed_over_s=decided + 0.3)
    sent = sent_with(
        (scenario.onset_s + 3, 0.2), (decided + 0.5, 0.05), (scenario.kill_s + 1, 0.08), (1.0, 3.0)
    )
    got = rounded(pauses_ms(sent, scenario, story))
    assert got == {"fault": 200, "hand_over": 50, "kill": 80}


def test_an_append_under_way_when_a_phase_begins_belongs_to_it():
    scenario = draw(7, Fault.SUDDEN, 100_000)
    assert scenario.kill_s is not None
    sent = sent_with((scenario.kill_s - 0.3, 2.0))
    got = rounded(pauses_ms(sent, scenario, Story()))
    assert got == {"fault": None, "hand_over": None, "kill": 2000}


def test_without_a_decision_the_fault_lasts_until_the_kill():
    scenario = draw(7, Fault.PAUSES, 100_000)
    assert scenario.kill_s is not None
    sent = sent_with((scenario.kill_s - 2, 0.4))
    late = Story(at_risk_s=scenario.kill_s + 1)
    for story in (Story(), late):
        got = rounded(pauses_ms(sent, scenario, story))
        assert (got["fault"], got["hand_over"]) == (400, None)


def test_a_look_alike_has_no_kill():
    scenario = draw(7, Fault.LOOK_ALIKE, 100_000)
    got = rounded(pauses_ms(sent_with(), scenario, Story()))
    assert got == {"fault": 1, "hand_over": None, "kill": None}
