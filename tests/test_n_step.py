"""Returns of n steps against a slow loop, their limits, and a chain that is solved at once."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import configured
from sources import Episodes

from qgf.config import Spec
from qgf.data.dataset import Dataset
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError
from qgf.learners.iql import IQL
from qgf.learners.n_step import NStepIQL
from qgf.learners.task_dqc import TaskDQC

H, DISCOUNT = 3, 0.9
LENGTHS = (3, 7, 12, 5)  # actions of each episode


def episodes(*, unseen=False, solved=()):
    """Random ones; those that are solved are so at an action in the middle, and go on."""
    random, rows = np.random.default_rng(0), sum(LENGTHS) + len(LENGTHS)
    ends = np.cumsum(np.array(LENGTHS) + 1) - 1
    last, terminated = np.isin(np.arange(rows), ends), np.zeros(rows, bool)
    for episode, at in solved:
        terminated[ends[episode] - LENGTHS[episode] + at] = True
    return Trajectories(
        observation=random.normal(size=(rows, 2)).astype(np.float32),
        action=random.uniform(-1, 1, (rows, 1)).astype(np.float32),
        last=last,
        reward=random.normal(size=rows).astype(np.float32),
        terminated=terminated,
        unseen=last if unseen else None,
    )


def batch(recorded, horizon):
    data = Dataset(Episodes(recorded), chunk=H, discount=DISCOUNT, horizon=horizon)
    chunks = jax.device_put(data.chunks(data.source.split("train")))
    return chunks, chunks.take(np.arange(chunks.counts.critic))


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("horizon", [3, 4, 6, 50])
def test_returns_are_those_of_a_walk_along_the_episode(unseen, horizon):
    recorded = episodes(unseen=unseen, solved=[(1, 6), (2, 4)])
    chunks, found = batch(recorded, horizon)
    for i, row in enumerate(np.asarray(chunks.start)[: chunks.counts.critic]):
        total, weight, at = 0.0, 1.0, row
        while True:
            total += weight * recorded.reward[at]
            weight *= DISCOUNT
            if recorded.terminated[at]:
                weight = 0.0
                break
            at += 1
            next_is_gone = recorded.last[at] or (
                unseen and recorded.last[at + 1] and not recorded.terminated[at]
            )
            if at - row == horizon or next_is_gone:
                break
        assert found.ahead.reward[i] == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert found.ahead.discount[i] == pytest.approx(weight, rel=1e-5)
        if weight:
            np.testing.assert_array_equal(found.ahead.next_obs[i], recorded.observation[at])
        # The actions of the whole horizon; past what was recorded the last of them again.
        end = row + 1
        while end - row < horizon and not recorded.last[end]:
            if unseen and recorded.last[end + 1] and not recorded.terminated[end]:
                break
            end += 1
        actions = [recorded.action[min(row + k, end - 1), 0] for k in range(horizon)]
        np.testing.assert_array_equal(found.ahead.action[i], actions)
        assert found.ahead.whole[i] == (end - row == horizon or not weight)


def learner(kind, **settings):
    config = configured(kind, width=8, depth=2, chunk=H, discount=DISCOUNT, **settings)
    return kind.create(Spec(2, 1, H), config, jax.random.key(0))


def test_over_one_chunk_it_is_iql():
    _, data = batch(episodes(solved=[(2, 4)]), H)
    pair = learner(NStepIQL, horizon=H), learner(IQL)
    ours, theirs = (float(one.loss(data, jax.random.key(0), {})[0]) for one in pair)
    assert ours == pytest.approx(theirs, rel=1e-6)


def scaled(tree, by):
    return [by * np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("horizon", [H, 5])
def test_dqc_without_a_chunk_critic_is_n_step_iql(horizon):
    """Chunks of the policy's length make it IQL: Q has half of its error, which Adam ignores."""
    chunks, data = batch(episodes(solved=[(2, 4)]), horizon)
    assert data.ahead.whole.sum() > 0 and (horizon == H or not data.ahead.whole.all())
    data = chunks.take(np.flatnonzero(data.ahead.whole))
    theirs = learner(NStepIQL, horizon=horizon, expectile=0.7)
    settings = {"critic_chunk": horizon, "backup": "expectile", "backup_level": 0.7}
    ours = learner(TaskDQC, chunk_critic=False, **settings)
    networks = lambda x: (x.q, x.target_q, x.v)  # noqa: E731
    ours = eqx.tree_at(networks, ours, networks(theirs))
    key = jax.random.key(0)
    gradient, expected = (
        eqx.filter_grad(lambda x: x.loss(data, key, {})[0])(x) for x in (ours, theirs)
    )
    for name, by in (("q", 0.5), ("v", 1.0)):
        pair = scaled(getattr(gradient, name), 1), scaled(getattr(expected, name), by)
        for one, other in zip(*pair, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


class Fixed(eqx.Module):
    """A network that says the same everywhere."""

    values: jax.Array

    def __call__(self, *_):
        return self.values


def test_a_success_within_n_steps_needs_no_value():
    """On a chain that pays -1 per step, Q is the closed form whatever V says."""
    recorded = dataclasses.replace(episodes(), reward=np.full(31, -1, np.float32))
    ends = np.flatnonzero(recorded.last)
    recorded = dataclasses.replace(recorded, terminated=np.isin(np.arange(31), ends - 1))
    chunks, data = batch(recorded, 12)
    left = ends[np.searchsorted(ends, chunks.start)] - chunks.start
    exact = -(1 - DISCOUNT**left) / (1 - DISCOUNT)
    for wrong in (0.0, 50.0):
        networks = [Fixed(jnp.asarray(x, jnp.float32)) for x in (np.stack([exact] * 2), exact * 0)]
        one = learner(NStepIQL, horizon=12)
        one = eqx.tree_at(lambda x: (x.q, x.target_q, x.v), one, (*networks[:1] * 2, networks[1]))
        one = eqx.tree_at(lambda x: x.v.values, one, one.v.values + wrong)
        metrics = one.loss(data, jax.random.key(0), {})[1]
        assert float(metrics["critic_loss"]) == pytest.approx(0, abs=1e-8)


def test_a_horizon_below_a_chunk():
    with pytest.raises(UserError, match="at least the chunk of 3 steps, got 2"):
        batch(episodes(), 2)
