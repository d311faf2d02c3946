"""How far a success rate, a difference, or a mean over many tasks can be trusted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import stdtrit

Z95 = 1.959963984540054


def wilson_interval(
    successes: float | int, episodes: float | int, z: float = Z95
) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial proportion (95% by default).

    Source: E. B. Wilson, JASA 22 (1927) 209-212.

    Args:
        successes: how many episodes succeeded; a part of one in `success_interval`.
        episodes: how many there were, at least one.
        z: quantile of the normal distribution: that of 95% by default.
    """
    p = successes / episodes
    centre = p + z * z / (2 * episodes)
    spread = z * math.sqrt(p * (1 - p) / episodes + z * z / (4 * episodes**2))
    scale = 1 + z * z / episodes
    low, high = max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
    return min(low, p), max(high, p)  # which rounding may leave out where p is 0 or 1


def success_interval(wins: Shaped[np.ndarray, "seed episode"]) -> tuple[float, float]:
    """Return the 95% interval of a success rate over training seeds that meet the same starts.

    Wilson's, of as many independent episodes as would be as uncertain: what `components` finds,
    over what it would be if all episodes were independent, divides their number. With one
    training seed it is Wilson's interval.

    Source: N. Dean and M. Pagano, JSSAM 3 (2015) 484-503.

    Args:
        wins: whether each episode succeeded; a column is one start.
    """
    count, rate = wins.size, float(wins.mean())
    found = components(wins)
    independent = wins.var(ddof=min(1, count - 1)) / count
    effect = max(1.0, float(found.variance / independent)) if independent else 1.0
    # Fewer degrees of freedom than N independent episodes have widen it as they do Student's t.
    wider = max(1.0, _t95(found.freedom) / _t95(count - 1))
    effective = count / (effect * wider**2)
    return wilson_interval(rate * effective, effective)


def paired_difference(
    ours: Shaped[np.ndarray, "seed episode"],
    theirs: Shaped[np.ndarray, "seed episode"],
    resamples: int = 10_000,
) -> tuple[float, tuple[float, float]]:
    """Return the mean of ours − theirs and its 95% interval, as `bootstrap_mean` makes it.

    Pairs (the same training seed and start) are drawn together.

    Args:
        ours: the score of each episode.
        theirs: those of the same episodes, of what it is compared with.
        resamples: how often it is drawn.
    """
    return bootstrap_mean(ours.astype(float) - theirs, resamples)


