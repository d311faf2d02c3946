"""The same cloned policy under different critics: success, and how right each critic is."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qgf.comparison import (
    Plan,
    Variant,
    learners,
    other_critics,
    read_episodes,
    run_episodes,
    run_folder,
    spec,
    train_to_end as train,
    trained,
    training,
    trainings,
)
from qgf.config import Config
from qgf.evaluation import figures, paired_difference
from qgf.executor import Executor, execute
from qgf.files import read_value, write_value
from qgf.learners import IQL as IQLCritic
from qgf.methods import METHODS, Learners, settings
from qgf.run import load_learner, of_seed
from studies._rollouts import Chunks, accuracies, ranks, roll_out
from studies._runs import CUBE, study_plan
from studies._scale import rate, short, tuned

ENV = CUBE.format(2)
LIMIT = 200  # environment steps: its own time limit, within which critics are asked
EXPECTILES = {"smoke": (), "laptop": (0.7, 0.97), "paper": (0.7, 0.97)}
GRID = tuple(weight for weight, _ in settings("qgf"))
WEIGHTS = {"smoke": (0.1,), "laptop": GRID, "paper": GRID}
ROLLOUTS = {"smoke": 1, "laptop": 10, "paper": 30}  # episodes of a training seed
IQL, BOOTSTRAPPED = "qgf", "qgf-bootstrapped"  # named as `protocol` does, to share episodes
LABELS = {
    IQL: "IQL 0.9",
    "critic-mean": "IQL 0.9, mean of two",
    "qgf-monte-carlo": "Monte Carlo",
    BOOTSTRAPPED: "bootstrapped",
}
POLICIES = {"cloned": ("#0072b2", "o"), "guided": ("#d55e00", "s")}


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return success under every critic, and its Q against the returns of real episodes."""
    plan = study_plan(preset, out, (ENV,), executor)
    loads, episodes = _loads(plan, preset), ROLLOUTS[preset]
    if executor is not None:
        others = dict(_other(plan, expectile) for expectile in EXPECTILES[preset])
        jobs = trainings(plan, [name for name in loads if name in METHODS], [ENV])
        execute([*jobs, *other_critics(plan, ENV, others)], executor, "steps")
    tried = [(w, 1) for w in WEIGHTS[preset]]
    arms = {name: Variant(METHODS["qgf"], load, tried) for name, load in loads.items()}
    run_episodes(plan, ENV, "tune", arms)
    for name, arm in arms.items():
        arms[name] = arm._replace(settings=[(tuned(plan, name, ENV, tried), 1)])
    arms["bc"] = Variant(METHODS["bc"], loads[IQL], [(0.0, 1)])
    run_episodes(plan, ENV, "test", arms)
    tests = {n: read_episodes(plan, n, ENV, "test", arm.settings[0]) for n, arm in arms.items()}
    cloned = functools.cache(lambda: _roll_out(plan, loads[IQL](), 0.0, episodes))
    rows = []
    for name, load in loads.items():
        weight, wins = arms[name].settings[0][0], tests[name][..., 0] > 0
        row = {
            "name": name,
            "label": _label(name),
            "weight": weight,
            "test": figures(tests[name]).json(),
        }
        row["over_iql"] = paired_difference(wins, tests[IQL][..., 0] > 0)
        path = plan.out / "critics" / f"accuracy {name} {weight:g}.json"
        if not path.exists():
            print(f"rolling out {name} on {ENV}", flush=True)
            held = load()
            guided = _roll_out(plan, held, weight, episodes)
            write_value(path, accuracies(held["critic"], cloned(), guided))
        rows.append(row | read_value(path))
    return {
        "env": ENV,
        "training_seeds": len(plan.seeds),
        "rollouts": episodes * len(plan.seeds),
        "discount": plan.config.discount,
        "bc": figures(tests["bc"]).json(),
        "critics": rows,
    }


def _loads(plan: Plan, preset: str) -> dict[str, Callable[[], Learners]]:
    """Return how the learners of every critic are read, and trained where they are not there."""
    loads = {IQL: lambda: learners(plan, IQL, ENV), "critic-mean": lambda: averaged(loads[IQL]())}
    for expectile in EXPECTILES[preset]:
        load = functools.partial(_other_expectile, plan, expectile)
        loads[f"critic-expectile-{expectile:g}"] = load
    loads["qgf-monte-carlo"] = lambda: learners(plan, "qgf-monte-carlo", ENV)
    # It takes an hour to train on a laptop: there it has part only if that has been done.
    folder = training(plan, "qam-bootstrapped", ENV).path
    if preset == "paper" or (preset == "laptop" and trained(folder, plan.config)):
        loads[BOOTSTRAPPED] = lambda: learners(plan, BOOTSTRAPPED, ENV)
    return loads


def averaged(held: Learners) -> Learners:
    """Return the learners with a critic that is its networks' mean, not their minimum."""
    critic = held["critic"]
    config = critic.config.having(dataclasses.replace(critic.hyper, aggregation="mean"))
    return held | {"critic": dataclasses.replace(held["critic"], config=config)}


def _other(plan: Plan, expectile: float) -> tuple[Path, Config]:
    """Return the folder and the settings of an IQL critic of another expectile."""
    folder = plan.out / "critics" / f"expectile-{expectile:g}"
    return folder, plan.config.having(IQLCritic.Hyper(expectile=expectile))


def _other_expectile(plan: Plan, expectile: float) -> Learners:
    """Return the cloned policy and an IQL critic of another expectile."""
    folder, config = _other(plan, expectile)
    train(plan, ENV, folder, config, policy=run_folder(plan, "policy", ENV))
    return {role: load_learner(folder, role) for role in ("policy", "critic")}


