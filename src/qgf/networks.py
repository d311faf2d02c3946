"""Networks: the MLP that every learner uses, and the embedding of flow time."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class MLP(eqx.Module):
    """Linear layers with LayerNorm and GELU between them, on batches.

    The inputs may come in several parts, which are treated as one concatenated vector.
    The weights of the first layer are applied to each part alone, so that a compiler
    computes the contribution of a part that stays the same only once.

    Kernels are drawn from variance_scaling(1, fan_avg, uniform); biases start at 0.
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
        x = self.biases[0]
        row = 0
        for part in parts:
            x = x + part @ self.kernels[0][row : row + part.shape[-1]]
            row += part.shape[-1]
        for i, (kernel, bias) in enumerate(zip(self.kernels[1:], self.biases[1:], strict=True)):
            if i < len(self.scales):
                x = layer_norm(x, self.scales[i], self.shifts[i])
            x = jax.nn.gelu(x) @ kernel + bias
        return x


def layer_norm(
    x: Float[Array, "*batch width"],
    scale: Float[Array, " width"],
    shift: Float[Array, " width"],
    epsilon: float = 1e-6,
) -> Float[Array, "*batch width"]:
    """Normalize the last axis to mean 0 and variance 1, then scale and shift."""
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + shift


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
