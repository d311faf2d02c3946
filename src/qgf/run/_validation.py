"""States of a run's validation data, at which reports and studies look at its learners."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qgf.data import Batch, Dataset, GoalBatch, GoalDataset, Source
from qgf.data.normalization import Normalization, Normalized
from qgf.data.readers import Fields, split_format
from qgf.errors import UserError
from qgf.files import reading
from qgf.learners import LEARNERS
from qgf.run.checkpoint import config_of, kinds_held
from qgf.tasks import Task, find_task


def validation_batch(record: dict, states: int) -> Batch | GoalBatch:
    """Return up to `states` chunks, drawn once and for all, of a run's first -val shard.

    They come with goals if the run's critic takes some.

    Args:
        record: the run's config.json.
        states: at most so many.

    Raises:
        UserError: the data are gone or have changed.
    """
    source, config = intact_source(record), record["config"]
    size = {"chunk": config["chunk"], "discount": config["discount"]}
    goals = record["spec"].get("goal", 0) > 0
    if goals:
        critic = LEARNERS[kinds_held(record)["critic"]]
        data = GoalDataset(source, config_of(record, "critic").of(critic.Hyper), **size)
    else:
        data = Dataset(source, **size)
    chunks = data.chunks(source.split("val")[:1])
    count = len(chunks.chunks.start if goals else chunks.start)
    rows = np.random.default_rng(0).choice(count, min(states, count), replace=False)
    drawn = {"key": jax.random.key(0)} if goals else {}
    return jax.device_put(chunks).take(jnp.asarray(rows), **drawn)


def task_of(record: dict) -> Task:
    """Return the task of a run's config.json.

    Args:
        record: the run's config.json, as `load_record` returns it.
    """
    return find_task(record["env"], record["data"].get("parts", fields_of(record).obs or ()))


def fields_of(record: dict) -> Fields:
    """Return which recorded fields a run of this config.json uses; version 0.1.0 notes none.

    Args:
        record: the run's config.json, as `load_record` returns it.
    """
    given = record["data"].get("fields", {})
    return Fields(**given | {"obs": given.get("obs") and tuple(given["obs"])})


def intact_source(record: dict) -> Source:
    """Return a run's data. UserError if they are gone or have changed.

    Args:
        record: the run's config.json, as `load_record` returns it.
    """
    folder = Path(record["data"]["folder"])
    path = split_format(folder)[1]
    with reading(path):
        if not path.exists():
            raise UserError(f"the data file or folder {path} is gone")
    fields = fields_of(record)
    source = task_of(record).open(
        folder, fields, sparse=record["config"]["sparse_rewards"], trust=True
    )
    for shard in source.split("val")[:1]:
        if shard.sha256 == record["data"]["sha256"].get(shard.file) and source.intact(shard):
            return Normalized(source, Normalization.of(record))
    raise UserError(f"the validation data in {folder} are no longer those of this run")
