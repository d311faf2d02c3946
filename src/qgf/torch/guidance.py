"""`qgf.core.guidance` for policies in PyTorch: the guided sampler and its gradient estimators.

Source: "Test-Time Gradient Guidance of Flow Policies in Reinforcement Learning"
(arXiv 2606.11087), Algorithm 1. The mathematics is explained in `qgf.core.guidance`.

An estimator takes (velocity, critic, a, t, steps, bounds), where `steps` is the number T of
Euler steps of the grid that t lies on, and returns (v, g) for every row, neither with a graph.
Velocities that no gradient passes through are evaluated as the caller would, in inference mode
if it is on; all else works there too, as gradients are taken with that mode off. What your
functions hold must then be no inference tensor wherever PyTorch keeps it for a gradient: clone it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qgf.errors import FAILED, UserError, check_actions, checked_count

Action = Float[Tensor, "batch *action"]
Time = Float[Tensor, " batch"]
Velocity = Callable[[Action, Time], Action]
"""(action, t) -> velocity of a policy at given observations, t = 0 being noise."""
Critic = Callable[[Action], Float[Tensor, " batch"]]
Bounds = tuple[Float[Tensor, "*low"], Float[Tensor, "*high"]]
"""Least and greatest action, which broadcast to a row."""
Estimator = Callable[[Velocity, Critic, Action, Time, int, Bounds], tuple[Action, Action]]
"""(velocity, critic, action, t, steps, bounds) -> (velocity, gradient), both for every row."""


def q_gradient(critic: Critic, action: Action) -> Action:
    """Return every row's ∇Q(a).

    Raises:
        UserError: the critic does not give one number per row, or cannot be differentiated.
    """
    with torch.inference_mode(False), torch.enable_grad():
        action = action.detach().clone().requires_grad_()
        values = checked_result(critic(action), action, action.shape[:1], "critic")
        total = values.sum()
        (gradient,) = (
            torch.autograd.grad(total, action, allow_unused=True) if total.requires_grad else [None]
        )
    if gradient is None:
        raise UserError(
            "the critic's values have no gradient to the action; compute them from it in "
            "PyTorch, without detach or no_grad, or wrap a critic in JAX in qgf.torch.from_jax"
        )
    return gradient


def one_step_clean(action: Action, v: Action, t: Time, bounds: Bounds) -> Action:
    """Return â₁ = clip(a + (1 − t) v): one big Euler step from flow time t to the action."""
    return torch.clamp(action + per_row(1 - t, action) * v, *bounds)


def qgf(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int, bounds: Bounds
) -> tuple[Action, Action]:
    """QGF (Algorithm 1): ∇Q at the one-step clean action, its Jacobian taken as I."""
    v = velocity(action, t)
    return v, q_gradient(critic, one_step_clean(action, v, t, bounds))


def qfql(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int, bounds: Bounds
) -> tuple[Action, Action]:
    """QFQL ("OOD"): ∇Q at the noisy action, where no critic was trained; it is not clipped."""
    return velocity(action, t), q_gradient(critic, action)


def bptt(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int, bounds: Bounds
) -> tuple[Action, Action]:
    """Backpropagation through time: ∇_a Q(clip(ODE_{t→1}(a))) through all Euler steps left.

    Args:
        t: the same k/steps for all rows.
    """
    k = round(float(t[0]) * steps)

    def clean(action: Tensor) -> tuple[Tensor, Tensor]:
        v = velocity(action, t)
        a1 = action + v / steps
        for later in range(k + 1, steps):
            a1 = a1 + velocity(a1, torch.full_like(t, later / steps)) / steps
        return torch.clamp(a1, *bounds), v

    return _pulled_back(clean, critic, action)


def qgf_jacobian(
    velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int, bounds: Bounds
) -> tuple[Action, Action]:
    """QGF-Jacobian: Jᵀ∇Q at the one-step clean action, J = ∂â₁/∂a."""

    def clean(action: Tensor) -> tuple[Tensor, Tensor]:
        v = velocity(action, t)
        return one_step_clean(action, v, t, bounds), v

    return _pulled_back(clean, critic, action)


def _pulled_back(
    clean: Callable[[Tensor], tuple[Tensor, Tensor]], critic: Critic, action: Action
) -> tuple[Action, Action]:
    """Return v and Jᵀ∇Q, where `clean` gives the place of ∇Q, and v, and J is that place's."""
    with torch.inference_mode(False), torch.enable_grad():
        action = action.detach().clone().requires_grad_()
        a1, v = clean(action)
        g = q_gradient(critic, a1)
        (g,) = torch.autograd.grad(a1, action, g)
    return v.detach(), g


