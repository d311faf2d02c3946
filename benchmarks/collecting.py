"""Environment steps a second while collecting, beside OGBench's environment and bare MuJoCo."""

import time
from collections.abc import Callable

import gymnasium
import mujoco
import numpy as np
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from qgf.tasks.ogbench import EnvName, _oracles, collect, make_env

ORACLES = {
    "cube": CubePlanOracle,
    "button": ButtonPlanOracle,
    "drawer": DrawerPlanOracle,
    "window": WindowPlanOracle,
}

DATASETS = ("cube-single-play-v0", "cube-double-play-v0", "scene-play-v0", "puzzle-3x3-play-v0")
STEPS = 300
ROUNDS = 5


def measure() -> dict:
    """Return steps a second on one core, and ratios: medians over rounds that take turns.

    Ours; OGBench's own environments and oracles in the same loop; mj_step alone.
    """
    return {name: _dataset(EnvName.parse(name)) for name in DATASETS}


def _dataset(name: EnvName) -> dict:
    options = {
        "terminate_at_goal": False,
        "mode": "data_collection",
        "max_episode_steps": STEPS,
    }
    ours = make_env(f"{name.domain}-v0", **options)
    theirs = gymnasium.make(f"{name.domain}-v0", **options)
    closed = {"gripper_always_closed": True} if name.domain.startswith("puzzle") else {}
    oracles = {
        task: oracle(env=theirs, noise=0.1, noise_smoothing=0.5, **closed)
        for task, oracle in ORACLES.items()
        if not closed or task == "button"
    }
    runs = [
        _episode(ours, name, _oracles.make_oracles(ours, name)),
        _episode(theirs, name, oracles),
        _physics(ours),
    ]
    rates = np.array([[STEPS / _seconds(run) for run in runs] for _ in range(ROUNDS)])
    mine, other, bare = rates.T
    return {
        "steps_per_second": float(np.median(mine)),
        "ogbench_steps_per_second": float(np.median(other)),
        "mj_step_per_second": float(np.median(bare)),
        "ratio": float(np.median(mine / other)),
        "share_of_mj_step": float(np.median(mine / bare)),
    }


def _episode(env: gymnasium.Env, name: EnvName, oracles: dict) -> Callable[[], object]:
    """Return a run of the collecting loop, of the same episode every time."""

    def run() -> None:
        np.random.seed(0)
        collect._attempt(env, oracles, name, env.reset(seed=0))

    run()
    return run


def _physics(env: gymnasium.Env) -> Callable[[], object]:
    """Return a run of as much physics as an episode has, and nothing else."""
    inner = env.unwrapped

    def run() -> None:
        for _ in range(STEPS):
            mujoco.mj_step(inner.model, inner.data, nstep=inner._n_steps)

    return run


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
