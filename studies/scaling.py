"""Success and losses against the size of the networks, for QGF and for QAM."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qgf.comparison import (
    Plan,
    check_facts,
    read_episodes,
    run_episodes,
    run_folder,
    trainings,
    variant,
)
from qgf.evaluation import figures
from qgf.executor import Executor, execute
from qgf.methods import settings
from qgf.run import load_learner
from studies._runs import CUBE, study_plan
from studies._scale import best, rate, sweep
from studies.sensitivity import STYLES

ENV = CUBE.format(2)
WIDTHS = {"smoke": (32,), "laptop": (64, 128, 256), "paper": (512, 1024, 2048)}
WEIGHTS = {
    "smoke": (0.1,),
    "laptop": (0.03, 0.1, 0.3),
    "paper": tuple(weight for weight, _ in settings("qgf")),
}
# A gradient step of QAM costs 20 of cloning: on a laptop all methods take fewer, of one seed.
BRIEF = {"steps": 4_000, "log_every": 500, "validate_every": 500, "checkpoint_every": 1_000}
ROLES = ("policy", "critic", "qam")  # each a run of its own
METHODS = {"qgf": STYLES["qgf"], "qam": STYLES["qfql"], "bc": STYLES["qgf-jacobian-smooth"]}
RISE = 0.05  # of the validation loss above its lowest, from which on it counts as overfitting

Curve = Sequence  # of (step, loss); pairs are lists once read from a file


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return for every width the parameters, success and loss curves of QGF, QAM and BC."""
    base = study_plan(preset, out, (ENV,), executor)
    plans = [plan_of(base, preset, width) for width in WIDTHS[preset]]
    if executor is not None:
        jobs = [job for plan in plans for job in trainings(plan, ["qgf", "qam"], [ENV], base.out)]
        execute(jobs, executor, "steps")
    return {
        "env": ENV,
        "training_seeds": len(plans[0].seeds),
        "steps": plans[0].config.steps,
        "rows": [_row(plan, WEIGHTS[preset]) for plan in plans],
    }


def plan_of(plan: Plan, preset: str, width: int) -> Plan:
    """Return the plan of networks of one width, in a folder of its own beside the same data."""
    out = plan.out / "scaling" / f"width-{width}"
    if width == plan.config.width and preset != "laptop":
        return plan  # the networks of all studies
    plan = dataclasses.replace(plan, out=out, config=dataclasses.replace(plan.config, width=width))
    if preset == "laptop":
        config = dataclasses.replace(plan.config, **BRIEF)
        counts = {"tune": 10, "test": 50}
        plan = dataclasses.replace(plan, config=config, seeds=(0,), counts=counts)
    check_facts(plan)
    return plan


def _row(plan: Plan, weights: tuple[float, ...]) -> dict[str, Any]:
    weight = best([sweep(plan, ENV, "tune", weights)])
    chosen = {"qgf": (weight, 1), "qam": (0.0, 1), "bc": (0.0, 1)}
    arms = {name: variant(plan, name, ENV, [setting]) for name, setting in chosen.items()}
    run_episodes(plan, ENV, "test", arms)
    test = {
        name: figures(read_episodes(plan, name, ENV, "test", setting)).json()
        for name, setting in chosen.items()
    }
    runs = {role: run_folder(plan, role, ENV) for role in ROLES}
    held = {role: load_learner(run, role) for role, run in runs.items()}
    actor, judge, tuned = (
        parameters(tree) // len(plan.seeds)
        for tree in (held["policy"], held["critic"].target_q, held["qam"])
    )
    return {
        "width": plan.config.width,
        "actor_parameters": actor,
        "acting_parameters": {"qgf": actor + judge, "qam": tuned, "bc": actor},
        "weight": weight,
        "tune_episodes": plan.counts["tune"] * len(plan.seeds),
        "test": test,
        "losses": {role: losses(run) for role, run in runs.items()},
    }


def parameters(tree: Any) -> int:
    """Return how many numbers the arrays of a learner hold, of all training seeds."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def losses(run: Path) -> dict[str, Curve]:
    """Return a run's loss, averaged over training seeds, at every logged step of each split."""
    found: dict = {split: collections.defaultdict(list) for split in ("train", "validation")}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        found[line["split"]][line["step"]].append(line["loss"])
    return {
        split: [(step, float(np.mean(values))) for step, values in sorted(curve.items())]
        for split, curve in found.items()
    }


def rise(curves: dict[str, Curve]) -> tuple[float, float]:
    """Return by which share validation and training loss change after the lowest validation loss.

    Overfitting is a rise of the first with a fall of the second.
    """
    step, lowest = min(curves["validation"], key=lambda point: point[1])
    train = dict(map(tuple, curves["train"]))
    end = curves["train"][-1][1]
    return curves["validation"][-1][1] / lowest - 1, end / train[step] - 1


def overfits(curves: dict[str, Curve]) -> bool:
    validation, train = rise(curves)
    return validation > RISE and train < 0


