"""A critic in JAX as one in PyTorch: arrays cross by DLPack, without a copy through Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def from_jax(critic: Callable) -> Callable[..., Tensor]:
    """Return a critic in JAX as a function of PyTorch tensors, differentiable by the action.

    It is compiled once for every shape of its arguments: wrap a function that takes the
    observation too, `q = from_jax(lambda obs, action: …)`, once, and bind it for every chunk,
    `lambda action: q(obs, action)`. Tensors go to JAX on the device that both have, else through
    memory. JAX is imported here.

    Args:
        critic: a pure function (…, action) -> values of shape (batch,) of arrays or trees of them;
            a value must depend on its own row alone.

    Raises:
        UserError: when it is called, where the critic does not give one number per row.
    """
    import jax
    import jax.numpy as jnp

    from qgf.core.guidance import q_values

    @jax.jit
    def evaluate(before: tuple, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        q = lambda action: q_values(lambda action: critic(*before, action), action)  # noqa: E731
        values, pullback = jax.vjp(q, action)
        return values, pullback(jnp.ones_like(values))[0]

    def to_jax(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x.detach()
        if x.device.type != "cpu" and jax.default_backend() == "cpu":
            x = x.cpu()
        if x.dtype == torch.float64 and not jax.config.jax_enable_x64:
            x = x.float()
        return jax.dlpack.from_dlpack(x.contiguous())  # it is read before `to_torch` returns

    def to_torch(x: Any, like: Tensor) -> Tensor:
        return torch.from_dlpack(jax.block_until_ready(x)).to(like.device)

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, action: Tensor, *before: Any) -> Tensor:
            values, gradient = evaluate(jax.tree.map(to_jax, before), to_jax(action))
            ctx.save_for_backward(to_torch(gradient, action).to(action.dtype))
            ctx.others = len(before)
            return to_torch(values, action)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
            (gradient,) = ctx.saved_tensors
            g = g.to(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1))
            return g * gradient, *[None] * ctx.others

    return lambda *args: Bridge.apply(args[-1], *args[:-1])
