"""Gradient steps per second, against the peer's loop on the same arrays."""

import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks import limits
from qgf.comparison import operations
from qgf.config import PRESETS, Config, Spec
from qgf.data import Chunks
from qgf.learners import DEFAULT_KINDS
from qgf.run import Fixed, Metrics, create_state, train_steps

ROWS = 100_000
SPEC = Spec(obs=28, action=5, chunk=5)
ROUNDS = 3


def measure(peer: bool, seconds: float) -> dict:
    """Return, for both presets' sizes, the median rate and its ratio to the peer's.

    Ours and theirs take turns of `seconds`, so that a drift of the machine meets both.
    """
    results = {}
    for name, config in PRESETS.items():
        steps = 100 if name == "laptop" else 2
        rates: dict[str, list[float]] = {"ours": [], "theirs": []}
        run = ours(config, steps)
        other = theirs(config) if peer else None
        for _ in range(ROUNDS):
            rates["ours"].append(run(seconds))
            if other is not None:
                rates["theirs"].append(other(seconds))
        size = f"{config.depth}x{config.width} batch {config.batch_size}"
        rate, most = float(np.median(rates["ours"])), limits.peak() / products(config)
        results[size] = {"steps_per_second": rate, "limit_per_second": most}
        if other is not None:
            ratio = np.median(np.divide(rates["ours"], rates["theirs"]))
            results[size] |= {
                "peer_steps_per_second": float(np.median(rates["theirs"])),
                "ratio": float(ratio),
            }
    return results


def _arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "observations": random.normal(size=(ROWS, SPEC.obs)).astype(np.float32),
        "actions": random.uniform(-1, 1, (ROWS, SPEC.action)).astype(np.float32),
        "rewards": -np.ones(ROWS, np.float32),
        "masks": np.ones(ROWS, np.float32),
    }


def chunks() -> Chunks:
    """Return the rows as chunks on the device."""
    arrays = _arrays()
    start = np.arange(ROWS - SPEC.chunk, dtype=np.int32)
    return jax.device_put(
        Chunks(
            obs=arrays["observations"],
            action=arrays["actions"],
            start=start,
            reward=arrays["rewards"][start],
            mask=arrays["masks"][start],
            length=SPEC.chunk,
        )
    )


def products(config: Config) -> int:
    """Return the operations of one gradient step's matrix products."""
    state = create_state(DEFAULT_KINDS, SPEC, config, jnp.arange(1))
    arrays, rest = eqx.partition((Fixed(chunks(), jnp.arange(1), config), state), eqx.is_array)

    def step(arrays: PyTree) -> PyTree:
        return eqx.filter(
            train_steps(*eqx.combine(arrays, rest), jnp.zeros((), int), 1), eqx.is_array
        )

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    return operations(step, shapes).products


def stepper(config: Config, steps: int, count: int = 1) -> Callable[[], Metrics]:
    """Return a function that takes `steps` gradient steps of `count` seeds and waits for them."""
    data, seeds = chunks(), jnp.arange(count)
    state = create_state(DEFAULT_KINDS, SPEC, config, seeds)
    taken = 0

    def advance() -> Metrics:
        nonlocal state, taken
        state, metrics = train_steps(Fixed(data, seeds, config), state, jnp.asarray(taken), steps)
        taken += steps
        return jax.block_until_ready(metrics)

    return advance


def ours(config: Config, steps: int, count: int = 1) -> Callable[[float], float]:
    """Return what measures, in so many seconds, the gradient steps per second of `count` seeds."""
    advance = stepper(config, steps, count)

    def run(seconds: float) -> float:
        advance()
        start, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - start < seconds:
            advance()
            calls += 1
        return calls * steps / (time.perf_counter() - start)

    return run


def theirs(config: Config) -> Callable[[float], float]:
    """Return what measures the peer's gradient steps per second, of the one seed it trains."""
    from benchmarks import peer

    arrays = _arrays()
    arrays |= {
        "next_observations": np.roll(arrays["observations"], -1, 0),
        "terminals": np.zeros(ROWS, np.float32),
    }
    agent = peer.make_agent(SPEC, config.width, config.depth, config.batch_size, config.discount)
    return lambda seconds: peer.training_rate(agent, arrays, seconds)
