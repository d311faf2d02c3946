"""Intervals: how far a success rate, or a difference of two, can be trusted."""

import math

import numpy as np
from jaxtyping import Bool, Float

Z95 = 1.959963984540054


def wilson_interval(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial proportion (95% by default).

    Source: E. B. Wilson, JASA 22 (1927) 209-212.
    """
    p = successes / episodes
    centre = p + z * z / (2 * episodes)
    spread = z * math.sqrt(p * (1 - p) / episodes + z * z / (4 * episodes**2))
    scale = 1 + z * z / episodes
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def paired_difference(
    ours: Bool[np.ndarray, "seed episode"],
    theirs: Bool[np.ndarray, "seed episode"],
    resamples: int = 10_000,
) -> tuple[float, tuple[float, float]]:
    """Return the mean of ours − theirs and its 95% percentile-bootstrap interval.

    Pairs (the same training seed and episode) are drawn together; with several training
    seeds, the seeds are drawn too.
    """
    difference: Float[np.ndarray, "seed episode"] = ours.astype(float) - theirs
    seeds, episodes = difference.shape
    random = np.random.default_rng(0)
    rows = random.integers(seeds, size=(resamples, seeds, 1))
    columns = random.integers(episodes, size=(resamples, seeds, episodes))
    low, high = np.percentile(difference[rows, columns].mean((1, 2)), [2.5, 97.5])
    return float(difference.mean()), (float(low), float(high))
