"""What studies look at: data, trained runs and episodes, made once in their folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from qgf.comparison import Plan, check_facts, check_task, train_all
from qgf.config import PRESETS, Config
from qgf.executor import Executor, Processes
from qgf.tasks import find_task
from qgf.tasks.ogbench.collect import collect

SMOKE = dataclasses.replace(
    PRESETS["laptop"],
    steps=100,
    batch_size=32,
    width=32,
    depth=2,
    log_every=100,
    validate_every=100,
    checkpoint_every=100,
)
# Episodes, their validation episodes and length; the training; and the evaluation: training
# seeds, tune and test episodes of each.
SIZES: dict[str, tuple[tuple[int, int, int], Config, tuple[int, int, int]]] = {
    "smoke": ((4, 2, 101), SMOKE, (1, 1, 2)),
    "laptop": ((300, 30, 1001), PRESETS["laptop"], (2, 5, 25)),
    "paper": ((1000, 100, 1001), PRESETS["paper"], (10, 10, 30)),
}
CUBE = "cube-single-play-singletask-task{}-v0"
SCENE = "scene-play-singletask-task{}-v0"


def study_plan(
    preset: str,
    out: Path,
    envs: tuple[str, ...],
    executor: Executor | None = None,
    names: Sequence[str] = (),
) -> Plan:
    """Return the plan of OUT/PRESET, with the data that some environments need collected.

    Args:
        executor: what collects, and trains side by side; without one, data are collected on all
            processors, and trainings are run when they are needed.
        names: methods whose trainings are run now.
    """
    out = Path(out) / preset
    (episodes, val_episodes, steps), config, (seeds, tune, test) = SIZES[preset]
    for env in envs:
        check_task(find_task(env))
    data = {}
    for dataset in dict.fromkeys(find_task(env).domain for env in envs):
        data[dataset] = out / "data" / dataset
        held = data[dataset]
        collect(dataset, held, episodes, val_episodes, 1000, executor or Processes(), 0, steps)
    plan = Plan(out, data, config, tuple(range(seeds)), {"tune": tune, "test": test})
    check_facts(plan)
    train_all(plan, names, envs, executor)
    return plan
