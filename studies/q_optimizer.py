"""How high each estimator drives Q, how far from the data that leads, and what it is worth."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from qgf.act import sample_actions
from qgf.comparison import Plan, Setting, learners, read_episodes, run_episodes, run_folder, variant
from qgf.core import ESTIMATORS, Sampled, refuse_failed
from qgf.data import Batch, GoalBatch
from qgf.evaluation import figures, paired_difference
from qgf.executor import Executor
from qgf.methods import Bound, Learners, Method, bind, find_method
from qgf.run import load_record, of_seed, validation_batch
from studies._likelihood import log_likelihood
from studies._neighbours import Neighbours, training_points
from studies._runs import CUBE, study_plan
from studies._scale import tuned
from studies.sensitivity import STYLES

ENV = CUBE.format(2)
WEIGHTS = {
    "smoke": (0.1,),
    "laptop": (0.01, 0.03, 0.1, 0.3),
    "paper": (0.004, 0.008, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12),
}
STATES = {"smoke": 16, "laptop": 512, "paper": 1024}
SMOKE = ("qgf", "qfql")  # the other estimators take seconds each to compile
BEST_OF = 16
POINTS: dict[str, list[Setting]] = {"bc": [(0.0, 1)], "bfn": [(0.0, BEST_OF)]}  # nothing to tune
LABELS = {"bc": "BC", "bfn": f"best of {BEST_OF}"}
MEASURES = ("q", "distance", "log_likelihood")
LIKELIHOOD_STEPS = 10  # on trained policies the mean is within 0.1 nats of that of 160

Row = dict[str, Any]


def measure(preset: str, out: Path, executor: Executor | None, env: str = ENV) -> dict[str, Any]:
    """Return Q, distance, log-likelihood and success of every estimator at every weight."""
    names = SMOKE if preset == "smoke" else (*ESTIMATORS,)
    settings = POINTS | {name: [(w, 1) for w in WEIGHTS[preset]] for name in names}
    plan = study_plan(preset, out, (env,), executor, [*settings])
    variants = {name: variant(plan, name, env, found) for name, found in settings.items()}
    searched = {name: variants[name] for name, found in settings.items() if len(found) > 1}
    run_episodes(plan, env, "tune", searched)
    run_episodes(plan, env, "test", variants)
    chosen = {name: tuned(plan, name, env, found) for name, found in settings.items()}
    rows = {
        name: [_episodes(plan, name, env, setting, chosen["qgf"]) for setting in found]
        for name, found in settings.items()
    }
    record = load_record(run_folder(plan, "critic", env))
    batch, every = validation_batch(record, STATES[preset]), learners(plan, "qgf", env)
    noise = jax.random.normal(jax.random.key(0), (BEST_OF, *batch.action.shape))
    neighbours = Neighbours(training_points(record))
    seeds = [of_seed(every, i) for i in range(len(plan.seeds))]
    bound = [bind(one, batch.obs, batch.goal) for one in seeds]
    for name, row in ((name, row) for name, found in rows.items() for row in found):
        method, draws, weight = find_method(name), noise[: row["samples"]], row["weight"]
        sampled = [_act(method, one, batch, draws, jnp.asarray(weight)) for one in seeds]
        for _, counts in sampled:
            refuse_failed(counts)
        row |= judge(bound, batch.obs, [actions for actions, _ in sampled], neighbours)
        row["gain"] = row["q"] - rows["bc"][0]["q"]  # BC is the first
    return {
        "env": env,
        "states": len(batch.obs),
        "seeds": len(seeds),
        "tune_episodes": plan.counts["tune"] * len(seeds),
        "test_episodes": plan.counts["test"] * len(seeds),
        "data": judge(bound, batch.obs, [batch.action] * len(seeds), neighbours),
        "chosen": chosen,
        "rows": rows,
    }


def _episodes(plan: Plan, name: str, env: str, setting: Setting, qgf_weight: float) -> Row:
    """Return the test episodes of a setting, and how far ahead of it QGF is at its own weight."""
    outcomes = read_episodes(plan, name, env, "test", setting)
    ours = read_episodes(plan, "qgf", env, "test", (qgf_weight, 1))
    found = figures(outcomes)
    ahead, interval = paired_difference(ours[..., 0] > 0, outcomes[..., 0] > 0)
    return {
        "weight": setting[0],
        "samples": setting[1],
        "success": found.success,
        "ci95": found.ci95,
        "qgf_ahead": ahead,
        "qgf_ahead_ci95": interval,
    }


@eqx.filter_jit
def _act(
    method: Method, learners: Learners, batch: Batch | GoalBatch, noise: Array, weight: Array
) -> Sampled:
    weights = jnp.full(len(batch.obs), weight)
    return sample_actions(method, learners, batch.obs, noise, weights, goal=batch.goal)


_likelihood = eqx.filter_jit(log_likelihood)


def judge(
    seeds: list[Bound],
    obs: Float[Array, "batch obs"],
    actions: list[Float[Array, "batch action"]],
    neighbours: Neighbours,
) -> dict[str, float]:
    """Return mean Q, distance from the data, and log-likelihood under the policy, in nats.

    Means over the batch and training seeds, each with actions of its own. Distances are those
    of `Neighbours` in the joint space of observation and action chunk.
    """
    found = []
    for one, action in zip(seeds, actions, strict=True):
        q = one["critic"](action).mean()
        distance = neighbours.distance(np.concatenate([obs, action], axis=1)).mean()
        likelihood = _likelihood(one["policy"], action, steps=LIKELIHOOD_STEPS).mean()
        found.append([q, distance, likelihood])
    return dict(zip(MEASURES, np.mean(found, axis=0).tolist(), strict=True))


def draw(data: dict[str, Any]) -> Figure:
    """Draw success, distance and log-likelihood against the gain in Q, a curve an estimator."""
    figure = Figure((7.5, 3.4), layout="constrained")
    panels = {
        "success": "success rate",
        "distance": "distance from the data",
        "log_likelihood": "log-likelihood, nats",
    }
    (plain,), (best,) = data["rows"]["bc"], data["rows"]["bfn"]
    for axes, (key, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in _estimators(data):
            color, line, marker = STYLES[name]
            # At weight 0 every estimator is the cloned policy.
            x, y = ([row[of] for row in (plain, *data["rows"][name])] for of in ("gain", key))
            style = {"color": color, "linestyle": line, "marker": marker, "markersize": 4}
            axes.plot(x, y, label=name, lw=1.2, markevery=slice(1, None), **style)
        for row, name, marker in ((plain, "bc", "o"), (best, "bfn", "*")):
            style = {"c": "#f0e442", "edgecolors": "black", "marker": marker, "zorder": 3}
            axes.scatter(row["gain"], row[key], s=70, label=LABELS[name], **style)
        if key in data["data"]:
            axes.axhline(data["data"][key], color="#555555", lw=1, ls=":", label="validation data")
        axes.set(xlabel="gain in Q over BC", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=7, loc="outside upper left", ncols=4)
    return figure


def _estimators(data: dict[str, Any]) -> list[str]:
    return [name for name in data["rows"] if name not in POINTS]


def at_chosen(data: dict[str, Any], name: str) -> Row:
    """Return a method's row at its chosen weight."""
    return next(row for row in data["rows"][name] if row["weight"] == data["chosen"][name])


