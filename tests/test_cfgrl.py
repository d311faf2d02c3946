"""CFGRL: its two branches, what each learns, and what lies between and beyond them."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import Spy, batch_of, bound, configured, fit, normal, others as stand_ins

from qgf.config import Config, Spec
from qgf.core.flow import euler
from qgf.learners.cfgrl import CFGRL, NONE, POSITIVE
from qgf.methods.table import METHODS


def sample(learner, obs, noise, weight):
    return METHODS["cfgrl"].act(
        {"cfgrl": learner.bind(obs)}, noise, weight, learner.config.denoise_steps
    )[0]


@pytest.fixture
def learner():
    return CFGRL.create(Spec(3, 2, 2), Config(width=32, depth=2), jax.random.key(0))


@pytest.mark.bit_exact
@pytest.mark.parametrize("weight, o", [(0.0, NONE), (1.0, POSITIVE)])
def test_weights_0_and_1_are_the_branches_to_the_last_bit(weight, o, learner):
    obs, noise = normal(33, 3), normal(33, 4, seed=1)
    branch = lambda action, t: learner.branch(obs, action, t, o)  # noqa: E731
    expected = jax.jit(lambda: euler(branch, noise))()
    actual = jax.jit(partial(sample, learner, obs, noise))(jnp.full(33, weight))
    assert actual.tobytes() == expected.tobytes()
    other = sample(learner, obs, noise, jnp.full(33, 1 - weight))
    assert abs(other - expected).max() > 0.01


def test_every_row_has_its_own_weight():
    learner = CFGRL.create(Spec(1, 1, 1), Config(width=4, depth=1), jax.random.key(0))
    # v(o) = 0.2 + 0.1 o: 0.1 unconditionally, 0.3 if positive.
    learner = eqx.tree_at(
        lambda x: x.policy, learner, lambda obs, action, t: 0.2 + 0.1 * obs[:, 1:] + 0 * action
    )
    weights = jnp.array([0.0, 1.0, 0.5, 3.0, 9.0])
    actual = sample(learner, jnp.zeros((5, 1)), jnp.zeros((5, 1)), weights)
    np.testing.assert_allclose(actual[:, 0], [0.1, 0.3, 0.2, 0.7, 1.0], rtol=1e-5)


def test_loss_equals_numpy(learner):
    random = np.random.default_rng(0)
    batch = batch_of(normal(16, 3), jnp.asarray(random.uniform(-1, 1, (16, 4)), jnp.float32))
    v = batch.obs[:, 0]
    advantage = np.array([2.0, 0.0, 1e-3, -1.0] * 4, np.float32)
    others = stand_ins(
        critic={"bind": lambda obs: lambda action: v + advantage, "v": lambda obs: v}
    )
    # Unequal outputs of the branches tell them apart.
    spies = []

    def policy(obs, action, t):
        spies.append(Spy(lambda obs, action, t: action * (2 + obs[:, -1:])))
        return spies[-1](obs, action, t)

    loss, metrics = eqx.tree_at(lambda x: x.policy, learner, policy).loss(
        batch, jax.random.key(0), others
    )
    errors = {}
    for spy in spies:
        obs, noisy, t = spy.inputs
        target = (np.asarray(batch.action) - noisy) / (1 - t[:, None])
        np.testing.assert_array_equal(obs[:, :3], batch.obs)
        (o,) = set(obs[:, 3])
        errors[o] = ((noisy * (2 + o) - target) ** 2).mean(-1)
    better = advantage.astype(np.float64) + np.asarray(v) > np.asarray(v)
    assert better.sum() == 8
    expected = errors[POSITIVE][better].sum() / 16 + 0.1 * errors[NONE].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["positive_share"]) == 0.5


def test_times_follow_the_configuration():
    config = configured(CFGRL, width=4, depth=1, times="grid", denoise_steps=4)
    spy = Spy(lambda obs, action, t: action)
    learner = CFGRL.create(Spec(3, 2, 2), config, jax.random.key(0))
    others = stand_ins(critic={"bind": bound(lambda obs, a: obs[:, 0]), "v": lambda obs: obs[:, 1]})
    batch = batch_of(normal(99, 3), normal(99, 4, seed=1))
    eqx.tree_at(lambda x: x.policy, learner, spy).loss(batch, jax.random.key(0), others)
    assert set(4 * spy.inputs[2]) == {0, 1, 2, 3, 4}


def test_branches_learn_the_better_actions_and_all():
    """Actions lie around 0.5 and -0.5; which of them is better depends on the observation."""

    def draw(key, size=512):
        keys = jax.random.split(key, 3)
        obs, side = (jax.random.rademacher(k, (size, 1), jnp.float32) for k in keys[:2])
        return batch_of(obs, 0.5 * side + 0.1 * jax.random.normal(keys[2], (size, 1)))

    others = stand_ins(
        critic={
            "bind": bound(lambda obs, a: 3 - a[:, 0] * obs[:, 0]),
            "v": lambda obs: 3 + 0 * obs[:, 0],
        }
    )
    learner = CFGRL.create(
        Spec(1, 1, 1), Config(width=64, depth=2, denoise_steps=50), jax.random.key(0)
    )
    learner = fit(learner, others, draw, steps=1500)
    for obs in (-1.0, 1.0):
        start = jnp.full((4000, 1), obs), normal(4000, 1)
        none, positive = (sample(learner, *start, jnp.full(4000, w)) for w in (0.0, 1.0))
        assert float(positive.mean()) == pytest.approx(-0.5 * obs, abs=0.03)
        assert float(positive.std()) == pytest.approx(0.1, abs=0.04)
        assert float((none > 0).mean()) == pytest.approx(0.5, abs=0.06)
        assert float(abs(none).mean()) == pytest.approx(0.5, abs=0.04)
