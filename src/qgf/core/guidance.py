"""Q-guided flow: the guided sampler and its gradient estimators.

Source: "Test-Time Gradient Guidance of Flow Policies in Reinforcement Learning"
(arXiv 2606.11087). The optimal KL-regularized policy π ∝ π̂ · exp(Q/β) has the score
∇ log π̂ + ∇Q/β, so w times a critic's gradient g joins the velocity of the reference policy π̂.
The constant w is a strength, not that 1/β: see `qgf.core.tilt`. Estimators differ in where ∇Q is
taken, and in the Jacobian J of that place with respect to the noisy action a through which it
comes back:

    name                      ∇Q is taken at                  and comes back as
    qgf                       â₁ = clip(a + (1 − t) v)        ∇Q, as if J = I
    qfql                      a, the noisy action itself      ∇Q, J is I
    bptt                      a₁ = clip(ODE_{t→1}(a))         Jᵀ∇Q, J through the whole chain
    qgf-chain                 a₁                              ∇Q, as if J = I
    qgf-jacobian              â₁                              Jᵀ∇Q, J = ∂â₁/∂a
    qgf-jacobian-regularized  â₁                              ((1 − λ) J + λ I)ᵀ∇Q
    qgf-jacobian-ortho        â₁                              Oᵀ∇Q, O the orthogonal nearest J
    qgf-jacobian-smooth       â₁                              Jᵀ∇Q, J averaged around a

An estimator takes (velocity, critic, a, t, steps), where `steps` is the number T of Euler
steps of the grid that t lies on, and returns (v, g) for every row. A J taken is that of the
clip too, as in the authors' implementation: a dimension that the clip cut off gets nothing
through it, whereas ∇Q as if J = I is not zeroed by the clip.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qgf.core.critic import Critic
from qgf.core.flow import (
    Sampled,
    Velocity,
    bounded,
    checked_count,
    checked_noise,
    checked_result,
    checked_velocity,
    euler_counting,
    flow_times,
    per_row,
    refuse_failed,
)
from qgf.core.realtime import Continued, continued
from qgf.errors import UserError

Action = Float[Array, "batch *action"]
"""Actions, one row per observation; those that sampling starts from are noise."""
Time = Float[Array, " batch"]
Estimator = Callable[[Velocity, Critic, Action, Time, int], tuple[Action, Action]]
"""(velocity, critic, action, t, steps) -> (velocity, gradient), both for every row."""


def q_gradient(critic: Critic, action: Action) -> Action:
    """Return every row's ∇Q(a)."""
    return jax.grad(lambda action: q_values(critic, action).sum())(action)


def q_values(critic: Critic, action: Action) -> Float[Array, " batch"]:
    """Return every row's Q(a). UserError if the critic does not give one number per row."""
    return checked_result(critic(action), action.shape[:1], "critic")


def one_step_clean(action: Action, v: Action, t: Time) -> Action:
    """Return â₁ = clip(a + (1 − t) v): one big Euler step from flow time t to the action."""
    return jnp.clip(action + per_row(1 - t, action) * v, -1, 1)


