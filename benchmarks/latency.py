"""Milliseconds to a guided action chunk, against the peer with the very same weights."""

import time
from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import numpy as np

from benchmarks import limits
from qgf.act.policy import compiled
from qgf.comparison import count
from qgf.config import Config, Spec
from qgf.core import MLP
from qgf.learners import DEFAULT_KINDS, LEARNERS, Learner
from qgf.methods import METHODS

SIZES = {"3x256": (256, 3), "4x1024": (1024, 4)}
BATCHES = (1, 5, 50, 256)
SPEC = Spec(obs=28, action=5, chunk=5)
WEIGHT = 0.03


def measure(
    peer: bool,
    seconds: float,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    batches: Sequence[int] | None = None,
) -> dict:
    """Return, for every size and batch, the median latency and its ratio to the peer's."""
    results = {}
    for name, (width, depth) in (sizes or SIZES).items():
        ours = learners(width, depth)
        agent = None
        if peer:
            from benchmarks import peer as peers

            agent = peers.make_agent(SPEC, width, depth)
            ours = _copy(ours, peers.parameters(agent))
        for batch in batches or BATCHES:
            row = _compare(ours, agent, batch, seconds)
            results[f"{name} batch {batch}"] = row | {"limit_ms": limit(ours, batch)}
    return results


def limit(learners: dict[str, Learner], batch: int) -> float:
    """Return the milliseconds that the products of a batch of actions take at least.

    They are as fast as one large product, or as their weights are read, 4 bytes for each two
    operations of a single action.
    """
    products = count(METHODS["qgf"], learners, SPEC, WEIGHT, 1).products
    held = learners["policy"], learners["critic"].target_q
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(held, eqx.is_array)))
    seconds = max(batch * products / limits.peak(), 2 * products / limits.bandwidth(size))
    return 1e3 * seconds


def _compare(learners: dict[str, Learner], agent: object, batch: int, seconds: float) -> dict:
    obs = np.random.default_rng(0).normal(size=(batch, SPEC.obs)).astype(np.float32)
    key = jax.random.key(0)
    weight = np.full(batch, WEIGHT, np.float32)
    act = compiled(METHODS["qgf"], learners)
    rows = np.asarray(batch, np.int32)

    def ours() -> np.ndarray:
        return np.asarray(act(obs, key, (1, SPEC.chunk_action), rows, weight, None, None)[0])

    if agent is None:
        return {"ms": median_times([ours], seconds)[0]}
    from benchmarks import peer as peers

    def theirs() -> np.ndarray:
        return peers.sample(agent, obs, key, WEIGHT)

    difference = float(np.abs(ours() - theirs()).max())
    mine, other = median_times([ours, theirs], seconds)
    return {"ms": mine, "peer_ms": other, "ratio": mine / other, "difference": difference}


def median_times(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """Return every call's median milliseconds, the calls taking turns."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[0]) < 5:
        for call, taken in zip(calls, times, strict=True):
            before = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - before))
    return [float(np.median(taken)) for taken in times]


def learners(width: int, depth: int, kinds: dict[str, str] = DEFAULT_KINDS) -> dict[str, Learner]:
    """Return freshly initialized learners by role."""
    config = Config(width=width, depth=depth)
    keys = jax.random.split(jax.random.key(0), len(kinds))
    return {
        role: LEARNERS[kind].create(SPEC, config, key)
        for (role, kind), key in zip(kinds.items(), keys, strict=True)
    }


def _copy(learners: dict[str, Learner], weights: dict[str, list[dict]]) -> dict[str, Learner]:
    """Return our learners with the peer's weights."""

    def filled(mlp: MLP, layers: list[dict]) -> MLP:
        values = (
            [layer["kernel"] for layer in layers],
            [layer["bias"] for layer in layers],
            [layer["scale"] for layer in layers if "scale" in layer],
            [layer["shift"] for layer in layers if "shift" in layer],
        )
        return eqx.tree_at(
            lambda m: (m.kernels, m.biases, m.scales, m.shifts),
            mlp,
            jax.tree.map(jax.numpy.asarray, values),
        )

    policy, critic = learners["policy"], learners["critic"]
    members = [
        filled(mlp, jax.tree.map(lambda x, i=i: x[i], weights["target_critic"]))
        for i, mlp in enumerate(critic.target_q.members)
    ]
    return {
        "policy": eqx.tree_at(
            lambda p: p.policy.mlp, policy, filled(policy.policy.mlp, weights["policy"])
        ),
        "critic": eqx.tree_at(lambda c: c.target_q.members, critic, members),
    }
