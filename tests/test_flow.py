"""Flow matching and Euler integration against distributions that are known."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qgf.core.flow import (
    FAILED,
    FlowPolicy,
    bounded,
    euler,
    euler_counting,
    flow_matching_loss,
    reversed_time,
)

MEAN, STD = np.array([0.1, -0.2]), np.array([0.2, 0.05])


def gaussian_velocity(action, t):
    """The exact velocity whose flow carries N(0, I) to N(MEAN, STD²)."""
    t = t[:, None]
    slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
    return MEAN + slope * (action - t * MEAN)


def test_euler_of_a_gaussian_approaches_its_exact_map():
    noise = jnp.asarray(np.random.default_rng(0).uniform(-2, 2, (50, 2)), jnp.float32)
    exact = MEAN + STD * np.asarray(noise)
    errors = [
        abs(euler(gaussian_velocity, noise, steps=steps) - exact).max()
        for steps in (10, 40, 160, 640)
    ]
    ratios = np.divide(errors[:-1], errors[1:])
    assert errors[-1] < 2e-3
    assert ((ratios > 3) & (ratios < 5)).all()  # first order: four times the steps


def test_a_flow_whose_time_runs_from_action_to_noise_is_turned():
    """As LeRobot has it: a_t = t a_noise + (1 − t) a_action, and a_noise − a_action is learned."""

    def learned(action, t):
        """E[a_noise − a_action | a_t] of N(MEAN, STD²), a regression on a_t."""
        t = t[:, None]
        slope = (t - (1 - t) * STD**2) / (t**2 + (1 - t) ** 2 * STD**2)
        return slope * (action - (1 - t) * MEAN) - MEAN

    noise = jnp.asarray(np.random.default_rng(0).uniform(-2, 2, (50, 2)), jnp.float32)
    actual = euler(reversed_time(learned), noise, steps=640)
    np.testing.assert_allclose(actual, MEAN + STD * np.asarray(noise), atol=2e-3)
    t = jnp.linspace(0, 1, 50)
    turned = reversed_time(learned)(noise, t)
    np.testing.assert_allclose(turned, gaussian_velocity(noise, t), rtol=1e-4, atol=1e-5)


def test_euler_by_hand_takes_the_left_ends_and_clips():
    obs = jnp.array([[0.1], [5.0]])
    start = jnp.array([[0.2], [0.0]])
    actual = euler(lambda action, t: obs + t[:, None] ** 2, start, steps=4)
    # 0.2 + 0.1 + the mean of 0, 1/16, 1/4 and 9/16
    np.testing.assert_allclose(actual, [[0.51875], [1.0]], rtol=1e-6)


def test_rows_that_are_not_finite_are_0_and_counted():
    action = jnp.array([[2.0, -3.0], [0.5, jnp.nan], [-jnp.inf, 0.1], [0.25, -1.0]])[..., None]
    actual, counts = bounded(action, jnp.array([7, 1, 0, 0]))
    assert actual[..., 0].tolist() == [[1, -1], [0, 0], [0, 0], [0.25, -1]]
    assert counts.tolist() == [7, FAILED, FAILED, 0]


def test_euler_in_jit_marks_the_rows_whose_velocity_was_not_finite():
    # From the middle on, the velocity of rows 1 and 2 is NaN and infinite, then finite again.
    broken = jnp.array([[0.0], [jnp.nan], [jnp.inf]])

    def velocity(action, t):
        return jnp.where(t[:, None] == 0.5, broken, 0) + 0.5

    start = jnp.array([[0.25], [0.25], [0.25]])
    sample = lambda run: jax.jit(lambda z: run(velocity, z, steps=4))(start)  # noqa: E731
    assert sample(euler).tolist() == [[0.75], [0.0], [0.0]]
    actions, counts = sample(euler_counting)
    assert actions.tolist() == [[0.75], [0.0], [0.0]] and counts.tolist() == [0, FAILED, FAILED]


def seen_by_velocity(action, **settings):
    seen = {}

    def velocity(noisy, t):
        seen.update(noisy=np.asarray(noisy, np.float64), t=np.asarray(t, np.float64))
        return obs

    obs = jnp.linspace(-1, 1, action.size).reshape(action.shape)
    loss = flow_matching_loss(velocity, action, jax.random.key(0), **settings)
    return float(loss), np.asarray(obs), seen["noisy"], seen["t"]


def test_loss_is_the_mean_squared_difference_to_the_path():
    action = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4000, 3)), jnp.float32)
    loss, output, noisy, t = seen_by_velocity(action)
    action = np.asarray(action)
    keep = t < 0.9  # beyond it, noise cannot be told from the noisy action
    noise = (noisy - t[:, None] * action)[keep] / (1 - t[keep])[:, None]
    expected = ((output[keep] - (action[keep] - noise)) ** 2).mean()
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.03)
    assert loss == pytest.approx(expected, rel=0.03)
    assert abs(np.corrcoef(noise[:, 0], t[keep])[0, 1]) < 0.05


def test_loss_of_one_row_to_the_last_digits():
    action = jnp.array([[0.3, -0.8]])
    loss, output, noisy, t = seen_by_velocity(action)
    noise = (noisy - t * np.asarray(action)) / (1 - t)
    expected = ((output - (np.asarray(action) - noise)) ** 2).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_times():
    action = jnp.zeros((22000, 1))
    t = seen_by_velocity(action, times="grid", steps=10)[3]
    values, counts = np.unique(t, return_counts=True)
    np.testing.assert_allclose(values, np.arange(11) / 10, atol=1e-7)
    assert abs(counts - 2000).max() < 200
    t = seen_by_velocity(action)[3]
    assert len(np.unique(t)) > 20000
    assert abs(np.sort(t) - np.linspace(0, 1, len(t))).max() < 0.015


# A mixture for each of two observations: weight of the first mode; means; deviations.
MIXTURES = {-1.0: (0.3, (-0.5, 0.4), (0.1, 0.15)), 1.0: (0.8, (-0.3, 0.6), (0.15, 0.1))}


def draw(key, size):
    """Observations and actions of the mixtures."""
    side, mode, normal = jax.random.split(key, 3)
    obs = jax.random.rademacher(side, (size, 1), jnp.float32)
    share, means, stds = (
        jnp.where(obs < 0, jnp.array(a), jnp.array(b))
        for a, b in zip(MIXTURES[-1.0], MIXTURES[1.0], strict=True)
    )
    second = (jax.random.uniform(mode, (size, 1)) > share).astype(int)
    mean = jnp.take_along_axis(means, second, 1)
    std = jnp.take_along_axis(stds, second, 1)
    return obs, mean + std * jax.random.normal(normal, (size, 1))


def test_flow_matching_recovers_a_mixture():
    steps = 4000
    policy = FlowPolicy(1, 1, width=64, depth=2, key=jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def update(carry, key):
        policy, state = carry
        data_key, loss_key = jax.random.split(key)
        obs, action = draw(data_key, 512)
        loss = lambda p: flow_matching_loss(partial(p, obs), action, loss_key)  # noqa: E731
        gradient = jax.grad(loss)(policy)
        updates, state = optimizer.update(gradient, state)
        return (eqx.apply_updates(policy, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    policy = jax.jit(lambda c: jax.lax.scan(update, c, keys)[0][0])(
        (policy, optimizer.init(policy))
    )
    for obs, (share, means, stds) in MIXTURES.items():
        noise = jax.random.normal(jax.random.key(2), (20000, 1))
        actions = np.asarray(euler(partial(policy, jnp.full((20000, 1), obs)), noise, steps=50))
        first = actions < np.mean(means)
        assert first.mean() == pytest.approx(share, abs=0.03)
        for mode, mean, std in zip((first, ~first), means, stds, strict=True):
            assert actions[mode].mean() == pytest.approx(mean, abs=0.03)
            assert actions[mode].std() == pytest.approx(std, abs=0.04)
