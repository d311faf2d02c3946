"""Real episodes chunk by chunk, and how right a critic is about what they come to."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.act import noise_size, sample_actions
from qgf.config import Spec
from qgf.core import Sampled, refuse_failed
from qgf.data import returns_to_go
from qgf.methods import METHODS, Learners
from qgf.run import of_seed
from qgf.tasks import find_task

QGF = METHODS["qgf"]
TAIL = 0.05  # share γ^n that may be left after the last step of an episode


class Chunks(NamedTuple):
    """What was seen, done and then earned, chunk by chunk."""

    obs: Float[np.ndarray, "chunk obs"]
    action: Float[np.ndarray, "chunk action"]
    returns: Float[np.ndarray, " chunk"]


def roll_out(
    name: str, spec: Spec, held: Learners, weight: float, episodes: int, limit: int
) -> Chunks:
    """Return the chunks of some episodes of one training seed under QGF.

    Q knows no time limit. So an episode goes on past `limit`, the environment's own, until less
    than TAIL of what follows a chunk would be left; chunks that begin after it are left out.
    """
    discount = held["policy"].config.discount
    steps = limit + math.ceil(math.log(TAIL) / math.log(discount))
    env, size = find_task(name).make(max_episode_steps=steps), noise_size(QGF, held, spec)
    found = []
    for i in range(episodes):
        key = jax.random.fold_in(jax.random.key(0), i)

        def act(obs: np.ndarray, turn: int, key: PRNGKeyArray = key) -> np.ndarray:
            noise = jax.random.normal(jax.random.fold_in(key, turn), (1, 1, size))
            action, counts = _act(held, obs[None], noise, jnp.full(1, weight))
            refuse_failed(counts)
            return np.asarray(action).reshape(spec.chunk, spec.action)

        found.append(episode(env, i, act, limit, discount))
    return Chunks(*(np.concatenate(part) for part in zip(*found, strict=True)))


@eqx.filter_jit
def _act(held: Learners, obs: Array, noise: Array, weight: Array) -> Sampled:
    return sample_actions(QGF, held, obs, noise, weight)


def episode(
    env: gymnasium.Env,
    seed: int,
    act: Callable[[np.ndarray, int], Float[np.ndarray, "step action"]],
    limit: int,
    discount: float,
) -> Chunks:
    """Return the chunks of an episode that begin before step `limit`.

    Returns are those of the data (`returns_to_go`): rewards up to the solving step, and where
    the episode is cut off the last reward paid forever.
    """
    obs, over = env.reset(seed=seed)[0], False
    seen, done, start, rewards, masks = [], [], [], [], []
    while not over:
        seen.append(np.asarray(obs, np.float32))
        done.append(act(seen[-1], len(start)))
        start.append(len(rewards))
        for action in done[-1]:
            obs, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            masks.append(1.0 - terminated)
            over = terminated or truncated
            if over:
                break
    last = np.arange(1, 1 + len(rewards)) == len(rewards)
    total = returns_to_go(np.array(rewards, float), np.array(masks), last, discount)
    kept = np.array(start) < limit
    # float32, so that returns of chunks that nothing ever solved are equal to the last bit.
    returns = total[start].astype(np.float32)
    return Chunks(np.stack(seen)[kept], np.stack(done).reshape(len(done), -1)[kept], returns[kept])


def accuracies(critic: Any, cloned: list[Chunks], guided: list[Chunks]) -> dict[str, dict]:
    """Return a critic's accuracy on chunks of either policy, given by training seed."""
    found = {}
    for policy, parts in (("cloned", cloned), ("guided", guided)):
        each = []
        for i, chunks in enumerate(parts):
            obs, action = jnp.asarray(chunks.obs), jnp.asarray(chunks.action)
            q = np.asarray(of_seed(critic, i).bind(obs)(action), float)
            each.append(accuracy(q, chunks.returns))
        found[policy] = mean(each)
    return found


def accuracy(q: Float[np.ndarray, " chunk"], returns: Float[np.ndarray, " chunk"]) -> dict:
    """Return Spearman's rank correlation (None if all returns are equal), bias and RMSE of Q."""
    varied = np.ptp(returns) > 0 and np.ptp(q) > 0
    return {
        "spearman": float(np.corrcoef(ranks(q), ranks(returns))[0, 1]) if varied else None,
        "bias": float((q - returns).mean()),
        "rmse": float(np.sqrt(np.square(q - returns).mean())),
        "return": float(returns.mean()),
        "chunks": len(q),
    }


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return ranks from 1, equal values sharing their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def mean(each: list[dict]) -> dict:
    """Return the mean over training seeds, of those that have a value; chunks are summed."""
    found: dict[str, Any] = {}
    for name in each[0]:
        values = [one[name] for one in each if one[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found | {"chunks": sum(one["chunks"] for one in each)}
