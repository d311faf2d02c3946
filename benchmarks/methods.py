"""Milliseconds to an action chunk of every method, and its ratio to plain cloning."""

from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np

from benchmarks.latency import SPEC, WEIGHT, learners, median_times
from qgf.methods import METHODS, Method, kinds_of
from qgf.policy import noise_size, sample_actions

BATCHES = (1, 50)


def measure(seconds: float) -> dict:
    """Return every method's median latency and its ratio to that of "bc", taking turns."""
    plain = METHODS["bc"]
    results = {}
    for name, method in METHODS.items():
        results[name] = {}
        for batch in BATCHES:
            calls = [_call(method, batch), _call(plain, batch)]
            ms, bc = median_times(calls, seconds / 2)
            results[name] |= {f"batch_{batch}_ms": ms, f"batch_{batch}_to_bc": ms / bc}
    return results


def _call(method: Method, batch: int) -> Callable[[], object]:
    random = np.random.default_rng(0)
    kinds = kinds_of(method)
    found = learners(256, 3, {role: kinds[role] for role in method.roles})
    size, samples = noise_size(method, found, SPEC), method.samples[0]
    obs = random.normal(size=(batch, SPEC.obs)).astype(np.float32)
    noise = random.normal(size=(samples, batch, size)).astype(np.float32)
    weight = np.full(batch, WEIGHT, np.float32)
    act = eqx.filter_jit(sample_actions)
    return lambda: jax.block_until_ready(act(method, found, obs, noise, weight))
