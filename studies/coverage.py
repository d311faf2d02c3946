"""How often 95% intervals contain the truth: experiments simulated, whose truth is known.

Not in the paper. Training seeds meet the same starts of episodes. What lies behind success is the
sum of a seed's effect, a start's effect and noise, normal, of the variance 1 in all, which stands
for the return too; an episode succeeds below a threshold. Of the variance SHARES are of seeds and
of starts; the first is about what was measured of the episodes of the studies of compute and steps.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from qgf.evaluation import (
    bootstrap_mean,
    mean_over_tasks,
    paired_difference,
    success_interval,
    wilson_interval,
)
from qgf.executor import Executor

EXPERIMENTS = {"smoke": 20, "laptop": 2_000, "paper": 20_000}
RESAMPLES = 400
SEEDS = ((2, 25), (2, 50), (4, 25), (10, 30))  # training seeds, starts
SHARES = ((0.02, 0.3), (0.1, 0.3))  # of the variance: of seeds, of starts
RATES = (0.5, 0.9)
TASKS = 5
GOAL = 0.93, 0.97  # of 95% intervals so many should contain the truth
LABELS = {
    "independent": "success, all episodes independent",
    "success": "success of a task",
    "mean": "mean return of a task",
    "difference": "paired difference",
    "tasks": f"mean over {TASKS} tasks",
}
COLORS = dict(zip(LABELS, ("#999999", "#0072b2", "#009e73", "#d55e00", "#cc79a7"), strict=True))


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return, for every size, shares and rate, how many of the intervals contain the truth.

    Nothing is trained or run, so the executor has nothing to do.
    """
    count, rows = EXPERIMENTS[preset], []
    random = np.random.default_rng(0)
    for (seeds, starts), shares, rate in itertools.product(SEEDS, SHARES, RATES):
        draw = experiments(random, seeds, starts, shares)
        found = [_contained([next(draw) for _ in range(TASKS)], rate) for _ in range(count)]
        rows.append(
            {
                "seeds": seeds,
                "starts": starts,
                "shares": list(shares),
                "rate": rate,
                "coverage": {name: float(np.mean([f[name] for f in found])) for name in LABELS},
            }
        )
    return {"experiments": count, "resamples": RESAMPLES, "rows": rows}


def experiments(
    random: np.random.Generator, seeds: int, starts: int, shares: tuple[float, float]
) -> Iterator[Float[np.ndarray, "seed start"]]:
    """Yield experiments for ever: the return of every episode, whose true mean is 0."""
    sizes = (seeds, 1), (1, starts), (seeds, starts)
    deviations = np.sqrt([*shares, 1 - sum(shares)])
    while True:
        parts = [random.normal(size=size) for size in sizes]
        yield sum(x * part for x, part in zip(deviations, parts, strict=True))


def _contained(returns: list[Float[np.ndarray, "seed start"]], rate: float) -> dict[str, bool]:
    """Return which intervals contain the truth; two tasks are taken for two methods on one."""
    tasks = [each < NormalDist().inv_cdf(rate) for each in returns]
    wins, others = tasks[:2]
    found = {
        "independent": (wilson_interval(int(wins.sum()), wins.size), rate),
        "success": (success_interval(wins), rate),
        "mean": (bootstrap_mean(returns[0], RESAMPLES)[1], 0.0),
        "difference": (paired_difference(wins, others, RESAMPLES)[1], 0.0),
        "tasks": (mean_over_tasks(tasks, RESAMPLES)[1], rate),
    }
    return {name: low <= truth <= high for name, ((low, high), truth) in found.items()}


def draw(data: dict[str, Any]) -> Figure:
    """Draw the share of intervals that contain the truth, of every kind and experiment."""
    rows = data["rows"]
    figure = Figure((7.5, 1.3 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(*GOAL, color="#eeeeee")
    places = np.arange(len(rows))
    for shift, (name, label) in enumerate(LABELS.items()):
        coverage = [row["coverage"][name] for row in rows]
        height = places + 0.12 * (shift - len(LABELS) // 2)
        axes.plot(coverage, height, "o", ms=4, color=COLORS[name], label=label)
    axes.set_yticks(places, [_size(row) for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="intervals that contain the truth")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=3)
    return figure


def _size(row: dict[str, Any]) -> str:
    seed, start = row["shares"]
    return (
        f"{row['seeds']} × {row['starts']}, success {row['rate']:.0%}, "
        f"seeds {seed:.0%}, starts {start:.0%}"
    )


def say(data: dict[str, Any]) -> str:
    """Tell how often intervals contain the truth, for each share of the variance."""
    text = [
        f"Of 95% intervals {_percent(*GOAL)} should contain the truth. In {data['experiments']:,} "
        "simulated experiments of every size ("
        + ", ".join(f"{seeds} × {starts}" for seeds, starts in _unique(data, "seeds", "starts"))
        + " training seeds × starts; success "
        + " and ".join(f"{rate:.0%}" for (rate,) in _unique(data, "rate"))
        + "), the least and the most that did:"
    ]
    for (shares,) in _unique(data, "shares"):
        rows = [row for row in data["rows"] if row["shares"] == shares]
        kinds = (f"{label} {_span(rows, name)}" for name, label in LABELS.items())
        text.append(
            f"Where seeds make {shares[0]:.0%} of the variance and starts {shares[1]:.0%}: "
            f"{'; '.join(kinds)}. {_failures(rows)}"
        )
    return " ".join(text)


def _unique(data: dict[str, Any], *names: str) -> list[list]:
    found = []
    for row in data["rows"]:
        if (values := [row[name] for name in names]) not in found:
            found.append(values)
    return found


def _span(rows: list[dict[str, Any]], name: str) -> str:
    coverage = [row["coverage"][name] for row in rows]
    return _percent(min(coverage), max(coverage), ".1f")


def _percent(low: float, high: float, style: str = ".0f") -> str:
    return f"{format(100 * low, style)} to {format(100 * high, style)}%"


def _failures(rows: list[dict[str, Any]]) -> str:
    """Return which sizes have intervals that contain the truth too rarely."""
    kinds = [name for name in LABELS if name != "independent"]
    low = [row for row in rows if min(row["coverage"][name] for name in kinds) < GOAL[0]]
    sizes = list(dict.fromkeys(f"{row['seeds']} × {row['starts']}" for row in low))
    if not sizes:
        return f"None of ours is below {GOAL[0]:.0%}."
    return f"Some of ours are below {GOAL[0]:.0%} with {', '.join(sizes)}."