ESTIMATORS: dict[str, Estimator] = {
    "qgf": qgf,
    "qfql": qfql,
    "bptt": bptt,
    "qgf-jacobian": qgf_jacobian,
}
"""the gradient estimators by name"""


def reversed_time(velocity: Velocity) -> Velocity:
    """Return our velocity of a flow whose time runs the other way, or that of ours.

    Where t = 1 is noise and t = 0 the action (as in LeRobot and openpi), a_t = t a_noise +
    (1 − t) a_action and networks give a_noise − a_action.

    Args:
        velocity: v(action, t), whose t runs from the action to noise.
    """
    return lambda action, t: -velocity(action, 1 - t)


def guided_sample(
    velocity: Velocity,
    critic: Critic,
    noise: Action,
    weight: float | Float[Tensor, ""] | Float[Tensor, " batch"],
    *,
    steps: int = 10,
    estimator: Estimator = qgf,
    bounds: tuple[Any, Any] | None = (-1.0, 1.0),
) -> Action:
    """Carry noise to actions, pushing every Euler step by `weight` times the critic's gradient.

    It works in inference mode and under autocast, and takes no gradient of parameters.

    Args:
        velocity: any function v(action, t) -> velocity, with t = 0 as noise, of a policy at given
            observations: `lambda a, t: policy(obs, a, t)`. (`reversed_time` turns another.)
        critic: any function q(action) -> values of shape (batch,) there: `lambda a: q(obs, a)`.
            A critic in JAX is wrapped by `from_jax`.
        noise: draws of N(0, I) in the shape of the actions: (batch, …). Sampling goes on in its
            floating dtype and on its device, whatever the dtypes of velocity and critic are.
        weight: the strength w ≥ 0 in units of 1/Q, one number or one per row; 0 is the policy
            itself.
        steps: Euler steps T.
        estimator: one of `ESTIMATORS`, or any (velocity, critic, action, t, steps, bounds) ->
            (velocity, gradient). t, of shape (batch,), is float32 or what noise is, if that is
            wider; bounds are tensors.
        bounds: least and greatest action, numbers or tensors that broadcast to a row of noise. The
            clean action at which the critic is asked, and the result, are clipped to them. An
            infinite bound is none; None is none at all.

    Returns:
        Actions within the bounds, never NaN, without a graph. Where w·g is not finite, that row
        takes the step unguided.

    Raises:
        UserError: an argument, or what a function gave, does not fit; a velocity that was not
            finite.
    """
    action, unguided = guided_sample_counting(
        velocity, critic, noise, weight, steps=steps, estimator=estimator, bounds=bounds
    )
    check_actions(unguided.cpu().numpy())
    return action


def guided_sample_counting(
    velocity: Velocity,
    critic: Critic,
    noise: Action,
    weight: float | Float[Tensor, ""] | Float[Tensor, " batch"],
    *,
    steps: int = 10,
    estimator: Estimator = qgf,
    bounds: tuple[Any, Any] | None = (-1.0, 1.0),
) -> tuple[Action, Int[Tensor, " batch"]]:
    """Return the actions of `guided_sample` and how many steps each row took unguided.

    A step is unguided, and counted, where the norm of w·g is not finite, rows of weight 0
    included. If all weights are 0, no gradient is taken and none counted. A row whose velocity
    was not finite, at the noise or where the pushes led it, has the action 0 and the count
    `FAILED`.

    Args:
        velocity: as in `guided_sample`.
        critic: as in `guided_sample`.
        noise: as in `guided_sample`.
        weight: as in `guided_sample`.
        steps: as in `guided_sample`.
        estimator: as in `guided_sample`.
        bounds: as in `guided_sample`.
    """
    noise = checked_noise(noise)
    steps = checked_count(steps, "steps")
    w = checked_weight(weight, noise)
    with torch.inference_mode(False):  # Jacobians keep these
        low, high = checked_bounds(bounds, noise)
        times = flow_times(steps, noise)
    with torch.no_grad():
        inner = checked_velocity(velocity)
        action = noise.detach()
        unguided = torch.zeros(len(noise), dtype=torch.int32, device=noise.device)
        for t in times:
            if w is None:
                action = action + inner(action, t) / steps
                continue
            v, g = estimator(inner, critic, action, t, steps, (low, high))
            v, g = (checked_result(x, noise, noise.shape, "estimator") for x in (v, g))
            push = w * g
            # The norm, because a push too long to be squared would break the next velocity.
            usable = torch.isfinite(_flat(push).square().sum(1))
            push = torch.where(per_row(usable, push), push, 0)
            action = action + (v + push) / steps
            unguided += ~usable
        finite = torch.isfinite(_flat(action)).all(1)
        action = torch.where(per_row(finite, action), torch.clamp(action, low, high), 0)
        return action, torch.where(finite, unguided, FAILED)


