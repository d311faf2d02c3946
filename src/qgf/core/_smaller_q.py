"""The smaller of two Q networks, whose action gradient visits only that one.

min(Q_1, Q_2) has, row by row, the gradient of the smaller member. Differentiating both
and masking, as automatic differentiation does, wastes half of the backward pass. Here the
rows are sorted by their smaller member and each member's backward pass takes its own rows
only; as array sizes are fixed at compile time, the boundary is one of a few.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.core.networks import MLP, NormGelu, norm_gelu_backward, norm_gelu_forward

BLOCKS = 4  # boundaries a batch is cut at; more waste fewer rows but compile longer


def smaller_q(
    first: MLP,
    second: MLP,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
) -> Float[Array, " batch"]:
    """Return min(Q_1, Q_2)(s, a), differentiable with respect to the action alone.

    Args:
        first, second: networks with every hidden layer normalized and one output.
    """
    members = jax.lax.stop_gradient((first, second))
    inputs = obs.shape[-1]

    @jax.custom_vjp
    def smaller(action: Array) -> Array:
        return forward(action)[0]

    def forward(action: Array) -> tuple[Array, tuple]:
        x = jnp.concatenate([obs, action], axis=-1)
        (q1, kept1), (q2, kept2) = (_forward(mlp, x) for mlp in members)
        return jnp.minimum(q1, q2), (q1 <= q2, kept1, kept2)

    def backward(residual: tuple, g: Array) -> tuple[Array]:
        is_first, *kept = residual
        order = jnp.argsort(~is_first, stable=True)
        operands = jax.tree.map(lambda x: x[order], (*kept, g))
        index, branches = _branches(members, inputs, is_first.sum(), len(g))
        sorted_gradient = jax.lax.switch(index, branches, *operands)
        gradient = jnp.zeros_like(sorted_gradient).at[order].set(sorted_gradient)
        return (gradient.astype(action.dtype),)

    smaller.defvjp(forward, backward)
    return smaller(action)


def _branches(
    members: tuple[MLP, MLP], inputs: int, count: Array, batch: int
) -> tuple[Array, list[Callable]]:
    """Return the backward passes for every place of the boundary, and which one it is.

    Rows below `count` belong to the first member. If that lies inside a block, both members
    take the whole block and each row keeps its own.
    """
    size = -(-batch // BLOCKS)

    def branch(low: int, high: int) -> Callable:
        def run(kept1: list[NormGelu], kept2: list[NormGelu], g: Array) -> Array:
            head = jax.tree.map(lambda x: x[:high], (kept1, g))
            tail = jax.tree.map(lambda x: x[low:], (kept2, g))
            one = _backward(members[0], *head, inputs)
            two = _backward(members[1], *tail, inputs)
            mine = (jnp.arange(low, high) < count)[:, None]
            block = jnp.where(mine, one[low:], two[: high - low])
            return jnp.concatenate([one[:low], block, two[high - low :]])

        return run

    if size == 1:
        return count, [branch(i, i) for i in range(batch + 1)]
    cuts = [(i // 2 * size, min((i + 1) // 2 * size, batch)) for i in range(2 * BLOCKS + 1)]
    cuts = [(min(low, high), high) for low, high in cuts]
    return count // size + -(-count // size), [branch(*cut) for cut in cuts]


def _forward(mlp: MLP, x: Array) -> tuple[Array, list[NormGelu]]:
    kept = []
    x = x @ mlp.kernels[0] + mlp.biases[0]
    for kernel, bias, scale, shift in zip(
        mlp.kernels[1:], mlp.biases[1:], mlp.scales, mlp.shifts, strict=True
    ):
        x, layer = norm_gelu_forward(x, scale, shift)
        kept.append(layer)
        x = x @ kernel + bias
    return x[:, 0], kept


def _backward(mlp: MLP, kept: list[NormGelu], g: Array, inputs: int) -> Array:
    """Return the gradient with respect to the action, which follows `inputs` other inputs."""
    g = g[:, None] * mlp.kernels[-1][:, 0]
    for kernel, scale, layer in zip(
        [mlp.kernels[0][inputs:], *mlp.kernels[1:-1]][::-1],
        mlp.scales[::-1],
        kept[::-1],
        strict=True,
    ):
        g = norm_gelu_backward(layer, scale, g) @ kernel.T
    return g
