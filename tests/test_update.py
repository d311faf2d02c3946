"""The compiled training step: seeds as one batch, as on a GPU, and one after the other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from conftest import TINY

from qgf.config import Spec
from qgf.data.dataset import Chunks
from qgf.run._update import Fixed, create_state, train_steps

SPEC = Spec(obs=3, action=2, chunk=2)


def chunks(rows=50):
    random = np.random.default_rng(0)
    start = np.arange(rows - SPEC.chunk, dtype=np.int32)
    data = Chunks(
        obs=random.normal(size=(rows, SPEC.obs)).astype(np.float32),
        action=random.uniform(-1, 1, (rows, SPEC.action)).astype(np.float32),
        start=start,
        reward=random.normal(size=len(start)).astype(np.float32),
        mask=np.ones(len(start), np.float32),
        length=SPEC.chunk,
    )
    return jax.device_put(data)


def fail(*_):
    raise AssertionError("seeds were taken one by one")


def test_seeds_as_one_batch_equal_them_one_by_one(monkeypatch):
    """Of an actor that differentiates its own seed's frozen critics (the smaller of two)."""
    seeds, found = jnp.array([3, 5, 8]), []
    critics = create_state({"critic": "iql"}, SPEC, TINY, seeds + 100).learners
    fixed = Fixed(chunks(), seeds, TINY, critics)
    start = create_state({"edp": "edp"}, SPEC, TINY, seeds)
    for backend in ("cpu", "gpu"):
        jax.clear_caches()  # or what was compiled for the other one would run again
        monkeypatch.setattr(jax, "default_backend", lambda name=backend: name)
        if backend == "gpu":
            monkeypatch.setattr(jax.lax, "map", fail)
        state = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, start)
        found.append(train_steps(fixed, state, jnp.asarray(7), 3))
    before, one, other = (jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (start, *found))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
    assert all(abs(a - b).max() > 1e-4 for a, b in zip(one, before, strict=False))
    loss = found[1][1]["loss"]
    assert abs(np.subtract.outer(loss, loss)[[0, 0, 1], [1, 2, 2]]).min() > 1e-3
