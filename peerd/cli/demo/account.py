"""The account: what was sent against what is read back. Pure functions of both.

Lost: acknowledged, and not read. Duplicated: read more than once. Reordered: read after a later
record of the same key. Altered: read with other bytes than were sent; it counts as lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peerd.cli.demo.load import Sent
from peerd.cli.demo.scenario import Fault, Scenario
from peerd.cli.demo.transactions import Transaction
from peerd.cli.demo.watch import Story
from peerd.client.values import Record

# A hand-over or a death may show in appends for this long after it.
AFTERMATH_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The figures of a demo; times in seconds from the first append, latencies in ms."""

    sent: int
    acked: int
    lost: int
    duplicated: int
    reordered: int
    pause_ms: Mapping[str, float | None]

    @property
    def clean(self) -> bool:
        """Whether nothing acknowledged is lost, duplicated or reordered."""
        return self.lost == self.duplicated == self.reordered == 0


def compare(
    transactions: Sequence[Transaction], sent: Sent, read: Iterable[Record]
) -> tuple[int, int, int]:
    """(lost, duplicated, reordered) of what was acknowledged.

    Args:
        transactions: What was to be sent, by row.
        sent: What became of it.
        read: Everything that the log has, in the order in which it was read.
    """
    row_of = {transaction.value: transaction.row for transaction in transactions}
    seen: dict[int, int] = {}
    newest: dict[bytes, int] = {}
    reordered = 0
    for record in read:
        row = row_of.get(record.value)
        if row is None or record.key != transactions[row].key:
            continue
        seen[row] = seen.get(row, 0) + 1
        if seen[row] == 1:
            key = transactions[row].key
            reordered += row < newest.get(key, -1)
            newest[key] = max(row, newest.get(key, -1))
    lost = sum(row not in seen for row in sent.acked_s)
    duplicated = sum(count - 1 for count in seen.values())
    return lost, duplicated, reordered


def pauses_ms(sent: Sent, scenario: Scenario, story: Story) -> dict[str, float | None]:
    """The longest time from intended send to answer, of the appends under way in each phase.

    fault: from the onset to the decision, or to the kill (none if it is sudden); hand_over: from
    the decision to the end of the hand-over, and a while; kill: from the kill on, a while. None:
    there was no such phase.
    """
    kill_s = scenario.kill_s
    end_s = scenario.append_s if kill_s is None else kill_s
    decided_s = story.at_risk_s if story.at_risk_s is not None and story.at_risk_s < end_s else None
    phases: dict[str, tuple[float, float] | None] = {
        "fault": None if scenario.fault is Fault.SUDDEN else (scenario.onset_s, decided_s or end_s),
        "hand_over": None,
        "kill": None if kill_s is None else (kill_s, kill_s + AFTERMATH_S),
    }
    if decided_s is not None:
        done_s = min(story.handed_over_s or end_s, end_s)
        phases["hand_over"] = (decided_s, min(done_s + AFTERMATH_S, end_s))
    return {name: _longest_ms(sent, phase) for name, phase in phases.items()}


def _longest_ms(sent: Sent, phase: tuple[float, float] | None) -> float | None:
    if phase is None:
        return None
    begin, end = phase
    longest = [
        acked - sent.intended_s[row]
        for row, acked in sent.acked_s.items()
        if sent.intended_s[row] < end and acked >= begin
    ]
    return max(longest, default=0.0) * 1000.0
