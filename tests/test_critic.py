"""Critics against the textbook network; expectiles against bisection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qgf.core.critic import Ensemble, Value, aggregate, expectile_loss


def test_ensemble_is_its_members():
    q = Ensemble(4, 3, members=3, width=8, depth=2, key=jax.random.key(0))
    random = np.random.default_rng(0)
    obs, action = (random.normal(size=(6, n)).astype(np.float32) for n in (4, 3))
    values = q(jnp.asarray(obs), jnp.asarray(action))
    expected = [reference.mlp(q.members[i], obs, action)[:, 0] for i in range(3)]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    assert len(q.members[0].scales) == 2
    assert abs(values[0] - values[1]).min() > 1e-3  # drawn apart


def test_value_is_its_network():
    v = Value(4, width=8, depth=2, key=jax.random.key(0))
    obs = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_allclose(
        v(jnp.asarray(obs)), reference.mlp(v.mlp, obs)[:, 0], rtol=1e-4, atol=1e-5
    )


def test_aggregate():
    values = jnp.array([[1.0, 5.0], [3.0, -1.0]])
    assert aggregate(values).tolist() == [1, -1]
    assert aggregate(values, "mean").tolist() == [2, 2]


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_expectile_loss_is_least_at_the_expectile(tau):
    values = np.random.default_rng(0).normal(size=40)
    m = reference.expectile(values, np.ones(40), tau)

    def loss(v):
        return expectile_loss(jnp.asarray(values, jnp.float32) - v, tau).mean()

    assert float(jax.grad(loss)(m)) == pytest.approx(0, abs=1e-5)
    assert all(loss(m + by) > loss(m) for by in (-0.05, 0.05))
    if tau == 0.5:
        assert m == pytest.approx(values.mean())


def test_expectile_loss_by_hand():
    actual = expectile_loss(jnp.array([2.0, -2.0, 0.0]), 0.9)
    np.testing.assert_allclose(actual, [3.6, 0.4, 0.0], rtol=1e-6)