def draw(data: dict[str, Any]) -> Figure:
    """Draw success against parameters, and the losses of every width against gradient steps."""
    figure = Figure((7.5, 6), layout="constrained")
    first, *others = figure.subplots(2, 2).ravel()
    _draw_success(first, data["rows"])
    for axes, role in zip(others, ROLES, strict=True):
        for row, (color, line, _) in zip(data["rows"], STYLES.values(), strict=False):
            curves = row["losses"][role]
            label = million(row["actor_parameters"])
            axes.plot(*zip(*curves["train"], strict=True), color=color, ls=":", lw=1.2)
            points = zip(*curves["validation"], strict=True)
            axes.plot(*points, color=color, ls=line, marker=".", label=label)
        axes.set(xlabel="gradient steps", ylabel=f"loss of {role}", yscale="log")
    others[0].plot([], [], color="black", ls=":", label="training")
    others[0].legend(frameon=False, fontsize=7)
    for axes in (first, *others):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    return figure


def _draw_success(axes: Axes, rows: list[dict]) -> None:
    sizes = np.array([row["actor_parameters"] for row in rows])
    for i, (name, (color, line, marker)) in enumerate(METHODS.items()):
        success = np.array([row["test"][name]["success"] for row in rows])
        low, high = np.array([row["test"][name]["ci95"] for row in rows]).T
        style = {"color": color, "linestyle": line, "marker": marker, "markersize": 4}
        apart = sizes * 1.05 ** (i - 1)  # so that intervals do not cover each other
        error = (success - low, high - success)
        axes.errorbar(apart, success, error, capsize=2, label=name, **style)
    axes.set(xscale="log", xlabel="parameters of the actor", ylabel="success", ylim=(-0.05, 1.05))
    axes.legend(frameon=False, fontsize=7)


def million(count: int) -> str:
    return f"{count / 1e6:.2g}M"


def say(data: dict[str, Any]) -> str:
    """Compare with the paper: QGF gains from larger networks, QAM does not; both overfit."""
    rows, seeds = data["rows"], data["training_seeds"]
    listed = "; ".join(
        f"{million(row['actor_parameters'])}: "
        + ", ".join(f"{name} {rate(row['test'][name])}" for name in METHODS)
        for row in rows
    )
    agrees = _gains(rows, "qgf") and not _gains(rows, "qam")
    return (
        "The paper finds that from 0.8M to 3.2M parameters QGF gains about fourfold and QAM "
        f"nothing, and that both overfit at 12.7M, where QAM collapses. On {data['env']}, after "
        f"{data['steps']:,} gradient steps for every network, success on "
        f"{rows[0]['test']['qgf']['episodes']} test episodes over {seeds} training "
        f"seed{'s' * (seeds > 1)} (95% Wilson intervals), by size of the actor, is: {listed}. "
        f"{_gain(rows, 'qgf')} {_gain(rows, 'qam')} That is "
        f"{'as' if agrees else 'not what'} the paper says of gains. {_overfitting(rows)}"
    )


def _ends(rows: list[dict], name: str) -> tuple[dict, dict]:
    """Return the rows of the smallest size and of a method's best."""
    return rows[0], max(rows, key=lambda row: row["test"][name]["success"])


def _gains(rows: list[dict], name: str) -> bool:
    first, top = (row["test"][name] for row in _ends(rows, name))
    return top["ci95"][0] > first["ci95"][1]


def _gain(rows: list[dict], name: str) -> str:
    size = million(_ends(rows, name)[1]["actor_parameters"])
    first, top = (row["test"][name] for row in _ends(rows, name))
    if top["success"] == first["success"]:
        return f"{name} is nowhere better than at the smallest size, with {rate(first)}."
    times = f"{top['success'] / first['success']:.1f} times, " if first["success"] else ""
    apart = "apart" if _gains(rows, name) else "overlapping, so that it may be chance"
    return (
        f"{name} goes from {rate(first)} at the smallest size to {rate(top)} at its best, {size} "
        f"({times}intervals {apart})."
    )


def _overfitting(rows: list[dict]) -> str:
    """Say which losses overfit at the largest size, and whether QAM collapses there."""
    losses, tests = rows[-1]["losses"], [row["test"]["qam"] for row in rows]
    parts = []
    for role in ROLES:
        validation, train = rise(losses[role])
        verdict = "overfits" if overfits(losses[role]) else "does not overfit"
        parts.append(f"{role} {verdict} ({validation:+.0%} and {train:+.0%})")
    end, top = tests[-1], max(tests, key=lambda test: test["success"])
    collapses = end["ci95"][1] < top["ci95"][0]
    seen = overfits(losses["policy"]) and overfits(losses["qam"]) and collapses
    return (
        "At the largest size, by how far validation and training loss end from where the "
        f"validation loss was lowest: {', '.join(parts)} (the critic's targets move, so that its "
        f"loss may rise for that alone). QAM {'collapses' if collapses else 'does not collapse'} "
        f"there, with {rate(end)}: what the paper says of the largest size is "
        f"{'seen' if seen else 'not seen'} here."
    )
