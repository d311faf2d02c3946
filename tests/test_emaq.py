"""EMaQ where the policy is known in closed form: from its own value to the best there is."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from learning import configured, normal
from scipy.stats import norm

from qgf.config import Spec
from qgf.core.critic import Ensemble
from qgf.core.flow import repeat_rows
from qgf.core.networks import time_embedding
from qgf.data.dataset import Batch
from qgf.learners.bc import BC
from qgf.learners.emaq import EMaQ
from qgf.run._update import _average_targets, _split

# Three states; the action -1 or 1 leads to a state, is paid, and may end the task.
FOLLOWING = np.array([[1, 2], [0, 2], [1, 0]])
REWARD = np.array([[-1.0, 0.5], [1.0, -2.0], [-0.5, 0.0]])
MASK = np.array([[1.0, 1], [1, 1], [0, 1]])
THRESHOLD = np.array([0.5, -0.3, 0.2])
RIGHT = 1 - norm.cdf(THRESHOLD)  # how likely the policy takes the action 1
DISCOUNT, CHUNK, REPEATS = 0.9, 2, 128


def policy(obs, repeats=1):
    """The flow on straight lines from noise z to the sign of z − threshold: Euler is exact."""
    threshold = repeat_rows(obs @ jnp.asarray(THRESHOLD, jnp.float32), repeats)[:, None]

    def velocity(action, t):
        left = 1 - t[:, None]
        sign = jnp.where(action - left * threshold > 0, 1.0, -1.0)
        return (sign - action) / left

    return velocity


class Table(Ensemble):
    table: jax.Array

    def __init__(self, table):
        self.members, self.table = [], table

    def __call__(self, obs, action):
        right = (action > 0).astype(jnp.float32)
        return jnp.einsum("bs,msa,ba->mb", obs, self.table, jnp.hstack([1 - right, right]))


def learned(samples):
    """The tables after gradient steps on all transitions, each many times."""
    config = configured(EMaQ, next_samples=samples, discount=DISCOUNT, chunk=CHUNK, denoise_steps=4)
    state, action = (np.repeat(x.ravel(), REPEATS) for x in np.indices((3, 2)))
    at = lambda table: jnp.asarray(table[state, action], jnp.float32)  # noqa: E731
    seen = lambda states: jnp.eye(3)[states]  # noqa: E731
    taken = jnp.asarray(2 * action[:, None] - 1, jnp.float32)
    batch = Batch(seen(state), taken, at(REWARD), at(MASK), seen(FOLLOWING[state, action]))
    learner = EMaQ.create(Spec(3, 1, 1), config, jax.random.key(0))
    table = Table(jax.random.normal(jax.random.key(1), (2, 3, 2)))
    learner = eqx.tree_at(lambda x: (x.q, x.target_q), learner, (table, table))
    others = {"policy": SimpleNamespace(bind=policy)}

    def descend(learners, inputs):
        key, rate = inputs
        online, rest = _split(learners)
        loss = lambda o: eqx.combine(o, rest)["critic"].loss(batch, key, others)[0]  # noqa: E731
        moved = jax.tree.map(lambda x, g: x - rate * g, online, jax.grad(loss)(online))
        return _average_targets(eqx.combine(moved, rest), 0.1), None

    steps = jax.random.split(jax.random.key(2), 800), jnp.geomspace(2, 0.1, 800)
    return jax.jit(lambda x: jax.lax.scan(descend, x, steps)[0])({"critic": learner})["critic"]


def values(samples):
    """Q by slow iteration; of N samples the worse action is the best with its chance to the N."""
    q = np.zeros((3, 2))
    for _ in range(500):
        worse = np.where(q[:, 1] >= q[:, 0], 1 - RIGHT, RIGHT) ** samples
        v = (1 - worse) * q.max(1) + worse * q.min(1)
        q = REWARD + DISCOUNT**CHUNK * MASK * v[FOLLOWING]
    return q


def exact(choose):
    """Q by the linear equations of the policy's choice probabilities, [state, action]."""
    step = np.zeros((6, 6))
    for i, (s, a) in enumerate(np.ndindex(3, 2)):
        after = FOLLOWING[s, a]
        step[i, 2 * after : 2 * after + 2] = DISCOUNT**CHUNK * MASK[s, a] * choose[after]
    return np.linalg.solve(np.eye(6) - step, REWARD.ravel()).reshape(3, 2)


def test_one_sample_gives_the_policys_own_value():
    own = exact(np.stack([1 - RIGHT, RIGHT], 1))
    np.testing.assert_allclose(values(1), own)  # the slow iteration is right about it
    for table in learned(1).q.table:
        np.testing.assert_allclose(table, own, atol=0.05)


def test_more_samples_rise_to_the_best():
    best = max((exact(np.eye(2)[list(c)]) for c in np.ndindex(2, 2, 2)), key=np.sum)
    few, many = learned(3).q.table, learned(24).q.table
    for table in few:
        np.testing.assert_allclose(table, values(3), atol=0.05)
    for table in many:
        np.testing.assert_allclose(table, best, atol=0.01)
    assert ((values(1) < values(3)) & (values(3) < best)).sum() == 5  # one action ends the task
    assert (best - values(1)).max() > 1


@pytest.mark.parametrize("how", [("min", 0.0, 2), ("mean", 0.5, 3)])
def test_loss_equals_numpy(how):
    aggregation, kappa, members = how
    settings = {"width": 16, "depth": 2, "discount": 0.9, "chunk": 2, "denoise_steps": 4}
    own = {"aggregation": aggregation, "kappa": kappa, "ensemble": members, "next_samples": 3}
    config, spec = configured(EMaQ, **settings, **own), Spec(4, 3, 2)
    learner, other = (EMaQ.create(spec, config, jax.random.key(seed)) for seed in (0, 9))
    learner = eqx.tree_at(lambda x: x.target_q, learner, other.q)
    mask = jnp.array([1.0, 0, 1, 1, 0, 1, 1, 1])
    arrays = [normal(*shape, seed=i) for i, shape in enumerate([(8, 4), (8, 6), (8,), (8, 4)])]
    batch = Batch(*arrays[:3], mask, arrays[3])
    actor, key = BC.create(spec, config, jax.random.key(1)), jax.random.key(3)

    obs = np.tile(np.asarray(batch.next_obs, np.float64), (3, 1))
    action = np.asarray(jax.random.normal(key, (24, 6)), np.float64)
    for k in range(4):
        time = np.asarray(time_embedding(jnp.full(24, k / 4)))
        action = action + reference.mlp(actor.policy.mlp, obs, action, time) / 4
    action = np.clip(action, -1, 1)
    each = [reference.mlp(m, obs, action)[:, 0] for m in learner.target_q.members]
    next_q = reference.aggregate(each, aggregation, kappa).reshape(3, 8).max(0)
    backup = np.asarray(batch.reward) + 0.9**2 * np.asarray(batch.mask) * next_q
    q = np.stack([reference.mlp(m, batch.obs, batch.action)[:, 0] for m in learner.q.members])
    expected = {"critic_loss": np.mean((q - backup) ** 2), "q": q.mean(), "next_q": next_q.mean()}
    loss, metrics = eqx.filter_jit(lambda x: x.loss(batch, key, {"policy": actor}))(learner)
    assert {k: float(m) for k, m in metrics.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(loss) == pytest.approx(expected["critic_loss"], rel=1e-4)
