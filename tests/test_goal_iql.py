"""Goal-conditioned IQL against NumPy, and on a ring whose shortest paths are known."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import ring
from learning import configured, normal

from qgf.config import Spec
from qgf.data.goals import FAR, GoalBatch
from qgf.learners.goal_iql import GoalIQL

KEY = jax.random.key(3)


@functools.cache
def example(**settings):
    """A learner with a target of its own, and a batch with all kinds of distances."""
    settings = {"width": 16, "depth": 1, "discount": 0.9, "expectile": 0.7} | settings
    config, spec = configured(GoalIQL, chunk=3, **settings), Spec(obs=4, action=2, chunk=3, goal=2)
    create = eqx.filter_jit(GoalIQL.create)
    learner, other = (create(spec, config, jax.random.key(seed)) for seed in (0, 9))
    assert eqx.tree_equal(learner.q, learner.target_q)
    nan = jnp.full((8, 4), jnp.nan)  # the longer chunk of other critics is not looked at
    batch = GoalBatch(
        obs=normal(8, 4),
        action=normal(8, 6, seed=1),
        next_obs=normal(8, 4, seed=2),
        goal=normal(8, 2, seed=3),
        distance=jnp.array([0, 1, 2, 3, 4, 40, FAR, 3]),
        long_action=nan,
        long_next_obs=nan,
        whole=nan[:, 0],
    )
    return eqx.tree_at(lambda x: x.target_q, learner, other.q), batch


def members(ensemble, *parts):
    return np.stack([reference.mlp(member, *parts)[:, 0] for member in ensemble.members])


@pytest.mark.parametrize(
    "aggregation, ensemble, discount", [("min", 2, 0.9), ("mean", 3, 0.9), ("mean", 2, 1.0)]
)
def test_loss_equals_numpy(aggregation, ensemble, discount):
    learner, batch = example(aggregation=aggregation, ensemble=ensemble, discount=discount)
    aggregate = np.min if aggregation == "min" else np.mean
    next_v = reference.mlp(learner.v.mlp, batch.next_obs, batch.goal)[:, 0]
    backup = np.zeros(8)
    for i, distance in enumerate(np.asarray(batch.distance)):
        for step in range(min(distance, 3)):
            backup[i] -= discount**step
        if distance > 3:
            backup[i] += discount**3 * next_v[i]
    q = members(learner.q, batch.obs, batch.goal, batch.action)
    v = reference.mlp(learner.v.mlp, batch.obs, batch.goal)[:, 0]
    target_q = members(learner.target_q, batch.obs, batch.goal, batch.action)
    advantage = aggregate(target_q, axis=0) - v
    expected = {
        "critic_loss": ((q - backup) ** 2).mean(),
        "value_loss": (np.where(advantage > 0, 0.7, 0.3) * advantage**2).mean(),
        "q": q.mean(),
        "v": v.mean(),
        "advantage": advantage.mean(),
    }
    loss, metrics = eqx.filter_jit(lambda x: x.loss(batch, KEY, {}))(learner)
    assert {k: float(m) for k, m in metrics.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(loss) == pytest.approx(expected["critic_loss"] + expected["value_loss"], rel=1e-4)
    critic = learner.bind(batch.obs, batch.goal)(batch.action)
    np.testing.assert_allclose(critic, aggregate(target_q, axis=0), atol=1e-5)


def test_each_loss_trains_one_network_alone():
    learner, batch = example()
    trained = {"critic_loss": "q", "value_loss": "v"}

    @eqx.filter_jit
    def gradients(learner):
        losses = lambda x: {name: x.loss(batch, KEY, {})[1][name] for name in trained}  # noqa: E731
        return eqx.filter_jacrev(losses)(learner)

    for loss, gradient in gradients(learner).items():
        for name in ("q", "target_q", "v"):
            leaves = jax.tree.leaves(getattr(gradient, name))
            reached = max(float(abs(leaf).max()) for leaf in leaves)
            assert reached > 1e-3 if name == trained[loss] else reached == 0


def test_gradient_for_samplers_equals_finite_differences():
    learner, batch = example()
    critic = learner.bind(batch.obs, batch.goal)
    gradient = jax.jit(jax.grad(lambda a: critic(a).sum()))(batch.action)
    q = lambda a: members(learner.target_q, batch.obs, batch.goal, a).min(0)  # noqa: E731
    expected = reference.finite_differences(q, batch.action)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
    assert abs(expected).max() > 0.01


def test_values_are_those_of_the_shortest_paths():
    """A high expectile picks the best of what deterministic data did."""
    learner = ring.tabular(GoalIQL, ring.config(GoalIQL, expectile=0.99))
    learner = ring.learn(learner, steps=2000, rate=0.2)
    states, distance = ring.pairs()
    truth = -(1 - ring.DISCOUNT**distance) / (1 - ring.DISCOUNT)
    np.testing.assert_allclose(learner.v(states), truth, rtol=0.03, atol=0.01)
    states, action, cost, best = ring.moves(ring.CHUNK)
    value = np.asarray(learner.q(states, action))[:, best]
    truth = -(1 - ring.DISCOUNT ** cost[best]) / (1 - ring.DISCOUNT)
    np.testing.assert_allclose(value, np.broadcast_to(truth, value.shape), rtol=0.03, atol=0.01)
