"""Operations of a guided action under ensembles of other sizes, counted in the traced program."""

import jax
import jax.numpy as jnp

from benchmarks.latency import SPEC, WEIGHT
from qgf.comparison import count, operations
from qgf.config import Config
from qgf.core.guidance import q_gradient
from qgf.learners import IQL, LEARNERS
from qgf.methods import METHODS

ENSEMBLES = {
    "1 network": IQL.Hyper(ensemble=1),
    "2, min": IQL.Hyper(),
    "2, mean": IQL.Hyper(aggregation="mean"),
    "10, min": IQL.Hyper(ensemble=10),
    "10, mean": IQL.Hyper(ensemble=10, aggregation="mean"),
    "10, mean less 0.5 deviations": IQL.Hyper(ensemble=10, aggregation="mean", kappa=0.5),
}


def measure() -> dict:
    """Return millions of operations of one ∇Q and of one action of QGF, and its ratio to the min's.

    The networks are the default ones, 3 x 256, at the sizes of benchmarks/latency.py.
    """
    figures = {}
    for name, hyper in ENSEMBLES.items():
        config = Config().having(hyper)
        kinds = {"policy": "bc", "critic": "iql"}
        held = {r: LEARNERS[k].create(SPEC, config, jax.random.key(0)) for r, k in kinds.items()}
        shapes = [jax.ShapeDtypeStruct((1, n), jnp.float32) for n in (SPEC.obs, SPEC.chunk_action)]
        gradient = operations(lambda o, a, q=held["critic"]: q_gradient(q.bind(o), a), *shapes)
        action = count(METHODS["qgf"], held, SPEC, WEIGHT, 1)
        figures[name] = {"gradient_mflops": sum(gradient) / 1e6, "action_mflops": sum(action) / 1e6}
    usual = figures["2, min"]["action_mflops"]
    return {
        name: row | {"ratio_to_2_min": row["action_mflops"] / usual}
        for name, row in figures.items()
    }
