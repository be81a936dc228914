"""The table of metrics: one version for one meaning, and a page that is printed from it."""

from dataclasses import replace
from pathlib import Path

import pytest

from peerd.daemon.telemetry.schema import (
    TELEMETRY_SCHEMA,
    Kind,
    Scope,
    TelemetrySchema,
    reference,
)

PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"

UNIT_ENDINGS = (
    "_ms", "_ms_p50", "_ms_p99", "_ms_max", "_per_s", "_share", "_bytes", "_cores", "_requests",
    "_identity", "_per_core", "_celsius", "_sectors", "_errors",
)  # fmt: skip


def test_the_page_in_docs_is_what_the_table_prints():
    assert PAGE.read_text() == reference(), (
        "run: python -m peerd.daemon.telemetry.schema > docs/telemetry.md"
    )


def test_names_carry_their_unit_last():
    assert [name for name in TELEMETRY_SCHEMA.names if not name.endswith(UNIT_ENDINGS)] == []


def test_a_changed_row_changes_the_version():
    rows = TELEMETRY_SCHEMA.metrics
    versions = {TELEMETRY_SCHEMA.version}
    for change in ({"unit": "s"}, {"scope": Scope.HOST}, {"kind": Kind.SHARE}, {"name": "x_ms"}):
        versions.add(TelemetrySchema((replace(rows[0], **change), *rows[1:])).version)
    versions.add(TelemetrySchema((rows[1], rows[0], *rows[2:])).version)
    assert len(versions) == 6


def test_an_earlier_table_is_the_beginning_of_todays():
    assert TELEMETRY_SCHEMA.metrics_of(TELEMETRY_SCHEMA.version) == len(TELEMETRY_SCHEMA)
    earlier = TelemetrySchema(TELEMETRY_SCHEMA.metrics[:7])
    assert TELEMETRY_SCHEMA.metrics_of(earlier.version) == 7
    assert earlier.metrics_of(TELEMETRY_SCHEMA.version) is None, "what comes later is not known"
    assert TELEMETRY_SCHEMA.metrics_of(7) is None


def test_what_was_released_is_never_changed():
    """Peers and models of these versions are about: their rows stay what and where they are."""
    assert TELEMETRY_SCHEMA.metrics_of(3_949_886_346) == 44


def test_wording_does_not_change_the_version():
    rows = TELEMETRY_SCHEMA.metrics
    reworded = TelemetrySchema((replace(rows[0], meaning="other words", label="x"), *rows[1:]))
    assert reworded.version == TELEMETRY_SCHEMA.version


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        TelemetrySchema((TELEMETRY_SCHEMA.metrics[0],) * 2)
