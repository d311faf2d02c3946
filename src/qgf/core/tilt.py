"""The tilt: guidance whose strength follows the policy's own spread.

The optimum of E[Q] − β KL(π‖π̂) is the tilted policy π ∝ π̂ · exp(Q/β). Its score is that of π̂
plus ∇Q/β at the action alone; at noisy actions what is added is not ∇Q/β, so a constant w does
not lead to the tilt of β = 1/w. Where π̂ is Gaussian with deviation σ and Q is linear, the
marginal of a_t = (1 − t) a_0 + t a_1 has the variance S = (1 − t)² + t²σ², the tilt moves a_1 by
δ = σ²∇Q/β, and the velocity E[a_1 − a_0 | a_t] by

    δ (1 − t)/S = (1/β) · σ²(1 − t)/((1 − t)² + t²σ²) · ∇Q.

Euler steps keep the mean of such a flow exactly, whatever their number.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.core.critic import Critic
from qgf.core.flow import Velocity, euler_counting, per_row
from qgf.core.guidance import Action, Estimator, Time, qgf


def tilt_schedule(deviation: Float[Array, "batch *action"], t: Time) -> Action:
    """Return σ²(1 − t)/((1 − t)² + t²σ²): what ∇Q/β is to be multiplied by at flow time t.

    Args:
        deviation: σ, the policy's standard deviation at every row, per action dimension.
        t: flow times, below 1.
    """
    t = per_row(t, deviation)
    variance = jnp.square(deviation)
    return variance * (1 - t) / (jnp.square(1 - t) + jnp.square(t) * variance)


def tilted(deviation: Float[Array, "batch *action"], estimator: Estimator = qgf) -> Estimator:
    """Return an estimator under which the guidance weight is 1/β of the tilt exp(Q/β).

    Args:
        deviation: as in `tilt_schedule`; see `policy_deviation`.
        estimator: gives the velocity and ∇Q.
    """

    def estimate(
        velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
    ) -> tuple[Action, Action]:
        v, g = estimator(velocity, critic, action, t, steps)
        return v, tilt_schedule(deviation, t) * g

    return estimate


def policy_deviation(
    velocity: Velocity, like: Action, *, steps: int = 10, samples: int = 8
) -> Action:
    """Return the standard deviation of a policy's own actions at every row, per dimension.

    Args:
        velocity: of the policy, bound to observations.
        like: an array of the shape and dtype of actions.
        steps: Euler steps T of a sample.
        samples: actions per row; their noises are the same ones for every row and call. One
            that is not finite counts as 0, so that a row without any finite one is not guided.
    """
    noise = jax.random.normal(jax.random.key(0), (samples, *like.shape[1:]), like.dtype)

    def sample(noise: Array) -> Array:
        return euler_counting(velocity, jnp.broadcast_to(noise, like.shape), steps=steps)[0]

    # Not vmap, which would let a velocity see more axes than it is written for.
    return jax.lax.map(sample, noise).std(0, ddof=1)
