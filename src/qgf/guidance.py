"""Q-guided flow: the guided sampler and its gradient estimators.

Source: "Test-Time Gradient Guidance of Flow Policies in Reinforcement Learning"
(arXiv 2606.11087). The optimal KL-regularized policy π ∝ π̂ · exp(Q/β) has the score
∇ log π̂ + ∇Q/β: a flow of the reference policy π̂ becomes a flow of π when w = 1/β times
a critic's gradient g joins its velocity. Estimators differ in where ∇Q is taken, and in the
Jacobian J of that place with respect to the noisy action a through which it comes back:

    name                      ∇Q is taken at                  and comes back as
    qgf                       â₁ = clip(a + (1 − t) v)        ∇Q, as if J = I
    qfql                      a, the noisy action itself      ∇Q, J is I
    bptt                      a₁ = clip(ODE_{t→1}(a))         Jᵀ∇Q, J through the whole chain
    qgf-chain                 a₁                              ∇Q, as if J = I
    qgf-jacobian              â₁                              Jᵀ∇Q, J = ∂â₁/∂a
    qgf-jacobian-regularized  â₁                              ((1 − λ) J + λ I)ᵀ∇Q
    qgf-jacobian-ortho        â₁                              Oᵀ∇Q, O the orthogonal nearest J
    qgf-jacobian-smooth       â₁                              Jᵀ∇Q, J averaged around a

An estimator takes (velocity, critic, obs, a, t, steps), where `steps` is the number T of Euler
steps of the grid that t lies on, and returns (v, g) for every row. A J taken is that of the
clip too, as in the authors' implementation: a dimension that the clip cut off gets nothing
through it, whereas ∇Q as if J = I is not zeroed by the clip.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qgf.critic import Critic
from qgf.flow import Velocity, euler

Obs = Float[Array, "batch obs"]
Action = Float[Array, "batch action"]
Time = Float[Array, " batch"]
Estimator = Callable[[Velocity, Critic, Obs, Action, Time, int], tuple[Action, Action]]


def q_gradient(critic: Critic, obs: Obs, action: Action) -> Action:
    """Return every row's ∇_a Q(s, a)."""
    return jax.grad(lambda action: critic(obs, action).sum())(action)


def one_step_clean(action: Action, v: Action, t: Time) -> Action:
    """Return â₁ = clip(a + (1 − t) v): one big Euler step from flow time t to the action."""
    return jnp.clip(action + (1 - t[:, None]) * v, -1, 1)


