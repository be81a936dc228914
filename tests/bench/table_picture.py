"""The picture of `make bench`: a bar for each figure, as long as it is good. No IO."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, ROW, LEFT, RIGHT, TOP = 900, 26, 330, 150, 54
# What is more than so many times as good as its bar is drawn to the edge.
SCALE_MAX = 3.0
REACHED, MISSED, LINE = "#2a7d4f", "#b5562b", "#444444"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: how good it is, and how good it is wanted; 1 is the bar, more is better."""

    title: str
    value: str
    of_bar: float
    aim_of_bar: float | None


def picture(rows: Sequence[Row], beside: str) -> str:
    """An SVG document."""
    height = TOP + ROW * len(rows) + 20
    one = _x(1.0)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            'font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        (
            '<text x="10" y="18" font-size="14">Each as good as it is long: dashes are the bar, '
            "a tick is the aim</text>"
        ),
        f'<text x="10" y="36" fill="{LINE}">{escape(beside)}</text>',
    ]
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        color = REACHED if row.of_bar >= 1.0 else MISSED
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(row.title)}</text>',
            (
                f'<rect x="{LEFT}" y="{y + 4}" width="{_x(row.of_bar) - LEFT:.1f}" '
                f'height="{ROW - 8}" fill="{color}"/>'
            ),
            f'<text x="{WIDTH - RIGHT + 8}" y="{y + 16}">{escape(row.value)}</text>',
        ]
        if row.aim_of_bar is not None:
            aim = _x(row.aim_of_bar)
            parts.append(
                f'<line x1="{aim:.1f}" x2="{aim:.1f}" y1="{y + 2}" y2="{y + ROW - 2}" '
                f'stroke="{LINE}" stroke-width="2"/>'
            )
    parts += [
        (
            f'<line x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 4}" y2="{height - 12}" '
            f'stroke="{LINE}" stroke-dasharray="4 3"/>'
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(of_bar: float) -> float:
    """Where a value lies between the left and the right edge of the bars."""
    share = min(max(of_bar, 0.0), SCALE_MAX) / SCALE_MAX
    return LEFT + share * (WIDTH - LEFT - RIGHT)
