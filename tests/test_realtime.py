"""Real-time chunking against the published algorithm, written out slowly in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qgf.core import euler, guided_sample, soft_mask
from qgf.core.realtime import Continued, checked_previous, continued
from qgf.errors import UserError

LENGTH, SIZE, STEPS = 6, 2, 7


def velocity(action, t):
    """Not linear, and mixes steps and dimensions, so that J is no multiple of I."""
    mixed = jnp.sin(1.3 * jnp.roll(action, 1, axis=1)) + 0.4 * action[..., ::-1]
    return mixed - action * t[:, None, None]


def critic(action):
    return -jnp.square(action - 0.3).sum((1, 2))


def mask_of(length, left, delay):
    """Equation 5, one number at a time."""
    found = []
    for i in range(length):
        c = (left - i) / (left - delay + 1)
        soft = c * (np.exp(c) - 1) / (np.e - 1)
        found.append(1.0 if i < delay else soft if i < left else 0.0)
    return np.array(found)


def published(noise, previous, delay, weight=0.0, epsilon=1e-3):
    """Algorithm 1 of arXiv 2506.07339 for one row, J by central differences."""
    left = len(previous)
    padded = np.concatenate([previous, np.zeros((LENGTH - left, SIZE))])
    mask = mask_of(LENGTH, left, delay)[:, None] * np.ones((LENGTH, SIZE))
    v = lambda a, t: np.asarray(velocity(jnp.asarray(a[None]), jnp.asarray([t])))[0]  # noqa: E731
    action = noise.astype(float)
    for k in range(STEPS):
        t = k / STEPS
        clean = lambda a, t=t: a + (1 - t) * v(a, t)  # noqa: E731
        error = mask * (padded - clean(action))
        pull = np.zeros_like(action)
        for index in np.ndindex(action.shape):
            unit = np.zeros_like(action)
            unit[index] = epsilon
            column = (clean(action + unit) - clean(action - unit)) / (2 * epsilon)
            pull[index] = (error * column).sum()
        r2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        strength = 5.0 if t == 0 else min(5.0, (1 - t) / (t * r2))
        push = -2 * (np.clip(clean(action), -1, 1) - 0.3)
        action = action + (v(action, t) + strength * pull + weight * push) / STEPS
    return np.clip(action, -1, 1)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, LENGTH, SIZE))
    return noise, rng.uniform(-0.9, 0.9, (3, 4, SIZE))


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_equals_the_published_algorithm(drawn, weight):
    noise, previous = drawn
    delay = np.array([0, 2, 4])
    with jax.enable_x64(True):
        found = guided_sample(
            velocity,
            critic,
            jnp.asarray(noise),
            weight,
            steps=STEPS,
            previous=jnp.asarray(previous),
            delay=jnp.asarray(delay),
        )
        slow = [published(*row, weight) for row in zip(noise, previous, delay, strict=True)]
    np.testing.assert_allclose(found, slow, atol=1e-6)


def test_the_mask_is_equation_5():
    for left in range(1, LENGTH + 1):
        for delay in range(left + 1):
            np.testing.assert_allclose(
                soft_mask(LENGTH, left, delay), mask_of(LENGTH, left, delay), atol=1e-6
            )


def test_where_nothing_is_left_it_is_plain_guidance(drawn):
    noise = jnp.asarray(drawn[0], jnp.float32)
    for weight in (0.0, 0.5):
        plain = guided_sample(velocity, critic, noise, weight, steps=STEPS)
        found = guided_sample(
            velocity, critic, noise, weight, steps=STEPS, previous=noise[:, :0], delay=0
        )
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_what_is_executed_meanwhile_is_met(drawn):
    """A policy that can reach any action: its samples begin with what was executed."""
    noise, previous = (jnp.asarray(x, jnp.float32) for x in drawn)
    reach = lambda a, t: (0.1 - a) * 0.5  # noqa: E731
    found = guided_sample(reach, critic, noise, 0.05, steps=50, previous=previous, delay=4)
    free = guided_sample(reach, critic, noise, 0.05, steps=50)
    assert np.abs(found[:, :4] - previous).max() < 0.2 * np.abs(free[:, :4] - previous).max()
    np.testing.assert_allclose(found[:, 4:], free[:, 4:], atol=1e-5)


def test_a_continued_velocity_is_a_velocity(drawn):
    noise, previous = (jnp.asarray(x, jnp.float32) for x in drawn)
    one = continued(velocity, noise, previous, 1)
    assert isinstance(one, Continued)
    found = guided_sample(velocity, critic, noise, 0.0, steps=STEPS, previous=previous, delay=1)
    np.testing.assert_array_equal(euler(one, noise, steps=STEPS), found)


@pytest.mark.parametrize(
    "change, line",
    [
        ({"previous": np.zeros((3, 7, SIZE))}, "previous must have the shape"),
        ({"previous": np.zeros((2, 4, SIZE))}, "previous must have the shape"),
        ({"previous": np.full((3, 4, SIZE), np.nan)}, "previous must be finite"),
        ({"delay": 5}, "from 0 to the 4 actions left"),
        ({"delay": -1}, "from 0 to the 4 actions left"),
        ({"delay": 1.5}, "delay must be a whole number"),
        ({"delay": np.array([1, 2])}, "delay must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(drawn, change, line):
    given = {"previous": drawn[1], "delay": 2, **change}
    with pytest.raises(UserError, match=line):
        checked_previous(given["previous"], drawn[0].shape, given["delay"])
