"""The bootstrapped critic against NumPy: targets from the actor's own samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from learning import configured

from qgf.config import Spec
from qgf.core.networks import time_embedding
from qgf.data.dataset import Batch
from qgf.learners.bootstrapped import Bootstrapped
from qgf.learners.qam import QAM

KEY = jax.random.key(3)


def example(**settings):
    """A critic with a target of its own, a batch with both masks, and an actor."""
    settings = {"width": 16, "depth": 2, "discount": 0.9, "chunk": 2, "denoise_steps": 4} | settings
    config, spec = configured(Bootstrapped, **settings), Spec(4, 3, 2)
    learner = Bootstrapped.create(spec, config, jax.random.key(0))
    assert eqx.tree_equal(learner.q, learner.target_q)
    other = Bootstrapped.create(spec, config, jax.random.key(9))
    learner = eqx.tree_at(lambda x: x.target_q, learner, other.q)
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    mask = jnp.array([1.0, 0, 1, 1, 0, 1, 1, 1])
    batch = Batch(normal(8, 4), normal(8, 6), normal(8), mask, normal(8, 4))
    return learner, batch, {"qam": QAM.create(spec, config, jax.random.key(1))}


def aggregated(ensemble, how, obs, action):
    values = [reference.mlp(member, obs, action)[:, 0] for member in ensemble.members]
    return reference.aggregate(values, *how)


@pytest.mark.parametrize("how, members", [(("min",), 2), (("mean",), 2), (("mean", 0.5), 3)])
def test_loss_equals_numpy(how, members):
    settings = dict(zip(("aggregation", "kappa"), how, strict=False))
    learner, batch, others = example(ensemble=members, **settings)
    action = np.asarray(jax.random.normal(KEY, (8, 6)), np.float64)
    for k in range(4):
        time = np.asarray(time_embedding(jnp.full(8, k / 4)))
        action = action + reference.mlp(others["qam"].v_fine.mlp, batch.next_obs, action, time) / 4
    action = np.clip(action, -1, 1)
    next_q = aggregated(learner.target_q, how, batch.next_obs, action)
    backup = np.asarray(batch.reward) + 0.9**2 * np.asarray(batch.mask) * next_q
    q = [reference.mlp(m, batch.obs, batch.action)[:, 0] for m in learner.q.members]
    expected = {
        "critic_loss": np.mean((np.stack(q) - backup) ** 2),
        "q": np.mean(q),
        "next_q": next_q.mean(),
    }
    loss, metrics = eqx.filter_jit(lambda x: x.loss(batch, KEY, others))(learner)
    assert {k: float(m) for k, m in metrics.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(loss) == pytest.approx(expected["critic_loss"], rel=1e-4)
    np.testing.assert_allclose(
        learner.bind(batch.next_obs)(jnp.asarray(action, jnp.float32)), next_q, atol=1e-5
    )


def test_only_the_online_network_moves():
    learner, batch, others = example()
    gradient = eqx.filter_jit(eqx.filter_grad(lambda x: x.loss(batch, KEY, others)[0]))(learner)

    def size(tree):
        return max(float(abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    assert size(gradient.target_q) == 0
    assert size(gradient.q) > 1e-3
