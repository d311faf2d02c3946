"""Evaluation: all weights and training seeds of a run in one vectorized pass.

Every weight meets the same environment seeds and the same initial noise (paired). The
weight is chosen on one set of episodes and reported on another.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qgf._files import write_json
from qgf._progress import progress
from qgf._workers import Reply, Workers
from qgf.checkpoint import find_checkpoint, load_learner, load_record
from qgf.config import Spec
from qgf.errors import UserError
from qgf.learners import Learner
from qgf.policy import sample_actions
from qgf.statistics import paired_difference, wilson_interval

SPLITS = ("tune", "test")


@dataclass(frozen=True)
class Arm:
    """One way to act: the weight, and how many samples the critic chooses from."""

    weight: float = 0.0
    samples: int = 1


@dataclass(frozen=True)
class Job:
    """One episode to run: which arm, with which training seed (by position), which start."""

    arm: Arm
    seed: int
    split: str
    episode: int

    @property
    def start(self) -> int:
        """Number that fixes the environment's seed and the noise; equal for all arms."""
        return 2 * self.episode + SPLITS.index(self.split)


@dataclass
class Outcome:
    """What an episode came to: success, sum of rewards, and environment steps."""

    success: bool = False
    total: float = 0.0
    length: int = 0

    def add(self, reply: Reply) -> None:
        self.success = reply.success
        self.total += reply.reward
        self.length += reply.length


def evaluate(
    run: Path,
    weights: Sequence[float],
    *,
    episodes: int = 50,
    tune_episodes: int | None = None,
    best_of: Sequence[int] = (),
    workers: int = 2,
    slots: int = 32,
    seed: int = 0,
    checkpoint: str = "last",
) -> dict:
    """Evaluate a run's guided policy and return (and write to RUN/eval.json) the result.

    Args:
        weights: guidance weights; 0 is always evaluated too.
        episodes: test episodes for every weight and training seed.
        tune_episodes: episodes on which the weight is chosen; as many by default.
        best_of: sample counts N for best-of-N of the unguided policy.
        workers: environment processes.
        slots: episodes that run at a time.
        seed: of the environments and the noise.

    Raises:
        UserError: no such run or checkpoint, a run without task or critic, a bad weight.
    """
    weights = _checked_weights(weights)
    tune_episodes = episodes if tune_episodes is None else tune_episodes
    if min(episodes, tune_episodes, workers, slots, *best_of) < 1:
        raise UserError("episodes, workers, slots and best-of must be at least 1")
    if not 0 <= seed < 2**31:
        raise UserError(f"the evaluation's seed must lie in [0, 2^31), got {seed}")
    record = load_record(run)
    if "critic" not in record["learners"]:
        raise UserError(
            f"{run} has no critic, so there is no task to evaluate; train one with "
            f"`qgf train --env …-singletask-taskN-v0 --policy {run}`"
        )
    step = int(find_checkpoint(run, checkpoint).name)
    arms = [*map(Arm, weights), *(Arm(0.0, n) for n in sorted({*best_of}) if n > 1)]
    counts = {"tune": tune_episodes, "test": episodes}
    jobs = [
        Job(arm, i, split, episode)
        for split in SPLITS
        for episode in range(counts[split])
        for arm in arms
        for i in range(len(record["seeds"]))
        if split == "test" or arm.samples == 1
    ]
    policy = load_learner(run, "policy", which=str(step))
    critic = load_learner(run, "critic", which=str(step))
    spec = Spec(**record["spec"])
    outcomes = roll_out(record["env"], spec, policy, critic, jobs, workers, slots, seed)
    result = {
        "env": record["env"],
        "run": str(run),
        "checkpoint": step,
        "training_seeds": record["seeds"],
        "seed": seed,
        "episodes": counts,
        **_summary(outcomes, weights, arms),
    }
    write_json(Path(run) / "eval.json", result)
    return result


def roll_out(
    env: str,
    spec: Spec,
    policy: Learner,
    critic: Learner,
    jobs: Sequence[Job],
    workers: int,
    slots: int,
    seed: int,
) -> dict[Job, Outcome]:
    """Run all jobs, `slots` at a time; one policy call serves all that run.

    Args:
        policy: its arrays lead with the training-seed axis; so do the critic's.
    """
    outcomes = {job: Outcome() for job in jobs}
    groups = collections.defaultdict(list)
    for job in jobs:
        groups[job.arm.samples].append(job)
    with progress() as bar, Workers(env, slots, workers) as pool:
        task = bar.add_task("evaluating", total=len(jobs), unit="episodes")
        for samples, group in groups.items():
            act = partial(_act, policy, critic, jax.random.key(seed), (samples, spec.chunk_action))
            for _ in _pass(pool, act, spec, group, outcomes, slots, seed):
                bar.advance(task)
    return outcomes


