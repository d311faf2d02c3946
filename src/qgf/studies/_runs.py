"""Data and trained runs that studies look at, made once in their folder and then reused."""

import dataclasses
from pathlib import Path

from qgf.checkpoint import list_checkpoints
from qgf.config import PRESETS, Config
from qgf.data.collect import collect
from qgf.envs import EnvName
from qgf.train import train

# Episodes, their validation episodes and length; and the training of a run.
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
SIZES: dict[str, tuple[int, int, int, Config]] = {
    "smoke": (4, 2, 101, SMOKE),
    "laptop": (300, 30, 1001, PRESETS["laptop"]),
    "paper": (1000, 100, 1001, PRESETS["paper"]),
}


def trained_run(preset: str, out: Path, env: str) -> Path:
    """Return a run of policy and critic on a task, collected and trained if it is not there."""
    dataset = EnvName.parse(env).dataset
    episodes, val_episodes, steps, config = SIZES[preset]
    data = out / "data" / f"{preset}-{dataset}"
    run = out / "runs" / f"{preset}-{env}"
    collect(dataset, data, episodes, val_episodes, episodes, 2, 0, steps)
    if max(list_checkpoints(run), default=0) < config.steps:
        train(env, data, run, config, resume=(run / "config.json").exists())
    return run
