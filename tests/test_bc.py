"""Behaviour cloning: its loss against NumPy, and the times it is taken at."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import Spy, batch_of, configured, normal

from qgf.config import Spec
from qgf.learners.bc import BC


def seen(times):
    """What a policy that returns twice its action sees of a batch, and the loss."""
    config = configured(BC, width=4, depth=1, times=times, denoise_steps=4)
    spy = Spy(lambda obs, action, t: 2 * action)
    learner = eqx.tree_at(
        lambda x: x.policy, BC.create(Spec(3, 2, 2), config, jax.random.key(0)), spy
    )
    batch = batch_of(normal(99, 3), jnp.clip(normal(99, 4, seed=1), -1, 1))
    loss, metrics = learner.loss(batch, jax.random.key(0), {})
    assert metrics == {"bc_loss": loss}
    return batch, *spy.inputs, float(loss)


def test_loss_equals_numpy():
    batch, obs, noisy, t, loss = seen("uniform")
    np.testing.assert_array_equal(obs, batch.obs)
    assert len(set(t)) == 99 and 0 <= t.min() < t.max() < 1
    # a_t = (1 - t) a_0 + t a_1, so that a_1 - a_0 = (a_1 - a_t) / (1 - t).
    target = (np.asarray(batch.action, float) - noisy) / (1 - t[:, None])
    assert loss == pytest.approx(np.square(2 * noisy - target).mean(), rel=1e-4)


def test_times_follow_the_configuration():
    assert set(4 * seen("grid")[3]) == {0, 1, 2, 3, 4}
