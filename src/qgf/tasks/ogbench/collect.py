"""Play and noisy data from OGBench's scripted oracles: one seed, the same bytes.

The recipe is that of OGBench's generation script for its manipulation datasets (Park et
al. 2025). Each episode has a seed of its own, so neither the number of workers nor an
interruption changes a byte.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import multiprocessing
import platform
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from qgf._processes import check_workers, follow_parent, worker_start
from qgf._progress import progress
from qgf.data.manifest import FILE, Manifest, Shard, Split, read_manifest
from qgf.errors import UserError, check_counts
from qgf.files import LOCK, TEMPORARY, atomic_open, locked, reading, sha256
from qgf.tasks.ogbench._oracles import make_oracles
from qgf.tasks.ogbench.envs import EnvName, make_env

Episode = dict[str, np.ndarray]

NOISE = 0.1
# An episode's probability of choosing a stacked target is drawn from this interval.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
DTYPES = {"terminals": bool, "button_states": np.int64}


class _Job(NamedTuple):
    name: EnvName
    split: Split
    episode: int
    seed: int
    steps: int


class _Target(NamedTuple):
    """A shard to be made: the file and which episodes of its split go into it."""

    file: str
    split: Split
    episodes: range


def collect(
    env: str,
    out: str | Path,
    episodes: int,
    val_episodes: int,
    shard_episodes: int,
    workers: int,
    seed: int,
    steps: int = 1001,
) -> Manifest:
    """Collect a dataset with OGBench's oracles into a folder, or go on with it.

    Shards appear one by one, whole; run again with the same arguments, a collection that
    was broken off, however rudely, continues behind the last of them.

    Arguments:
        env: a name with dataset type, e.g. "cube-single-play-v0", "scene-noisy-v0".
        out: the folder; made if need be.
        episodes: training episodes in all.
        val_episodes: validation episodes in all; at least one for each training shard.
        shard_episodes: training episodes in one shard.
        workers: processes; with one, all happens in the calling process.
        seed: from which, with these arguments and package versions, every byte follows.
        steps: rows of an episode, that is transitions plus one.

    Raises:
        UserError: an argument makes no sense, the folder holds something else, cannot be
            written, is in use by another process or was removed meanwhile, memory is too
            small, or a worker died.
    """
    name = EnvName.parse(env)
    plan = {
        "episodes": episodes,
        "val_episodes": val_episodes,
        "shard_episodes": shard_episodes,
        "steps": steps,
    }
    check_counts({**plan, "workers": workers})
    if not 0 <= seed < 2**64:
        raise UserError(f"seed is {seed}; it must not be negative, and below 2^64")
    targets = _targets(name.dataset, plan)
    check_workers(min(workers, episodes + val_episodes))
    with locked(out):
        fresh = Manifest(Path(out), name.dataset, seed, _versions(), plan, ())
        manifest = _resume(fresh, targets)
        manifest.write()
        return _fill(manifest, name, targets, workers)


def _fill(manifest: Manifest, name: EnvName, targets: list[_Target], workers: int) -> Manifest:
    """Collect what the manifest lacks; return it when nothing does."""
    kept = {shard.file: shard for shard in manifest.shards}
    missing = [target for target in targets if target.file not in kept]
    with progress() as bar:
        steps = manifest.plan["steps"]
        total = sum(len(target.episodes) for target in targets) * steps
        done = sum(shard.rows for shard in manifest.shards)
        task = bar.add_task(name.dataset, total=total, completed=done, unit="steps")
        advance = functools.partial(bar.advance, task, steps)
        with contextlib.closing(_collected(manifest, name, missing, workers, advance)) as made:
            for target, parts in made:
                manifest.check_present()
                kept[target.file] = _write(manifest.folder, target, parts)
                shards = tuple(kept[t.file] for t in targets if t.file in kept)
                manifest = dataclasses.replace(manifest, shards=shards)
                manifest.write()
    manifest.check_present()
    return manifest


def _targets(dataset: str, plan: dict[str, int]) -> list[_Target]:
    episodes, val_episodes = plan["episodes"], plan["val_episodes"]
    size = plan["shard_episodes"]
    count = -(-episodes // size)
    if val_episodes < count:
        raise UserError(
            f"val_episodes is {val_episodes}, but each of the {count} shards needs one; "
            "raise it, or raise shard_episodes"
        )
    targets = []
    for i in range(count):
        stem = dataset if count == 1 else f"{dataset}-{i:03d}"
        train = range(i * size, min((i + 1) * size, episodes))
        val = range(val_episodes * i // count, val_episodes * (i + 1) // count)
        targets.append(_Target(f"{stem}.npz", "train", train))
        targets.append(_Target(f"{stem}-val.npz", "val", val))
    return targets


def _versions() -> dict[str, str]:
    packages = ("qgf", "ogbench", "mujoco", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {**versions, "python": platform.python_version()}


def _resume(fresh: Manifest, targets: list[_Target]) -> Manifest:
    """Return what the folder already holds of this collection, or `fresh` if nothing."""
    folder = fresh.folder
    with reading(folder):
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if FILE not in found:
        # macOS leaves .DS_Store in a folder it shows, and ._NAME beside a file.
        known = (LOCK, TEMPORARY, ".DS_Store", "._")
        others = {name for name in found if not name.startswith(known)}
        if others:
            raise UserError(f"{folder} is not empty (it holds {min(others)}); name another")
        return fresh
    old = read_manifest(folder)
    for what, was, now in (
        ("name", old.name, fresh.name),
        ("seed", old.seed, fresh.seed),
        *((key, old.plan.get(key), value) for key, value in fresh.plan.items()),
        *((key, old.versions.get(key), value) for key, value in fresh.versions.items()),
    ):
        if was != now:
            raise UserError(
                f"{folder} holds a collection with {what} {was}, not {now}; "
                "use another folder, or the same arguments and versions to continue"
            )
    planned = {(t.file, t.split, len(t.episodes)) for t in targets}
    listed = [s for s in old.shards if (s.file, s.split, s.episodes) in planned]
    intact = tuple(shard for shard in listed if old.intact(shard))
    return dataclasses.replace(fresh, shards=intact)


def _collected(
    manifest: Manifest,
    name: EnvName,
    targets: list[_Target],
    workers: int,
    advance: Callable[[], None],
) -> Iterator[tuple[_Target, list[Episode]]]:
    """Yield the episodes of one shard after the other."""
    seed, steps = manifest.seed, manifest.plan["steps"]
    jobs = [_Job(name, t.split, i, seed, steps) for t in targets for i in t.episodes]
    results = _run(jobs, min(workers, len(jobs)))
    try:
        for target in targets:
            episodes = []
            for _ in target.episodes:
                episodes.append(next(results))
                advance()
            yield target, episodes
    except MemoryError:
        raise _no_memory() from None
    finally:
        results.close()


def _no_memory() -> UserError:
    return UserError(
        "not enough memory to collect a shard; use fewer --workers or, into another folder, "
        "smaller --shard-episodes"
    )


def _write(folder: Path, target: _Target, episodes: list[Episode]) -> Shard:
    path = folder / target.file
    try:
        arrays = {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}
        with atomic_open(path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except MemoryError:
        raise _no_memory() from None
    return Shard(target.file, target.split, len(episodes), len(arrays["terminals"]), sha256(path))


def _run(jobs: list[_Job], workers: int) -> Iterator[Episode]:
    """Yield the episodes in the order of the jobs."""
    if workers <= 1:
        state = np.random.get_state()
        try:
            yield from map(_episode, jobs)
        finally:
            np.random.set_state(state)
        return
    pool = None
    try:
        with worker_start(workers):
            pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=follow_parent
            )
            results = pool.map(_episode, jobs)  # which starts them all
        yield from results
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); run the same command to continue, "
            "with fewer workers"
        ) from None
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=1)
def _make(name: EnvName, steps: int) -> tuple[gymnasium.Env, dict[str, Any]]:
    """Return the environment and an oracle for each of its tasks."""
    env = make_env(
        f"{name.domain}-v0",
        terminate_at_goal=False,
        mode="data_collection",
        max_episode_steps=steps,
    )
    return env, make_oracles(env, name)


def episode_seed(seed: int, split: Split, episode: int) -> np.ndarray:
    """Return the five 32-bit words that seed one episode: the oracles' four, the env's."""
    key = (("train", "val").index(split), episode)
    return np.random.SeedSequence(seed, spawn_key=key).generate_state(5)


def _episode(job: _Job) -> Episode:
    """Run one episode; return its arrays, each with `job.steps` rows."""
    env, oracles = _make(job.name, job.steps)
    *words, env_seed = episode_seed(job.seed, job.split, job.episode)
    np.random.seed(words)  # the oracles draw from NumPy's global generator
    first = env.reset(seed=int(env_seed))
    while True:
        episode = _attempt(env, oracles, job.name, first)
        if job.name.domain != "scene" or _cube_stays_visible(np.array(episode["qpos"])):
            break
        first = env.reset()
    return {key: np.array(rows, DTYPES.get(key, np.float32)) for key, rows in episode.items()}


def _attempt(env, oracles, name: EnvName, first) -> dict[str, list]:
    """Let the oracles act until the time limit; return the rows, as they came."""
    observation, info = first
    noisy, domain = name.type == "noisy", name.domain
    p_random = (0.2 if domain.startswith("puzzle") else 0.1) if noisy else 0.0
    # The order of the draws is that of OGBench's script.
    low, high = STACKING.get(domain, (0.5, 0.5))
    p_stack = low if low == high else np.random.uniform(low, high)
    scale = np.array([1, 1, 1, 3, 10]) * (np.random.uniform(0, NOISE) if noisy else 0.0)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    rows: dict[str, list] = {}
    done = False
    while not done:
        if np.random.rand() < p_random:
            action = env.action_space.sample()
        else:
            action = np.array(oracle.select_action(observation, info))
            if noisy:
                noise = np.random.normal(0, scale, action.shape)
                action = np.clip(action + noise, -1, 1)
        next_observation, _, terminated, done, info = env.step(action)
        done = terminated or done
        if oracle.done:
            target = env.unwrapped.set_new_target(p_stack=p_stack)
            oracle = oracles[target[1]["privileged/target_task"]]
            oracle.reset(*target)
        _append(rows, observation, action, done, info)
        observation = next_observation
    return rows


def _append(rows: dict[str, list], observation, action, done: bool, info) -> None:
    row = {"observations": observation, "actions": action, "terminals": done}
    row |= {key: info[f"prev_{key}"] for key in ("qpos", "qvel")}
    if "prev_button_states" in info:
        row["button_states"] = info["prev_button_states"]
    for key, value in row.items():
        rows.setdefault(key, []).append(value)


def _cube_stays_visible(qpos: np.ndarray) -> bool:
    """Whether the scene's cube is always in sight, or in the drawer.

    Elsewhere goal images would be ambiguous; OGBench throws such episodes away.
    """
    _, y, z = qpos[:, 14:17].T
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not bool(((y >= 0.29) | ((y <= -0.3) & ~in_drawer)).any())
