"""IQL on a small tabular problem, against the fixed point found by slow iteration."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import TINY
from learning import configured

from qgf.config import Config, Spec
from qgf.data.dataset import Batch, Chunks
from qgf.learners.iql import IQL
from qgf.run._update import Fixed, State, _adam, _average_targets, _split, train_steps

STATES, ACTIONS = 4, 3


class TableQ(eqx.Module):
    table: jax.Array

    def __call__(self, obs, action):
        return jnp.einsum("bs,msa,ba->mb", obs, self.table, action)


class TableV(eqx.Module):
    table: jax.Array

    def __call__(self, obs):
        return obs @ self.table


def transitions(count=60):
    """A data set of a stochastic problem with unequal counts; every pair occurs."""
    random = np.random.default_rng(0)
    pairs = np.array([(s, a) for s in range(STATES) for a in range(ACTIONS)])
    more = random.choice(len(pairs), count - len(pairs), p=random.dirichlet(np.ones(len(pairs))))
    state, action = np.concatenate([pairs, pairs[more]]).T
    following = random.integers(STATES, size=count)
    reward = (np.arange(count) % 3 - 1.5 + state - action).astype(np.float32)
    mask = (random.random(count) < 0.8).astype(np.float32)
    return state, action, reward, mask, following


def one_hot(index, size):
    return jnp.asarray(np.eye(size, dtype=np.float32)[index])


def fixed_point(config):
    """Expectile Bellman iteration over the data's transitions, entry by entry."""
    state, action, reward, mask, following = transitions()
    q, v = np.zeros((STATES, ACTIONS)), np.zeros(STATES)
    for _ in range(300):
        backup = reward + config.discount**config.chunk * mask * v[following]
        for s in range(STATES):
            for a in range(ACTIONS):
                q[s, a] = backup[(state == s) & (action == a)].mean()
        for s in range(STATES):
            counts = [((state == s) & (action == a)).sum() for a in range(ACTIONS)]
            v[s] = reference.expectile(list(q[s]), counts, config.of(IQL.Hyper).expectile)
    return q, v


@pytest.mark.parametrize("expectile, aggregation", [(0.9, "min"), (0.5, "mean")])
def test_losses_lead_to_the_expectile_fixed_point(expectile, aggregation):
    config = configured(IQL, discount=0.9, chunk=3, expectile=expectile, aggregation=aggregation)
    state, action, reward, mask, following = transitions()
    batch = Batch(
        one_hot(state, STATES),
        one_hot(action, ACTIONS),
        jnp.asarray(reward),
        jnp.asarray(mask),
        one_hot(following, STATES),
    )
    table = TableQ(jax.random.normal(jax.random.key(0), (2, STATES, ACTIONS)))
    learner = IQL.create(Spec(STATES, 1, ACTIONS), config, jax.random.key(0))
    learner = eqx.tree_at(
        lambda x: (x.q, x.target_q, x.v), learner, (table, table, TableV(jnp.zeros(STATES)))
    )

    def descend(learners, _):
        online, rest = _split(learners)
        loss = lambda o: eqx.combine(o, rest)["critic"].loss(batch, jax.random.key(0), {})[0]  # noqa: E731
        moved = jax.tree.map(lambda x, g: x - 2.0 * g, online, jax.grad(loss)(online))
        return _average_targets(eqx.combine(moved, rest), 0.1), None

    learners = jax.jit(lambda x: jax.lax.scan(descend, x, None, 6000)[0])({"critic": learner})
    q, v = fixed_point(config)
    for tables in (learners["critic"].q.table, learners["critic"].target_q.table):
        np.testing.assert_allclose(tables, np.stack([q, q]), atol=2e-4)
    np.testing.assert_allclose(learners["critic"].v.table, v, atol=2e-4)


@pytest.fixture(params=[("min", 0.0), ("mean", 0.5)])
def example(request):
    settings = dict(zip(("aggregation", "kappa"), request.param, strict=True))
    config = configured(IQL, width=16, depth=2, discount=0.9, chunk=2, expectile=0.7, **settings)
    learner = IQL.create(Spec(4, 3, 2), config, jax.random.key(0))
    other = IQL.create(Spec(4, 3, 2), config, jax.random.key(9))
    learner = eqx.tree_at(lambda x: x.target_q, learner, other.q)
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    mask = jnp.asarray(random.integers(2, size=8), jnp.float32)
    return learner, Batch(normal(8, 4), normal(8, 6), normal(8), mask, normal(8, 4))


