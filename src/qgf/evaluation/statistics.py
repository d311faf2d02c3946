"""How far a success rate, a difference, or a mean over many tasks can be trusted."""

import math

import numpy as np
from jaxtyping import Float, Shaped

Z95 = 1.959963984540054


def wilson_interval(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial proportion (95% by default).

    Source: E. B. Wilson, JASA 22 (1927) 209-212.

    Args:
        successes: how many episodes succeeded.
        episodes: how many there were, at least one.
        z: quantile of the normal distribution: that of 95% by default.
    """
    p = successes / episodes
    centre = p + z * z / (2 * episodes)
    spread = z * math.sqrt(p * (1 - p) / episodes + z * z / (4 * episodes**2))
    scale = 1 + z * z / episodes
    low, high = max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
    return min(low, p), max(high, p)  # which rounding may leave out where p is 0 or 1


def paired_difference(
    ours: Shaped[np.ndarray, "seed episode"],
    theirs: Shaped[np.ndarray, "seed episode"],
    resamples: int = 10_000,
) -> tuple[float, tuple[float, float]]:
    """Return the mean of ours − theirs and its 95% percentile-bootstrap interval.

    Pairs (the same training seed and episode) are drawn together; with several training
    seeds, the seeds are drawn too.

    Args:
        ours: the score of each episode.
        theirs: those of the same episodes, of what it is compared with.
        resamples: how often it is drawn.
    """
    return bootstrap_mean(ours.astype(float) - theirs, resamples)


def bootstrap_mean(
    values: Shaped[np.ndarray, "seed episode"], resamples: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Return the mean and its 95% percentile-bootstrap interval.

    Episodes are drawn; with several training seeds, the seeds are drawn too.
    """
    drawn = resample(values[None], resamples, np.random.default_rng(0))[0]
    return float(values.mean()), percentile_interval(drawn.mean(-1))


def percentile_interval(drawn: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    """Return the 95% percentile interval of a bootstrapped figure.

    Args:
        drawn: the figure at each resample.
    """
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def resample(
    outcomes: Shaped[np.ndarray, "method seed episode"],
    resamples: int,
    random: np.random.Generator,
) -> Float[np.ndarray, "method resample seed"]:
    """Draw training seeds with replacement and, inside each drawn one, episodes; average these.

    All methods get the same draws: they met the same episodes, with the same training seeds,
    and their comparison should know. Drawing every task on its own is the stratified bootstrap
    of arXiv 2108.13264, which, however, redraws training seeds only; with the few seeds usual
    here that would miss most of the noise of the episodes.

    Args:
        outcomes: the score of each episode.
        resamples: how often it is drawn.
        random: NumPy's generator that draws.

    Returns:
        The mean score of every drawn training seed.
    """
    _, seeds, episodes = outcomes.shape
    rows = random.integers(seeds, size=(resamples, seeds, 1))
    columns = random.integers(episodes, size=(resamples, seeds, episodes))
    return outcomes[:, rows, columns].mean(-1)


def interquartile_mean(
    scores: Float[np.ndarray, "resample score"],
) -> Float[np.ndarray, " resample"]:
    """Return the mean of the middle half of the scores of each row.

    Exactly a quarter is cut off at either end; a score that the cut divides counts in part.
    (scipy.stats.trim_mean cuts whole scores only. The two agree on multiples of four scores.)

    Source: R. Agarwal et al., arXiv 2108.13264, section 4.3.

    Args:
        scores: all scores of each resample.
    """
    count = scores.shape[-1]
    weights = np.diff(np.clip(np.arange(count + 1), count / 4, 3 * count / 4))
    return np.sort(scores, axis=-1) @ weights / (count / 2)


def improvement_probability(
    ours: Float[np.ndarray, "resample seed"], theirs: Float[np.ndarray, "resample other_seed"]
) -> Float[np.ndarray, " resample"]:
    """Return P(ours > theirs) + ½ P(ours = theirs) over all pairs of training seeds of a task.

    Source: R. Agarwal et al., arXiv 2108.13264, section 4.3 (the Mann-Whitney U statistic).

    Args:
        ours: scores of each training seed, once per resample.
        theirs: the same of what it is compared with.
    """
    difference = ours[:, :, None] - theirs[:, None, :]
    return (0.5 + 0.5 * np.sign(difference)).mean((1, 2))
