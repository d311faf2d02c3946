"""Flow policies: the velocity field, the loss that trains it, and plain sampling.

Time runs from noise to action: t = 0 is N(0, I), t = 1 is the action, and
a_t = (1 - t) a_0 + t a_1.

No sampler returns a NaN: a row whose velocity was not finite has the action 0, and FAILED
instead of a count. `refuse_failed` makes that a UserError as soon as the counts are known.
"""

from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from qgf.core.networks import MLP, time_embedding
from qgf.errors import FAILED, NOT_FINITE, UserError, check_actions, checked_count

Sampled = tuple[Float[Array, "batch *action"], Int[Array, " batch"]]
"""Actions, and for each row how many of its steps went unguided, or FAILED if it has none."""


@runtime_checkable
class Velocity(Protocol):
    """Any function v(action, t) -> velocity of a policy at given observations, one a row."""

    def __call__(
        self, action: Float[Array, "batch *action"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch *action"]: ...


class FlowPolicy(eqx.Module):
    """A velocity field v(obs, action, t) given by an MLP on [obs, action, embedding of t].

    Attributes:
        mlp: the network.
    """

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

    def bind(self, obs: Float[Array, "batch obs"], repeats: int = 1) -> Velocity:
        """Return the velocity at these observations, `repeats` times over.

        Args:
            obs: normalized observations.
            repeats: rows come as (repeats, batch), flattened.
        """
        return partial(self, repeat_rows(obs, repeats))


def reversed_time(velocity: Velocity) -> Velocity:
    """Return our velocity of a flow whose time runs the other way, or that of ours.

    Where t = 1 is noise and t = 0 the action (as in LeRobot and openpi), a_t = t a_noise +
    (1 − t) a_action and networks give a_noise − a_action.

    Args:
        velocity: v(action, t), whose t runs from the action to noise.
    """
    return lambda action, t: -velocity(action, 1 - t)


def draw_path(
    action: Float[Array, "batch *action"],
    key: PRNGKeyArray,
    *,
    times: Literal["uniform", "grid"] = "uniform",
    steps: int = 10,
) -> tuple[Float[Array, "batch *action"], Float[Array, " batch"], Float[Array, "batch *action"]]:
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
    noisy = per_row(1 - t, action) * noise + per_row(t, action) * action
    return noisy, t, action - noise


def flow_matching_loss(
    velocity: Velocity,
    action: Float[Array, "batch *action"],
    key: PRNGKeyArray,
    *,
    times: Literal["uniform", "grid"] = "uniform",
    steps: int = 10,
) -> Float[Array, ""]:
    """Return the mean of ‖v(a_t, t) − (a_1 − a_0)‖² over batch and action dimensions.

    Args:
        velocity: any function v(action, t) -> velocity, t = 0 being noise.
        action: the clean actions a_1, in [-1, 1].
        key: a JAX key.
        times: as in `draw_path`.
        steps: as in `draw_path`.
    """
    noisy, t, target = draw_path(action, key, times=times, steps=steps)
    return jnp.mean(jnp.square(velocity(noisy, t) - target))


def euler(
    velocity: Velocity, noise: Float[Array, "batch *action"], *, steps: int = 10
) -> Float[Array, "batch *action"]:
    """Carry noise to actions in `steps` Euler steps and clip them to [-1, 1].

    Args:
        velocity: as in `qgf.core.guided_sample`.
        noise: as in `qgf.core.guided_sample`.
        steps: Euler steps T.

    Returns:
        Actions in [-1, 1]; inside jit 0 for a row whose velocity was not finite.

    Raises:
        UserError: an argument that does not fit; outside jit, a velocity that was not finite.
    """
    action, failed = euler_counting(velocity, noise, steps=steps)
    refuse_failed(failed)
    return action


def euler_counting(
    velocity: Velocity, noise: Float[Array, "batch *action"], *, steps: int = 10
) -> Sampled:
    """Return the actions of `euler`, and for each row 0, or FAILED where it has none.

    Args:
        velocity: as in `euler`.
        noise: as in `euler`.
        steps: as in `euler`.
    """
    noise = checked_noise(noise)
    steps = checked_count(steps, "steps")
    velocity = checked_velocity(velocity)

    def step(action: Array, time: Array) -> tuple[Array, None]:
        return action + velocity(action, jnp.full(len(noise), time)) / steps, None

    action, _ = jax.lax.scan(step, noise, flow_times(steps, noise.dtype))
    return bounded(action)


def bounded(
    action: Float[Array, "batch *action"], counts: Int[Array, " batch"] | int = 0
) -> Sampled:
    """Return actions clipped to [-1, 1] and `counts`; 0 and FAILED for rows not finite.

    Args:
        action: the sampled actions.
        counts: for each row, how many of its steps went unguided.
    """
    finite = jnp.isfinite(action).all(tuple(range(1, action.ndim)))
    inside = jnp.where(per_row(finite, action), jnp.clip(action, -1, 1), 0)
    return inside, jnp.where(finite, counts, FAILED).astype(jnp.int32)


def refuse_failed(counts: Int[Array | np.ndarray, "*batch"], why: str = NOT_FINITE) -> None:
    """Raise a UserError that names the rows which FAILED, if counts are known (not in jit).

    Args:
        counts: what a sampler returned beside the actions.
        why: the rest of the message, behind the rows.
    """
    if not isinstance(counts, jax.core.Tracer):
        check_actions(np.asarray(counts), why)


def flow_times(steps: int, dtype: Any) -> Float[Array, " step"]:
    """Return k/steps for every step, in float32 at least: what is narrower tells few apart."""
    return jnp.asarray(np.arange(steps) / steps, jnp.promote_types(dtype, jnp.float32))


def per_row(
    x: Float[Array, " batch"] | Bool[Array, " batch"], action: Float[Array, "batch *action"]
) -> Float[Array, "batch *ones"] | Bool[Array, "batch *ones"]:
    """Return one value per row in the shape, and numbers in the dtype, that fit actions."""
    x = x.reshape(x.shape + (1,) * (action.ndim - 1))
    return x if x.dtype == bool else x.astype(action.dtype)


def repeat_rows(tree: PyTree, n: int) -> PyTree:
    """Return every array of a tree n times over, along its batch axis."""
    return tree if n == 1 else jax.tree.map(lambda x: jnp.tile(x, (n, *[1] * (x.ndim - 1))), tree)


def checked_noise(noise: Any, what: str = "noise") -> Float[Array, "batch *action"]:
    """Return noise as an array.

    Raises:
        UserError: it is none of floats; where it is known (not in jit), it is not finite.
    """
    try:
        given = jnp.asarray(noise)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be an array, got {type(noise).__name__}") from error
    if not jnp.issubdtype(given.dtype, jnp.floating) or not given.ndim:
        raise UserError(
            f"{what} must be floating numbers of shape (batch, …), got {given.dtype} of shape "
            f"{given.shape}"
        )
    if not isinstance(given, jax.core.Tracer):
        finite = np.isfinite(np.asarray(given))
        if not finite.all():
            raise UserError(f"{what} must be finite, but row {np.argwhere(~finite)[0, 0]} is not")
    return given


def checked_velocity(velocity: Velocity) -> Velocity:
    """Return the velocity with results in the action's dtype. UserError if they do not fit."""

    def checked(action: Array, t: Array) -> Array:
        v = checked_result(velocity(action, t), action.shape, "velocity")
        return v.astype(action.dtype)

    return checked


def checked_result(x: Any, shape: tuple[int, ...], what: str) -> Float[Array, "*shape"]:
    """Return what a function gave. UserError if it is not floats of that shape."""
    dtype, got = getattr(x, "dtype", None), getattr(x, "shape", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or got != shape:
        given = type(x).__name__ if dtype is None else f"{dtype} of shape {got}"
        raise UserError(f"the {what} must give floating numbers of shape {shape}, got {given}")
    return jnp.asarray(x)
