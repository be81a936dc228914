"""The dashboard: every curve is of a series that is exported, and no panel lies upon another."""

import json

from peerd.monitoring.alerts import exported_series, names_in
from peerd.monitoring.dashboard import ROWS, dashboard, dashboard_json


def test_every_curve_is_exported():
    for row in ROWS.values():
        for panel in row:
            assert names_in(panel.expression) <= exported_series(), panel.title
            assert names_in(panel.expression)


def test_the_file_is_json_with_all_panels():
    document = json.loads(dashboard_json())
    assert document == dashboard()
    panels = document["panels"]
    assert len(panels) == len(ROWS) + sum(map(len, ROWS.values()))
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_no_panel_covers_another():
    taken = set()
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        taken |= cells
