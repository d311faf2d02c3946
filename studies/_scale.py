"""Episodes at many guidance weights, and what these weights are without units."""

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from qgf.act import flow_sizes
from qgf.comparison import (
    STATES,
    Plan,
    Setting,
    Variant,
    learners,
    read_episodes,
    run_episodes,
    run_folder,
    variant,
)
from qgf.evaluation import figures
from qgf.methods import bind
from qgf.run import SettingResult, choose, load_record, of_seed, validation_batch

Outcomes = Float[np.ndarray, "seed _ 4"]  # episodes of any number


def sweep(plan: Plan, env: str, split: str, weights: Collection[float]) -> dict[float, Outcomes]:
    """Return the episodes of QGF at every weight, running those that are not there yet."""
    run_episodes(plan, env, split, guided(plan, env, weights))
    return {w: read_episodes(plan, _name(w), env, split, (w, 1)) for w in weights}


def guided(plan: Plan, env: str, weights: Collection[float]) -> dict[str, Variant]:
    """Return QGF at every weight, for `run_episodes`."""
    return {
        name: variant(plan, name, env, [(w, 1) for w in weights if _name(w) == name])
        for name in ("bc", "qgf")
    }


def _name(weight: float) -> str:
    # Weight 0 is the cloned policy: under its own name its episodes are those of all methods.
    return "qgf" if weight else "bc"


def per_seed(plan: Plan, env: str, what: Callable) -> list:
    """Return a function of `qgf.act.calibration` for every training seed of a task."""
    record = load_record(run_folder(plan, "critic", env))  # which knows of goals
    batch, both = validation_batch(record, STATES), learners(plan, "qgf", env)
    found = []
    for i in range(len(plan.seeds)):
        one = bind(of_seed(both, i), batch.obs, batch.goal)
        found.append(what(one["policy"], one["critic"], batch.action, plan.config.denoise_steps))
    return found


def flow_sizes_by_seed(plan: Plan, env: str) -> dict[str, list[float]]:
    """Return rms(v) and rms(g) of every training seed of a task."""
    v, g = np.array(per_seed(plan, env, flow_sizes), float).T.tolist()
    return {"rms_velocity": v, "rms_gradient": g}


def typical_scale(sizes: dict[str, list[float]]) -> float:
    """Return the geometric mean over training seeds of rms(v) / rms(g)."""
    v, g = np.array(sizes["rms_velocity"]), np.array(sizes["rms_gradient"])
    return float(np.exp(np.log(v / g).mean()))


def best(tasks: Iterable[dict[float, Outcomes]]) -> float:
    """Return the setting with the best episodes of all tasks together (`qgf.run.choose`)."""
    tasks = [*tasks]
    rows = [
        SettingResult(s, 1, figures(np.concatenate([task[s] for task in tasks], axis=1)))
        for s in tasks[0]
    ]
    return choose(rows).weight


def tuned(plan: Plan, name: str, env: str, settings: Sequence[Setting]) -> float:
    """Return the weight with the best tune episodes, which have been run (`qgf.run.choose`).

    Where there is no choice, no tune episodes are needed.
    """
    if len(settings) == 1:
        return settings[0][0]
    return best([{s[0]: read_episodes(plan, name, env, "tune", s) for s in settings}])


def short(env: str) -> str:
    """Return a task's name as figures and words have it, e.g. "cube-single task2"."""
    return env.replace("-play-singletask-", " ").removesuffix("-v0")


def rate(found: dict) -> str:
    """Return the success rate of `figures` with its interval, e.g. "94% (84 to 98)"."""
    low, high = found["ci95"]
    return f"{found['success']:.0%} ({100 * low:.0f} to {100 * high:.0f})"