def _label(name: str) -> str:
    return LABELS.get(name) or name.replace("critic-expectile-", "IQL ")


def _roll_out(plan: Plan, held: Learners, weight: float, episodes: int) -> list[Chunks]:
    return [
        roll_out(ENV, spec(plan, ENV), of_seed(held, i), weight, episodes, LIMIT)
        for i in range(len(plan.seeds))
    ]


def draw(data: dict[str, Any]) -> Figure:
    """Draw success, rank correlation and bias of every critic."""
    rows = data["critics"]
    figure = Figure((7.5, 1.4 + 0.35 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    at = np.arange(len(rows))
    success = np.array([row["test"]["success"] for row in rows])
    low, high = np.array([row["test"]["ci95"] for row in rows]).T
    error = (success - low, high - success)
    panels[0].errorbar(success, at, xerr=error, fmt="D", color="black", ms=5, capsize=2)
    panels[0].axvline(data["bc"]["success"], color="#999999", ls=":", label="BC, unguided")
    panels[0].set(xlabel="success of QGF", xlim=(-0.03, 1.03), yticks=at)
    panels[0].set_yticklabels([row["label"] for row in rows])
    panels[0].invert_yaxis()
    for axes, figure_of in ((panels[1], "spearman"), (panels[2], "bias")):
        for policy, (color, marker) in POLICIES.items():
            values = [row[policy][figure_of] for row in rows]
            values = [np.nan if value is None else value for value in values]
            axes.plot(values, at, marker, color=color, ms=5, label=f"on the {policy} policy")
    panels[1].set(xlabel="rank correlation of\nQ and return")
    panels[2].set(xlabel="bias of Q:\nmean of Q − return")
    panels[2].axvline(0, color="black", lw=0.8)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    handles = [panel.get_legend_handles_labels() for panel in panels[:2]]
    handles, labels = ([*a, *b] for a, b in zip(*handles, strict=True))
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper left", ncols=3)
    return figure


def say(data: dict[str, Any]) -> str:
    """Compare with the paper: a better critic, the bootstrapped one, makes QGF better."""
    rows, test = data["critics"], data["bc"]["episodes"]
    listed = "; ".join(
        f"{row['label']} {rate(row['test'])} at w = {row['weight']:g}, {_right(row)}"
        for row in rows
    )
    return (
        "The paper finds that a better critic (bootstrapped from QAM's own actions) makes QGF "
        f"better with no other change. On {short(data['env'])} the same cloned policy, unguided "
        f"{rate(data['bc'])}, is guided by each critic, w chosen on tune episodes: success on "
        f"{test} test episodes over {data['training_seeds']} training seeds (95% Wilson "
        "intervals), then rank correlation, bias and root mean square error of Q against the "
        f"discounted returns of {data['rollouts']} real episodes, run on past their time limit, of "
        f"the cloned | the guided policy: {listed}. The cloned policy's mean return is "
        f"{rows[0]['cloned']['return']:.1f}, that of never solving "
        f"{-1 / (1 - data['discount']):.0f}: where the two are close, its ranks say little. IQL "
        "estimates a value between that of the data's policy and that of the best actions in the "
        "data, nearer the latter at higher expectiles, so that a bias above 0 on the cloned policy "
        "is meant; Monte Carlo the value of the data's policy; the bootstrapped critic that of "
        "QAM's. "
        f"{_bootstrapped(rows)} {_others(rows)}"
    )


def _right(row: dict) -> str:
    parts = []
    for policy in POLICIES:
        found = row[policy]
        rho = "none" if found["spearman"] is None else f"{found['spearman']:.2f}"
        parts.append(f"{rho}, {found['bias']:+.1f}, {found['rmse']:.1f}")
    return " | ".join(parts)


def _bootstrapped(rows: list[dict]) -> str:
    found = [row for row in rows if row["name"] == BOOTSTRAPPED]
    if not found:
        return (
            "The bootstrapped critic, which the claim is about, was left out, as none was trained "
            "here: the claim itself is not tested."
        )
    gain, (low, high) = found[0]["over_iql"]
    verdict = "unlike the paper" if gain <= 0 else "as the paper says"
    if low <= 0 < gain:
        verdict = "the direction is the paper's, but the interval holds 0"
    return (
        f"The bootstrapped critic gains {100 * gain:+.0f} points over IQL 0.9 (95% paired interval "
        f"{100 * low:+.0f} to {100 * high:+.0f}): {verdict}."
    )


def _others(rows: list[dict]) -> str:
    """Say which critics differ from IQL 0.9, and whether the more accurate ones succeed more."""
    sure = [r["label"] for r in rows if r["over_iql"][1][0] > 0 or r["over_iql"][1][1] < 0]
    said = f"Of IQL 0.9 differ beyond their paired 95% interval: {', '.join(sure) or 'none'}."
    known = [row for row in rows if row["cloned"]["spearman"] is not None]
    rho = np.array([row["cloned"]["spearman"] for row in known])
    success = np.array([row["test"]["success"] for row in known])
    if len(known) < 3 or not (np.ptp(rho) and np.ptp(success)):
        return f"{said} Whether more accurate critics succeed more cannot be told from these."
    order = float(np.corrcoef(ranks(rho), ranks(success))[0, 1])
    verdict = "do" if order > 0.5 else "do not"
    return (
        f"{said} Critics that rank the cloned policy's chunks better {verdict} succeed more (rank "
        f"correlation {order:.2f} over {len(known)} critics, too few for more than a hint)."
    )
