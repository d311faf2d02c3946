"""Episodes: many at a time, of any method, every one fixed by its number.

All ways to act meet the same environment seeds and the same initial noise (paired).
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qgf._progress import progress
from qgf.act.policy import noise_size, sample_actions
from qgf.config import Spec
from qgf.core.flow import FAILED
from qgf.data.normalization import Normalization
from qgf.errors import UserError
from qgf.methods.table import CLONED, Learners, Method, find_method
from qgf.tasks import Task
from qgf.tasks._workers import Reply, Workers

SPLITS = ("tune", "test")

IDENTITY = Normalization()


@dataclass(frozen=True)
class Arm:
    """One way to act: method (or its name), weight, how many samples the critic chooses from.

    steps is the number T of denoising steps, by default that of training.
    """

    method: str | Method = CLONED
    weight: float = 0.0
    samples: int = 1
    steps: int | None = None

    @property
    def unweighted(self) -> "Arm":
        """All but the weight, of which each row of a batch may have another."""
        return dataclasses.replace(self, weight=0.0)


@dataclass(frozen=True)
class Job:
    """One episode to run: which arm, with which training seed (by position), which start.

    Where a goal is asked for, neighbouring episodes take the task's goals in turn.

    Attributes:
        split: "tune" or "test".
    """

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
    """What an episode came to.

    Attributes:
        success: whether the task was solved; None if nobody says.
        total: sum of rewards.
        length: environment steps.
        fallbacks: denoising steps that went unguided because a gradient was not finite.
    """

    success: bool | None = None
    total: float = 0.0
    length: int = 0
    fallbacks: int = 0

    def add(self, reply: Reply) -> None:
        """Count what one more action chunk came to.

        Args:
            reply: what the environment gave for it.
        """
        if reply.success is not None:
            self.success = bool(self.success) or reply.success
        self.total += reply.reward
        self.length += reply.length


def make_jobs(arms: Sequence[Arm], seeds: int, counts: dict[str, int]) -> list[Job]:
    """Return the jobs of all arms: `counts` episodes of each split for every training seed.

    Args:
        arms: the ways to act.
        seeds: how many training seeds there are.
        counts: episodes of each split ("tune", "test").
    """
    return [
        Job(arm, i, split, episode)
        for split in counts
        for episode in range(counts[split])
        for arm in arms
        for i in range(seeds)
    ]


def roll_out(
    task: Task,
    spec: Spec,
    learners: Learners,
    jobs: Sequence[Job],
    workers: int,
    slots: int,
    seed: int,
    pool: Workers | None = None,
    normalization: Normalization = IDENTITY,
) -> dict[Job, Outcome]:
    """Run all jobs, `slots` at a time; one policy call serves all that run.

    Args:
        task: which makes the environments and says what success is.
        spec: sizes of observations, actions and goals.
        learners: their arrays lead with the training-seed axis.
        jobs: the episodes to run.
        workers: environment processes.
        slots: environments, that is episodes that run at a time.
        seed: of the environments and the noise.
        pool: processes of `slots` environments to use; by default some of its own.
        normalization: that of the run's data.

    Returns:
        What every job came to.
    """
    outcomes = {job: Outcome() for job in jobs}
    groups = collections.defaultdict(list)
    for job in jobs:
        groups[job.arm.unweighted].append(job)
    own = contextlib.nullcontext(pool) if pool else Workers(task, slots, workers)
    with progress() as bar, own as pool:
        shown = bar.add_task("evaluating", total=len(jobs), unit="episodes")
        for arm, group in groups.items():
            act = actor(arm, learners, spec, seed)
            for _ in _pass(pool, act, task, spec, group, outcomes, slots, seed, normalization):
                bar.advance(shown)
    return outcomes


def actor(arm: Arm, learners: Learners, spec: Spec, seed: int) -> Callable:
    """Return how an arm acts, whatever its weight.

    That is (obs, goal, weight, start, turn) -> (actions, fallbacks), all [seed, row]; the goal
    is None where none is asked for. A row without an action has FAILED fallbacks.

    Args:
        arm: method, number of samples and of denoising steps; its weight is not looked at.
        learners: by role; their arrays lead with the training-seed axis.
        spec: sizes of observations, actions and goals.
        seed: of the noise.
    """
    method = arm.method if isinstance(arm.method, Method) else find_method(arm.method)
    roles = {*method.roles} | ({"critic"} if arm.samples > 1 else set())
    used = {role: learners[role] for role in learners if role in roles}
    shape = (arm.samples, noise_size(method, used, spec))
    return partial(_act, method, used, jax.random.key(seed), shape, arm.steps)


def _pass(
    pool: Workers,
    act: Callable,
    task: Task,
    spec: Spec,
    jobs: Sequence[Job],
    outcomes: dict[Job, Outcome],
    slots: int,
    seed: int,
    normalization: Normalization,
) -> Iterator[Job]:
    """Yield each job when its episode has ended; slots are divided among training seeds."""
    seeds = 1 + max(job.seed for job in jobs)
    rows = max(1, slots // seeds)
    queues = [collections.deque(job for job in jobs if job.seed == i) for i in range(seeds)]
    running: list[Job | None] = [None] * (seeds * rows)
    obs = np.zeros((seeds, rows, spec.obs), np.float32)
    goal = np.zeros((seeds, rows, spec.goal), np.float32) if spec.goal else None
    weight = np.zeros((seeds, rows), np.float32)
    start, turn = np.zeros((2, seeds, rows), np.int32)
    while True:
        requests: dict[int, tuple[str, Any]] = {}
        if any(running):
            chunks, fallbacks = map(np.asarray, act(obs, goal, weight, start, turn))
            chunks = chunks.reshape(-1, spec.chunk, spec.action)
        for slot, job in enumerate(running):
            queue, at = queues[slot // rows], divmod(slot, rows)
            if job is not None:
                if fallbacks[at] == FAILED:
                    raise UserError(
                        f"no action in {job.split} episode {job.episode}, weight "
                        f"{job.arm.weight:g}: the networks' numbers became NaN or infinite; "
                        "weights may be too large, or the run damaged"
                    )
                requests[slot] = ("act", normalization.acted(chunks[slot]))
                outcomes[job].fallbacks += int(fallbacks[at])
            elif queue:
                job = running[slot] = queue.popleft()
                weight[at], start[at], turn[at] = job.arm.weight, job.start, -1
                requests[slot] = ("reset", start_of(job, task, spec, seed))
        if not requests:
            return
        for slot, reply in pool.request(requests).items():
            job, at = running[slot], divmod(slot, rows)
            if reply.obs.shape != (spec.obs,):
                raise UserError(
                    f"{task.name} gives observations of shape {reply.obs.shape}, the run takes "
                    f"({spec.obs},); it was trained for another environment, or other --obs"
                )
            obs[at] = normalization.observed(reply.obs)
            if goal is not None and turn[at] < 0:
                goal[at] = reply.goal
            turn[at] += 1
            outcomes[job].add(reply)
            if reply.done:
                _judge(task, outcomes[job])
                running[slot] = None
                yield job


def _judge(task: Task, outcome: Outcome) -> None:
    """Tell an ended episode's success by its return, where the task says so."""
    if task.threshold is not None:
        outcome.success = outcome.total >= task.threshold
    if task.key is not None and outcome.success is None:
        raise UserError(
            f"{task.name} never says {task.key!r} in info, by which success was to be told; name "
            "another key with --success, or return:NUMBER"
        )


