"""Intervals against published values and simulated coverage."""

import numpy as np
import pytest

from qgf.statistics import paired_difference, wilson_interval


@pytest.mark.parametrize(
    "successes, episodes, expected",
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (0, 10, (0.0, 0.2775)),
        (5, 10, (0.2366, 0.7634)),
    ],
)
def test_wilson_interval_as_published(successes, episodes, expected):
    assert wilson_interval(successes, episodes) == pytest.approx(expected, abs=5e-5)
    mirrored = wilson_interval(episodes - successes, episodes)
    assert mirrored == pytest.approx((1 - expected[1], 1 - expected[0]), abs=5e-5)


def test_paired_difference_of_equals_is_0():
    wins = np.random.default_rng(0).random((2, 30)) < 0.5
    assert paired_difference(wins, wins) == (0, (0, 0))
    assert paired_difference(np.ones_like(wins), np.zeros_like(wins)) == (1, (1, 1))


def test_paired_difference_uses_the_pairs():
    random = np.random.default_rng(0)
    theirs = random.random((1, 400)) < 0.5
    ours = theirs | (random.random((1, 400)) < 0.1)
    mean, (low, high) = paired_difference(ours, theirs)
    difference = ours.astype(float) - theirs
    assert mean == difference.mean()
    spread = 1.96 * difference.std() / 20
    assert (low, high) == pytest.approx((mean - spread, mean + spread), abs=0.004)
    back = paired_difference(theirs, ours)
    assert back[0] == -mean and back[1] == pytest.approx((-high, -low), abs=0.004)


def test_interval_covers_the_truth():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        theirs = random.random((1, 60)) < 0.4
        ours = np.where(random.random((1, 60)) < 0.3, True, theirs)  # 0.3 · 0.6 = 0.18 better
        _, (low, high) = paired_difference(ours, theirs, resamples=400)
        covered += low <= 0.18 <= high
    assert 0.90 < covered / 300 < 0.98


def test_disagreeing_seeds_widen_the_interval():
    random = np.random.default_rng(0)
    theirs = np.zeros((4, 200), bool)
    agree = random.random((4, 200)) < 0.5
    disagree = random.random((4, 200)) < np.array([[0.0], [0.0], [1.0], [1.0]])
    narrow, wide = (paired_difference(ours, theirs)[1] for ours in (agree, disagree))
    assert narrow[1] - narrow[0] < 0.12 and wide[1] - wide[0] > 0.8
