"""Success, Q gain and distance from the cloned action against the guidance weight."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qgf.comparison import STATES, opinions
from qgf.evaluation import figures, paired_difference
from qgf.executor import Executor
from qgf.run import SettingResult, choose
from studies._runs import CUBE, SCENE, study_plan
from studies._scale import Outcomes, flow_sizes_by_seed, rate, short, sweep, typical_scale
from studies.sensitivity import STYLES

ALL = (*(CUBE.format(task) for task in range(1, 6)), SCENE.format(1), SCENE.format(2))
ENVS = {"smoke": (CUBE.format(2),), "laptop": ALL, "paper": ALL}
GRID = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHTS = {"smoke": (0.0, 0.1, 1.0), "laptop": GRID, "paper": GRID}


def measure(
    preset: str, out: Path, executor: Executor | None, env: str | None = None
) -> dict[str, Any]:
    """Return for every task and weight success, Q gain, distance and the unitless weight."""
    envs, weights = (env,) if env else ENVS[preset], WEIGHTS[preset]
    plan, tasks = study_plan(preset, out, envs, executor, ["qgf"]), []
    for env in envs:
        tune, test = (sweep(plan, env, split, weights) for split in ("tune", "test"))
        opinion = opinions(plan, "qgf", env, [(w, 1) for w in weights])
        sizes = flow_sizes_by_seed(plan, env)
        found = compose(tune, test, opinion, typical_scale(sizes))
        tasks.append({"env": env, **sizes, **found})
    return {"training_seeds": len(plan.seeds), "states": STATES, "tasks": tasks}


def compose(
    tune: dict[float, Outcomes],
    test: dict[float, Outcomes],
    opinion: Float[np.ndarray, "weight 2"],
    scale: float,
) -> dict[str, Any]:
    """Return the rows of a task's weights, which rising, what tune episodes choose, rise and fall.

    The peak is the weight that tune episodes choose among all but the first and the last: test
    episodes, on which it is compared with these two (paired), have no part in its choice.
    """
    tried = [SettingResult(w, 1, figures(tune[w]), figures(test[w])) for w in test]
    rows = [
        {"u": setting.weight / scale, "q_gain": gain, "moved": moved, **setting.json()}
        for setting, (gain, moved) in zip(tried, opinion.tolist(), strict=True)
    ]
    wins = [outcomes[..., 0] > 0 for outcomes in test.values()]
    at = tried.index(choose(tried[1:-1]))
    return {
        "rows": rows,
        "chosen": tried.index(choose(tried)),
        "peak": at,
        "rise": paired_difference(wins[at], wins[0]),
        "fall": paired_difference(wins[at], wins[-1]),
    }


def draw(data: dict[str, Any]) -> Figure:
    """Draw every task's curves against w, and all tasks' success against u."""
    tasks = data["tasks"]
    across = min(4, len(tasks) + 1)
    down = -(-(len(tasks) + 1) // across)
    figure = Figure((1 + 2.4 * across, 0.7 + 2.3 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, task in zip(panels, tasks, strict=False):
        _draw_task(axes, task)
    _draw_units(panels[len(tasks)], tasks)
    for axes in panels:
        axes.set(ylim=(-0.05, 1.05))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    for axes in panels[len(tasks) + 1 :]:
        axes.remove()
    handles, columns = panels[0].get_legend_handles_labels(), 4 if across > 2 else 2
    figure.legend(*handles, frameon=False, loc="outside upper left", ncols=columns)
    return figure


def _draw_task(axes: Axes, task: dict) -> None:
    rows = task["rows"]
    w = [row["weight"] for row in rows]
    success = np.array([row["test"]["success"] for row in rows])
    low, high = np.array([row["test"]["ci95"] for row in rows]).T
    gain = np.array([row["q_gain"] for row in rows])
    color, line, marker = STYLES["qgf"]
    style = {"color": color, "linestyle": line, "marker": marker, "markersize": 4, "capsize": 2}
    axes.errorbar(w, success, (success - low, high - success), label="success", **style)
    axes.plot(w, gain / max(abs(gain)), "--v", color="#e69f00", ms=4, label="Q gain / largest")
    moved = [row["moved"] for row in rows]
    axes.plot(w, moved, ":s", color="#d55e00", ms=4, label="rms distance from cloned action")
    at = task["chosen"]
    axes.plot(w[at], success[at], "*", ms=13, color="black", mfc="none", label="chosen")
    axes.set_xscale("symlog", linthresh=w[1], linscale=0.5)
    axes.set_xticks(w[::2], [f"{x:g}" for x in w[::2]])
    axes.minorticks_off()
    axes.set_xlabel(f"w, {short(task['env'])}", fontsize=9)


def _draw_units(axes: Axes, tasks: list[dict]) -> None:
    """Success against u, in one colour a domain."""
    styles = {}
    for task in tasks:
        domain, rows = short(task["env"]).split()[0], task["rows"][1:]
        known = domain in styles
        styles.setdefault(domain, [*STYLES.values()][len(styles)])
        color, line, marker = styles[domain]
        u, success = [row["u"] for row in rows], [row["test"]["success"] for row in rows]
        style = {"color": color, "linestyle": line, "marker": marker, "markersize": 3.5}
        axes.plot(u, success, label=None if known else domain, **style)
        at = task["chosen"]
        if at:  # weight 0 is not on this axis
            axes.plot(u[at - 1], success[at - 1], "*", ms=13, color="black", mfc="none")
    axes.set(xscale="log")
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.set_xlabel("u = w rms(g) / rms(v), all tasks", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower center")


def say(data: dict[str, Any]) -> str:
    """Compare with the paper: success rises quickly with w, then falls."""
    tasks, parts = data["tasks"], []
    for task in tasks:
        rows, peak = task["rows"], task["rows"][task["peak"]]
        start, best, end = (rate(row["test"]) for row in (rows[0], peak, rows[-1]))
        failed = "" if _agrees(task) else " (no rise and fall)"
        parts.append(
            f"{short(task['env'])} {start}, {best} at w = {peak['weight']:g}, {end}{failed}"
        )
    agree = sum(map(_agrees, tasks))
    clear = sum(task["rise"][1][0] > 0 and task["fall"][1][0] > 0 for task in tasks)
    verdict = "as the paper says" if agree == len(tasks) else "unlike the paper"
    first = tasks[0]["rows"]
    return (
        "The paper finds that success rises quickly with the guidance weight w and falls again as "
        "actions leave the data. QGF's success (95% intervals) without guidance, at the best "
        f"weight between (chosen on tune episodes) and at w = {first[-1]['weight']:g}, on "
        f"{first[0]['test']['episodes']} test episodes (training seeds: {data['training_seeds']}): "
        f"{'; '.join(parts)}. It rises and falls on {agree} of {len(tasks)} tasks, {verdict}; on "
        f"{clear} of them the paired 95% intervals of both the rise and the fall exclude 0. "
        f"{_why(tasks)}{_spread(tasks)}"
    )


def _agrees(task: dict) -> bool:
    return task["rise"][0] > 0 and task["fall"][0] > 0


def _why(tasks: list[dict]) -> str:
    """Say what the critic and the distance do between the peak and the largest weight."""
    pairs = [(task["rows"][task["peak"]], task["rows"][-1]) for task in tasks]
    near, far = (float(np.mean([pair[i]["moved"] for pair in pairs])) for i in (0, 1))
    higher = sum(last["q_gain"] > peak["q_gain"] for peak, last in pairs)
    return (
        "From the best weight to the largest, the actions' rms distance from the cloned ones goes "
        f"from {near:.2f} to {far:.2f} a dimension, and the critic's Q is higher at the largest on "
        f"{higher} of {len(tasks)} tasks."
    )


def _spread(tasks: list[dict]) -> str:
    """Say how far apart the tasks' chosen weights lie, in w and in u."""
    chosen = [task["rows"][task["chosen"]] for task in tasks]
    none = sum(row["weight"] == 0 for row in chosen)
    said = f" Tune episodes choose w = 0 on {none} of {len(tasks)} tasks." if none else ""
    w, u = (np.array([row[key] for row in chosen if row["weight"]]) for key in ("weight", "u"))
    if len(w) == 0:
        return said
    narrower = "closer together" if max(u) / min(u) < max(w) / min(w) else "not closer together"
    return (
        f"{said} The chosen weights lie between {min(w):g} and {max(w):g} in w (ratio "
        f"{max(w) / min(w):.1f}), and between {min(u):.2g} and {max(u):.2g} in the unitless u = "
        f"w rms(g) / rms(v) (ratio {max(u) / min(u):.1f}): {narrower} in u."
    )
