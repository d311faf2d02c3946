"""Diffusion policies: the sampler and the optima of DAC and QSM on a Gaussian policy."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from learning import configured

from qgf.config import Config, Spec
from qgf.core.flow import FAILED
from qgf.core.networks import time_embedding
from qgf.data.dataset import Batch
from qgf.learners.dac import DAC
from qgf.learners.diffusion import ddpm_sample, signal_levels
from qgf.learners.qsm_bc import QSM

STEPS = 10
MEAN, STD = 0.1, 0.2


def betas(steps):
    """The discretized VP schedule with b_min = 0.1, b_max = 10; entry 0 is no noise."""
    k = np.arange(1, steps + 1)
    return np.r_[0, 1 - np.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * k - 1) / steps**2)]


def posterior_mean(clean, noisy, k, beta):
    """Mean of a_{k-1} given a_0 and a_k: the product of two Gaussians, by their precisions."""
    kept = np.cumprod(1 - beta)
    if k == 1:
        return clean
    prior, likelihood = 1 / (1 - kept[k - 1]), (1 - beta[k]) / beta[k]
    at = np.sqrt(kept[k - 1]) * clean * prior + noisy / np.sqrt(1 - beta[k]) * likelihood
    return at / (prior + likelihood)


def exact_noise(action, kept):
    """E[ε | a_k] where actions are N(MEAN, STD²)."""
    return np.sqrt(1 - kept) * (action - np.sqrt(kept) * MEAN) / (kept * STD**2 + 1 - kept)


def test_a_row_whose_prediction_is_infinite_or_nan_has_no_action():
    # At the last step alone; the clip of the clean action would hide what is infinite.
    odd = jnp.array([[0.0], [jnp.inf], [-jnp.inf], [jnp.nan]])
    policy = lambda action, step: jnp.where(step[:, None] == 1, odd, 0)  # noqa: E731
    noise = jnp.zeros((STEPS + 1, 4, 1))
    action, counts = ddpm_sample(policy, noise)
    assert action.tolist() == [[0.0]] * 4 and counts.tolist() == [0, FAILED, FAILED, FAILED]


@pytest.mark.parametrize("steps", [1, 10])
def test_signal_levels_equal_the_discrete_schedule(steps):
    np.testing.assert_allclose(signal_levels(steps), np.cumprod(1 - betas(steps)), rtol=1e-5)


def test_sampling_a_gaussian_reproduces_its_recursion():
    beta = betas(STEPS)
    kept = np.cumprod(1 - beta)
    mean, variance = 0.0, 1.0
    for k in range(STEPS, 0, -1):
        clean = [(a - np.sqrt(1 - kept[k]) * exact_noise(a, kept[k])) for a in (0.0, 1.0)]
        offset, at_one = (
            posterior_mean(c / np.sqrt(kept[k]), a, k, beta)
            for c, a in zip(clean, (0, 1), strict=True)
        )
        gain = at_one - offset
        mean = gain * mean + offset
        variance = gain**2 * variance + (beta[k] if k > 1 else 0)

    def policy(action, step):
        level = jnp.asarray(kept, jnp.float32)[step][:, None]
        scale = jnp.sqrt(1 - level) / (level * STD**2 + 1 - level)
        return scale * (action - jnp.sqrt(level) * MEAN)

    noise = jax.random.normal(jax.random.key(0), (STEPS + 1, 200_000, 1))
    action = np.asarray(jax.jit(lambda z: ddpm_sample(policy, z)[0])(noise))
    assert action.mean() == pytest.approx(mean, abs=2e-3)
    assert action.var() == pytest.approx(variance, rel=0.01)
    assert mean == pytest.approx(MEAN, abs=0.01)  # and ten steps come near the data


def test_sampling_equals_numpy_where_the_clip_acts():
    config = Config(width=12, depth=2, denoise_steps=4)
    learner = DAC.create(Spec(3, 2, 2), config, jax.random.key(1))
    random = np.random.default_rng(0)
    obs, noise = random.normal(size=(6, 3)), random.normal(size=(5, 6, 4))
    beta = betas(4)
    kept = np.cumprod(1 - beta)
    action, clipped = noise[0], 0
    for i, k in enumerate((4, 3, 2, 1)):
        time = np.asarray(time_embedding(jnp.full(6, k / 4)))
        predicted = reference.mlp(learner.policy.mlp, obs, action, time)
        clean = (action - np.sqrt(1 - kept[k]) * predicted) / np.sqrt(kept[k])
        clipped += (abs(clean) > 1).mean() / 4
        action = posterior_mean(np.clip(clean, -1, 1), action, k, beta)
        if k > 1:
            action = action + np.sqrt(beta[k]) * noise[i + 1]
    assert 0.2 < clipped < 0.9
    obs, noise = (jnp.asarray(x, jnp.float32) for x in (obs, noise))
    actual = ddpm_sample(learner.bind(obs), noise)[0]
    np.testing.assert_allclose(actual, action, atol=2e-4)
    assert abs(actual).max() <= 1


class AffineNoise(eqx.Module):
    """gain[k] · a + offset[k]: contains the optimum of a Gaussian policy and a quadratic Q."""

    gain: jax.Array
    offset: jax.Array

    def __call__(self, obs, action, step):
        return self.gain[step][:, None] * action + self.offset[step][:, None]


PEAK = -0.3


def quadratic_critic(curvature):
    """Two members whose mean is -curvature (a - PEAK)²/2; the smaller is another function."""

    def target_q(obs, action):
        square = jnp.square(action - PEAK).sum(-1)
        return jnp.stack([-0.1 * curvature * square, -0.9 * curvature * square])

    return SimpleNamespace(target_q=target_q)


def dac_optimum(bc_weight):
    return lambda noise, gradient, kept: noise - np.sqrt(1 - kept) * gradient / (2 * bc_weight)


def qsm_optimum(bc_weight, temperature):
    return lambda noise, gradient, kept: (
        (bc_weight * noise - temperature * gradient) / (1 + bc_weight)
    )


@pytest.mark.parametrize(
    "kind, optimum, curvature, hyper",
    [
        (DAC, dac_optimum(100), 150, {}),
        (DAC, dac_optimum(3), 5, {"bc_weight": 3.0}),
        (QSM, qsm_optimum(10, 0.1), 80, {}),
        (QSM, qsm_optimum(2, 0.5), 3, {"bc_weight": 2.0, "temperature": 0.5}),
    ],
)
def test_optimum_on_a_gaussian_policy(kind, optimum, curvature, hyper):
    rows = 200_000
    config = configured(kind, width=8, depth=2, **hyper)
    action = MEAN + STD * jax.random.normal(jax.random.key(1), (rows, 1))
    obs, zero = jnp.zeros((rows, 1)), jnp.zeros(rows)
    batch = Batch(obs, action, zero, zero, obs)
    learner = kind.create(Spec(1, 1, 1), config, jax.random.key(0))
    others = {"critic": quadratic_critic(curvature)}

    @jax.jit
    def loss(theta):
        trained = eqx.tree_at(lambda x: x.policy, learner, AffineNoise(*theta))
        return trained.loss(batch, jax.random.key(2), others)[0]

    # The loss is quadratic and no two steps share an entry of theta, so that products with
    # these four vectors give all of its second derivatives.
    zero = jnp.zeros((2, STEPS + 1))
    slope = jax.grad(loss)
    at_zero = np.asarray(slope(zero), np.float64)
    columns = [np.asarray(slope(zero.at[i].set(1)), np.float64) - at_zero for i in (0, 1)]
    for k in range(1, STEPS + 1):
        second = np.stack([column[:, k] for column in columns])
        gain, offset = np.linalg.solve(second, -at_zero[:, k])
        kept = np.cumprod(1 - betas(STEPS))[k]
        for a in (-0.5, 0.0, 0.7):
            expected = optimum(exact_noise(a, kept), -curvature * (a - PEAK), kept)
            imitation = optimum(exact_noise(a, kept), 0.0, kept)
            assert abs(expected - imitation) > 0.02
            assert gain * a + offset == pytest.approx(expected, rel=0.03, abs=0.03)
