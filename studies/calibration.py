"""Does one guidance weight without units serve all tasks? (Not in the paper, which tunes w.)

A default of u = w · rms(g) / rms(v) (see `qgf.act.calibration`) is chosen on some tasks and tested
on others: against w tuned on each of these for itself, against the w that the same choice
without units would carry over, and against the cloned policy.
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from matplotlib.figure import Figure

from qgf.act import guidance_scale
from qgf.comparison import Plan, Variant, learners, read_episodes, run_episodes
from qgf.core import Sampled
from qgf.evaluation import figures, mean_over_tasks
from qgf.executor import Executor
from qgf.methods import METHODS, Bound, Learners
from studies._runs import CUBE, SCENE, study_plan
from studies._scale import (
    Outcomes,
    best,
    flow_sizes_by_seed,
    guided,
    per_seed,
    rate,
    short,
    sweep,
    typical_scale,
)
from studies.sensitivity import STYLES
from studies.weight import WEIGHTS

CUBES, SCENES = [CUBE.format(i) for i in range(1, 6)], [SCENE.format(i) for i in (1, 2)]
SPLIT = CUBES[:3], CUBES[3:] + SCENES  # to choose the default on, to test it on
TASKS = {"smoke": (CUBES[1:2], CUBES[:1]), "laptop": SPLIT, "paper": SPLIT}
GRID = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
UNITS = {"smoke": (0.1, 0.4), "laptop": GRID, "paper": GRID}
NAME = "qgf-auto"
MARGIN = 0.1  # of success, that a good default may fall short of the tuned weight

WAYS = {  # label, colour, marker
    "bc": ("BC", "#000000", "s"),
    "tuned": ("w tuned on this task", STYLES["qgf"][0], "o"),
    "carried": ("w chosen on the other tasks", "#e69f00", "v"),
    "default": ("u chosen on the other tasks", "#d55e00", "D"),
}

Difference = Sequence  # the mean, and the interval as a pair; lists once read from a file


class Scale(eqx.Module):
    """A weight's unit, as one more learner, so that each training seed has its own."""

    value: Array
    fixed_steps: ClassVar[bool] = False

    def bind(self, obs: Array, goal: Array | None, repeats: int) -> Array:
        return self.value


def _act(bound: Bound, noise: Array, weight: Array, steps: int) -> Sampled:
    return METHODS["qgf"].act(bound, noise, weight * bound["scale"], steps)


# QGF by u instead of w.
AUTO = dataclasses.replace(METHODS["qgf"], roles=("policy", "critic", "scale"), act=_act)


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return the choice of the default u, and its success on the tasks held out from it."""
    (choosing, held_out), weights = TASKS[preset], WEIGHTS[preset]
    plan = study_plan(preset, out, (*choosing, *held_out), executor, ["qgf"])
    found = {env: sweep_both(plan, env, "tune", weights, UNITS[preset]) for env in choosing}
    carried, default = (best(task[i] for task in found.values()) for i in (0, 1))
    tasks, wins = [], []
    for env in held_out:
        sizes, tuned = flow_sizes_by_seed(plan, env), best([sweep(plan, env, "tune", weights)])
        by_weight, by_unit = sweep_both(plan, env, "test", {0.0, tuned, carried}, (default,))
        ways = {"bc": by_weight[0.0], "tuned": by_weight[tuned], "carried": by_weight[carried]}
        ways["default"] = by_unit[default]
        wins.append({name: outcomes[..., 0] > 0 for name, outcomes in ways.items()})
        used = {"tuned": tuned, "carried": carried, "default": default * typical_scale(sizes)}
        rates = {name: figures(outcomes).json() for name, outcomes in ways.items()}
        tasks.append({"env": env, **sizes, "w": used, "ways": rates, "against": against(wins[-1:])})
    chosen_on = [
        {
            "env": env,
            **flow_sizes_by_seed(plan, env),
            "tune": [figures(each).json() for each in by_unit.values()],
        }
        for env, (_, by_unit) in found.items()
    ]
    return {
        "training_seeds": len(plan.seeds),
        "units": list(UNITS[preset]),
        "default": default,
        "carried": carried,
        "chosen_on": chosen_on,
        "held_out": tasks,
        "against": against(wins),
    }


def sweep_both(
    plan: Plan, env: str, split: str, weights: Collection[float], units: Collection[float]
) -> tuple[dict[float, Outcomes], dict[float, Outcomes]]:
    """Return QGF's episodes at every weight w and at every u, running those not there yet."""

    def load() -> Learners:
        scale = Scale(jnp.stack(per_seed(plan, env, guidance_scale)))
        return learners(plan, "qgf", env) | {"scale": scale}

    auto = Variant(AUTO, load, [(u, 1) for u in units])
    run_episodes(plan, env, split, guided(plan, env, weights) | {NAME: auto})
    by_unit = {u: read_episodes(plan, NAME, env, split, (u, 1)) for u in units}
    return sweep(plan, env, split, weights), by_unit