def test_loss_and_metrics_equal_numpy(example):
    learner, batch = example
    q = np.asarray(learner.q(batch.obs, batch.action), np.float64)
    v, next_v = (np.asarray(learner.v(obs), np.float64) for obs in (batch.obs, batch.next_obs))
    backup = np.asarray(batch.reward) + 0.9**2 * np.asarray(batch.mask) * next_v
    hyper, target = learner.hyper, learner.target_q(batch.obs, batch.action)
    advantage = reference.aggregate(target, hyper.aggregation, hyper.kappa) - v
    expected = {
        "critic_loss": ((q - backup) ** 2).mean(),
        "value_loss": (np.where(advantage > 0, 0.7, 0.3) * advantage**2).mean(),
        "q": q.mean(),
        "v": v.mean(),
        "advantage": advantage.mean(),
    }
    loss, metrics = learner.loss(batch, jax.random.key(0), {})
    assert {k: float(m) for k, m in metrics.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert float(loss) == pytest.approx(expected["critic_loss"] + expected["value_loss"], rel=1e-4)
    np.testing.assert_allclose(
        learner.bind(batch.obs)(batch.action), advantage + v, rtol=1e-4, atol=1e-6
    )


def size(tree):
    return max(float(abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_no_gradient_crosses(example):
    learner, batch = example

    @eqx.filter_jit
    def gradient(learner, batch):
        return eqx.filter_grad(lambda x: x.loss(batch, jax.random.key(0), {})[0])(learner)

    base = gradient(learner, batch)
    assert size(base.target_q) == 0
    assert size(base.q) > 1e-3 and size(base.v) > 1e-3
    # V does not feel what only the loss of Q contains, nor Q what only that of V contains.
    far = gradient(learner, batch._replace(reward=batch.reward + 100, next_obs=batch.next_obs * 3))
    assert size(jax.tree.map(jnp.subtract, far.v, base.v)) < 1e-6
    assert size(jax.tree.map(jnp.subtract, far.q, base.q)) > 1
    doubled = jax.tree.map(lambda x: 2 * x, learner.target_q)
    other = gradient(eqx.tree_at(lambda x: x.target_q, learner, doubled), batch)
    assert size(jax.tree.map(jnp.subtract, other.q, base.q)) < 1e-6
    assert size(jax.tree.map(jnp.subtract, other.v, base.v)) > 1e-3


def test_target_follows_by_polyak_averaging():
    config = Config(**{**vars(TINY), "target_rate": 0.3})
    random = np.random.default_rng(0)
    data = Chunks(
        obs=jnp.asarray(random.normal(size=(40, 4)), jnp.float32),
        action=jnp.asarray(random.uniform(-1, 1, (40, 3)), jnp.float32),
        start=jnp.arange(30, dtype=jnp.int32),
        reward=jnp.full(30, -1.0),
        mask=jnp.ones(30),
        length=5,
    )
    learner = jax.tree.map(
        lambda x: x[None] if eqx.is_array(x) else x,
        IQL.create(Spec(4, 3, 5), config, jax.random.key(0)),
    )
    assert eqx.tree_equal(learner.q, learner.target_q)
    trained = jax.tree.map(lambda x: x[0], _split({"critic": learner})[0])
    optimizer = jax.tree.map(lambda x: x[None], _adam(config).init(trained))
    # Copied, because a step may use up the memory of the state it is given.
    state = State(jax.tree.map(jnp.array, {"critic": learner}), optimizer)
    slow = [np.array(x, np.float64) for x in jax.tree.leaves(learner.q)]
    moved = 0
    for step in range(3):
        state, _ = train_steps(Fixed(data, jnp.array([0]), config), state, jnp.asarray(step), 1)
        fast = [np.array(x, np.float64) for x in jax.tree.leaves(state.learners["critic"].q)]
        slow = [0.7 * s + 0.3 * f for s, f in zip(slow, fast, strict=True)]
        target = jax.tree.leaves(state.learners["critic"].target_q)
        for actual, expected, online in zip(target, slow, fast, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-6)
            moved = max(moved, abs(expected - online).max())
    assert moved > 1e-4
