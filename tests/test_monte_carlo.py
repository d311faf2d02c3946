"""The Monte Carlo critic: its loss, and what it converges to."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qgf.config import Config, Spec
from qgf.data.dataset import Batch
from qgf.learners.monte_carlo import MonteCarlo
from qgf.run._update import _average_targets, _split

STATES = 4


class Table(eqx.Module):
    table: jax.Array

    def __call__(self, obs, action):
        return jnp.einsum("bs,msa,ba->mb", obs, self.table, action)


def example():
    config = Config(width=16, depth=2, discount=0.9, chunk=2)
    learner = MonteCarlo.create(Spec(4, 3, 2), config, jax.random.key(0))
    assert eqx.tree_equal(learner.q, learner.target_q)
    other = MonteCarlo.create(Spec(4, 3, 2), config, jax.random.key(9))
    learner = eqx.tree_at(lambda x: x.target_q, learner, other.q)
    random = np.random.default_rng(0)
    obs, action, returns, junk = (
        jnp.asarray(random.normal(size=size), jnp.float32) for size in ((8, 4), (8, 6), 8, 8)
    )
    return learner, Batch(obs, action, junk, junk, 3 * obs, returns)


def test_loss_and_metrics_equal_numpy():
    learner, batch = example()
    q = np.stack([reference.mlp(m, batch.obs, batch.action)[:, 0] for m in learner.q.members])
    returns = np.asarray(batch.return_to_go, np.float64)
    expected = {"critic_loss": ((q - returns) ** 2).mean(), "q": q.mean(), "return": returns.mean()}
    loss, metrics = learner.loss(batch, jax.random.key(0), {})
    assert {k: float(m) for k, m in metrics.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert float(loss) == pytest.approx(expected["critic_loss"], rel=1e-4)
    slow = [reference.mlp(m, batch.obs, batch.action)[:, 0] for m in learner.target_q.members]
    np.testing.assert_allclose(
        learner.bind(batch.obs)(batch.action), np.min(slow, axis=0), rtol=1e-4, atol=1e-5
    )


def test_nothing_is_bootstrapped():
    learner, batch = example()
    changed = batch._replace(reward=batch.reward + 5, mask=-batch.mask, next_obs=-batch.next_obs)
    moved = eqx.tree_at(lambda x: x.target_q, learner, learner.q)
    losses = [
        float(one.loss(b, jax.random.key(0), {})[0])
        for one, b in ((learner, batch), (learner, changed), (moved, batch))
    ]
    assert losses[0] == losses[1] == losses[2]


def test_it_converges_to_the_mean_return_of_every_state_and_action():
    random = np.random.default_rng(0)
    state, action = random.integers(STATES, size=60), random.integers(3, size=60)
    returns = random.normal(size=60) - 10 * state + action
    pick = lambda index, size: jnp.asarray(np.eye(size, dtype=np.float32)[index])  # noqa: E731
    zero, obs = jnp.zeros(60), pick(state, STATES)
    batch = Batch(obs, pick(action, 3), zero, zero, obs, jnp.asarray(returns, jnp.float32))
    learner = MonteCarlo.create(Spec(STATES, 1, 3), Config(chunk=3), jax.random.key(0))
    table = Table(jax.random.normal(jax.random.key(0), (2, STATES, 3)))
    learner = eqx.tree_at(lambda x: (x.q, x.target_q), learner, (table, table))

    def descend(learners, _):
        online, rest = _split(learners)
        loss = lambda o: eqx.combine(o, rest)["critic"].loss(batch, jax.random.key(0), {})[0]  # noqa: E731
        moved = jax.tree.map(lambda x, g: x - 5.0 * g, online, jax.grad(loss)(online))
        return _average_targets(eqx.combine(moved, rest), 0.1), None

    learners = jax.jit(lambda x: jax.lax.scan(descend, x, None, 2000)[0])({"critic": learner})
    for s in range(STATES):
        for a in range(3):
            mean = returns[(state == s) & (action == a)].mean()
            for table in (learners["critic"].q.table, learners["critic"].target_q.table):
                np.testing.assert_allclose(table[:, s, a], mean, atol=1e-3)