def against(
    tasks: Sequence[dict[str, Bool[np.ndarray, "seed episode"]]], resamples: int = 10_000
) -> dict[str, Difference]:
    """Return by how much the default's success exceeds each other way's, averaged over tasks.

    With 95% intervals, of the pairs: `qgf.evaluation.mean_over_tasks`.
    """
    names = [name for name in tasks[0] if name != "default"]
    gains = {name: [task["default"].astype(float) - task[name] for task in tasks] for name in names}
    return {name: mean_over_tasks(each, resamples) for name, each in gains.items()}


def serves(data: dict[str, Any]) -> bool:
    """Return whether one default is good enough.

    It is if no held-out task loses more than MARGIN to its tuned weight, and if on average
    over them it is better than BC and loses less than MARGIN, both with 95% confidence.
    """
    # A loss of just MARGIN is allowed, however its mean is rounded.
    worst = min(task["against"]["tuned"][0] for task in data["held_out"])
    (tuned, _), (bc, _) = (data["against"][name][1] for name in ("tuned", "bc"))
    return worst >= -MARGIN - 1e-9 and tuned > -MARGIN and bc > 0


def draw(data: dict[str, Any]) -> Figure:
    """Draw success on the held-out tasks, and against u on the tasks it was chosen on."""
    figure = Figure((8.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    tasks, units = data["held_out"], data["units"]
    for i, (name, (label, color, marker)) in enumerate(WAYS.items()):
        ways = [task["ways"][name] for task in tasks]
        success = np.array([way["success"] for way in ways])
        low, high = np.array([way["ci95"] for way in ways]).T
        style = {"color": color, "marker": marker, "linestyle": "", "capsize": 3}
        places = np.arange(len(tasks)) + 0.15 * (i - 1.5)
        left.errorbar(places, success, (success - low, high - success), label=label, **style)
    left.set_xticks(range(len(tasks)), [short(task["env"]).replace(" ", "\n") for task in tasks])
    left.set(ylabel="success", ylim=(-0.03, 1.03))
    for task, (color, line, marker) in zip(data["chosen_on"], STYLES.values(), strict=False):
        success = [row["success"] for row in task["tune"]]
        style = {"color": color, "linestyle": line, "marker": marker, "markersize": 4}
        right.plot(units, success, label=short(task["env"]), **style)
    right.axvline(data["default"], color="#555555", lw=1, ls="--", label="chosen")
    right.set(xscale="log", xlabel="u = w rms(g) / rms(v), tune episodes")
    right.set_xticks(units, [f"{u:g}" for u in units])
    right.minorticks_off()
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    return figure


def say(data: dict[str, Any]) -> str:
    """Say whether the default chosen on some tasks is good enough on the others."""
    chosen_on, tasks, found = data["chosen_on"], data["held_out"], data["against"]
    verdict = "good enough" if serves(data) else "not good enough"
    low, high = found["carried"][1]
    unit = "clearly better" if low > 0 else "clearly worse" if high < 0 else "not clearly different"
    return (
        "The paper tunes the guidance weight w for every domain. In the unitless u = w rms(g) / "
        f"rms(v), {data['default']:g} is the best of {len(data['units'])} values from "
        f"{data['units'][0]:g} to {data['units'][-1]:g} on "
        f"{', '.join(short(task['env']) for task in chosen_on)}, on "
        f"{chosen_on[0]['tune'][0]['episodes']} tune episodes of each. On tasks not used for this "
        f"choice, with {tasks[0]['ways']['bc']['episodes']} test episodes of each (training seeds: "
        f"{data['training_seeds']}; 95% intervals): "
        f"{'; '.join(map(_task, tasks))}. Averaged over the {len(tasks)} held-out tasks the "
        f"default differs from the tuned weights by {_points(found['tuned'])} and from BC by "
        f"{_points(found['bc'])}. It may lose at most {100 * MARGIN:g} points to the tuned weight "
        "on any held-out task, and must on average, with 95% confidence, lose less than that and "
        f"beat BC: by this rule one default is {verdict}. From w = {data['carried']:g}, chosen on "
        "the same tasks and carried over without units, it differs by "
        f"{_points(found['carried'])}: {unit}."
    )


def _task(task: dict) -> str:
    ways, w, against = (task[key] for key in ("ways", "w", "against"))
    return (
        f"{short(task['env'])} {rate(ways['default'])} with the default (there w = "
        f"{w['default']:.2g}), {rate(ways['tuned'])} with its tuned w = {w['tuned']:g} "
        f"({_points(against['tuned'])}) and {rate(ways['bc'])} for BC ({_points(against['bc'])})"
    )


def _points(difference: Difference) -> str:
    # Rounded to integers, as -0.2 would be formatted as -0.
    mean, low, high = (round(100 * v) for v in (difference[0], *difference[1]))
    return f"{mean:+d} points ({low:+d} to {high:+d})"
