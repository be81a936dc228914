"""The join of the heads: hazards add, nothing falls with the horizon, no input adds nothing."""

import itertools

import pytest

from las.forecast.join import JOIN_HORIZONS_S, Part, joined

INCIDENT = Part(horizons_s=(600, 3600), probabilities=(0.1, 0.2), known=True)
HISTORY = Part(
    horizons_s=(3600, 86_400, 604_800, 2_592_000),
    probabilities=(0.01, 0.1, 0.3, 0.5),
    known=True,
)
UNKNOWN = Part(horizons_s=(86_400, 604_800, 2_592_000), probabilities=(0.1, 0.2, 0.3), known=False)


def test_hazards_add():
    told = joined([INCIDENT, HISTORY, UNKNOWN])
    assert told.known
    assert told.probabilities[1] == pytest.approx(1 - 0.8 * 0.99)
    # Beyond its last horizon the incident head adds no more.
    assert told.probabilities[2] == pytest.approx(1 - 0.8 * 0.9)
    assert told.probabilities[4] == pytest.approx(1 - 0.8 * 0.5)


def test_between_horizons_the_hazard_runs_evenly():
    tenth = joined([HISTORY]).probabilities[0]
    assert tenth == pytest.approx(1 - 0.99 ** (1 / 6))


def test_a_head_without_input_counts_only_where_none_has_any():
    assert joined([HISTORY, UNKNOWN]) == joined([HISTORY])
    alone = joined([UNKNOWN])
    assert not alone.known
    assert alone.probabilities[2:] == pytest.approx((0.1, 0.2, 0.3))
    assert joined([]).probabilities == (0.0,) * len(JOIN_HORIZONS_S)


@pytest.mark.parametrize("parts", list(itertools.permutations([INCIDENT, HISTORY, UNKNOWN], 2)))
def test_it_never_falls_and_is_never_below_a_head(parts):
    told = joined(parts).probabilities
    assert list(told) == sorted(told)
    for part in parts:
        if part.known:
            for horizon_s, probability in zip(part.horizons_s, part.probabilities, strict=True):
                assert told[JOIN_HORIZONS_S.index(horizon_s)] >= probability - 1e-9


def test_certainty_is_no_endless_hazard():
    sure = Part(horizons_s=(600, 3600), probabilities=(1.0, 1.0), known=True)
    assert joined([sure, HISTORY]).probabilities[0] == pytest.approx(1.0)
