"""Test-time search: improving whole actions by the critic instead of guiding their flow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qgf.critic import Critic
from qgf.guidance import q_gradient


def best_of_n(
    sample: Callable[
        [Float[Array, "rows obs"], Float[Array, "rows action"]], Float[Array, "rows action"]
    ],
    critic: Critic,
    obs: Float[Array, "batch obs"],
    noise: Float[Array, "n batch action"],
) -> Float[Array, "batch action"]:
    """Return, of n samples for each observation, the one with the highest Q (BFN).

    Args:
        sample: (obs, noise) -> actions; plain or guided.
        noise: n independent draws of N(0, I) for every row.
    """
    n, batch, size = noise.shape
    tiled = jnp.tile(obs, (n, 1))
    actions = sample(tiled, noise.reshape(n * batch, size))
    return highest_q(critic, obs, actions.reshape(n, batch, -1))


def highest_q(
    critic: Critic, obs: Float[Array, "batch obs"], actions: Float[Array, "n batch action"]
) -> Float[Array, "batch action"]:
    """Return, of n actions for each observation, the one with the highest Q; NaN never wins."""
    n, batch, size = actions.shape
    q = critic(jnp.tile(obs, (n, 1)), actions.reshape(n * batch, size)).reshape(n, batch)
    return actions[jnp.where(jnp.isnan(q), -jnp.inf, q).argmax(0), jnp.arange(batch)]


def gradient_steps(
    critic: Critic,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
    step_size: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 3,
) -> tuple[Float[Array, "batch action"], Int[Array, " batch"]]:
    """Climb Q from clean actions: a ← clip(a + α ∇Q(s, a), −1, 1), repeatedly (GradStep).

    Args:
        critic: any function q(obs, action) -> values of shape (batch,).
        action: samples of the policy, in [-1, 1].
        step_size: α in units of 1/Q, one number or one per row.
        steps: how often (L).

    Returns:
        Actions in [-1, 1], and how many steps each row did not take because its gradient was
        not finite.
    """
    step_size = jnp.broadcast_to(jnp.asarray(step_size, action.dtype), action.shape[:1])[:, None]

    def step(action: Array, _: None) -> tuple[Array, Array]:
        g = q_gradient(critic, obs, action)
        usable = jnp.isfinite(g).all(-1, keepdims=True)
        climbed = jnp.clip(action + step_size * g, -1, 1)
        return jnp.where(usable, climbed, action), ~usable[:, 0]

    action, skipped = jax.lax.scan(step, action, length=steps)
    return action, skipped.sum(0, dtype=jnp.int32)
