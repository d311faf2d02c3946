"""Real-time chunking: a chunk of actions that goes on from the one being executed.

While a chunk is computed, the robot executes the first `delay` actions that are left of the one
before. The new chunk must begin with them, and should go on as that one would have unless there is
a reason. So its clean estimate â₁ = a + (1 − t) v is pulled toward what is left, Y:

    v + min(β, (t² + (1 − t)²) / (t (1 − t))) · Jᵀ W (Y − â₁),   J = ∂â₁/∂a,

the gradient of a quadratic under a soft mask W over the steps of the chunk. Source: "Real-Time
Execution of Action Chunking Flow Policies" (arXiv 2506.07339), Algorithm 1, equations 2-5. There t
runs as here, from noise to action.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qgf.core.flow import Velocity, per_row
from qgf.errors import UserError

BOUND = 5.0  # β of the paper


def soft_mask(
    length: int, left: int, delay: int | Int[Array, "*batch"]
) -> Float[Array, "*batch step"]:
    """Return W of every step of a chunk: 1 for those that are executed meanwhile, then falling.

    W_i = 1 for i < d, c (eᶜ − 1) / (e − 1) with c = (m − i) / (m − d + 1) for d ≤ i < m, and 0
    from m on (equation 5, where m is written H − s).

    Args:
        length: steps of a chunk.
        left: m, how many actions of the chunk before are left.
        delay: d, how many of them are executed until the new chunk is there; one number, or one
            per row.
    """
    step = jnp.arange(length)
    delay = jnp.asarray(delay)[..., None]
    fall = (left - step) / (left - delay + 1)
    soft = jnp.where(step < delay, 1.0, fall * jnp.expm1(fall) / jnp.expm1(1.0))
    return jnp.where(step < left, soft, 0.0)


@dataclass(frozen=True)
class Continued:
    """A velocity whose samples go on from the chunk before.

    It includes the pull; `guided_sample` gives the policy's own to the estimators.

    Attributes:
        velocity: that of the policy.
        previous: what is left of the chunk before; any finite number where the mask is 0.
        mask: W.
    """

    velocity: Velocity
    previous: Float[Array, "batch *action"]
    mask: Float[Array, "batch *action"]

    def __call__(
        self, action: Float[Array, "batch *action"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch *action"]:
        def clean(action: Array) -> tuple[Array, Array]:
            v = self.velocity(action, t)
            return action + per_row(1 - t, action) * v, v

        estimate, pullback, v = jax.vjp(clean, action, has_aux=True)
        error = (self.mask * (self.previous - estimate)).astype(action.dtype)
        strength = (t**2 + (1 - t) ** 2) / (t * (1 - t))
        return v + per_row(jnp.minimum(BOUND, strength), action) * pullback(error)[0]


def continued(
    velocity: Velocity,
    noise: Float[Array, "batch step *rest"],
    previous: Float[Array | np.ndarray, "batch left *rest"],
    delay: int | Int[Array | np.ndarray, "*batch"] = 0,
) -> Continued:
    """Return a velocity whose samples go on from what is left of the chunk before.

    Args:
        velocity: v(action, t) of the policy.
        noise: what is sampled from: its second axis is that of the chunk's steps.
        previous: the actions left of the chunk before, in the sampler's units; at most as many
            steps as a chunk has.
        delay: how many of them are executed until the new chunk is there: whole control steps,
            one number or one per row.

    Raises:
        UserError: shapes that do not fit, a previous action that is not finite, or a delay that is
            not a whole number from 0 to the steps left.
    """
    return Continued(velocity, *left_and_mask(previous, noise.shape, delay))


def left_and_mask(
    previous: Any, shape: tuple[int, ...], delay: Any
) -> tuple[Float[Array, "batch step *rest"], Float[Array, "batch step *rest"]]:
    """Return `previous` and `mask` of `Continued` for chunks of a shape (batch, step, …).

    Raises:
        UserError: as in `continued`.
    """
    previous, delay = checked_previous(previous, shape, delay)
    left, rest = previous.shape[1], len(shape) - 2
    mask = soft_mask(shape[1], left, delay)
    mask = jnp.broadcast_to(mask.reshape(*mask.shape, *[1] * rest), shape)
    return jnp.pad(previous, [(0, 0), (0, shape[1] - left), *[(0, 0)] * rest]), mask


def checked_previous(
    previous: Any, shape: tuple[int, ...], delay: Any
) -> tuple[Float[Array, "batch left *rest"], Int[Array, "*batch"]]:
    """Return previous and delay as arrays.

    Args:
        shape: that of the chunks, (batch, step, …).

    Raises:
        UserError: as in `continued`; numbers that are not known (in jit) are not looked at.
    """
    traced = lambda x: isinstance(x, jax.core.Tracer)  # noqa: E731
    given, delays = (x if traced(x) else np.asarray(x) for x in (previous, delay))
    fits = len(shape) > 1 and given.ndim == len(shape) and given.shape[1] <= shape[1]
    if not fits or (given.shape[0], *given.shape[2:]) != (shape[0], *shape[2:]):
        raise UserError(
            f"previous must have the shape (batch, steps left, …) of what is left of chunks of "
            f"shape {shape}, got {given.shape}"
        )
    if not traced(given) and not (given.dtype.kind in "fiu" and np.isfinite(given).all()):
        raise UserError("previous must be finite numbers")
    left = given.shape[1]
    if delays.dtype.kind not in "iu" or delays.shape not in ((), shape[:1]):
        raise UserError(f"delay must be a whole number, one or one per row, got {delay}")
    if not traced(delays) and not ((delays >= 0) & (delays <= left)).all():
        raise UserError(
            f"delay must be from 0 to the {left} actions left of the chunk before, got {delay}; "
            "execute fewer actions of every chunk, so that more are left"
        )
    return jnp.asarray(given), jnp.asarray(delays)
