"""Q-guided flow: the guided sampler and its gradient estimators.

Source: "Test-Time Gradient Guidance of Flow Policies in Reinforcement Learning"
(arXiv 2606.11087). The optimal KL-regularized policy π ∝ π̂ · exp(Q/β) has the score
∇ log π̂ + ∇Q/β: a flow of the reference policy π̂ becomes a flow of π when w = 1/β times
a critic's gradient joins its velocity. Estimators differ in where that gradient is taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.critic import Critic
from qgf.flow import Velocity, euler

Estimator = Callable[..., tuple[Float[Array, "batch action"], Float[Array, "batch action"]]]


def q_gradient(
    critic: Critic,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
) -> Float[Array, "batch action"]:
    """Return every row's ∇_a Q(s, a)."""
    return jax.grad(lambda action: critic(obs, action).sum())(action)


def one_step_clean(
    action: Float[Array, "batch action"],
    v: Float[Array, "batch action"],
    t: Float[Array, " batch"],
) -> Float[Array, "batch action"]:
    """Return â₁ = clip(a + (1 − t) v): one big Euler step from flow time t to the action."""
    return jnp.clip(action + (1 - t[:, None]) * v, -1, 1)


def qgf(
    velocity: Velocity,
    critic: Critic,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
    t: Float[Array, " batch"],
) -> tuple[Float[Array, "batch action"], Float[Array, "batch action"]]:
    """QGF (Algorithm 1): ∇Q at the one-step clean action, its Jacobian taken as I."""
    v = velocity(obs, action, t)
    return v, q_gradient(critic, obs, one_step_clean(action, v, t))


ESTIMATORS: dict[str, Estimator] = {"qgf": qgf}


def guided_sample(
    velocity: Velocity,
    critic: Critic,
    obs: Float[Array, "batch obs"],
    noise: Float[Array, "batch action"],
    weight: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 10,
    estimator: Estimator = qgf,
) -> Float[Array, "batch action"]:
    """Carry noise to actions, pushing every Euler step by `weight` times the critic's gradient.

    Args:
        velocity: any function v(obs, action, t) -> velocity, trained with t = 0 as noise.
        critic: any function q(obs, action) -> values of shape (batch,).
        noise: draws of N(0, I).
        weight: w = 1/β in units of 1/Q, one number or one per row; 0 is the policy itself.
        steps: Euler steps T.
        estimator: (velocity, critic, obs, action, t) -> (velocity, gradient).

    Returns:
        Actions in [-1, 1]. Where a gradient is not finite, that row takes the step unguided.
    """
    weight = jnp.broadcast_to(jnp.asarray(weight, noise.dtype), noise.shape[:1])[:, None]

    def step(action: Array, k: Array) -> tuple[Array, None]:
        t = jnp.full(noise.shape[:1], k / steps, noise.dtype)
        v, g = estimator(velocity, critic, obs, action, t)
        g = jnp.where(jnp.isfinite(g).all(-1, keepdims=True), g, 0)
        return action + (v + weight * g) / steps, None

    def guided() -> Array:
        action, _ = jax.lax.scan(step, noise, jnp.arange(steps, dtype=noise.dtype))
        return jnp.clip(action, -1, 1)

    # Without any weight it is the policy itself, to the last bit and without the critic's cost.
    return jax.lax.cond(weight.any(), guided, lambda: euler(velocity, obs, noise, steps=steps))
