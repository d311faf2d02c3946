"""RobustQ against the conditional expectation that minimizes its loss."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import (
    MEAN,
    STD,
    Spy,
    batch_of,
    bound,
    draw_gaussian,
    fit,
    gaussian_velocity,
    normal,
    others as stand_ins,
)

from qgf.config import Config, Spec
from qgf.learners.robust_q import RobustQ, robust_q


def untrained(**settings):
    return RobustQ.create(Spec(2, 2, 1), Config(width=32, depth=2, **settings), jax.random.key(0))


def estimate(learner, obs, action, t):
    """v and g, for which the critic itself does not matter."""
    ignored = lambda action: action[:, 0]  # noqa: E731
    return robust_q(learner.bind(obs), partial(gaussian_velocity, obs), ignored, action, t, 10)


def on_the_path(size=1024):
    t = jnp.linspace(0, 0.9, size)
    batch = draw_gaussian(jax.random.key(7), size)
    return batch.obs, (1 - t[:, None]) * normal(size, 2) + t[:, None] * batch.action, t


@pytest.mark.parametrize("slope", [(2.0, -4.0), (0.0, 0.0)])
def test_gradient_is_that_of_the_expected_q_of_the_clean_action(slope):
    # For a_1 ~ N(m, STD²), E[a_1 | a_t] has the slope t STD² / ((1 - t)² + t² STD²); with a
    # critic that ignores the action there is nothing to climb.
    slope = np.array(slope)
    critic = lambda obs, action: 2 * obs[:, 0] + (action - MEAN - obs) @ slope  # noqa: E731
    draw = lambda key: draw_gaussian(key, 1024)  # noqa: E731
    others = stand_ins(critic={"bind": bound(critic)})
    learner = fit(untrained(), others, draw, steps=1500, rate=1e-2)
    obs, action, t = on_the_path()
    v, actual = estimate(learner, obs, action, t)
    np.testing.assert_array_equal(v, gaussian_velocity(obs, action, t))
    s = np.asarray(t, float)[:, None]
    expected = slope * s * STD**2 / ((1 - s) ** 2 + s**2 * STD**2)
    assert np.sqrt(np.square(actual - expected).mean()) < 0.12
    before = estimate(untrained(), obs, action, t)[1]
    assert np.sqrt(np.square(before - expected).mean()) > 0.2


def test_loss_equals_numpy():
    learner = untrained(denoise_steps=2)
    batch = batch_of(normal(4000, 2), normal(4000, 2, seed=1))
    critic = lambda obs, action: 3 * action[:, 0] - obs[:, 1]  # noqa: E731
    spy = Spy(lambda obs, action, embedding: action[:, :1] + embedding[:, :1])
    loss, _ = eqx.tree_at(lambda x: x.q, learner, spy).loss(
        batch, jax.random.key(0), stand_ins(critic={"bind": bound(critic)})
    )
    obs, noisy, embedding = spy.inputs
    np.testing.assert_array_equal(obs, batch.obs)
    q = noisy[:, 0] + embedding[:, 0]
    expected = (q - np.asarray(critic(batch.obs, batch.action), float)) ** 2
    assert float(loss) == pytest.approx(expected.mean(), rel=1e-4)
    # The slowest wave of the embedding is cos(t · 10^½), which tells t ~ U[0, 1].
    t = np.arccos(np.clip(embedding[:, 7], -1, 1)) / np.sqrt(10)
    assert abs(np.sort(t) - np.linspace(0, t.max(), 4000)).max() < 0.03


def test_estimator_of_a_formula():
    learner = eqx.tree_at(
        lambda x: x.q,
        untrained(),
        lambda obs, action, embedding: (
            -jnp.square(action - embedding[:, :2]) @ jnp.ones((2, 1)) / 2
        ),
    )
    obs, action, t = normal(5, 2), 3 * normal(5, 2, seed=1), jnp.linspace(0, 1, 5)
    _, g = estimate(learner, obs, action, t)
    waves = np.cos(np.asarray(t, float)[:, None] * 1e4 * np.array([1, 10**-0.5]))
    np.testing.assert_allclose(g, waves - np.asarray(action, float), atol=1e-3)
    np.testing.assert_allclose(g[0], 1 - np.asarray(action[0], float), rtol=1e-5)