def _pass(
    pool: Workers,
    act: Callable[..., Float[Array, "seed row action"]],
    spec: Spec,
    jobs: Sequence[Job],
    outcomes: dict[Job, Outcome],
    slots: int,
    seed: int,
) -> Iterator[Job]:
    """Yield each job when its episode has ended; slots are divided among training seeds."""
    seeds = 1 + max(job.seed for job in jobs)
    rows = max(1, slots // seeds)
    queues = [collections.deque(job for job in jobs if job.seed == i) for i in range(seeds)]
    running: list[Job | None] = [None] * (seeds * rows)
    obs = np.zeros((seeds, rows, spec.obs), np.float32)
    weight = np.zeros((seeds, rows), np.float32)
    start, turn = np.zeros((2, seeds, rows), np.int32)
    while True:
        requests: dict[int, tuple[str, Any]] = {}
        if any(running):
            chunks = np.asarray(act(obs, weight, start, turn))
            chunks = chunks.reshape(-1, spec.chunk, spec.action)
        for slot, job in enumerate(running):
            queue, at = queues[slot // rows], divmod(slot, rows)
            if job is not None:
                requests[slot] = ("act", chunks[slot])
            elif queue:
                job = running[slot] = queue.popleft()
                weight[at], start[at], turn[at] = job.arm.weight, job.start, -1
                requests[slot] = ("reset", _env_seed(seed, job.start))
        if not requests:
            return
        for slot, reply in pool.request(requests).items():
            job, at = running[slot], divmod(slot, rows)
            obs[at] = reply.obs
            turn[at] += 1
            outcomes[job].add(reply)
            if reply.done:
                running[slot] = None
                yield job


@eqx.filter_jit
def _act(
    policy: Learner,
    critic: Learner,
    key: PRNGKeyArray,
    shape: tuple[int, int],
    obs: Float[Array, "seed row obs"],
    weight: Float[Array, "seed row"],
    start: Int[Array, "seed row"],
    turn: Int[Array, "seed row"],
) -> Float[Array, "seed row action"]:
    def noise(start: Int[Array, ""], turn: Int[Array, ""]) -> Float[Array, "n action"]:
        one = jax.random.fold_in(jax.random.fold_in(key, start), turn)
        return jax.random.normal(one, shape)

    arrays, static = eqx.partition((policy, critic), eqx.is_array)

    def act(one: tuple) -> Float[Array, "row action"]:
        arrays, obs, weight, start, turn = one
        policy, critic = eqx.combine(arrays, static)
        noises = jax.vmap(noise, out_axes=1)(start, turn)
        return sample_actions(policy, critic, obs, noises, weight)

    # Not vmap: it would turn the critic's choice of rows into doing all choices.
    return jax.lax.map(act, (arrays, obs, weight, start, turn))


def _env_seed(seed: int, start: int) -> int:
    """Return an environment seed that differs for every (evaluation seed, start)."""
    return int(np.random.SeedSequence([seed, start]).generate_state(1)[0])


def _checked_weights(weights: Sequence[float]) -> list[float]:
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"a guidance weight must be a finite number of at least 0, got {weight}"
            )
    return sorted({0.0, *weights})


def format_result(result: dict) -> str:
    """Return a small table of an evaluation: every weight, and every N of best-of-N."""
    lines = [f"{'':>12} {'tune':>8} {'test':>8} {'95% interval':>15} {'return':>9} {'length':>7}"]

    def line(name: str, tune: str, test: dict) -> str:
        low, high = test["ci95"]
        return (
            f"{name:>12} {tune:>8} {test['success']:8.1%} {f'{low:.1%} {high:.1%}':>15} "
            f"{test['return']:9.1f} {test['length']:7.1f}"
        )

    for row in result["weights"]:
        lines.append(line(f"w = {row['weight']:g}", f"{row['tune']['success']:.1%}", row["test"]))
    for row in result["best_of"]:
        lines.append(line(f"best of {row['samples']}", "", row["test"]))
    low, high = result["qgf"]["difference_ci95"]
    lines.append(
        f"chosen w = {result['chosen_weight']:g}: {result['qgf']['difference']:+.1%} over w = 0 "
        f"on {result['qgf']['episodes']} paired test episodes "
        f"(95% interval {low:+.1%} to {high:+.1%})"
    )
    return "\n".join(lines)


def _summary(outcomes: dict[Job, Outcome], weights: Sequence[float], arms: Sequence[Arm]) -> dict:
    """Return the figures of every arm, the weight chosen on "tune", and its gain on "test"."""

    def table(arm: Arm, split: str) -> np.ndarray:
        """Return [seed, episode] rows of (success, return, length)."""
        rows = sorted(
            (job.seed, job.episode, *dataclasses.astuple(outcome))
            for job, outcome in outcomes.items()
            if job.arm == arm and job.split == split
        )
        seeds = 1 + rows[-1][0]
        return np.array(rows, float)[:, 2:].reshape(seeds, -1, 3)

    def figures(arm: Arm, split: str) -> dict:
        data = table(arm, split)
        wins = data[..., 0]
        return {
            "success": wins.mean(),
            "ci95": wilson_interval(int(wins.sum()), wins.size),
            "return": data[..., 1].mean(),
            "length": data[..., 2].mean(),
            "episodes": wins.size,
            "success_per_seed": wins.mean(1).tolist(),
        }

    def gain(arm: Arm) -> dict:
        ours, theirs = (table(a, "test")[..., 0] > 0 for a in (arm, Arm()))
        mean, interval = paired_difference(ours, theirs)
        return {"difference": mean, "difference_ci95": interval}

    rows = [
        {"weight": w, "tune": figures(Arm(w), "tune"), "test": figures(Arm(w), "test")}
        for w in weights
    ]
    # Ties go to the higher return, then to the smaller weight, which stays nearer the data.
    best = max(rows, key=lambda r: (r["tune"]["success"], r["tune"]["return"], -r["weight"]))
    chosen = best["weight"]
    return {
        "weights": rows,
        "chosen_weight": chosen,
        "bc": figures(Arm(), "test"),
        "qgf": {"weight": chosen, **best["test"], **gain(Arm(chosen))},
        "best_of": [
            {"samples": arm.samples, "test": {**figures(arm, "test"), **gain(arm)}}
            for arm in arms
            if arm.samples > 1
        ],
    }
