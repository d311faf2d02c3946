"""Guided sampling against closed forms, by hand, and against plain sampling."""

import functools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qgf.critic import Ensemble, aggregate
from qgf.flow import FlowPolicy, euler
from qgf.guidance import guided_sample, one_step_clean, q_gradient

MEAN, STD = np.array([0.1, -0.2, 0.0]), np.array([0.2, 0.05, 0.3])
PEAK, CURVATURE = np.array([-0.2, 0.1, 0.3]), np.array([1.0, 3.0, 0.5])


def velocity(obs, action, t):
    """Exact flow of N(MEAN + obs, STD²)."""
    t = t[:, None]
    mean = MEAN + obs
    slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
    return mean + slope * (action - t * mean)


def critic(obs, action):
    return -0.5 * (CURVATURE * jnp.square(action - PEAK)).sum(-1)


def closed_form(obs, noise, weight, steps):
    """All is affine: action = gain · noise + offset, with both from a scalar recursion."""
    gain, offset = np.ones(3), np.zeros(3)
    mean = MEAN + obs
    for k in range(steps):
        t = k / steps
        slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
        v_offset = mean - slope * t * mean  # v = slope a + v_offset
        clean = 1 + (1 - t) * slope  # clean action = clean a + (1 - t) v_offset
        assert abs(clean * (gain * noise + offset) + (1 - t) * v_offset).max() < 1  # no clip
        step_gain = 1 + (slope - weight * CURVATURE * clean) / steps
        g_offset = -CURVATURE * ((1 - t) * v_offset - PEAK)
        step_offset = (v_offset + weight * g_offset) / steps
        gain, offset = step_gain * gain, step_gain * offset + step_offset
    return gain * noise + offset


@pytest.fixture
def start():
    random = np.random.default_rng(0)
    obs = random.uniform(-0.1, 0.1, (20, 3)).astype(np.float32)
    return jnp.asarray(obs), jnp.asarray(random.uniform(-1.5, 1.5, (20, 3)), jnp.float32)


@pytest.mark.parametrize("weight, steps", [(0.0, 10), (0.1, 10), (1.0, 10), (1.0, 3)])
def test_gaussian_policy_and_quadratic_critic_in_closed_form(weight, steps, start):
    obs, noise = start
    expected = [
        closed_form(o, z, weight, steps)
        for o, z in zip(*(np.asarray(x, np.float64) for x in start), strict=True)
    ]
    actual = guided_sample(velocity, critic, obs, noise, weight, steps=steps)
    np.testing.assert_allclose(actual, np.clip(expected, -1, 1), atol=1e-5)


def test_guidance_raises_q(start):
    weights = (0.0, 0.3, 1.0, 3.0)
    q = [float(critic(None, guided_sample(velocity, critic, *start, w)).mean()) for w in weights]
    assert sorted(q) == q and q[-1] > q[0] + 0.01


@functools.cache
def networks(width=64, depth=2):
    policy = FlowPolicy(11, 10, width=width, depth=depth, key=jax.random.key(0))
    q = Ensemble(11, 10, members=2, width=width, depth=depth, key=jax.random.key(1))
    return policy, lambda obs, action: aggregate(q(obs, action)), q


@pytest.mark.parametrize("rows", [1, 33])
def test_weight_0_is_the_policy_to_the_last_bit(rows):
    policy, q, _ = networks()
    obs = jax.random.normal(jax.random.key(2), (rows, 11))
    noise = jax.random.normal(jax.random.key(3), (rows, 10))
    plain = eqx.filter_jit(partial(euler, policy, steps=4))(obs, noise)
    sample = eqx.filter_jit(partial(guided_sample, policy, q, steps=4))
    assert sample(obs, noise, jnp.zeros(rows)).tobytes() == plain.tobytes()
    assert abs(sample(obs, noise, jnp.full(rows, 0.1)) - plain).max() > 1e-4


