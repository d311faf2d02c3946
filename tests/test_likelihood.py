"""The density of a flow's actions, against Gaussians whose density is known."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from studies._likelihood import log_likelihood

MEAN = np.array([0.3, -0.5, 0.1])
ROOT = np.array([[0.4, 0, 0], [0.25, 0.15, 0], [-0.3, 0.1, 0.2]])
COVARIANCES = {"diagonal": np.diag([0.5, 0.1, 0.05]) ** 2, "correlated": ROOT @ ROOT.T}


def gaussian_flow(covariance):
    """The velocity E[a_1 − a_0 | a_t] of N(MEAN · obs, covariance), affine in a_t."""

    variances, axes = map(jnp.float32, np.linalg.eigh(covariance))

    def velocity(obs, action, t):
        t, mean = t[:, None], obs * jnp.float32(MEAN)
        slope = (t * variances - (1 - t)) / ((1 - t) ** 2 + t**2 * variances)
        return mean + (slope * ((action - t * mean) @ axes)) @ axes.T

    return velocity


def drawn(covariance):
    """Rows of obs and actions, some of them two standard deviations out."""
    random = np.random.default_rng(0)
    obs = random.choice([-1.0, 0.5, 2.0], (32, 1))
    offset = random.multivariate_normal(np.zeros(3), 2 * covariance, 32)
    return obs, obs * MEAN + offset


@pytest.mark.parametrize("name", COVARIANCES)
def test_gaussian_density(name):
    covariance = COVARIANCES[name]
    obs, action = drawn(covariance)
    offset = action - obs * MEAN
    squares = np.einsum("bi,ij,bj->b", offset, np.linalg.inv(covariance), offset)
    exact = -squares / 2 - np.linalg.slogdet(2 * np.pi * covariance)[1] / 2
    found = log_likelihood(
        partial(gaussian_flow(covariance), jnp.float32(obs)), jnp.float32(action), steps=20
    )
    np.testing.assert_allclose(found, exact, atol=1e-3)


def test_density_of_a_policy_has_unit_mass():
    """A velocity that is not affine: in one dimension the density can be summed."""
    bent = lambda action, t: jnp.sin(3 * action) * (1 + t[:, None]) - 0.5 * action  # noqa: E731
    action = jnp.linspace(-8, 8, 4001)[:, None]
    density = jnp.exp(log_likelihood(bent, action, steps=40))
    assert float(density.sum() * 16 / 4000) == pytest.approx(1, abs=1e-3)
    assert float(density.max()) > 2 * float(density[2000])  # and it is not the noise's own
