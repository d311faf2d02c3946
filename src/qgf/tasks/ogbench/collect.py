"""Play and noisy data from OGBench's scripted oracles: one seed, the same bytes.

The recipe is that of OGBench's generation script for its manipulation datasets (Park et
al. 2025). Each episode has a seed of its own, so neither the number of workers nor an
interruption changes a byte.

    OUT/episodes/SHARD/N.npz    episode N, until its shard is whole
    OUT/SHARD.npz               all episodes of a shard
    OUT/manifest.json           the shards that are whole, written by the collecting process alone
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from qgf.data.manifest import FILE, Manifest, Shard, Split, read_manifest
from qgf.errors import UserError, check_counts
from qgf.executor import Executor, Job, execute
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
EPISODES = "episodes"  # the folder of those whose shard is not whole
PLAYED_TOGETHER = 50  # at most, by one job: starting its process takes as long as two of them
PLAYING_MEMORY = 0.8e9  # of a process that plays, most of it while MuJoCo reads the meshes
ROW_MEMORY = 1000  # bytes of a row of the widest environment


class _Target(NamedTuple):
    """A shard to be made: the file and which episodes of its split go into it."""

    file: str
    split: Split
    episodes: range

    def folder(self, manifest: Manifest) -> Path:
        """Return where its episodes lie until it is whole."""
        return manifest.folder / EPISODES / Path(self.file).stem


def collect(
    env: str,
    out: str | Path,
    episodes: int,
    val_episodes: int,
    shard_episodes: int,
    executor: Executor | None,
    seed: int,
    steps: int = 1001,
) -> Manifest:
    """Collect a dataset with OGBench's oracles into a folder, or go on with it.

    Shards appear one by one, whole; run again with the same arguments, a collection that
    was broken off, however rudely, goes on with the episodes that it lacks.

    Arguments:
        env: a name with dataset type, e.g. "cube-single-play-v0", "scene-noisy-v0".
        out: the folder; made if need be.
        episodes: training episodes in all.
        val_episodes: validation episodes in all; at least one for each training shard.
        shard_episodes: training episodes in one shard.
        executor: what plays, e.g. `qgf.executor.Processes()`; None for the calling process.
        seed: from which, with these arguments and package versions, every byte follows.
        steps: rows of an episode, that is transitions plus one.

    Raises:
        UserError: an argument makes no sense, the folder holds something else, cannot be
            written, is in use by another process or was removed meanwhile, memory is too
            small, or a process of the executor died.
    """
    name = EnvName.parse(env)
    plan = {
        "episodes": episodes,
        "val_episodes": val_episodes,
        "shard_episodes": shard_episodes,
        "steps": steps,
    }
    check_counts(plan)
    if not 0 <= seed < 2**64:
        raise UserError(f"seed is {seed}; it must not be negative, and below 2^64")
    targets = _targets(name.dataset, plan)
    with locked(out):
        fresh = Manifest(Path(out), name.dataset, seed, _versions(), plan, ())
        manifest = _resume(fresh, targets)
        manifest.write()
        return _fill(manifest, targets, executor)


def _fill(manifest: Manifest, targets: list[_Target], executor: Executor | None) -> Manifest:
    """Collect what the manifest lacks; return it when nothing does."""
    kept = {shard.file: shard for shard in manifest.shards}
    missing = {target.file: target for target in targets if target.file not in kept}

    def enlist(job: Job) -> None:
        nonlocal manifest
        if job.name not in missing:
            return
        target = missing[job.name]
        manifest.check_present()
        kept[target.file] = _shard(manifest, target)
        shards = tuple(kept[t.file] for t in targets if t.file in kept)
        manifest = dataclasses.replace(manifest, shards=shards)
        manifest.write()
        shutil.rmtree(target.folder(manifest), ignore_errors=True)

    jobs = _jobs(manifest, [*missing.values()], executor)
    state = np.random.get_state()  # which playing in this process changes
    try:
        execute(jobs, executor, "steps", enlist)
    finally:
        np.random.set_state(state)
    shutil.rmtree(manifest.folder / EPISODES, ignore_errors=True)
    manifest.check_present()
    return manifest


def _jobs(manifest: Manifest, targets: list[_Target], executor: Executor | None) -> list[Job]:
    """Return the jobs that make shards: for each one that joins episodes, and some that play them.

    The episodes of a shard that one job can play are played by the one that joins them.
    """
    bare = dataclasses.replace(manifest, folder=manifest.folder.absolute(), shards=())
    left = [sorted({*target.episodes} - _played(bare, target)) for target in targets]
    steps, jobs = manifest.plan["steps"], []
    together = 1  # in this process: for the progress, which is seen between jobs
    if executor is not None:
        together = min(PLAYED_TOGETHER, -(-sum(map(len, left)) // executor.count))
    for target, episodes in zip(targets, left, strict=True):
        parts, joined = -(-len(episodes) // max(together, 1)), steps * len(episodes)
        needs = []
        for part in np.array_split(episodes, parts) if parts > 1 else ():
            work = partial(_play, bare, target, part.tolist())
            done = partial(_steps_played, bare, target, part.tolist())
            needs.append(f"{target.file}, episodes {part[0]} to {part[-1]}")
            memory = int(PLAYING_MEMORY)
            jobs.append(Job(needs[-1], work, steps * len(part), done, memory=memory))
            joined = 0
        memory = int(PLAYING_MEMORY + 2 * ROW_MEMORY * steps * len(target.episodes))
        done = partial(_steps_played, bare, target, episodes)
        jobs.append(Job(target.file, partial(_join, bare, target), joined, done, needs, memory))
    return jobs


def _played(manifest: Manifest, target: _Target) -> set[int]:
    """Return which episodes of a shard are files."""
    try:
        names = os.listdir(target.folder(manifest))
    except OSError:
        return set()
    return {int(name[:-4]) for name in names if name[:-4].isdecimal() and name.endswith(".npz")}


def _steps_played(manifest: Manifest, target: _Target, episodes: Sequence[int]) -> int:
    return manifest.plan["steps"] * len(_played(manifest, target).intersection(episodes))


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


def _play(manifest: Manifest, target: _Target, episodes: Sequence[int]) -> None:
    """Play some episodes of a shard, those that are not there yet."""
    with _memory_suffices():
        for episode in episodes:
            _made(manifest, target, episode)


def _join(manifest: Manifest, target: _Target) -> None:
    """Write a shard, with its episodes in order."""
    with _memory_suffices():
        episodes = [_made(manifest, target, i) for i in target.episodes]
        arrays = {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}
        manifest.check_present()
        with atomic_open(manifest.folder / target.file) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


@contextlib.contextmanager
def _memory_suffices() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise UserError(
            "not enough memory to collect a shard; use fewer --workers or, into another folder, "
            "smaller --shard-episodes"
        ) from None


def _made(manifest: Manifest, target: _Target, episode: int) -> Episode:
    """Return an episode from its file, which is made if it is missing or damaged."""
    path = target.folder(manifest) / f"{episode}.npz"
    # A damaged zip shows itself as BadZipFile, zlib.error, EOFError, ValueError, ...
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
        return dict(file)
    manifest.check_present()  # or a folder that was removed would come back
    name = EnvName.parse(manifest.name)
    seed = episode_seed(manifest.seed, target.split, episode)
    made = _episode(name, manifest.plan["steps"], seed)
    with atomic_open(path) as file:
        np.savez(file, allow_pickle=False, **made)
    return made


def _shard(manifest: Manifest, target: _Target) -> Shard:
    """Describe a shard that is whole."""
    path, episodes = manifest.folder / target.file, len(target.episodes)
    rows = episodes * manifest.plan["steps"]
    with reading(path):
        return Shard(target.file, target.split, episodes, rows, sha256(path))


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


def _episode(name: EnvName, steps: int, seed: np.ndarray) -> Episode:
    """Play one episode; return its arrays, each with `steps` rows."""
    env, oracles = _make(name, steps)
    *words, env_seed = seed
    np.random.seed(words)  # the oracles draw from NumPy's global generator
    first = env.reset(seed=int(env_seed))
    while True:
        episode = _attempt(env, oracles, name, first)
        if name.domain != "scene" or _cube_stays_visible(np.array(episode["qpos"])):
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
