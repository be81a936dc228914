"""The report of a demo: `report.json` for programs, `report.html` with the timeline drawn."""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peerd.cli.demo.account import Account
from peerd.cli.demo.load import Sent
from peerd.cli.demo.scenario import Scenario
from peerd.cli.demo.watch import Story

_WIDTH, _LEFT, _RIGHT = 960.0, 64.0, 20.0
_LANE, _SPACE, _TOP = 120.0, 56.0, 30.0
_BUCKET_S = 0.25
_LATENCY_MS_MIN, _LATENCY_MS_MAX = 1.0, 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that a demo found out."""

    scenario: Scenario
    victim: str
    account: Account
    story: Story
    sent: Sent
    killed_s: float | None
    disk_stall_ms_max: float
    appends_per_s: float

    @property
    def anticipated(self) -> bool:
        """Expendable in the committed map before the kill."""
        return self._lead_s(self.story.expendable_s) is not None

    @property
    def lead_time_s(self) -> dict[str, float | None]:
        """Seconds from being shielded, or expendable, to the kill; None if it was not."""
        return {
            "shielded": self._lead_s(self.story.shielded_s),
            "expendable": self._lead_s(self.story.expendable_s),
        }

    def _lead_s(self, since_s: float | None) -> float | None:
        if since_s is None or self.killed_s is None or since_s >= self.killed_s:
            return None
        return self.killed_s - since_s


def write(result: Result, directory: Path) -> None:
    """Write `report.json`, `report.html` and the timeline alone, `timeline.svg`, there."""
    content = json.dumps(as_json(result), indent=2) + "\n"
    (directory / "report.json").write_text(content, "utf-8")
    (directory / "report.html").write_text(as_html(result), "utf-8")
    (directory / "timeline.svg").write_text(as_svg(result), "utf-8")


def as_json(result: Result) -> dict[str, object]:
    """The figures by their stable names."""
    scenario, account = result.scenario, result.account
    return {
        "seed": scenario.seed,
        "fault": str(scenario.fault),
        "sent": account.sent,
        "acked": account.acked,
        "lost": account.lost,
        "duplicated": account.duplicated,
        "reordered": account.reordered,
        "pause_ms": {name: _rounded(value) for name, value in account.pause_ms.items()},
        "disk_stall_ms_max": _rounded(result.disk_stall_ms_max),
        "anticipated": result.anticipated,
        "lead_time_s": {name: _rounded(value) for name, value in result.lead_time_s.items()},
        "appends_per_s": _rounded(result.appends_per_s),
        "model_id": result.story.model_id,
        "victim": result.victim,
        "onset_s": _rounded(scenario.onset_s),
        "kill_s": _rounded(result.killed_s),
        "moved": sorted(result.story.moved),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# ---------------------------------------------------------------------------------- picture
class _Picture:
    """An SVG whose x axis is time, in lanes below each other."""

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._parts: list[str] = []
        self._lanes = 0

    def x(self, time_s: float) -> float:
        """Horizontal place of a time."""
        share = min(max(time_s / self._duration_s, 0.0), 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def lane(self, title: str, ticks: Sequence[tuple[float, str]]) -> float:
        """Begin a lane with `ticks` of (height in [0, 1], label); returns the y of its floor."""
        floor = _TOP + self._lanes * (_LANE + _SPACE) + _LANE
        self._lanes += 1
        self._add(f'<text class="title" x="{_LEFT}" y="{floor - _LANE - 8:.1f}">{title}</text>')
        for height, label in ticks:
            y = floor - height * _LANE
            self._add(
                f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" '
                f'x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" '
                f'text-anchor="end">{label}</text>'
            )
        return floor

    def line(self, points: Iterable[tuple[float, float]], floor: float, style: str) -> None:
        """A line through (time, height in [0, 1])."""
        path = " ".join(f"{self.x(t):.1f},{floor - h * _LANE:.1f}" for t, h in points)
        if path:
            self._add(f'<polyline class="{style}" points="{path}"/>')

    def bars(self, points: Iterable[tuple[float, float]], floor: float, width_s: float) -> None:
        """A bar at each (time, height in [0, 1])."""
        width = self.x(width_s) - self.x(0.0)
        for time_s, height in points:
            top = floor - height * _LANE
            self._add(
                f'<rect class="bar" x="{self.x(time_s):.1f}" y="{top:.1f}" '
                f'width="{width:.2f}" height="{floor - top:.1f}"/>'
            )

    def marks(self, moments: Sequence[tuple[float, str, str]]) -> str:
        """Finish with vertical lines of (time, label, style) over all lanes; the whole SVG."""
        bottom = _TOP + self._lanes * (_LANE + _SPACE) - _SPACE
        for index, (time_s, label, style) in enumerate(moments):
            x, y = self.x(time_s), bottom + 34 + 15 * index
            self._add(
                f'<line class="mark {style}" x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" '
                f'y2="{y - 4:.1f}"/><text class="label {style}" x="{x + 5:.1f}" y="{y:.1f}">'
                f"{html.escape(label)}</text>"
            )
        for time_s in range(0, int(self._duration_s) + 1, 10):
            self._add(
                f'<text class="tick" x="{self.x(time_s):.1f}" y="{bottom + 16}" '
                f'text-anchor="middle">{time_s} s</text>'
            )
        height = bottom + 34 + 15 * max(1, len(moments))
        return (
            f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" '
            f'aria-label="timeline of the demo">{"".join(self._parts)}</svg>'
        )

    def _add(self, part: str) -> None:
        self._parts.append(part)


def picture(result: Result) -> str:
    """The timeline: forecast, roles, append latency; an SVG element."""
    end_s = max([result.scenario.append_s, *result.sent.acked_s.values()], default=1.0)
    drawn = _Picture(end_s)
    floor = drawn.lane(
        f"forecast: probability that {html.escape(result.victim)} fails within 10 minutes",
        [(0.0, "0"), (0.5, "0.5"), (0.8, "0.8"), (1.0, "1")],
    )
    drawn.line(result.story.probability, floor, "forecast")
    most = max([count for _, count in result.story.primaries], default=1) or 1
    floor = drawn.lane(
        f"shards that {html.escape(result.victim)} orders as primary",
        [(0.0, "0"), (1.0, str(most))],
    )
    drawn.line(_stairs(result.story.primaries, most, result.killed_s or end_s), floor, "roles")
    floor = drawn.lane(
        "append latency, slowest in each quarter of a second",
        [(_log_height(ms), f"{ms:g} ms") for ms in (1, 10, 100, 1000, 10_000)],
    )
    drawn.bars(_latencies(result.sent), floor, _BUCKET_S)
    return drawn.marks(_moments(result))


def _moments(result: Result) -> list[tuple[float, str, str]]:
    story, scenario = result.story, result.scenario
    spike = scenario.kill_s is None
    moments = [
        (scenario.onset_s, "load spike begins" if spike else "falls sick", "onset"),
        (story.at_risk_s, "forecast: at risk", "risk"),
        (story.shielded_s, "shielded", "shielded"),
        (story.expendable_s, "expendable", "shielded"),
        (result.killed_s, "kill -9", "kill"),
    ]
    if scenario.fault == "sudden":
        moments = moments[1:]
    return [(time_s, label, style) for time_s, label, style in moments if time_s is not None]


def _stairs(
    counts: Sequence[tuple[float, int]], most: int, end_s: float
) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for time_s, count in counts:
        if points:
            points.append((time_s, points[-1][1]))
        points.append((time_s, count / most))
    if points:
        points.append((max(end_s, points[-1][0]), points[-1][1]))
    return points


def _latencies(sent: Sent) -> list[tuple[float, float]]:
    slowest: dict[int, float] = {}
    for row, acked_s in sent.acked_s.items():
        bucket = int(sent.intended_s[row] / _BUCKET_S)
        slowest[bucket] = max(slowest.get(bucket, 0.0), acked_s - sent.intended_s[row])
    return [(b * _BUCKET_S, _log_height(s * 1000.0)) for b, s in sorted(slowest.items())]


def _log_height(latency_ms: float) -> float:
    bounded = min(max(latency_ms, _LATENCY_MS_MIN), _LATENCY_MS_MAX)
    return math.log10(bounded / _LATENCY_MS_MIN) / math.log10(_LATENCY_MS_MAX / _LATENCY_MS_MIN)


def as_svg(result: Result) -> str:
    """The timeline as a file of its own, light and dark."""
    head, body = picture(result).split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}><style>{_STYLE}</style>{body}\n"


# ---------------------------------------------------------------------------------- page
def as_html(result: Result) -> str:
    """A page that needs nothing else."""
    account = result.account
    verdict = "nothing was lost" if account.clean else "SOMETHING WAS LOST OR ALTERED"
    lead = result.lead_time_s["expendable"]
    foreseen = "not foreseen" if lead is None else f"foreseen {lead:.1f} s before the kill"
    if result.killed_s is None:
        moved = ", ".join(sorted(result.story.moved)) or "nothing"
        foreseen = f"nobody died; moved: {moved}"
    tiles = [
        (f"{account.acked:,}", "acknowledged"),
        (f"{account.lost}", "lost"),
        (f"{account.duplicated}", "duplicated"),
        (f"{account.reordered}", "reordered"),
        *(
            (f"{value:,.0f} ms", f"slowest append: {name.replace('_', '-')}")
            for name, value in account.pause_ms.items()
            if value is not None
        ),
        (f"{result.disk_stall_ms_max:,.0f} ms", "longest stall of the disk itself"),
    ]
    cells = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    reasons = html.escape(result.story.reasons)
    why = f"<p>Why it was thought at risk: {reasons}.</p>" if reasons else ""
    scenario = result.scenario
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>peerd demo</title>"
        f'<meta name=viewport content="width=device-width"><style>{_STYLE}</style>'
        f"<main><h1>peerd demo: {verdict}, {html.escape(foreseen)}</h1>"
        f"<p>{account.sent:,} retail transactions appended at {result.appends_per_s:,.0f} a second "
        f"to {scenario.shards} shards on five peers. Fault: {scenario.fault}; seed "
        f"{scenario.seed}; model {html.escape(result.story.model_id) or 'none'}.</p>"
        f"<section>{cells}</section>{picture(result)}{why}</main></html>\n"
    )


_STYLE = """
:root{color-scheme:light dark;--fg:#1c2430;--dim:#6b7686;--bg:#fbfbf9;--grid:#d9dde3;--ink:#2563eb;
--bar:#94a3b8;--bad:#dc2626;--good:#15803d;--warn:#b45309}
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ef;--dim:#98a2b3;--bg:#14181f;--grid:#2b323d;
--ink:#7aa2ff;--bar:#56637a;--bad:#f87171;--good:#4ade80;--warn:#fbbf24}}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0 0 .5rem}
section{display:flex;flex-wrap:wrap;gap:.75rem;margin:1rem 0 2rem}
section div{flex:1 1 7rem;border:1px solid var(--grid);border-radius:.5rem;padding:.6rem .8rem}
section b{display:block;font-size:1.25rem}section span{color:var(--dim);font-size:.8rem}
svg{width:100%;height:auto;background:var(--bg);font-family:system-ui,sans-serif}.grid{stroke:var(--grid)}.tick{fill:var(--dim);font-size:11px}
.title{fill:var(--fg);font-size:13px;font-weight:600}.label{font-size:12px;fill:var(--dim)}
polyline{fill:none;stroke-width:2}.forecast{stroke:var(--warn)}.roles{stroke:var(--ink)}
.bar{fill:var(--bar)}.mark{stroke-dasharray:4 3;stroke:var(--dim)}
.mark.kill{stroke:var(--bad)}.label.kill{fill:var(--bad)}.mark.risk{stroke:var(--warn)}
.label.risk{fill:var(--warn)}.mark.shielded{stroke:var(--good)}.label.shielded{fill:var(--good)}
"""
