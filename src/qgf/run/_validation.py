"""States of a run's validation data, at which reports and studies look at its learners."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qgf.config import Config
from qgf.data.dataset import Batch, Dataset
from qgf.data.goals import GoalBatch, GoalDataset
from qgf.data.manifest import Manifest, read_manifest
from qgf.errors import UserError
from qgf.files import reading
from qgf.tasks.ogbench.envs import EnvName


def validation_batch(record: dict, states: int) -> Batch | GoalBatch:
    """Return up to `states` chunks, drawn once and for all, of a run's first -val shard.

    They come with goals if the run's critic takes some.

    Args:
        record: the run's config.json.

    Raises:
        UserError: the data are gone or have changed.
    """
    manifest, config = intact_manifest(record), record["config"]
    goals = record["spec"].get("goal", 0) > 0
    if goals:
        data = GoalDataset(manifest, record["env"], Config(**config))
    else:  # without the task, whose rewards are not needed
        name = EnvName.parse(record["env"]).dataset
        data = Dataset(manifest, name, chunk=config["chunk"], discount=config["discount"])
    chunks = data.chunks(manifest.split("val")[:1])
    count = len(chunks.chunks.start if goals else chunks.start)
    rows = np.random.default_rng(0).choice(count, min(states, count), replace=False)
    drawn = {"key": jax.random.key(0)} if goals else {}
    return jax.device_put(chunks).take(jnp.asarray(rows), **drawn)


def intact_manifest(record: dict) -> Manifest:
    """Return the manifest of a run's data. UserError if they are gone or have changed."""
    folder = Path(record["data"]["folder"])
    with reading(folder):
        if not folder.is_dir():
            raise UserError(f"the data folder {folder} is gone")
    manifest = read_manifest(folder)
    for shard in manifest.split("val")[:1]:
        if shard.sha256 == record["data"]["sha256"].get(shard.file) and manifest.intact(shard):
            return manifest
    raise UserError(f"the validation data in {folder} are no longer those of this run")
