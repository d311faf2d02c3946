"""Test-time search: improving whole actions by the critic instead of guiding their flow."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qgf.core.critic import Critic
from qgf.core.flow import (
    Sampled,
    bounded,
    checked_count,
    checked_noise,
    checked_result,
    checked_rows,
    per_row,
    refuse_failed,
    repeat_rows,
)
from qgf.core.guidance import checked_weight, q_gradient, q_values
from qgf.errors import UserError


def best_of_n(
    sample: Callable[[PyTree, Float[Array, "rows *noise"]], Float[Array, "rows *action"]],
    critic: Critic,
    obs: PyTree,
    noise: Float[Array, "n batch *noise"],
) -> Float[Array, "batch *action"]:
    """Return, of n samples for each observation, the one with the highest Q (BFN).

    Args:
        sample: (obs, noise) -> actions; plain or guided.
        critic, obs: as in `highest_q`.
        noise: n independent draws of N(0, I) for every row.

    Returns, raises: as `highest_q`; UserError too if noise or samples do not fit.
    """
    n, batch = _sizes(noise, "noise")
    checked_rows(obs, batch, "noise")
    actions = sample(repeat_rows(obs, n), noise.reshape(n * batch, *noise.shape[2:]))
    shape = (n * batch, *getattr(actions, "shape", ())[1:])
    actions = checked_result(actions, shape, "sample")
    return highest_q(critic, obs, actions.reshape(n, batch, *shape[1:]))


def highest_q(
    critic: Critic, obs: PyTree, actions: Float[Array, "n batch *action"]
) -> Float[Array, "batch *action"]:
    """Return, of n actions for each observation, the one with the highest Q.

    Args:
        critic: any function q(obs, action) -> values, one per row.
        obs: any tree of arrays that lead with the batch axis.
        actions: clipped to [-1, 1] before they are judged.

    Returns:
        Actions in [-1, 1]. What is not finite never wins, and of the others one whose Q is NaN
        only if all are. Inside jit 0 for a row without any finite action.

    Raises:
        UserError: what does not fit; outside jit, a row without any finite action.
    """
    action, failed = highest_q_counting(critic, obs, actions)
    refuse_failed(failed, "none of the actions to choose from is finite")
    return action


def highest_q_counting(
    critic: Critic, obs: PyTree, actions: Float[Array, "n batch *action"]
) -> Sampled:
    """Return the actions of `highest_q`, and for each row 0, or FAILED where it has none."""
    n, batch = _sizes(actions, "actions")
    checked_rows(obs, batch, "actions")
    finite = jnp.isfinite(actions).all(tuple(range(2, actions.ndim)))
    inside = jnp.clip(actions, -1, 1)
    flat = inside.reshape(n * batch, *actions.shape[2:])
    q = q_values(critic, repeat_rows(obs, n), flat).reshape(n, batch)
    # Even a finite action of the lowest Q is better than none.
    q = jnp.maximum(jnp.where(jnp.isnan(q), -jnp.inf, q), jnp.finfo(q.dtype).min)
    best = jnp.where(finite, q, -jnp.inf).argmax(0)
    return bounded(actions[best, jnp.arange(batch)])


def _sizes(x: Any, what: str) -> tuple[int, int]:
    """Return n and batch of an array (n, batch, …). UserError if it is none of floats."""
    shape, dtype = getattr(x, "shape", ()), getattr(x, "dtype", type(x).__name__)
    if len(shape) < 2 or not shape[0] or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{what} must be floats of shape (n, batch, …), got {dtype} of {shape}")
    return shape[:2]


def gradient_steps(
    critic: Critic,
    obs: PyTree,
    action: Float[Array, "batch *action"],
    step_size: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 3,
) -> Sampled:
    """Climb Q from clean actions: a ← clip(a + α ∇Q(s, a), −1, 1), repeatedly (GradStep).

    Args:
        critic: any function q(obs, action) -> values of shape (batch,).
        obs: any tree of arrays that lead with the batch axis.
        action: samples of the policy, in [-1, 1].
        step_size: α in units of 1/Q, one number or one per row.
        steps: how often (L).

    Returns:
        Actions in [-1, 1], and how many steps each row did not take because its gradient or
        its α was not finite. A row whose action was not finite has the action 0 and the count
        FAILED.

    Raises:
        UserError: an argument, or what the critic gave, does not fit; outside jit, an action or
            an α that is not finite.
    """
    action = checked_noise(obs, action, "action")
    checked_count(steps, "steps")
    step_size = per_row(checked_weight(step_size, action, "step_size"), action)
    entries = tuple(range(1, action.ndim))

    def step(action: Array, _: None) -> tuple[Array, Array]:
        g = q_gradient(critic, obs, action)
        usable = jnp.isfinite(g).all(entries) & jnp.isfinite(step_size).all(entries)
        climbed = jnp.clip(action + step_size * g, -1, 1)
        return jnp.where(per_row(usable, action), climbed, action), ~usable

    climbed, skipped = jax.lax.scan(step, action, length=steps)
    return bounded(climbed, skipped.sum(0, dtype=jnp.int32))
