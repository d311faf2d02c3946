"""Flow policies: the velocity field, the loss that trains it, and plain sampling.

Time runs from noise to action: t = 0 is N(0, I), t = 1 is the action, and
a_t = (1 - t) a_0 + t a_1.
"""

from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.networks import MLP, time_embedding


@runtime_checkable
class Velocity(Protocol):
    """Any function v(obs, action, t) -> velocity; all arrays lead with the batch axis."""

    def __call__(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch action"]: ...


class FlowPolicy(eqx.Module):
    """A velocity field v(obs, action, t) given by an MLP on [obs, action, embedding of t]."""

    mlp: MLP

    def __init__(self, obs: int, action: int, *, width: int, depth: int, key: PRNGKeyArray):
        self.mlp = MLP(
            obs + action + 16, action, width=width, depth=depth, norms=depth - 1, key=key
        )

    def __call__(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch action"]:
        return self.mlp(obs, jnp.concatenate([action, time_embedding(t)], axis=-1))


def draw_path(
    action: Float[Array, "batch action"],
    key: PRNGKeyArray,
    *,
    times: Literal["uniform", "grid"] = "uniform",
    steps: int = 10,
) -> tuple[Float[Array, "batch action"], Float[Array, " batch"], Float[Array, "batch action"]]:
    """Return a_t, t and a_1 − a_0 for noise a_0 ~ N(0, I) and a flow time t drawn per row.

    Args:
        action: the clean actions a_1, in [-1, 1].
        times: t ~ U[0, 1], or uniform on the grid {0, 1/steps, …, 1} that sampling with
            `steps` Euler steps visits (as the authors' implementation does).
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, action.shape)
    if times == "uniform":
        t = jax.random.uniform(time_key, action.shape[:1])
    else:
        t = jax.random.randint(time_key, action.shape[:1], 0, steps + 1) / steps
    noisy = (1 - t[:, None]) * noise + t[:, None] * action
    return noisy, t, action - noise


def flow_matching_loss(
    velocity: Velocity,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
    key: PRNGKeyArray,
    *,
    times: Literal["uniform", "grid"] = "uniform",
    steps: int = 10,
) -> Float[Array, ""]:
    """Return the mean of ‖v(s, a_t, t) − (a_1 − a_0)‖² over batch and action dimensions.

    Args:
        action: the clean actions a_1, in [-1, 1].
        times, steps: as in `draw_path`.
    """
    noisy, t, target = draw_path(action, key, times=times, steps=steps)
    return jnp.mean(jnp.square(velocity(obs, noisy, t) - target))


def euler(
    velocity: Velocity,
    obs: Float[Array, "batch obs"],
    noise: Float[Array, "batch action"],
    *,
    steps: int = 10,
) -> Float[Array, "batch action"]:
    """Carry noise to actions in `steps` Euler steps and clip them to [-1, 1]."""

    def step(action: Array, k: Array) -> tuple[Array, None]:
        t = jnp.full(noise.shape[:1], k / steps, noise.dtype)
        return action + velocity(obs, action, t) / steps, None

    action, _ = jax.lax.scan(step, noise, jnp.arange(steps, dtype=noise.dtype))
    return jnp.clip(action, -1, 1)
