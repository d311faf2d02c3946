"""Critics against the textbook network; expectiles against bisection."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qgf.core.critic import Ensemble, Value, aggregate, ensemble_critic, expectile_loss
from qgf.errors import UserError
from qgf.learners.iql import IQL


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
    np.testing.assert_allclose(aggregate(values, "mean", 1.0), [1, -1])  # of two, the smaller
    np.testing.assert_allclose(aggregate(values, "mean", 0.5), [1.5, 0.5])


def drawn(members=10):
    q = Ensemble(4, 3, members=members, width=16, depth=2, key=jax.random.key(0))
    random = np.random.default_rng(1)
    arrays = random.normal(size=(6, 4)), random.uniform(-1, 1, (6, 3))
    return q, *(jnp.asarray(x, jnp.float32) for x in arrays)


def gradient(q, obs, action, how="mean", **kappa):
    return jax.grad(lambda a: ensemble_critic(q, how, obs, a, **kappa).sum())(action)


@pytest.mark.parametrize("kappa", [0.5, 3.0])
def test_the_mean_less_some_deviations_and_its_action_gradient(kappa):
    q, obs, action = drawn()

    def slow(action):
        values = np.stack([reference.mlp(member, obs, action)[:, 0] for member in q.members])
        return values.mean(0) - kappa * values.std(0, ddof=0)

    values = ensemble_critic(q, "mean", obs, action, kappa=kappa)
    np.testing.assert_allclose(values, slow(action), rtol=1e-4, atol=1e-5)
    expected = reference.finite_differences(slow, action)
    np.testing.assert_allclose(gradient(q, obs, action, kappa=kappa), expected, atol=1e-4)
    assert abs(expected - np.asarray(gradient(q, obs, action))).max() > 0.05


def test_no_deviations_are_the_mean_to_the_last_bit():
    q, obs, action = drawn()
    plain = ensemble_critic(q, "mean", obs, action)
    assert (plain == ensemble_critic(q, "mean", obs, action, kappa=0.0)).all()
    assert (plain == jnp.mean(q(obs, action), 0)).all()
    assert (gradient(q, obs, action) == gradient(q, obs, action, kappa=0.0)).all()


@pytest.mark.parametrize("members", [1, 2, 10])
def test_where_members_agree_the_gradient_is_theirs(members):
    q, obs, action = drawn(members)
    q = eqx.tree_at(lambda q: q.members, q, q.members[:1] * members)
    alone = gradient(eqx.tree_at(lambda q: q.members, q, q.members[:1]), obs, action)
    assert abs(alone).min() > 0
    np.testing.assert_allclose(gradient(q, obs, action, kappa=2.0), alone, rtol=1e-3, atol=1e-6)
    everywhere = jax.grad(lambda x: aggregate(x, "mean", 2.0).sum())(jnp.zeros((members, 4)))
    np.testing.assert_allclose(everywhere, 1 / members)


def test_one_deviation_of_two_is_the_smaller_ones_cheaper_gradient():
    q, obs, action = drawn(2)
    smaller = gradient(q, obs, action, "min")
    np.testing.assert_allclose(gradient(q, obs, action, kappa=1.0), smaller, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kappa": 0.5}, "off the mean of the ensemble; add --aggregation mean"),
        ({"kappa": -1.0, "aggregation": "mean"}, "kappa must be finite and at least 0, got -1.0"),
        ({"kappa": float("nan"), "aggregation": "mean"}, "at least 0, got nan"),
    ],
)
def test_deviations_that_cannot_be_taken(settings, message):
    with pytest.raises(UserError, match=message):
        IQL.Hyper(**settings)


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
