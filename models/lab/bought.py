"""Tells what anticipation bought: the tables of docs/benchmarks.md and README, and the picture.

Everything is worked out from `models/lab/buys.jsonl`; `publish` puts it between the marks in the
documents, and a test sees that it is there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.lab.buys import ACTIONS, KINDS, OFF, Measured
from models.lab.kinds import ABRUPT

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "buys.svg"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "anticipation.md"
BEGIN, END = "<!-- buys: begin -->", "<!-- buys: end -->"

Pick = Callable[[Measured], float]


def pairs(measured: Sequence[Measured], action: str) -> dict[str, list[tuple[Measured, Measured]]]:
    """(without, with) by kind, of the seeds that were run both ways."""
    known = {(each.kind, each.seed, each.policy): each for each in measured}
    found: dict[str, list[tuple[Measured, Measured]]] = defaultdict(list)
    for (kind, seed, policy), each in sorted(known.items()):
        without = known.get((kind, seed, OFF))
        if policy == action and without is not None:
            found[kind].append((without, each))
    return {kind: found[kind] for kind in KINDS if kind in found}


def short_table(measured: Sequence[Measured]) -> str:
    """README's: medians without and with the default action."""
    lines = [
        (
            "| trouble | pairs of runs | shielded in time | longest pause, ms | around its stop, ms"
            " | client errors | record-seconds below promised copies |"
        ),
        "| - | - | - | - | - | - | - |",
    ]
    for kind, runs in pairs(measured, "hand_over").items():
        cells = [
            _name(kind),
            str(len(runs)),
            f"{sum(on.in_time for _, on in runs)}",
            _both(runs, lambda m: m.pause_ms),
            _both(runs, lambda m: m.pause_at_stop_ms),
            _sums(runs, lambda m: m.errors),
            _both(runs, lambda m: m.below_record_s),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def long_table(measured: Sequence[Measured]) -> str:
    """Everything, for both actions: medians, and the worst in parentheses."""
    lines = [
        (
            "| trouble | action | pairs | in time | longest pause, ms | around its stop, ms "
            "| errors | record-s below | moved, MB | lost | unlike |"
        ),
        "| - | - | - | - | - | - | - | - | - | - | - |",
    ]
    for action in ACTIONS:
        for kind, runs in pairs(measured, action).items():
            cells = [
                _name(kind),
                f"`{action}`",
                str(len(runs)),
                str(sum(on.in_time for _, on in runs)),
                _both(runs, lambda m: m.pause_ms, worst=True),
                _both(runs, lambda m: m.pause_at_stop_ms, worst=True),
                _sums(runs, lambda m: m.errors),
                _both(runs, lambda m: m.below_record_s),
                _both(runs, lambda m: m.moved_bytes / 1e6),
                _sums(runs, lambda m: m.lost),
                _sums(runs, lambda m: m.unlike),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_the_stop(measured: Sequence[Measured]) -> str:
    """How long appends waited around the stop of a node that was shielded in time."""
    shielded = [each for each in measured if each.policy != OFF and each.in_time]
    without = [each for each in measured if each.policy == OFF and each.kind not in ABRUPT]
    if not shielded:
        return "No node was shielded in time."
    lines = [
        "| around the stop, ms | rounds | least | median | 90 % | worst | beyond 50 ms | errors |",
        "| - | - | - | - | - | - | - | - |",
    ]
    rows: list[tuple[str, Sequence[Measured], Pick]] = [
        ("shielded in time", shielded, lambda m: m.pause_at_stop_ms),
        ("the same runs, before the onset", shielded, lambda m: m.pause_before_ms),
        ("without anticipation", without, lambda m: m.pause_at_stop_ms),
    ]
    for name, runs, pick in rows:
        if not runs:
            continue
        told = np.array([pick(each) for each in runs])
        cells = [name, str(len(told))]
        cells += [f"{np.quantile(told, share):.0f}" for share in (0.0, 0.5, 0.9, 1.0)]
        cells += [str(int((told > 50.0).sum())), str(sum(each.errors for each in runs))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(measured: Sequence[Measured]) -> str:
    """Median longest pause by kind, without and with, on a logarithmic scale: an SVG."""
    found = pairs(measured, "hand_over")
    left, right, top, step = 150, 640, 58, 30
    height = top + step * max(len(found), 1) + 44
    low, high = 1.0, 4.5

    def across(ms: float) -> float:
        place = (math.log10(max(ms, 10.0)) - low) / (high - low)
        return left + (right - left) * min(max(place, 0.0), 1.0)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" '
            'font-family="sans-serif" font-size="13">'
        ),
        f'<rect width="700" height="{height}" fill="#ffffff"/>',
        (
            '<text x="20" y="24" font-size="16" font-weight="bold" fill="#222222">'
            "Longest pause that clients saw, median of the runs</text>"
        ),
        (
            '<circle cx="460" cy="42" r="6" fill="#c0504d"/>'
            '<text x="472" y="46" fill="#222222">without</text>'
        ),
        (
            '<circle cx="550" cy="42" r="6" fill="#2e7d5b"/>'
            '<text x="562" y="46" fill="#222222">with anticipation</text>'
        ),
    ]
    bottom = top + step * len(found)
    for ms in (10, 100, 1_000, 10_000):
        at = across(ms)
        parts.append(
            f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}" stroke="#dddddd"/>'
            f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle" fill="#555555">'
            f"{ms:,} ms</text>"
        )
    for place, (kind, runs) in enumerate(found.items()):
        y = top + step * place + step / 2
        without, with_it = (
            across(float(np.median([pair[side].pause_ms for pair in runs]))) for side in (0, 1)
        )
        parts.append(
            f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end" fill="#222222">'
            f"{_name(kind)}</text>"
            f'<line x1="{without:.1f}" y1="{y:.1f}" x2="{with_it:.1f}" y2="{y:.1f}" '
            'stroke="#999999" stroke-width="2"/>'
            f'<circle cx="{without:.1f}" cy="{y:.1f}" r="6" fill="#c0504d"/>'
            f'<circle cx="{with_it:.1f}" cy="{y:.1f}" r="6" fill="#2e7d5b"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def told_between(text: str) -> str:
    """What stands between the marks of a document. Raises `ValueError` without them."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[begin:end].strip()


def publish(measured: Sequence[Measured]) -> None:
    """Write the picture, and put the tables into the documents."""
    PICTURE.write_text(picture(measured))
    for path, told in ((README, short_table(measured)), (PAGE, page(measured))):
        text = path.read_text()
        begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        path.write_text(f"{text[:begin]}\n{told}\n{text[end:]}")


def page(measured: Sequence[Measured]) -> str:
    """What stands in docs/anticipation.md."""
    return f"{long_table(measured)}\n\n{at_the_stop(measured)}"


def _name(kind: str) -> str:
    return kind.replace("_", " ") + (" (abrupt)" if kind in ABRUPT else "")


def _both(runs: Sequence[tuple[Measured, Measured]], pick: Pick, *, worst: bool = False) -> str:
    def told(side: int) -> str:
        values = [pick(pair[side]) for pair in runs]
        median = f"{np.median(values):,.0f}"
        return f"{median} ({max(values):,.0f})" if worst else median

    return f"{told(0)} → {told(1)}"


def _sums(runs: Sequence[tuple[Measured, Measured]], pick: Pick) -> str:
    without, with_it = (sum(pick(pair[side]) for pair in runs) for side in (0, 1))
    return f"{without:,.0f} → {with_it:,.0f}"
