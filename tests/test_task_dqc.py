"""Decoupled Q-chunking for a task against NumPy, and on a ring whose shortest paths are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import ring
from learning import configured, normal

from qgf.config import Spec
from qgf.data.dataset import Ahead, Batch
from qgf.errors import UserError
from qgf.learners.task_dqc import TaskDQC

KEY = jax.random.key(3)
SPEC = Spec(obs=4, action=3, chunk=2)
HORIZON, DISCOUNT = 3, 0.9


def example(**settings):
    """A learner with a target of its own, and a batch of which some long chunks are cut off."""
    settings = {"width": 16, "depth": 1, "discount": DISCOUNT, "chunk": 2} | settings
    config = configured(
        TaskDQC, critic_chunk=HORIZON, backup_level=0.7, distill_expectile=0.6, **settings
    )
    learner, other = (TaskDQC.create(SPEC, config, jax.random.key(seed)) for seed in (0, 9))
    ahead = Ahead(
        reward=normal(8, seed=3),
        discount=jnp.array([0, 0.7, 0.7, 0, 0.7, 0.8, 0.7, 0.8]),
        next_obs=normal(8, 4, seed=5),
        action=normal(8, 9, seed=4),
        whole=jnp.array([1.0, 1, 1, 1, 1, 0, 1, 0]),
    )
    batch = Batch(
        obs=normal(8, 4),
        action=normal(8, 6, seed=1),
        reward=jnp.full(8, jnp.nan),  # those of a chunk, which do not count
        mask=jnp.ones(8),
        next_obs=normal(8, 4, seed=2),
        ahead=ahead,
    )
    return eqx.tree_at(lambda x: x.target_q, learner, other.q), batch


def members(ensemble, *parts):
    return np.stack([reference.mlp(member, *parts)[:, 0] for member in ensemble.members])


def expected_metrics(learner, batch):
    """The losses and mean values in float64."""
    hyper, ahead = learner.hyper, batch.ahead
    whole = np.asarray(ahead.whole, np.float64)
    pool = lambda values: reference.aggregate(values, hyper.aggregation, hyper.kappa)  # noqa: E731
    next_v = reference.mlp(learner.v.mlp, ahead.next_obs)[:, 0]
    target = backup = np.asarray(ahead.reward) + np.asarray(ahead.discount) * next_v
    metrics, level = {}, 0.5
    if hyper.chunk_critic:
        chunk_q = members(learner.chunk_q, batch.obs, ahead.action)
        metrics["chunk_loss"] = (whole * (chunk_q - backup) ** 2).mean()
        metrics["chunk_q"] = chunk_q.mean()
        target, level = pool(chunk_q), 0.6
    q = members(learner.q, batch.obs, batch.action)
    weight = np.where(target >= q, level, 1 - level)
    metrics["critic_loss"] = (whole * weight * (q - target) ** 2).mean()
    v = reference.mlp(learner.v.mlp, batch.obs)[:, 0]
    difference = pool(members(learner.target_q, batch.obs, batch.action)) - v
    weight = np.where(difference >= 0, 0.7, 1 - 0.7)
    error = abs(difference) if hyper.backup == "quantile" else difference**2
    metrics["value_loss"] = (whole * weight * error).mean()
    return metrics | {"q": q.mean(), "v": v.mean()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backup": "expectile", "aggregation": "mean", "kappa": 0.5, "ensemble": 3},
        {"chunk_critic": False},
        {"chunk_critic": False, "backup": "expectile", "ensemble": 3},
    ],
)
def test_loss_equals_numpy(settings):
    learner, batch = example(**settings)
    expected = expected_metrics(learner, batch)
    loss, metrics = eqx.filter_jit(lambda x: x.loss(batch, KEY, {}))(learner)
    found = {name: float(metric) for name, metric in metrics.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    total = sum(value for name, value in expected.items() if name.endswith("loss"))
    assert float(loss) == pytest.approx(total, rel=1e-4)


def test_the_critics_chunk_covers_the_policys():
    config = configured(TaskDQC, chunk=2, critic_chunk=1)
    with pytest.raises(UserError, match=r"critic_chunk \(1\) must be at least chunk \(2\)"):
        TaskDQC.create(SPEC, config, KEY)


def test_values_are_those_of_the_shortest_paths():
    """High levels pick the best of what deterministic data did: V counts the fewest steps."""
    levels = {"backup_level": 0.97, "distill_expectile": 0.99}
    learner = ring.tabular(TaskDQC, ring.config(TaskDQC, critic_chunk=ring.LONG, **levels))
    learner = ring.learn(learner, steps=1500, rate=0.1, data=ring.walks_to_0())
    value = lambda steps: -(1 - ring.DISCOUNT**steps) / (1 - ring.DISCOUNT)  # noqa: E731
    states, distance = ring.pairs()
    to_0 = (states[:, 1] == 0) & (distance > 0)
    assert distance[to_0].max() > ring.LONG  # one chunk does not get there
    np.testing.assert_allclose(learner.v(states[to_0]), value(distance[to_0]), rtol=0.02)
    for network, steps in ((learner.q, ring.CHUNK), (learner.chunk_q, ring.LONG)):
        states, action, cost, best = ring.moves(steps)
        rows = (states[:, 1] == 0) & (cost > 0)
        found = np.asarray(network(states[rows], action[rows]))
        truth = np.broadcast_to(value(cost[rows]), found.shape)
        np.testing.assert_allclose(found[:, best[rows]], truth[:, best[rows]], rtol=0.02)
        np.testing.assert_allclose(found, truth, rtol=0.05)