@eqx.filter_jit
def _act(
    method: Method,
    learners: Learners,
    key: PRNGKeyArray,
    shape: tuple[int, int],
    steps: int | None,
    obs: Float[Array, "seed row obs"],
    goal: Float[Array, "seed row goal"] | None,
    weight: Float[Array, "seed row"],
    start: Int[Array, "seed row"],
    turn: Int[Array, "seed row"],
) -> tuple[Float[Array, "seed row action"], Int[Array, "seed row"]]:
    def noise(start: Int[Array, ""], turn: Int[Array, ""]) -> Float[Array, "n action"]:
        one = jax.random.fold_in(jax.random.fold_in(key, start), turn)
        return jax.random.normal(one, shape)

    arrays, static = eqx.partition(learners, eqx.is_array)

    def act(one: tuple) -> tuple[Float[Array, "row action"], Int[Array, " row"]]:
        arrays, obs, goal, weight, start, turn = one
        noises = jax.vmap(noise, out_axes=1)(start, turn)
        learners = eqx.combine(arrays, static)
        return sample_actions(method, learners, obs, noises, weight, goal=goal, steps=steps)

    # Not vmap: it would turn the critic's choice of rows into doing all choices.
    return jax.lax.map(act, (arrays, obs, goal, weight, start, turn))


def start_of(job: Job, task: Task, spec: Spec, seed: int) -> dict[str, Any]:
    """Return what a job's environment is reset with.

    If a goal is asked for, it is the task's next for every episode.
    """
    start: dict[str, Any] = {"seed": _env_seed(seed, job.start)}
    if spec.goal:
        start["options"] = {"task_id": 1 + job.episode % task.goals}
    return start


def _env_seed(seed: int, start: int) -> int:
    """Return an environment seed that differs for every (evaluation seed, start)."""
    return int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