def qgf(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF (Algorithm 1): ∇Q at the one-step clean action, its Jacobian taken as I.

    Args:
        velocity: any function v(action, t) -> velocity, t = 0 being noise.
        critic: any function q(action) -> values of shape (batch,).
        action: noisy actions a_t.
        t: flow time of each row, in [0, 1).
        steps: Euler steps T of the sampler; not used.

    Returns:
        v and ∇Q of every row.
    """
    v = velocity(action, t)
    return v, q_gradient(critic, one_step_clean(action, v, t))


def qfql(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QFQL ("OOD"): ∇Q at the noisy action, where no critic was trained; it is not clipped."""
    return velocity(action, t), q_gradient(critic, action)


def bptt(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """Backpropagation through time: ∇_a Q(clip(ODE_{t→1}(a))) through all Euler steps left.

    Args:
        t: the same k/steps for all rows.
    """

    left = steps - 1 - _index(t, steps)  # Euler steps after this one

    def run(action: Array, first: Array, length: int) -> Array:
        step = lambda a, k: (_euler_step(velocity, a, k, t, steps), None)  # noqa: E731
        return jax.lax.scan(step, action, first + jnp.arange(length))[0]

    def clean(action: Array) -> tuple[Array, Array]:
        v = velocity(action, t)
        a1 = action + v / steps
        # Exactly the steps left, in runs of …, 8, 4, 2, 1: their lengths must be static, and
        # one branch for every `left` would keep less memory but compile for half a minute.
        for length in (1 << bit for bit in reversed(range((steps - 1).bit_length()))):
            first = steps - left % (2 * length)
            skip = lambda a1, first: a1  # noqa: E731
            a1 = jax.lax.cond(left & length, partial(run, length=length), skip, a1, first)
        return jnp.clip(a1, -1, 1), v

    a1, pullback, v = jax.vjp(clean, action, has_aux=True)
    return v, pullback(q_gradient(critic, a1))[0]


def qgf_chain(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-chain: ∇Q at a₁ = clip(ODE_{t→1}(a)), the Jacobian of the chain taken as I.

    Args:
        t: the same k/steps for all rows.
    """
    v = velocity(action, t)
    a1 = jax.lax.fori_loop(
        _index(t, steps) + 1,
        steps,
        lambda k, a: _euler_step(velocity, a, k, t, steps),
        action + v / steps,
    )
    return v, q_gradient(critic, jnp.clip(a1, -1, 1))


def qgf_jacobian(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-Jacobian: Jᵀ∇Q at the one-step clean action, J = ∂â₁/∂a."""
    return qgf_jacobian_regularized(velocity, critic, action, t, steps, identity=0.0)


def qgf_jacobian_regularized(
    velocity: Velocity,
    critic: Critic,
    action: Action,
    t: Time,
    steps: int,
    *,
    identity: float = 0.5,
) -> tuple[Action, Action]:
    """QGF-Jacobian-Regularized: J_λᵀ∇Q with J_λ = (1 − λ) J + λ I.

    Args:
        identity: λ; 0 is QGF-Jacobian, 1 is QGF.
    """

    def clean(action: Array) -> tuple[Array, Array]:
        v = velocity(action, t)
        return one_step_clean(action, v, t), v

    a1, pullback, v = jax.vjp(clean, action, has_aux=True)
    g = q_gradient(critic, a1)
    return v, (1 - identity) * pullback(g)[0] + identity * g


def qgf_jacobian_ortho(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-Jacobian-Ortho: Oᵀ∇Q with O = UVᵀ, the orthogonal matrix nearest J = UΣVᵀ.

    J is that of a + (1 − t) v without the clip, which would make it singular and O arbitrary.
    Where J is singular none the less, O is the one that the SVD happens to give.
    """
    shape, size = action.shape, math.prod(action.shape[1:])
    flat = lambda x: x.reshape(len(x), size)  # noqa: E731
    v, pullback = jax.vjp(lambda a: flat(velocity(a.reshape(shape), t)), flat(action))
    g = q_gradient(critic, one_step_clean(action, v.reshape(shape), t))
    eye = jnp.eye(size, dtype=action.dtype)
    unit = jnp.broadcast_to(eye[:, None], (size, *v.shape))
    dv_da = jnp.swapaxes(jax.vmap(pullback)(unit)[0], 0, 1)
    jacobian = eye + (1 - t[:, None, None]) * dv_da
    u, _, vt = jnp.linalg.svd(jacobian)
    turned = jnp.einsum("bi,bik,bkj->bj", flat(g), u, vt)
    return v.reshape(shape), turned.reshape(shape).astype(action.dtype)


def qgf_jacobian_smooth(
    velocity: Velocity,
    critic: Critic,
    action: Action,
    t: Time,
    steps: int,
    *,
    samples: int = 8,
    scale: float = 0.1,
) -> tuple[Action, Action]:
    """QGF-Jacobian-Smooth: Jᵀ∇Q with J the mean of ∂â₁/∂a over perturbed noisy actions.

    Args:
        samples: perturbations; the same ones for every row, step and call.
        scale: standard deviation of the perturbations.
    """
    shape = (samples, 1, *action.shape[1:])
    perturbation = scale * jax.random.normal(jax.random.key(0), shape, action.dtype)

    def clean(action: Array) -> Array:
        one = lambda around: one_step_clean(around, velocity(around, t), t)  # noqa: E731
        return jax.vmap(one)(action + perturbation)

    v = velocity(action, t)
    g = q_gradient(critic, one_step_clean(action, v, t))
    _, pullback = jax.vjp(clean, action)
    return v, pullback(jnp.broadcast_to(g / samples, (samples, *g.shape)))[0]


def _euler_step(velocity: Velocity, action: Array, k: Array | int, t: Array, steps: int) -> Array:
    """Return the action after Euler step k; t only lends its shape."""
    return action + velocity(action, jnp.full_like(t, k / steps)) / steps


def _index(t: Array, steps: int) -> Array:
    """Return k of t = k/steps."""
    return jnp.round(t[0] * steps).astype(jnp.int32)


ESTIMATORS: dict[str, Estimator] = {
    "qgf": qgf,
    "qfql": qfql,
    "bptt": bptt,
    "qgf-chain": qgf_chain,
    "qgf-jacobian": qgf_jacobian,
    "qgf-jacobian-regularized": qgf_jacobian_regularized,
    "qgf-jacobian-ortho": qgf_jacobian_ortho,
    "qgf-jacobian-smooth": qgf_jacobian_smooth,
}
"""the gradient estimators by name"""


def guided_sample(
    velocity: Velocity,
    critic: Critic,
    noise: Action,
    weight: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 10,
    estimator: Estimator = qgf,
    previous: Float[Array | np.ndarray, "rows left *rest"] | None = None,
    delay: int | Int[Array | np.ndarray, "*rows"] = 0,
) -> Action:
    """Carry noise to actions, pushing every Euler step by `weight` times the critic's gradient.

    Args:
        velocity: any function v(action, t) -> velocity, with t = 0 as noise, of a policy at given
            observations: `lambda a, t: policy(obs, a, t)`. (`reversed_time` turns another.)
        critic: any function q(action) -> values of shape (batch,) there: `lambda a: q(obs, a)`.
        noise: draws of N(0, I) in the shape of the actions: (batch, …). Sampling goes on in its
            floating dtype, whatever those of the velocity and the critic are.
        weight: the strength w ≥ 0 in units of 1/Q, one number or one per row; 0 is the policy
            itself.
        steps: Euler steps T.
        estimator: (velocity, critic, action, t, steps) -> (velocity, gradient). t, of
            shape (batch,), is float32 or what noise is, if that is wider.
        previous: what is left of the chunk of actions before, from which these are to go on
            (real-time chunking, `qgf.core.realtime`): noise then has the shape (batch, step, …).
        delay: how many actions of `previous` are executed until these are there, in control steps;
            one number or one per row.

    Returns:
        Actions in [-1, 1], never NaN. Where w·g is not finite, that row takes the step
        unguided. Inside jit a row whose velocity was not finite has the action 0;
        `guided_sample_counting` tells which.

    Raises:
        UserError: an argument, or what a function gave, does not fit; a weight below 0 or
            not finite in the dtype of noise; outside jit, a velocity that was not finite.
    """
    noise = checked_noise(noise)
    if previous is not None:
        velocity = continued(velocity, noise, previous, delay)
    action, unguided = guided_sample_counting(
        velocity, critic, noise, weight, steps=steps, estimator=estimator
    )
    refuse_failed(unguided)
    return action


def guided_sample_counting(
    velocity: Velocity,
    critic: Critic,
    noise: Action,
    weight: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 10,
    estimator: Estimator = qgf,
) -> Sampled:
    """Return the actions of `guided_sample` and how many steps each row took unguided.

    A step is unguided, and counted, where the norm of w·g is not finite, rows of weight 0
    included. If all weights are 0, no gradient is taken and none counted. A row whose velocity
    was not finite, at the noise or where the pushes led it, has the action 0 and the count
    `FAILED` of qgf.core, in jit and outside; `refuse_failed` there makes that a UserError.

    Args:
        velocity: as in `guided_sample`.
        critic: as in `guided_sample`.
        noise: as in `guided_sample`.
        weight: as in `guided_sample`.
        steps: as in `guided_sample`.
        estimator: as in `guided_sample`.
    """
    noise = checked_noise(noise)
    steps = checked_count(steps, "steps")
    weight = per_row(checked_weight(weight, noise), noise)
    follows = isinstance(velocity, Continued)
    inner = checked_velocity(velocity.velocity if follows else velocity)
    pulled = checked_velocity(velocity)
    rows, entries = noise.shape[:1], tuple(range(1, noise.ndim))

    def step(action: Array, time: Array) -> tuple[Array, Array]:
        t = jnp.full(rows, time)
        estimated = estimator(inner, critic, action, t, steps)
        v, g = (checked_result(x, noise.shape, "estimator").astype(noise.dtype) for x in estimated)
        if follows:
            v = pulled(action, t)
        push = weight * g
        # The norm, because a push too long to be squared would break the next velocity.
        usable = jnp.isfinite(jnp.square(push).sum(entries))
        push = jnp.where(per_row(usable, push), push, 0)
        return action + (v + push) / steps, ~usable

    def guided() -> Sampled:
        action, unguided = jax.lax.scan(step, noise, flow_times(steps, noise.dtype))
        return bounded(action, unguided.sum(0, dtype=jnp.int32))

    # Without any weight it is the policy itself, to the last bit and without the critic's cost.
    plain = partial(euler_counting, velocity, noise, steps=steps)
    return jax.lax.cond(weight.any(), guided, plain) if len(noise) else plain()


def checked_weight(weight: Any, noise: Action, what: str = "weight") -> Float[Array, " batch"]:
    """Return a weight for every row, in the dtype of noise.

    Raises:
        UserError: neither one real number nor one per row; where it is known (not in jit), below
            0, or not finite in that dtype.
    """
    known = not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(weight))
    try:
        given = np.asarray(weight) if known else jnp.asarray(weight)
    except (TypeError, ValueError) as error:
        got = type(weight).__name__
        raise UserError(f"{what} must be one number or one per row, got {got}") from error
    kinds = (jnp.floating, jnp.integer)
    real = any(jnp.issubdtype(given.dtype, kind) for kind in kinds)
    if not real or given.shape not in ((), noise.shape[:1]):
        raise UserError(
            f"{what} must be one real number or one per row ({len(noise)}), got {given.dtype} "
            f"of shape {given.shape}"
        )
    if known:
        with np.errstate(over="ignore"):
            fits = np.isfinite(given.astype(noise.dtype)) & (given >= 0)
        if not fits.all():
            raise UserError(
                f"{what} must be a finite number of at least 0 in {noise.dtype}, got "
                f"{given[~fits][0]}"
            )
    return jnp.broadcast_to(jnp.asarray(given, noise.dtype), noise.shape[:1])