def test_weight_0_of_a_formula_is_the_policy_to_the_last_bit(start):
    plain = jax.jit(partial(euler, velocity))(*start)
    guided = jax.jit(partial(guided_sample, velocity, critic))(*start, 0.0)
    assert guided.tobytes() == plain.tobytes()


def test_a_weight_for_every_row_equals_separate_calls(start):
    obs, noise = start
    weights = jnp.linspace(0, 2, 20)
    together = guided_sample(velocity, critic, obs, noise, weights)
    for i, weight in enumerate(weights):
        alone = guided_sample(velocity, critic, obs[i : i + 1], noise[i : i + 1], float(weight))
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)
    policy, q, _ = networks()
    sample = eqx.filter_jit(partial(guided_sample, policy, q, steps=4))
    obs = jax.random.normal(jax.random.key(2), (4, 11))
    noise = jax.random.normal(jax.random.key(3), (4, 10))
    weights = jnp.array([0.0, 0.1, 1.0, 3.0])
    together = sample(obs, noise, weights)
    for i in range(4):
        alone = sample(obs, noise, jnp.full(4, weights[i]))
        assert together[i].tobytes() == alone[i].tobytes()


def test_gradient_is_taken_at_the_clipped_point_and_survives_the_clip():
    # One step from 3 with velocity -1: the clean action 2 is clipped to 1, where the slope
    # of -(a - ½)² is -1. So 3 - 1 + 1.5 · (-1) = 0.5. At 2 the slope would be -3, which
    # ends at -1 (clipped); a slope zeroed by the clip would end at 1.
    actual = guided_sample(
        lambda obs, action, t: -jnp.ones_like(action),
        lambda obs, action: -jnp.square(action - 0.5).sum(-1),
        jnp.zeros((1, 1)),
        jnp.array([[3.0]]),
        1.5,
        steps=1,
    )
    assert actual.tolist() == [[0.5]]


def test_one_step_clean_by_hand():
    action, v = jnp.array([[0.5, 0.0], [0.9, -0.9]]), jnp.array([[-1.0, 0.4], [1.0, -1.0]])
    actual = one_step_clean(action, v, jnp.array([0.75, 0.5]))
    np.testing.assert_allclose(actual, [[0.25, 0.1], [1, -1]], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_gradient_leaves_its_row_unguided(bad, start):
    obs, noise = start

    def faulty(obs, action):
        row = jnp.arange(len(action))
        return critic(obs, action) + jnp.where(row == 2, bad, 0) * action[:, 0]

    actual = guided_sample(velocity, faulty, obs, noise, 1.0)
    plain, guided = euler(velocity, obs, noise), guided_sample(velocity, critic, obs, noise, 1.0)
    np.testing.assert_allclose(actual[2], plain[2], atol=1e-6)
    others = np.arange(20) != 2
    np.testing.assert_allclose(actual[others], guided[others], atol=1e-6)
    assert abs(guided[2] - plain[2]).max() > 0.01


def test_q_gradient_equals_finite_differences():
    _, q, ensemble = networks(width=12, depth=2)
    random = np.random.default_rng(0)
    obs, action = (random.uniform(-1, 1, (5, n)).astype(np.float32) for n in (11, 10))
    members = ensemble.members

    def smaller(action):
        return np.min([reference.mlp(m, obs, action)[:, 0] for m in members], axis=0)

    chosen = np.argmin([reference.mlp(m, obs, action)[:, 0] for m in members], axis=0)
    assert 0 < chosen.sum() < 5  # both members are the smallest somewhere
    expected = reference.finite_differences(smaller, action)
    actual = q_gradient(q, jnp.asarray(obs), jnp.asarray(action))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_estimator_decides_velocity_and_gradient():
    def up(velocity, critic, obs, action, t):
        return jnp.zeros_like(action), jnp.ones_like(action)

    noise = jnp.zeros((2, 3))
    actual = guided_sample(velocity, critic, noise, noise, jnp.array([0.25, 0.5]), estimator=up)
    np.testing.assert_allclose(actual, [[0.25] * 3, [0.5] * 3], rtol=1e-6)
