"""The study of intervals: its experiments against the shares that it names, words and figure."""

import numpy as np
import pytest

from studies import coverage


def test_experiments_have_the_shares_and_the_rate():
    draw = coverage.experiments(np.random.default_rng(0), 6, 20, (0.1, 0.3))
    returns = np.array([next(draw) for _ in range(4000)])
    assert returns.mean() == pytest.approx(0, abs=0.02) and returns.var() == pytest.approx(1, 0.02)
    same_seed, same_start, neither = (
        (returns[:, 0, 0] * returns[:, i, j]).mean() for i, j in ((0, 1), (1, 0), (1, 1))
    )
    assert (same_seed, same_start, neither) == pytest.approx((0.1, 0.3, 0), abs=0.06)


def data(independent, ours):
    found = dict.fromkeys(coverage.LABELS, ours) | {"independent": independent}
    row = {"seeds": 2, "starts": 25, "shares": [0.02, 0.3], "rate": 0.5, "coverage": found}
    more = {"starts": 50, "coverage": found | {"tasks": 0.96}}
    return {"experiments": 2000, "resamples": 400, "rows": [row, row | more]}


def test_words_follow_the_data():
    said = coverage.say(data(0.8, 0.94))
    assert "2 × 25, 2 × 50 training seeds" in said and "None of ours is below 93%" in said
    assert "all episodes independent 80.0 to 80.0%" in said
    assert "mean over 5 tasks 94.0 to 96.0%" in said and "seeds make 2%" in said
    assert "Some of ours are below 93% with 2 × 25, 2 × 50." in coverage.say(data(0.95, 0.92))


def test_figure_has_every_kind_of_every_experiment():
    (axes,) = coverage.draw(data(0.8, 0.94)).axes
    found = [line.get_xdata() for line in axes.lines]
    assert len(found) == len(coverage.LABELS) and [*found[0]] == [0.8, 0.8]
    assert [*found[-1]] == [0.94, 0.96]
