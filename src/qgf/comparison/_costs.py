"""What an action of a method costs: milliseconds on this machine, and operations."""

import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from qgf.act.policy import noise_size, sample_actions
from qgf.comparison._flops import Operations, operations
from qgf.config import Spec
from qgf.methods.table import Learners, Method

CALLS = 20  # timed calls


def milliseconds(act: Callable, spec: Spec, weight: float, batch: int) -> float:
    """Return the median time of a call for `batch` observations.

    Args:
        act: a method's `Policy.act`.
        spec: sizes of observations and goals.
        weight: what the method is tuned by.
        batch: observations per call.
    """
    obs = np.zeros((1, batch, spec.obs), np.float32)
    goal = np.zeros((1, batch, spec.goal), np.float32) if spec.goal else None
    weights, numbers = np.full((1, batch), weight, np.float32), np.zeros((1, batch), np.int32)
    times = []
    for _ in range(1 + CALLS):
        start = time.perf_counter()
        jax.block_until_ready(act(obs, goal, weights, numbers, numbers))
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[1:]))  # the first call compiles


def count(
    method: Method, learners: Learners, sizes: Spec, weight: float, samples: int
) -> Operations:
    """Return the operations of one action, the best of `samples`; random numbers are not counted.

    Where the smaller of two critics is differentiated, which rows go to which critic is not
    known: at up to 4 samples it makes no difference, at more the dearest case is counted.

    Args:
        method: what acts.
        learners: of one training seed.
        sizes: of observations, actions, chunks and goals.
        weight: what the method is tuned by.
        samples: of so many samples the critic chooses one.
    """
    arrays, static = eqx.partition(learners, eqx.is_array)
    noise = (samples, 1, noise_size(method, learners, sizes))
    goal = jnp.zeros((1, sizes.goal)) if sizes.goal else None
    unknown = (arrays, jnp.zeros((1, sizes.obs)), goal, jnp.zeros(noise))
    unknown = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), unknown)

    def act(
        arrays: Learners,
        obs: jax.Array,
        goal: jax.Array | None,
        noise: jax.Array,
        weight: jax.Array,
    ) -> jax.Array:
        held = eqx.combine(arrays, static)
        return sample_actions(method, held, obs, noise, weight, goal=goal)[0]

    return operations(act, *unknown, jnp.full(1, weight))
