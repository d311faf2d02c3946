"""Networks: the MLP that every learner uses, and the embedding of flow time."""

import itertools
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class MLP(eqx.Module):
    """Linear layers with LayerNorm and GELU between them, on batches.

    Kernels are drawn from variance_scaling(1, fan_avg, uniform); biases start at 0.

    Attributes:
        kernels: weights of each layer, (inputs, outputs).
        biases: of each layer, (outputs,).
        scales: of each layer norm.
        shifts: of each layer norm.
    """

    kernels: list[Float[Array, "in out"]]
    biases: list[Float[Array, " out"]]
    scales: list[Float[Array, " out"]]
    shifts: list[Float[Array, " out"]]

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        norms: int,
        key: PRNGKeyArray,
    ):
        """Build `depth` hidden layers of `width` units, the first `norms` normalized."""
        sizes = [inputs, *[width] * depth, outputs]
        initialize = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        keys = jax.random.split(key, depth + 1)
        self.kernels = [
            initialize(k, shape) for k, shape in zip(keys, itertools.pairwise(sizes), strict=True)
        ]
        self.biases = [jnp.zeros(size) for size in sizes[1:]]
        self.scales = [jnp.ones(width) for _ in range(norms)]
        self.shifts = [jnp.zeros(width) for _ in range(norms)]

    def __call__(self, *parts: Float[Array, "batch _"]) -> Float[Array, "batch out"]:
        """Return the last linear layer's output for the concatenation of `parts`."""
        x = jnp.concatenate(parts, axis=-1) @ self.kernels[0] + self.biases[0]
        for i, (kernel, bias) in enumerate(zip(self.kernels[1:], self.biases[1:], strict=True)):
            if i < len(self.scales):
                x = norm_gelu(x, self.scales[i], self.shifts[i])
            else:
                x = jax.nn.gelu(x)
            x = x @ kernel + bias
        return x


@jax.custom_vjp
def norm_gelu(
    x: Float[Array, "*batch width"],
    scale: Float[Array, " width"],
    shift: Float[Array, " width"],
) -> Float[Array, "*batch width"]:
    """LayerNorm of the last axis (ε = 1e-6), scaled and shifted, then GELU (tanh form).

    Its gradient is written out: what automatic differentiation keeps and adds up for these
    few lines costs more than they do.
    """
    return norm_gelu_forward(x, scale, shift)[0]


class NormGelu(NamedTuple):
    """What the backward pass of `norm_gelu` needs."""

    normalized: Float[Array, "*batch width"]
    inverse_std: Float[Array, "*batch 1"]
    slope: Float[Array, "*batch width"]


def norm_gelu_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, NormGelu]:
    """Return `norm_gelu` and what its backward pass needs."""
    centred = x - x.mean(-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    normalized = centred * inverse_std
    y = normalized * scale + shift
    tanh = jnp.tanh(_GELU * (y + 0.044715 * y * y * y))
    gate = 0.5 * (1 + tanh)
    slope = gate + 0.5 * y * (1 - tanh * tanh) * _GELU * (1 + 3 * 0.044715 * y * y)
    return y * gate, NormGelu(normalized, inverse_std, slope)


def norm_gelu_backward(kept: NormGelu, scale: Array, g: Array) -> Array:
    """Return the gradient with respect to x, given the gradient `g` of the output."""
    g = g * kept.slope * scale
    along = kept.normalized * (g * kept.normalized).mean(-1, keepdims=True)
    return kept.inverse_std * (g - g.mean(-1, keepdims=True) - along)


_GELU = math.sqrt(2 / math.pi)


def _forward(x: Array, scale: Array, shift: Array) -> tuple[Array, tuple[NormGelu, Array]]:
    out, kept = norm_gelu_forward(x, scale, shift)
    return out, (kept, scale)


def _backward(residual: tuple[NormGelu, Array], g: Array) -> tuple[Array, Array, Array]:
    kept, scale = residual
    shift_g = g * kept.slope
    rows = tuple(range(g.ndim - 1))
    return (
        norm_gelu_backward(kept, scale, g),
        (shift_g * kept.normalized).sum(rows),
        shift_g.sum(rows),
    )


norm_gelu.defvjp(_forward, _backward)


def time_embedding(
    t: Float[Array, " batch"], size: int = 16, max_period: float = 1e4
) -> Float[Array, "batch size"]:
    """Return cosines and sines of flow time t in [0, 1] at `size`/2 frequencies.

    The time is stretched to [0, max_period]; the periods run geometrically from 2π to
    2π · max_period.
    """
    half = size // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half) / half)
    angles = t[:, None] * max_period * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