def qgf(
    velocity: Velocity, critic: Critic, obs: Obs, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF (Algorithm 1): ∇Q at the one-step clean action, its Jacobian taken as I."""
    v = velocity(obs, action, t)
    return v, q_gradient(critic, obs, one_step_clean(action, v, t))


def qfql(
    velocity: Velocity, critic: Critic, obs: Obs, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QFQL ("OOD"): ∇Q at the noisy action, where no critic was trained; it is not clipped."""
    return velocity(obs, action, t), q_gradient(critic, obs, action)


def bptt(
    velocity: Velocity, critic: Critic, obs: Obs, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """Backpropagation through time: ∇_a Q(s, clip(ODE_{t→1}(a))) through all Euler steps left.

    Args:
        t: the same k/steps for all rows.
    """

    left = steps - 1 - _index(t, steps)  # Euler steps after this one

    def run(action: Array, first: Array, length: int) -> Array:
        step = lambda a, k: (_euler_step(velocity, obs, a, k, t, steps), None)  # noqa: E731
        return jax.lax.scan(step, action, first + jnp.arange(length))[0]

    def clean(action: Array) -> tuple[Array, Array]:
        v = velocity(obs, action, t)
        a1 = action + v / steps
        # Exactly the steps left, in runs of …, 8, 4, 2, 1: their lengths must be static, and
        # one branch for every `left` would keep less memory but compile for half a minute.
        for length in (1 << bit for bit in reversed(range((steps - 1).bit_length()))):
            first = steps - left % (2 * length)
            skip = lambda a1, first: a1  # noqa: E731
            a1 = jax.lax.cond(left & length, partial(run, length=length), skip, a1, first)
        return jnp.clip(a1, -1, 1), v

    a1, pullback, v = jax.vjp(clean, action, has_aux=True)
    return v, pullback(q_gradient(critic, obs, a1))[0]


def qgf_chain(
    velocity: Velocity, critic: Critic, obs: Obs, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-chain: ∇Q at a₁ = clip(ODE_{t→1}(a)), the Jacobian of the chain taken as I.

    Args:
        t: the same k/steps for all rows.
    """
    v = velocity(obs, action, t)
    a1 = jax.lax.fori_loop(
        _index(t, steps) + 1,
        steps,
        lambda k, a: _euler_step(velocity, obs, a, k, t, steps),
        action + v / steps,
    )
    return v, q_gradient(critic, obs, jnp.clip(a1, -1, 1))


def qgf_jacobian(
    velocity: Velocity, critic: Critic, obs: Obs, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-Jacobian: Jᵀ∇Q at the one-step clean action, J = ∂â₁/∂a."""
    return qgf_jacobian_regularized(velocity, critic, obs, action, t, steps, identity=0.0)


def qgf_jacobian_regularized(
    velocity: Velocity,
    critic: Critic,
    obs: Obs,
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
        v = velocity(obs, action, t)
        return one_step_clean(action, v, t), v

    a1, pullback, v = jax.vjp(clean, action, has_aux=True)
    g = q_gradient(critic, obs, a1)
    return v, (1 - identity) * pullback(g)[0] + identity * g


def qgf_jacobian_ortho(
    velocity: Velocity, critic: Critic, obs: Obs, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-Jacobian-Ortho: Oᵀ∇Q with O = UVᵀ, the orthogonal matrix nearest J = UΣVᵀ.

    J is that of a + (1 − t) v without the clip, which would make it singular and O arbitrary.
    Where J is singular none the less, O is the one that the SVD happens to give.
    """
    v, pullback = jax.vjp(lambda action: velocity(obs, action, t), action)
    eye = jnp.eye(action.shape[-1], dtype=action.dtype)
    unit = jnp.broadcast_to(eye[:, None], (len(eye), *action.shape))
    dv_da = jnp.swapaxes(jax.vmap(pullback)(unit)[0], 0, 1)
    u, _, vt = jnp.linalg.svd(eye + (1 - t[:, None, None]) * dv_da)
    g = q_gradient(critic, obs, one_step_clean(action, v, t))
    return v, jnp.einsum("bi,bik,bkj->bj", g, u, vt)


def qgf_jacobian_smooth(
    velocity: Velocity,
    critic: Critic,
    obs: Obs,
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
    shape = (samples, 1, action.shape[-1])
    perturbation = scale * jax.random.normal(jax.random.key(0), shape, action.dtype)
    obs_tiled, t_tiled = jnp.tile(obs, (samples, 1)), jnp.tile(t, samples)

    def clean(action: Array) -> Array:
        around = (action + perturbation).reshape(-1, action.shape[-1])
        return one_step_clean(around, velocity(obs_tiled, around, t_tiled), t_tiled)

    v = velocity(obs, action, t)
    g = q_gradient(critic, obs, one_step_clean(action, v, t))
    _, pullback = jax.vjp(clean, action)
    return v, pullback(jnp.tile(g / samples, (samples, 1)))[0]


def _euler_step(
    velocity: Velocity, obs: Array, action: Array, k: Array | int, t: Array, steps: int
) -> Array:
    """Return the action after Euler step k; t only lends its shape."""
    return action + velocity(obs, action, jnp.full_like(t, k / steps)) / steps


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


def guided_sample(
    velocity: Velocity,
    critic: Critic,
    obs: Obs,
    noise: Action,
    weight: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 10,
    estimator: Estimator = qgf,
) -> Action:
    """Carry noise to actions, pushing every Euler step by `weight` times the critic's gradient.

    Args:
        velocity: any function v(obs, action, t) -> velocity, trained with t = 0 as noise.
        critic: any function q(obs, action) -> values of shape (batch,).
        noise: draws of N(0, I).
        weight: w = 1/β in units of 1/Q, one number or one per row; 0 is the policy itself.
        steps: Euler steps T.
        estimator: (velocity, critic, obs, action, t, steps) -> (velocity, gradient).

    Returns:
        Actions in [-1, 1]. Where w·g is not finite, that row takes the step unguided.
    """
    return guided_sample_counting(
        velocity, critic, obs, noise, weight, steps=steps, estimator=estimator
    )[0]


def guided_sample_counting(
    velocity: Velocity,
    critic: Critic,
    obs: Obs,
    noise: Action,
    weight: float | Float[Array, ""] | Float[Array, " batch"],
    *,
    steps: int = 10,
    estimator: Estimator = qgf,
) -> tuple[Action, Int[Array, " batch"]]:
    """Return the actions of `guided_sample` and how many steps each row took unguided.

    A step is unguided, and counted, where the norm of w·g is not finite, rows of weight 0
    included. If all weights are 0, no gradient is taken and none counted.
    """
    weight = jnp.broadcast_to(jnp.asarray(weight, noise.dtype), noise.shape[:1])[:, None]

    def step(action: Array, k: Array) -> tuple[Array, Array]:
        t = jnp.full(noise.shape[:1], k / steps, noise.dtype)
        v, g = estimator(velocity, critic, obs, action, t, steps)
        # The norm, because a push too long to be squared would break the next velocity.
        usable = jnp.isfinite(jnp.square(weight * g).sum(-1, keepdims=True))
        g = jnp.where(usable, g, 0)
        return action + (v + weight * g) / steps, ~usable[:, 0]

    def guided() -> tuple[Array, Array]:
        action, unguided = jax.lax.scan(step, noise, jnp.arange(steps, dtype=noise.dtype))
        return jnp.clip(action, -1, 1), unguided.sum(0, dtype=jnp.int32)

    def plain() -> tuple[Array, Array]:
        return euler(velocity, obs, noise, steps=steps), jnp.zeros(noise.shape[:1], jnp.int32)

    # Without any weight it is the policy itself, to the last bit and without the critic's cost.
    return jax.lax.cond(weight.any(), guided, plain)
