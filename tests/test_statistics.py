"""Against published values, simulated coverage, enumeration, and loops."""

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.stats

from qgf.evaluation.statistics import (
    bootstrap_mean,
    components,
    improvement_probability,
    interquartile_mean,
    mean_over_tasks,
    paired_difference,
    resample,
    success_interval,
    wilson_interval,
)


def crossed(seeds, starts, rate, count):
    """Yield experiments whose success has a seed's effect, a start's and noise, of N(0, 1) in all.

    Of the variance behind success 2% is of seeds and 30% of starts, about as measured.
    """
    random, of = np.random.default_rng(0), np.sqrt([0.02, 0.3, 0.68])
    for _ in range(count):
        parts = [random.normal(size=size) for size in ((seeds, 1), (1, starts), (seeds, starts))]
        total = sum(each * part for each, part in zip(of, parts, strict=True))
        yield total < scipy.stats.norm.ppf(rate)


def test_wilson_interval_holds_the_rate():
    for n in range(1, 200):
        assert wilson_interval(n, n)[1] == 1 and wilson_interval(0, n)[0] == 0


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


def test_interval_of_one_seed_covers_the_truth():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        theirs = random.random((1, 60)) < 0.4
        ours = np.where(random.random((1, 60)) < 0.3, True, theirs)  # 0.3 · 0.6 = 0.18 better
        _, (low, high) = paired_difference(ours, theirs, resamples=400)
        covered += low <= 0.18 <= high
    assert 0.90 < covered / 300 < 0.98


@pytest.mark.parametrize(("seeds", "starts"), [(2, 25), (10, 30)])
def test_intervals_cover_the_truth_of_crossed_experiments(seeds, starts):
    """In 93 to 97% of 2,000, up to chance (2.6 deviations); independent episodes would in fewer."""
    of = {name: 0 for name in ("success", "mean", "difference", "tasks", "independent")}
    experiments = list(crossed(seeds, starts, 0.7, 2000))
    for wins, theirs in zip(experiments, experiments[1:] + experiments[:1], strict=True):
        intervals = {
            "success": (success_interval(wins), 0.7),
            "mean": (bootstrap_mean(wins, 300)[1], 0.7),
            "difference": (paired_difference(wins, theirs, 300)[1], 0.0),
            "tasks": (mean_over_tasks([wins, theirs], 300)[1], 0.7),
            "independent": (wilson_interval(int(wins.sum()), wins.size), 0.7),
        }
        for name, ((low, high), truth) in intervals.items():
            of[name] += low <= truth <= high
    chance = 2.6 * np.sqrt(0.05 * 0.95 / 2000)
    for name in ("success", "mean", "difference", "tasks"):
        assert 0.93 - chance < of[name] / 2000 < 0.97 + chance, (name, of)
    assert of["independent"] < of["success"] - 20
    if seeds == 10:
        assert of["independent"] / 2000 < 0.88


def test_components_as_an_analysis_of_variance():
    """Expected mean squares of crossed effects give the variances that made the scores."""
    random, found = np.random.default_rng(0), []
    for _ in range(400):
        seed, start = random.normal(size=(8, 1)) * 0.5, random.normal(size=(1, 12)) * 2
        found.append(components(seed + start + random.normal(size=(8, 12)))[:3])
    assert np.mean(found, axis=0) == pytest.approx([0.25, 4, 1], rel=0.1)


def test_components_by_hand():
    # Seeds' means 2 and 4, starts' 2, 4; nothing is left: mean squares 2, 2 and 0.
    found = components(np.array([[1.0, 3.0], [3.0, 5.0]]))
    assert found[:3] == pytest.approx((2, 2, 0)) and found.variance == pytest.approx(2)
    assert found.freedom == pytest.approx(2**2 / (1 + 1))
    wins = np.array([[1, 0, 0, 1, 1]])
    alone = components(wins)  # the usual variance of a mean
    assert alone.variance == pytest.approx(wins.var(ddof=1) / 5) and alone.freedom == 4
    assert components(wins.T).variance == pytest.approx(alone.variance)
    assert components(np.ones((3, 4), bool))[:4] == (0, 0, 0, 0)


def test_success_interval_is_wilsons_where_episodes_are_independent():
    random = np.random.default_rng(0)
    for wins in (random.random((1, 30)) < 0.3, np.ones((3, 10), bool), np.zeros((1, 1), bool)):
        assert success_interval(wins) == pytest.approx(wilson_interval(int(wins.sum()), wins.size))
    # Ten seeds that do the same are worth one, but for the degrees of freedom, which are the same.
    wins = random.random((1, 40)) < 0.4
    same = success_interval(wins.repeat(10, axis=0))
    assert same == pytest.approx(wilson_interval(int(wins.sum()), 40), abs=0.012)


