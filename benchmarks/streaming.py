"""Training on more data than are held in memory, and what reading them costs.

The data are one collected shard again and again, with noise on the observations: as many bytes
to read and unzip as so many collected transitions, though they teach no more than the one.
"""

import contextlib
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qgf._progress import progress
from qgf.config import PRESETS, Config
from qgf.data import Dataset, Manifest, Shard, load_manifest
from qgf.data.rotation import rotation
from qgf.errors import UserError
from qgf.files import sha256
from qgf.run import Fixed, create_state, train_steps
from qgf.tasks import find_task
from qgf.tasks.ogbench import make_env
from qgf.tasks.ogbench.collect import collect

DATASET, TASK = "cube-double-play-v0", "cube-double-play-singletask-task1-v0"
EPISODES = 25  # collected
STEPS = 1001  # rows of each
COPIES = 10  # of them in a shard
SHARDS = 40
NOISE = 1e-3  # of the observations, in their own units
GIGABYTES = 1.0  # --resident-gb
EVERY = 1000  # --rotate-every
CONFIG = PRESETS["laptop"]
ROUNDS = 5


class Plan(NamedTuple):
    """One way of training on a folder, run in a process of its own."""

    folder: str
    way: str
    gigabytes: float
    every: int
    config: Config


def measure() -> dict:
    """Return how three ways of training fare over one pass through the data.

    "waiting" is the share of the time that training stands still for data, after the first part;
    "peak_gb" the most resident memory of the process, JAX and its compiler included; "load" the
    machine's average over the last minute of it.
    """
    rows = EPISODES * STEPS * COPIES * SHARDS
    with tempfile.TemporaryDirectory() as folder:
        _repeat(Path(folder), SHARDS)
        return {
            f"{rows / 1e6:.3g}M transitions, {way}": _apart(
                Plan(folder, way, GIGABYTES, EVERY, CONFIG)
            )
            for way in WAYS
        }


def reading() -> dict:
    """Return the processor's seconds that a million transitions take to read, on one core.

    Seconds of the processor, not of the clock, since one thread reads beside those that train.

    "everything" is what becomes of a shard between its file and training, "unzip" and "rewards"
    are parts of it; the comparison with the manifest's SHA-256 is made once, when training begins.
    """
    with tempfile.TemporaryDirectory() as folder:
        _repeat(Path(folder), 1)
        source = find_task(TASK).open(Path(folder))
        (shard,) = source.split("train")
        dataset = Dataset(source, chunk=CONFIG.chunk, discount=CONFIG.discount)
        path, env = Path(folder) / shard.file, make_env(TASK)
        arrays = _unzipped(path)
        calls = {
            "everything": lambda: dataset.chunks([shard]),
            "unzip": lambda: _unzipped(path),
            "rewards": lambda: relabel_dataset(TASK, env, dict(arrays)),
            "SHA-256": lambda: sha256(path),
        }
        taken = {name: _seconds(call) * 1e6 / shard.rows for name, call in calls.items()}
    return {
        name: {"seconds_per_million": each, "share": each / taken["everything"]}
        for name, each in taken.items()
    }


def _seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        before = time.process_time()
        call()
        taken.append(time.process_time() - before)
    return float(np.median(taken))


def _unzipped(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file}


def _repeat(folder: Path, shards: int) -> None:
    """Fill a folder with shards made of one that is collected first."""
    needed = 400 * EPISODES * STEPS * COPIES * shards
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.3g} GB are needed in {folder.parent}, {free / 1e9:.3g} are free; "
            "set TMPDIR to a larger disk"
        )
    with tempfile.TemporaryDirectory() as once:
        collect(DATASET, once, EPISODES, 1, EPISODES, None, 0, STEPS)
        made = load_manifest(once)
        (train,), (val,) = made.split("train"), made.split("val")
        shutil.copy(Path(once) / val.file, folder / val.file)
        arrays = _unzipped(Path(once) / train.file)
    random, kept = np.random.default_rng(0), [val]
    with progress() as bar:
        task = bar.add_task("writing", total=shards, unit="shards")
        for i in range(shards):
            path = folder / f"{DATASET}-{i:03d}.npz"
            copies = {name: np.concatenate([each] * COPIES) for name, each in arrays.items()}
            copies["observations"] += random.normal(
                scale=NOISE, size=copies["observations"].shape
            ).astype(np.float32)
            np.savez_compressed(path, **copies)
            counts = EPISODES * COPIES, len(copies["terminals"])
            kept.append(Shard(path.name, "train", *counts, sha256(path)))
            bar.advance(task)
    Manifest(folder, DATASET, 0, {}, {}, tuple(kept)).write()


def _apart(plan: Plan) -> dict[str, float]:
    """Measure in a process of its own, whose memory nothing else has used."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_train, plan).result()


def _train(plan: Plan) -> dict[str, float]:
    config, seeds = plan.config, jnp.arange(1)
    source = find_task(TASK).open(Path(plan.folder))
    dataset = Dataset(source, chunk=config.chunk, discount=config.discount)
    groups = dataset.groups(plan.gigabytes / 3)
    with WAYS[plan.way](dataset, plan) as turns:
        data, until = next(turns)
        spec = dataset.spec(data)
        state = create_state({"policy": "bc", "critic": "iql"}, spec, config, seeds)
        fixed = Fixed(data, seeds, config)
        state, _ = train_steps(fixed, state, jnp.asarray(0), config.dispatch_steps)  # compiles
        step, waits, steps = 0, [0.0], plan.every * len(groups)
        start = time.perf_counter()
        while step < steps:
            if step >= until:
                before = time.perf_counter()
                data = fixed = None
                data, until = next(turns)
                fixed = Fixed(data, seeds, config)
                waits.append(time.perf_counter() - before)
            state, metrics = train_steps(fixed, state, jnp.asarray(step), config.dispatch_steps)
            jax.block_until_ready(metrics)
            step += config.dispatch_steps
        taken = time.perf_counter() - start
    return {
        "steps_per_second": step / taken,
        "waiting": sum(waits) / taken,
        "longest_wait_s": max(waits),
        "peak_gb": _peak(),
        "load": os.getloadavg()[0],
    }


@contextlib.contextmanager
def _held(dataset: Dataset, plan: Plan) -> Iterator[Iterator[tuple[Any, int]]]:
    """Train on the first part alone: what a step costs where nothing is read."""
    first = jax.device_put(dataset.chunks(dataset.groups(plan.gigabytes / 3)[0]))
    yield itertools.repeat((first, sys.maxsize))


@contextlib.contextmanager
def _ahead(dataset: Dataset, plan: Plan) -> Iterator[Iterator[tuple[Any, int]]]:
    """Read the next part while one is trained on, as `qgf train` does."""
    yield rotation(dataset, plan.gigabytes, plan.every, plan.config.dispatch_steps, 0)


@contextlib.contextmanager
def _due(dataset: Dataset, plan: Plan) -> Iterator[Iterator[tuple[Any, int]]]:
    """Read every part when its turn comes, as the authors' code does."""

    def later(dataset: Dataset, *what: Any) -> Callable[[], Any]:
        return lambda: dataset.chunks(*what)

    with mock.patch("qgf.data.rotation._in_background", later), _ahead(dataset, plan) as turns:
        yield turns


WAYS = {"never another part": _held, "read ahead": _ahead, "read when due": _due}


def _peak() -> float:
    """Return the most gigabytes that this process had resident. Linux's own count of it."""
    (line,) = [x for x in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in x]
    return int(line.split()[1]) * 1024 / 1e9