def flow_times(steps: int, noise: Action) -> list[Time]:
    """Return k/steps for every step and row, in float32 at least: less tells few apart."""
    like = {"dtype": torch.promote_types(noise.dtype, torch.float32), "device": noise.device}
    return [torch.full(noise.shape[:1], k / steps, **like) for k in range(steps)]


def per_row(x: Float[Tensor, " batch"] | Bool[Tensor, " batch"], action: Action) -> Tensor:
    """Return one value per row in the shape, and numbers in the dtype, that fit actions."""
    x = x.reshape(-1, *[1] * (action.ndim - 1))
    return x if x.dtype == torch.bool else x.to(action.dtype)


def _flat(action: Action) -> Float[Tensor, "batch entry"]:
    return action.reshape(len(action), math.prod(action.shape[1:]))


def checked_noise(noise: Any) -> Action:
    """Return noise. UserError if it is no tensor of finite floating numbers."""
    if not isinstance(noise, Tensor):
        raise UserError(f"noise must be a torch tensor, got {type(noise).__name__}")
    if not noise.is_floating_point() or not noise.ndim:
        raise UserError(f"noise must be floating numbers of shape (batch, …), got {_told(noise)}")
    finite = torch.isfinite(_flat(noise)).all(1)
    if not finite.all():
        raise UserError(f"noise must be finite, but row {int((~finite).nonzero()[0])} is not")
    return noise


def checked_weight(weight: Any, noise: Action) -> Tensor | None:
    """Return a weight for every row, shaped to multiply actions; None if all are 0.

    Raises:
        UserError: neither one real number nor one per row, below 0, or not finite in the dtype
            of noise.
    """
    try:
        given = torch.as_tensor(weight, device=noise.device)
    except (TypeError, ValueError, RuntimeError) as error:
        got = type(weight).__name__
        raise UserError(f"weight must be one number or one per row, got {got}") from error
    real = not given.is_complex() and given.dtype != torch.bool
    if not real or given.shape not in ((), noise.shape[:1]):
        raise UserError(
            f"weight must be one real number or one per row ({len(noise)}), got {_told(given)}"
        )
    cast = given.to(noise.dtype)
    wrong = ~(torch.isfinite(cast) & (cast >= 0))
    if wrong.any():
        raise UserError(
            f"weight must be a finite number of at least 0 in {_name(noise.dtype)}, got "
            f"{given[wrong][0].item()}"
        )
    return per_row(cast.expand(noise.shape[:1]), noise) if len(noise) and cast.any() else None


def checked_bounds(bounds: Any, noise: Action) -> Bounds:
    """Return the least and the greatest action as tensors. UserError if they do not fit noise."""
    try:
        low, high = (-math.inf, math.inf) if bounds is None else bounds
        low, high = (
            torch.as_tensor(x, dtype=noise.dtype, device=noise.device).clone() for x in (low, high)
        )
        torch.broadcast_to(low, noise.shape[1:]), torch.broadcast_to(high, noise.shape[1:])
        ordered = (low <= high).all()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            "bounds must be a pair, the least and the greatest action, of numbers or of tensors "
            f"that broadcast to {tuple(noise.shape[1:])}"
        ) from error
    if not ordered:
        raise UserError("bounds must have the least action first, and no NaN")
    return low, high


def checked_velocity(velocity: Velocity) -> Velocity:
    """Return the velocity with results in the action's dtype. UserError if they do not fit."""
    return lambda action, t: checked_result(velocity(action, t), action, action.shape, "velocity")


def checked_result(x: Any, action: Action, shape: torch.Size, what: str) -> Tensor:
    """Return what a function gave, in the dtype of the action.

    UserError if it is not floats of that shape where the action is.
    """
    fits = isinstance(x, Tensor) and x.is_floating_point()
    if not fits or x.shape != shape or x.device != action.device:
        place = f" on {action.device}"
        got = f"{_told(x)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            f"the {what} must give floating numbers of shape {tuple(shape)}{place}, got {got}"
        )
    return x.to(action.dtype)


def _told(x: Tensor) -> str:
    return f"{_name(x.dtype)} of shape {tuple(x.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