def test_disagreeing_seeds_widen_the_interval():
    random = np.random.default_rng(0)
    theirs = np.zeros((4, 200), bool)
    agree = random.random((4, 200)) < 0.5
    disagree = random.random((4, 200)) < np.array([[0.0], [0.0], [1.0], [1.0]])
    narrow, wide = (paired_difference(ours, theirs)[1] for ours in (agree, disagree))
    assert narrow[1] - narrow[0] < 0.12 and wide[1] - wide[0] > 0.8


def test_resampling_against_all_cases():
    """Of two seeds and starts without a rest: every draw of each, √2 times as far apart."""
    scores = np.array([[1.0, 3.0], [3.0, 5.0]])
    exact = Counter()
    for rows in itertools.product((-1, 1), repeat=2):
        for columns in itertools.product((-1, 1), repeat=2):
            drawn = [3 + np.sqrt(2) * (row + np.mean(columns)) for row in rows]
            exact[tuple(np.round(drawn, 6))] += 1 / 16
    count = 40_000
    drawn = resample(scores[None], count, np.random.default_rng(0))[0]
    found = Counter(map(tuple, drawn.round(6).tolist()))
    assert found.keys() == exact.keys()
    for rates, share in exact.items():
        assert abs(found[rates] / count - share) < 4.5 * np.sqrt(share * (1 - share) / count)


def test_resampling_spreads_as_the_components_say():
    (wins,) = crossed(5, 40, 0.6, 1)
    means = resample(wins[None], 20_000, np.random.default_rng(0))[0].mean(1)
    variance = components(wins).variance
    assert means.mean() == pytest.approx(wins.mean(), abs=4 * np.sqrt(variance / 20_000))
    assert means.var() == pytest.approx(variance, rel=0.04)


def test_all_methods_get_the_same_draws():
    wins = np.random.default_rng(0).random((3, 20)) < 0.4
    ours, theirs = resample(np.stack([wins, ~wins]), 50, np.random.default_rng(0))
    np.testing.assert_allclose(ours + theirs, 1)
    assert ours.std() > 0.02


def test_interquartile_mean_by_hand():
    # Of 5 scores 1¼ go at either end: ¾ · 2, 3, ¾ · 7 remain. Of 6: ½ · 2, 3, 7, ½ · 9.
    assert interquartile_mean(np.array([[9.0, 1, 7, 2, 3]])) == pytest.approx([9.75 / 2.5])
    assert interquartile_mean(np.array([[9.0, 1, 7, 2, 3, 50]])) == pytest.approx([15.5 / 3])
    assert interquartile_mean(np.array([[0.4], [0.7]])) == pytest.approx([0.4, 0.7])
    assert interquartile_mean(np.array([[0.4, 0.7]])) == pytest.approx([0.55])


def test_interquartile_mean_as_scipy():
    scores = np.random.default_rng(0).random((6, 20))
    expected = scipy.stats.trim_mean(scores, 0.25, axis=1)
    np.testing.assert_allclose(interquartile_mean(scores), expected)
    # Every score repeated four times: scipy can then cut exactly a quarter of any number.
    scores = scores[:, :7]
    expected = scipy.stats.trim_mean(scores.repeat(4, axis=1), 0.25, axis=1)
    np.testing.assert_allclose(interquartile_mean(scores), expected)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 0.9], [0.1, 0.2], 1.0),
        ([0.1, 0.2], [1.0, 0.9], 0.0),
        ([0.5, 0.5], [0.5, 0.5], 0.5),
        ([0.0, 1.0], [0.0, 1.0], 0.5),
        ([0.5, 0.5], [0.5, 0.2], 0.75),
        ([0.3], [0.1, 0.3, 0.4, 0.5], (1 + 0.5) / 4),
    ],
)
def test_improvement_probability_by_hand(ours, theirs, expected):
    found = improvement_probability(np.array([ours]), np.array([theirs]))
    assert found == pytest.approx([expected])


def test_improvement_probability_against_loops():
    ours, theirs = np.random.default_rng(0).integers(4, size=(2, 5, 6)) / 4
    for x, y, found in zip(ours, theirs, improvement_probability(ours, theirs), strict=True):
        wins = sum((a > b) + 0.5 * (a == b) for a in x for b in y)
        assert found == pytest.approx(wins / 36)
        assert found == pytest.approx(scipy.stats.mannwhitneyu(x, y).statistic / 36)
