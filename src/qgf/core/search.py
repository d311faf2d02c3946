"""Test-time search: improving whole actions by the critic instead of guiding their flow."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.core.critic import Critic
from qgf.core.flow import Sampled, bounded, checked_count, checked_noise, per_row, refuse_failed
from qgf.core.guidance import checked_weight, q_gradient, q_values
from qgf.errors import UserError


def best_of_n(
    critic: Critic, actions: Float[Array, "n batch *action"]
) -> Float[Array, "batch *action"]:
    """Return, of n actions for each row, the one with the highest Q (BFN).

    Args:
        critic: any function q(action) -> values of shape (batch,), at the rows' observations.
        actions: n samples for every row, of the policy or guided; clipped to [-1, 1] before they
            are judged.

    Returns:
        Actions in [-1, 1]. What is not finite never wins, and of the others one whose Q is NaN
        only if all are. Inside jit 0 for a row without any finite action.

    Raises:
        UserError: what does not fit; outside jit, a row without any finite action.
    """
    shape, dtype = getattr(actions, "shape", ()), getattr(actions, "dtype", type(actions).__name__)
    if len(shape) < 2 or not shape[0] or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"actions must be floats of shape (n, batch, …), got {dtype} of {shape}")
    values = jax.vmap(partial(q_values, critic))
    action, failed = best_of_n_counting(values, jnp.asarray(actions))
    refuse_failed(failed, "none of the actions to choose from is finite")
    return action


def best_of_n_counting(
    values: Callable[[Float[Array, "n batch *action"]], Float[Array, "n batch"]],
    actions: Float[Array, "n batch *action"],
) -> Sampled:
    """Return the actions of `best_of_n`, and for each row 0, or FAILED where it has none.

    Args:
        values: every action's Q.
    """
    finite = jnp.isfinite(actions).all(tuple(range(2, actions.ndim)))
    q = values(jnp.clip(actions, -1, 1))
    # Even a finite action of the lowest Q is better than none.
    q = jnp.maximum(jnp.where(jnp.isnan(q), -jnp.inf, q), jnp.finfo(q.dtype).min)
    best = jnp.where(finite, q, -jnp.inf).argmax(0)
    return bounded(actions[best, jnp.arange(len(best))])


def gradient_steps(
    critic: Critic,
    action: Float[Array, "batch *action"],
    step_size: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 3,
) -> Sampled:
    """Climb Q from clean actions: a ← clip(a + α ∇Q(a), −1, 1), repeatedly (GradStep).

    Args:
        critic: any function q(action) -> values of shape (batch,), at the rows' observations.
        action: samples of the policy, in [-1, 1].
        step_size: α ≥ 0 in units of 1/Q, one number or one per row.
        steps: how often (L).

    Returns:
        Actions in [-1, 1], and how many steps each row did not take because its gradient or
        its α was not finite. A row whose action was not finite has the action 0 and the count
        FAILED.

    Raises:
        UserError: an argument, or what the critic gave, does not fit; outside jit, an action
            that is not finite, or an α that is not or is below 0.
    """
    action = checked_noise(action, "action")
    checked_count(steps, "steps")
    step_size = per_row(checked_weight(step_size, action, "step_size"), action)
    entries = tuple(range(1, action.ndim))

    def step(action: Array, _: None) -> tuple[Array, Array]:
        g = q_gradient(critic, action)
        usable = jnp.isfinite(g).all(entries) & jnp.isfinite(step_size).all(entries)
        climbed = jnp.clip(action + step_size * g, -1, 1)
        return jnp.where(per_row(usable, action), climbed, action), ~usable

    climbed, skipped = jax.lax.scan(step, action, length=steps)
    return bounded(climbed, skipped.sum(0, dtype=jnp.int32))