def bootstrap_mean(
    values: Shaped[np.ndarray, "seed episode"], resamples: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Return the mean and its 95% interval, as `mean_over_tasks` makes it of one task.

    Args:
        values: the score of each episode; a column is one start.
        resamples: how often it is drawn.
    """
    return mean_over_tasks([values], resamples)


def mean_over_tasks(
    tasks: Sequence[Shaped[np.ndarray, "seed episode"]], resamples: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Return the mean of several tasks' means and its 95% interval.

    The interval is percentiles of `resample`, of every task for itself, widened about the mean by
    what Student's t has over the normal distribution, which few training seeds or starts need;
    it stays in the range of the scores.

    Args:
        tasks: the scores of each task's episodes; a column is one start.
        resamples: how often they are drawn.
    """
    random = np.random.default_rng(0)
    mean = float(np.mean([scores.mean() for scores in tasks]))
    drawn = np.mean([resample(x[None], resamples, random)[0].mean(-1) for x in tasks], axis=0)
    bounds = (float(np.mean([end(x) for x in tasks])) for end in (np.min, np.max))
    wider = _t95(pooled_freedom([components(x) for x in tasks])) / Z95
    return mean, percentile_interval(mean + wider * (drawn - mean), tuple(bounds))


def percentile_interval(
    drawn: Float[np.ndarray, " resample"], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Return the 95% percentile interval of a bootstrapped figure.

    Args:
        drawn: the figure at each resample.
        bounds: what it cannot leave.
    """
    low, high = np.clip(np.percentile(drawn, [2.5, 97.5]), *bounds)
    return float(low), float(high)


class Components(NamedTuple):
    """What scores of crossed training seeds and starts vary by.

    Attributes:
        seed: variance between training seeds.
        start: variance between starts.
        noise: variance of what neither explains.
        variance: that of the mean of all scores.
        freedom: its degrees of freedom (Satterthwaite's, of the components).
    """

    seed: float
    start: float
    noise: float
    variance: float
    freedom: float


def pooled_freedom(tasks: Sequence[Components]) -> float:
    """Return Satterthwaite's degrees of freedom of a mean over tasks; infinite without variance.

    Args:
        tasks: what the scores of each vary by.
    """
    total = sum(task.variance for task in tasks)
    squares = sum(task.variance**2 / task.freedom for task in tasks)
    return total**2 / squares if squares > 0 else math.inf


def components(scores: Shaped[np.ndarray, "seed episode"]) -> Components:
    """Return the variance components of scores: score = mean + seed + start + noise.

    Each mean square less that of the noise, over how often the effect recurs; at least 0. Of one
    training seed all variance counts as that of the starts, of one start as that of the seeds.

    Source: S. Searle, G. Casella, C. McCulloch, Variance Components (1992), section 4.7.

    Args:
        scores: one per episode; a column is one start.
    """
    seeds, starts = scores.shape
    rows, columns, rest = _effects(scores.astype(float))
    free = np.array([seeds - 1, starts - 1, (seeds - 1) * (starts - 1)])
    sums = np.array([starts * (rows**2).sum(), seeds * (columns**2).sum(), (rest**2).sum()])
    row, column, noise = sums / np.maximum(free, 1)
    seed, start = max(0.0, row - noise) / starts, max(0.0, column - noise) / seeds
    parts = np.array([seed / seeds, start / starts, noise / scores.size])
    variance = parts.sum()
    known = np.maximum(free, 1)
    freedom = variance**2 / (parts**2 / known).sum() if variance > 0 else math.inf
    return Components(seed, start, float(noise), float(variance), float(freedom))


def resample(
    outcomes: Shaped[np.ndarray, "method seed episode"],
    resamples: int,
    random: np.random.Generator,
) -> Float[np.ndarray, "method resample seed"]:
    """Draw the scores of training seeds anew, with the starts that they share.

    Training seeds meet the same starts, so the two are crossed. Of every method, scores are taken
    apart into mean, effects of seeds, of starts, and the rest; each is brought to the variance of
    its component; then seeds, starts and the rest are drawn with replacement and added. (Drawing
    whole rows and columns of scores counts the rest three times.) Over resamples the mean of all
    seeds varies as `components` says.

    All methods get the same draws: they met the same episodes, with the same training seeds,
    and their comparison should know. Drawing every task on its own is the stratified bootstrap
    of arXiv 2108.13264, which, however, redraws training seeds only; with the few seeds usual
    here that would miss most of the noise of the episodes.

    Source: J. Carpenter, H. Goldstein, J. Rasbash, JRSS C 52 (2003) 431-443, for crossed effects;
    A. Owen, Annals of Applied Statistics 1 (2007) 386-411, for the factor of three.

    Args:
        outcomes: the score of each episode; a column is one start.
        resamples: how often it is drawn.
        random: NumPy's generator that draws.

    Returns:
        The mean score of every drawn training seed.
    """
    _, seeds, starts = outcomes.shape
    row = random.integers(seeds, size=(resamples, seeds))
    column = random.integers(starts, size=(resamples, starts))
    cell = random.integers(seeds * starts, size=(resamples, seeds, starts))
    drawn = np.empty((len(outcomes), resamples, seeds))
    for scores, into in zip(outcomes.astype(float), drawn, strict=True):
        found, effects = components(scores), _effects(scores)
        of_seed, of_start, rest = (
            effect.ravel() * _scale(effect, variance)
            for effect, variance in zip(effects, found[:3], strict=True)
        )
        into[:] = scores.mean() + of_start[column].mean(-1, keepdims=True)
        into += of_seed[row] + rest[cell].mean(-1)
    return drawn


def _effects(scores: Float[np.ndarray, "seed episode"]) -> tuple[np.ndarray, ...]:
    """Return the effects of seeds and starts, and what they leave; each has the mean 0."""
    rows = scores.mean(1, keepdims=True) - scores.mean()
    columns = scores.mean(0, keepdims=True) - scores.mean()
    return rows, columns, scores - scores.mean() - rows - columns


def _scale(effect: Float[np.ndarray, "..."], variance: float) -> float:
    """Return the factor that brings an effect to a variance."""
    found = np.mean(effect**2)
    return math.sqrt(variance / found) if found > 0 else 0.0


def _t95(freedom: float | int) -> float:
    """Return the 97.5% quantile of Student's t; of the normal distribution at no freedom."""
    return float(stdtrit(freedom, 0.975)) if 0 < freedom < math.inf else Z95


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
