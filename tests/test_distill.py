"""The distilled flow against the Gaussian's own Euler steps and formulas of the estimators."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import (
    batch_of,
    bound,
    draw_gaussian,
    fit,
    gaussian_flow,
    gaussian_velocity,
    normal,
    others as stand_ins,
)

from qgf.config import Config, Spec
from qgf.learners.distill import (
    Distilled,
    qgf_distill,
    qgf_jacobian_distill,
    remaining_flow,
    spread_starts,
)

PEAK, CURVATURE = np.array([-0.2, 0.3]), np.array([1.0, 3.0])


def distilled(**settings):
    return Distilled.create(Spec(2, 2, 1), Config(width=32, depth=2, **settings), jax.random.key(0))


def critic(action):
    return -0.5 * (CURVATURE * jnp.square(action - PEAK)).sum(-1)


@pytest.mark.parametrize("rows, steps", [(256, 10), (8, 10), (7, 3), (1, 4)])
def test_starts_are_uniform(rows, steps):
    keys = jax.random.split(jax.random.key(0), 4000)
    starts = np.asarray(jax.vmap(lambda key: spread_starts(key, rows, steps))(keys))
    assert (np.diff(starts) >= 0).all()
    shares = np.bincount(starts.ravel(), minlength=steps) / starts.size
    np.testing.assert_allclose(shares, np.full(steps, 1 / steps), atol=0.15 / steps)
    for row in starts[:20]:
        counts = np.bincount(row, minlength=steps)
        assert counts.max() - counts.min() <= 1 and len(counts) == steps


@pytest.mark.parametrize("rows, steps", [(64, 10), (8, 10), (7, 3), (1, 4)])
def test_remaining_flow_equals_separate_rows(rows, steps):
    obs, action = 0.2 * normal(rows, 2), normal(rows, 2, seed=1)
    first = lambda rows: partial(gaussian_velocity, obs[:rows])  # noqa: E731
    flow = jax.jit(partial(remaining_flow, first, steps=steps))
    for i in range(8):
        start = spread_starts(jax.random.key(i), rows, steps)
        actual = flow(action, start)
        np.testing.assert_allclose(actual, gaussian_flow(obs, action, start, steps), atol=1e-5)


def test_network_learns_the_remaining_flow():
    learner = distilled()
    draw = lambda key: draw_gaussian(key, 512)  # noqa: E731
    others = stand_ins(policy={"bind": bound(gaussian_velocity)})
    trained = fit(learner, others, draw, steps=1500, rate=1e-2)
    batch, start = draw(jax.random.key(7)), np.arange(512) % 10
    t = jnp.asarray(start / 10, jnp.float32)
    noisy = (1 - t[:, None]) * normal(512, 2) + t[:, None] * batch.action
    expected = gaussian_flow(batch.obs, noisy, start, 10)
    error = np.sqrt(np.square(trained.clean(batch.obs, noisy, t) - expected).mean())
    untrained = np.sqrt(np.square(learner.clean(batch.obs, noisy, t) - expected).mean())
    assert error < 0.015 < 0.3 < untrained


def test_loss_is_the_mean_squared_difference_to_the_path_s_remaining_flow():
    # Constant velocity 3 from a_t leads to a_t + 3 (1 - t), far outside [-1, 1], while D adds
    # (1 - t) times the network's 1: the loss is the mean of 4 (1 - t)², t in {0, ½}.
    learner = eqx.tree_at(
        lambda x: x.mean_velocity, distilled(denoise_steps=2), lambda obs, a, t: jnp.ones_like(a)
    )
    others = stand_ins(policy={"bind": lambda obs: lambda a, t: jnp.full_like(a, 3)})
    batch = batch_of(normal(64, 2), normal(64, 2, seed=1))
    loss, _ = learner.loss(batch, jax.random.key(0), others)
    assert float(loss) == pytest.approx((4 + 1) / 2, rel=1e-5)


def test_loss_starts_on_the_flow_path():
    seen = []

    def spy(obs, noisy, t):
        seen.extend(np.asarray(x, float) for x in (noisy, t))
        return noisy

    learner = eqx.tree_at(lambda x: x.mean_velocity, distilled(denoise_steps=4), spy)
    batch = batch_of(normal(4000, 2), jnp.full((4000, 2), 0.5))
    others = stand_ins(policy={"bind": bound(gaussian_velocity)})
    learner.loss(batch, jax.random.key(0), others)
    noisy, t = seen
    assert sorted(set(4 * t)) == [0, 1, 2, 3]
    noise = (noisy - 0.5 * t[:, None]) / (1 - t[:, None])
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(noise[:, 0], t)[0, 1]) < 0.05


def test_at_time_1_it_is_the_action_itself():
    action = normal(5, 2)
    assert (distilled().clean(normal(5, 2, seed=1), action, jnp.ones(5)) == action).all()


@pytest.mark.parametrize("through", [False, True])
def test_estimators_of_a_formula(through):
    # D = a + (1 - t)(slope a + obs), affine; the gradient through the clip is 0 beyond it.
    slope = np.array([-0.5, 0.25])
    learner = eqx.tree_at(
        lambda x: x.mean_velocity, distilled(), lambda obs, action, t: slope * action + obs
    )
    obs, action, t = normal(20, 2), normal(20, 2, seed=1), jnp.linspace(0, 1, 20)
    estimator = qgf_jacobian_distill if through else qgf_distill
    v, g = estimator(learner.bind(obs), partial(gaussian_velocity, obs), critic, action, t, 10)
    np.testing.assert_array_equal(v, gaussian_velocity(obs, action, t))
    o, a, rest = (
        np.asarray(obs, float),
        np.asarray(action, float),
        1 - np.asarray(t, float)[:, None],
    )
    clean = a + rest * (slope * a + o)
    expected = -CURVATURE * (np.clip(clean, -1, 1) - PEAK)
    if through:
        expected = expected * (1 + rest * slope) * (abs(clean) < 1)
    assert 5 < (abs(clean) > 1).sum() < 35
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5)
