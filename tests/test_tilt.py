"""The tilt against the closed form of a Gaussian policy and a linear critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qgf.core import euler, guided_sample
from qgf.core.flow import repeat_rows
from qgf.core.tilt import policy_deviation, tilted

MEAN = jnp.array([0.1, -0.2, 0.05])
SLOPE = jnp.array([0.3, -0.2, 0.5])


def gaussian(deviation):
    """The exact velocity of N(MEAN, deviation²), E[a_1 − a_0 | a_t]."""

    def velocity(action, t):
        t = t[:, None]
        variance = (1 - t) ** 2 + (t * deviation) ** 2
        return MEAN + (t * deviation**2 - (1 - t)) / variance * (action - t * MEAN)

    return velocity


def linear(action):
    return action @ SLOPE


def mean_shift(deviation, weight, steps, estimator=None):
    """How far guidance moves the mean of a policy, from noise that is its own opposite."""
    noise = 0.3 * jax.random.normal(jax.random.key(1), (64, 3))
    noise = jnp.concatenate([noise, -noise])
    chosen = {} if estimator is None else {"estimator": estimator(len(noise))}
    guided = guided_sample(gaussian(deviation), linear, noise, weight, steps=steps, **chosen)
    return (guided - euler(gaussian(deviation), noise, steps=steps)).mean(0)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_mean_moves_by_the_variance_times_the_gradient_per_beta(steps):
    deviation, inverse_beta = jnp.array([0.1, 0.3, 0.2]), 4.0

    def exact(rows):
        return tilted(jnp.broadcast_to(deviation, (rows, 3)))

    moved = mean_shift(deviation, inverse_beta, steps, exact)
    np.testing.assert_allclose(moved, inverse_beta * deviation**2 * SLOPE, rtol=2e-5)


@pytest.mark.parametrize(("deviation", "times"), [(0.1, 26), (0.3, 6.6)])
def test_a_constant_weight_moves_it_too_far(deviation, times):
    moved = mean_shift(deviation, 0.1, 10)
    np.testing.assert_allclose(moved / (0.1 * deviation**2 * SLOPE), times, rtol=0.02)


def test_the_deviation_is_that_of_the_policy_per_row_and_dimension():
    # Few Euler steps shrink a narrow Gaussian; what counts is the policy that is acted with.
    deviation = jnp.array([[0.1, 0.3, 0.2], [0.4, 0.05, 0.0]])
    like = jnp.zeros((2, 3))
    measured = policy_deviation(gaussian(deviation), like, steps=400, samples=2000)
    np.testing.assert_allclose(measured, deviation, rtol=0.06, atol=2e-3)
    few = policy_deviation(gaussian(deviation), like)
    alone = policy_deviation(gaussian(deviation[:1]), like[:1])
    np.testing.assert_allclose(few[:1], alone, rtol=1e-6)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (8, 3)))
    by_hand = [euler(gaussian(deviation), repeat_rows(row[None], 2)) for row in noise]
    np.testing.assert_allclose(few, np.std(by_hand, axis=0, ddof=1), rtol=1e-5, atol=1e-7)


def test_a_policy_without_spread_is_not_moved():
    moved = mean_shift(jnp.zeros(3), 4.0, 10, lambda rows: tilted(jnp.zeros((rows, 3))))
    np.testing.assert_array_equal(moved, 0)
