"""A gradient step of the goal-conditioned critics, against one of IQL on the same arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.latency import median_times
from qgf.config import Config, Spec
from qgf.data import Chunks, GoalChunks
from qgf.learners import LEARNERS
from qgf.run import Fixed, create_state, train_steps

ROWS = 100_000
SPEC = Spec(obs=28, action=5, chunk=5)
GOAL = 3
STEPS = 20  # gradient steps of one turn


def measure(seconds: float) -> dict:
    """Return the critics' milliseconds a step, and their ratio to IQL's; they take turns."""
    config = Config()
    kinds = ("iql", "goal-iql", "dqc")
    times = median_times([_turn(kind, config) for kind in kinds], 3 * seconds)
    return {
        f"{kind} {config.depth}x{config.width} batch {config.batch_size}": {
            "ms": time / STEPS,
            "ratio_to_iql": time / times[0],
        }
        for kind, time in zip(kinds, times, strict=True)
    }


def _turn(kind: str, config: Config):
    """Return a function that takes STEPS gradient steps of one critic."""
    random = np.random.default_rng(0)
    start = np.arange(ROWS - config.chunk, dtype=np.int32)
    data = Chunks(
        obs=random.normal(size=(ROWS, SPEC.obs)).astype(np.float32),
        action=random.uniform(-1, 1, (ROWS, SPEC.action)).astype(np.float32),
        start=start,
        reward=-np.ones(len(start), np.float32),
        mask=np.ones(len(start), np.float32),
        length=config.chunk,
    )
    spec = SPEC
    if LEARNERS[kind].goal_conditioned:
        spec, draws = SPEC._replace(goal=GOAL), config.of(LEARNERS[kind].Hyper)
        end = np.minimum(start // 1001 * 1001 + 1000, ROWS - 1)
        data = GoalChunks(
            data,
            data.obs[:, :GOAL],
            end,
            long=draws.ahead() or config.chunk,
            discount=config.discount,
            p_current=draws.goal_current,
            p_trajectory=draws.goal_trajectory,
            sampling=draws.goal_sampling,
        )
    seeds = jnp.arange(1)
    fixed = Fixed(jax.device_put(data), seeds, config)
    state = create_state({"critic": kind}, spec, config, seeds)

    def turn() -> None:
        nonlocal state
        state, metrics = train_steps(fixed, state, jnp.asarray(0), STEPS)
        jax.block_until_ready(metrics)

    return turn
