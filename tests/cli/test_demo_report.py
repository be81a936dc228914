"""The report has the figures under their stable names, and a page that needs nothing else."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from peerd.cli.demo.account import Account
from peerd.cli.demo.load import Sent
from peerd.cli.demo.report import Result, as_html, as_json, picture, write
from peerd.cli.demo.scenario import Fault, draw
from peerd.cli.demo.watch import Story

NAMES = {
    *("seed", "fault", "sent", "acked", "lost", "duplicated", "reordered", "pause_ms"),
    *("disk_stall_ms_max", "anticipated", "lead_time_s", "appends_per_s", "model_id"),
}


@pytest.fixture
def foreseen() -> Result:
    scenario = draw(4711, Fault.SLOW_STORAGE, 100_000)
    assert scenario.kill_s is not None
    at = scenario.onset_s
    return Result(
        scenario=scenario,
        victim="peer-3",
        account=Account(
            sent=3,
            acked=3,
            lost=0,
            duplicated=0,
            reordered=0,
            pause_ms={"fault": 184.21, "hand_over": 9.0, "kill": 3.0},
        ),
        story=Story(
            probability=[(at, 0.01), (at + 5, 0.87)],
            primaries=[(0.0, 4), (at + 7, 0)],
            at_risk_s=at + 6,
            handed_over_s=at + 7,
            shielded_s=at + 7,
            expendable_s=scenario.kill_s - 15,
            reasons="fsync p99 ×31 <own past>",
            model_id="incident-1",
            moved={"peer-3", "retail/1"},
        ),
        sent=Sent(intended_s=[0.0, 1.0, 2.0], acked_s={0: 0.002, 1: 1.5, 2: 2.002}),
        killed_s=scenario.kill_s,
        disk_stall_ms_max=12.3456,
        appends_per_s=1333.3333,
    )


def test_the_figures_have_their_stable_names(foreseen):
    figures = as_json(foreseen)
    assert set(figures) >= NAMES
    assert set(figures["pause_ms"]) == {"fault", "hand_over", "kill"}
    assert figures["anticipated"] is True
    assert figures["lead_time_s"]["expendable"] == 15.0
    assert figures["disk_stall_ms_max"] == 12.346
    assert json.loads(json.dumps(figures)) == figures


def test_expendable_after_the_kill_is_not_anticipated(foreseen):
    assert foreseen.killed_s is not None
    late = replace(foreseen, story=replace(foreseen.story, expendable_s=foreseen.killed_s + 0.1))
    assert as_json(late)["anticipated"] is False
    assert as_json(late)["lead_time_s"]["expendable"] is None
    assert as_json(late)["lead_time_s"]["shielded"] is not None
    assert "not foreseen" in as_html(late)


def test_without_a_kill_nothing_is_anticipated(foreseen):
    scenario = draw(4711, Fault.LOOK_ALIKE, 100_000)
    spared = replace(foreseen, scenario=scenario, killed_s=None, story=Story())
    assert as_json(spared)["anticipated"] is False
    assert as_json(spared)["kill_s"] is None
    assert "nobody died; moved: nothing" in as_html(spared)


def test_a_loss_cannot_be_overlooked(foreseen):
    lost = replace(foreseen, account=replace(foreseen.account, lost=1))
    assert "SOMETHING WAS LOST OR ALTERED" in as_html(lost)
    assert "nothing was lost" in as_html(foreseen)


def test_the_picture_is_sound_and_shows_every_moment(foreseen):
    root = ElementTree.fromstring(picture(foreseen))
    words = [element.text for element in root.iter("text")]
    moments = {"falls sick", "forecast: at risk", "shielded", "expendable", "kill -9"}
    assert moments <= set(words)
    assert sum(element.get("class") == "bar" for element in root.iter("rect")) == 3


def test_the_timeline_stands_alone_as_a_file(foreseen, tmp_path):
    write(foreseen, tmp_path)
    root = ElementTree.parse(tmp_path / "timeline.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in "".join(root.itertext())


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(foreseen, tmp_path):
    write(foreseen, tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(value for name, value in attrs if name in {"src", "href"} and value)

    Links().feed(page)
    assert not links
    assert "<own past>" not in page
    assert "&lt;own past&gt;" in page
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["seed"] == 4711