def at_equal_q(data: dict[str, Any], name: str) -> Row:
    """Return a method's row whose gain in Q is nearest to QGF's at its chosen weight."""
    target = at_chosen(data, "qgf")["gain"]
    return min(data["rows"][name], key=lambda row: abs(row["gain"] - target))


def verdicts(data: dict[str, Any]) -> dict[str, bool]:
    """Return which parts of the paper's claim the data bear out; a tie bears out nothing."""
    rows, names = data["rows"], _estimators(data)
    success = {name: at_chosen(data, name)["success"] for name in rows}

    def beats(name: str, figure: dict[str, float]) -> bool:
        return all(figure[name] > value for other, value in figure.items() if other != name)

    return {
        "qfql reaches the highest Q": beats(
            "qfql", {name: max(row["q"] for row in found) for name, found in rows.items()}
        ),
        "qfql's actions are the farthest from the data": beats(
            "qfql", {name: rows[name][-1]["distance"] for name in names}
        ),
        "qfql succeeds least": beats("qfql", {name: -success[name] for name in names}),
        "qgf succeeds most": beats("qgf", {name: success[name] for name in names}),
        f"best of {BEST_OF} is ahead of qgf": success["bfn"] > success["qgf"],
    }


def say(data: dict[str, Any]) -> str:
    """Compare with the paper: qfql reaches the highest Q, qgf the most success."""
    rows, names = data["rows"], _estimators(data)
    chosen = {name: at_chosen(data, name) for name in rows}
    last = {name: rows[name][-1] for name in names}
    equal = {name: at_equal_q(data, name) for name in names}
    peak = {name: max(row["q"] for row in found) for name, found in rows.items()}
    top = max(peak, key=lambda name: peak[name])
    rival = max((n for n in names if n != "qgf"), key=lambda n: chosen[n]["success"])
    held = verdicts(data)
    yes = "; ".join(part for part, holds in held.items() if holds)
    no = "; ".join(part for part, holds in held.items() if not holds)
    return (
        "The paper finds that the gradient at the noisy action (qfql) raises Q the most, but with "
        "actions the farthest from the data and the least success, and that qgf succeeds most of "
        f"all estimators, behind best-of-N alone. On {data['env']}, averaged over training seeds "
        f"({data['seeds']}) and validation states ({data['states']}), the highest Q of any weight "
        f"is {peak[top]:.3g}, of {LABELS.get(top, top)}; qfql reaches {peak['qfql']:.3g}, qgf "
        f"{peak['qgf']:.3g}, BC {peak['bc']:.3g}. The following are gain in Q over BC (same "
        f"noise), success in {data['test_episodes']} test episodes (95% interval), and mean "
        f"distance from the training data, where the validation data's own actions have "
        f"{data['data']['distance']:.3f}. At the weight chosen, where there is a choice, on "
        f"{data['tune_episodes']} other episodes: {_list(chosen)}. At the largest: {_list(last)}. "
        f"Where the gain is nearest to that of qgf's chosen weight: {_list(equal)}. Paired, qgf's "
        f"success is ahead of BC's by {_ahead(chosen['bc'])} and of {rival}'s by "
        f"{_ahead(chosen[rival])}; an interval that holds 0 does not tell two apart. "
        + (f"As the paper says: {yes}. " if yes else "No part is as the paper says. ")
        + (f"Unlike the paper, these do not hold: {no}." if no else "Nothing contradicts it.")
    )


def _list(rows: dict[str, Row]) -> str:
    """Return every method's gain in Q, success and distance, the most successful first."""
    parts = []
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["success"]):
        label = LABELS.get(name, f"{name} (w = {row['weight']:g})")
        low, high = row["ci95"]
        success = f"{row['success']:.0%} ({low:.0%} to {high:.0%})"
        parts.append(f"{label} {row['gain']:+.2g}, {success}, {row['distance']:.3f}")
    return "; ".join(parts)


def _ahead(row: Row) -> str:
    low, high = row["qgf_ahead_ci95"]
    return f"{100 * row['qgf_ahead']:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"
