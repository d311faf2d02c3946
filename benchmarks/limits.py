"""What this machine does at most: float32 products per second, and bytes read per second."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SIDE = 2048
ROUNDS = 20


def peak() -> float:
    """Return floating-point operations per second of a large float32 matrix product."""
    x = jnp.ones((SIDE, SIDE))
    return 2 * SIDE**3 / _shortest(jax.jit(lambda x: x @ x), x)


def bandwidth(size: float) -> float:
    """Return bytes per second of products of a vector with matrices of `size` bytes in all.

    What fits into a cache is read from there.
    """
    count = max(1, round(size / (4 * SIDE**2)))
    side = round((size / count / 4) ** 0.5)
    matrices = [jnp.ones((side, side)) / side for _ in range(count)]

    def read(x: jax.Array, matrices: list[jax.Array]) -> jax.Array:
        for matrix in matrices:
            x = x @ matrix
        return x

    seconds = _shortest(jax.jit(read), jnp.ones((1, side)), matrices)
    return sum(matrix.nbytes for matrix in matrices) / seconds


def _shortest(call: Callable, *arguments: object) -> float:
    """Return the seconds of the fastest of some calls, the first of which compiles."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        times.append(time.perf_counter() - start)
    return min(times[1:])
