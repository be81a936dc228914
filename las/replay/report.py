"""What replays cost, as a table and as pictures."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from las.replay.histories import DataMissing
from las.replay.run import ANTICIPATE, REACT, Outcome

HEADER = (
    *("way", "threshold", "at risk", "weight", "failures", "shielded", "expendable", "alarms"),
    *("unavailable", "record-seconds short", "p(loss)", "copied", "extra copies", "per extra byte"),
)


def react_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The run that only reacts, against which the others are measured."""
    return next((each for each in outcomes if each.way == REACT), None)


def saved_per_byte(outcome: Outcome, react: Outcome | None) -> float | None:
    """Record-seconds below promised copies that one more byte of copying saves."""
    if react is None or outcome.way != ANTICIPATE:
        return None
    more = outcome.copied_bytes - react.copied_bytes
    return (react.short_record_s - outcome.short_record_s) / more if more > 0 else None


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """One row a run, for people."""
    react = react_of(outcomes)
    table = []
    for each in outcomes:
        tried = each.way == ANTICIPATE
        per_byte = saved_per_byte(each, react)
        table.append(
            [
                each.way,
                f"{each.threshold:.2g}" if tried else "-",
                f"{each.at_risk_share_max:.0%}" if tried else "-",
                f"{each.exposure_cost:g}" if tried else "-",
                str(each.failures),
                f"{each.shielded / max(1, each.failures):.1%}",
                f"{each.expendable / max(1, each.failures):.1%}",
                str(each.alarms),
                _against(each.unavailable_s, react.unavailable_s if react else None, " s"),
                _against(each.short_record_s, react.short_record_s if react else None, ""),
                f"{each.loss_probability:.2g}",
                f"{each.copied_bytes / 1e12:.1f} TB",
                f"{each.extra_copies:.3f}",
                "-" if per_byte is None else f"{per_byte:.2g}",
            ]
        )
    return table


def _against(value: float, react: float | None, unit: str) -> str:
    text = f"{value:.3g}{unit}"
    return text if not react else f"{text} ({value / react - 1.0:+.0%})"


def require_plots(path: Path) -> None:
    """Raises `DataMissing` without matplotlib, `OSError` where no file can be written."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise NotADirectoryError(errno.ENOTDIR, "no file can be written there", str(path))
    _pyplot()


def plot(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Cost and gain of each run as SVG. Raises `DataMissing` without matplotlib; `OSError`."""
    figure, axes = _figure()
    react = react_of(outcomes)
    short = "below promised copies, record-seconds"
    panels = (
        ("copied_bytes", "unavailable_s", "copied, bytes", "unavailable, shard-seconds"),
        ("copied_bytes", "short_record_s", "copied, bytes", short),
        ("extra_copies", "short_record_s", "extra copies", short),
    )
    tried = [each for each in outcomes if each.way == ANTICIPATE]
    for axis, (x, y, x_words, y_words) in zip(axes, panels, strict=True):
        for share in sorted({each.at_risk_share_max for each in tried}):
            of_share = [each for each in tried if each.at_risk_share_max == share]
            of_share.sort(key=lambda each: float(getattr(each, x)))
            axis.plot(
                [getattr(each, x) for each in of_share],
                [getattr(each, y) for each in of_share],
                marker="o",
                label=f"anticipate, at most {share:.0%} at risk",
            )
        if react is not None:
            axis.plot(getattr(react, x), getattr(react, y), "ks", label="react only")
        axis.set_xlabel(x_words)
        axis.set_ylabel(y_words)
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, format="svg")


def _figure() -> tuple[Any, Any]:
    return _pyplot().subplots(1, 3, figsize=(15, 4.5))


def _pyplot() -> Any:
    """Raises `DataMissing`."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise DataMissing(
            "plots need matplotlib, which is not installed: pip install 'peerd[plot]'"
        ) from error
    mpl.use("svg")
    from matplotlib import pyplot

    return pyplot
