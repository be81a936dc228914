"""How `make bench` judges and shows what it measured."""

import xml.etree.ElementTree as ElementTree

import pytest

from tests.bench.table import FIGURES, PLAIN, TLS, Figure, Run, medians, parsed, shown
from tests.bench.table_picture import LEFT, RIGHT, WIDTH, Row, picture


def run(security, **values):
    values = {name.replace("_", "."): value for name, value in values.items()}
    return Run(case="some", security=security, values=values)


def test_a_figure_is_the_median_of_its_rounds_in_each_kind_of_cluster():
    runs = [run(PLAIN, some_rate=value) for value in (10.0, 50.0, 20.0)]
    runs += [run(TLS, some_rate=value) for value in (9.0, 25.0, 19.0)]
    found = {(one.figure.name, one.security): one.median for one in medians(runs)}
    assert found == {
        ("some.rate", PLAIN): 20.0,
        ("some.rate", TLS): 19.0,
        # 10 %, 50 % and 5 %, round by round.
        ("tls.some", TLS): pytest.approx(10.0),
    }


def test_what_was_not_run_has_no_row():
    assert medians([]) == []
    assert len(shown([]).splitlines()) == 1


@pytest.mark.parametrize(
    ("less", "value", "verdict"),
    [
        (False, 99.0, "below"),
        (False, 100.0, "bar"),
        (False, 200.0, "aim"),
        (True, 201.0, "below"),
        (True, 200.0, "bar"),
        (True, 100.0, "aim"),
    ],
)
def test_a_verdict_names_the_highest_mark_that_is_reached(less, value, verdict):
    bar, aim = (200.0, 100.0) if less else (100.0, 200.0)
    figure = Figure(name="x", title="x", unit="x", bar=bar, aim=aim, less_is_better=less)
    assert figure.verdict(value) == verdict


def test_aims_are_no_worse_than_bars_and_names_are_used_once():
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    for figure in FIGURES:
        if figure.bar is not None and figure.aim is not None:
            assert figure.reaches(figure.aim, figure.bar)


def test_a_picture_is_well_formed_and_stays_inside_its_frame():
    rows = [
        Row(title="a < b & c", value="1", of_bar=value, aim_of_bar=9.0)
        for value in (0.0, 0.5, 1.0, 7.0, float("inf"))
    ]
    root = ElementTree.fromstring(picture(rows, '{"p50": 1}'))
    widths = [float(each.get("width")) for each in root.iter("{http://www.w3.org/2000/svg}rect")][
        1:
    ]
    assert widths == sorted(widths)
    assert widths[0] == 0.0
    assert widths[-1] == WIDTH - LEFT - RIGHT


def test_only_some_cases_are_run_if_asked(capsys):
    assert parsed(["--only", "one,read"]).only == ["one", "read"]
    assert parsed(["--quick"]).rounds == 1
    with pytest.raises(SystemExit):
        parsed(["--only", "one,nothing"])
    assert "nothing: choose from one, some" in capsys.readouterr().err
