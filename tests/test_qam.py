"""Adjoint matching against finite differences, by hand, and at its known optimum."""

import functools
from functools import partial
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from learning import bound, configured

from qgf.config import Spec
from qgf.core.critic import Ensemble
from qgf.core.flow import FlowPolicy, euler
from qgf.core.networks import time_embedding
from qgf.data.dataset import Batch
from qgf.learners.qam import QAM, lean_adjoint, rollout

STEPS, ROWS, OBS, ACTION = 4, 5, 3, 2
KEY = jax.random.key(7)


def policy(seed):
    return FlowPolicy(OBS, ACTION, width=8, depth=2, key=jax.random.key(seed))


@functools.cache
def embedding(t):
    return np.asarray(time_embedding(jnp.array([t], jnp.float32)))


def velocity(flow, obs, action, t):
    """A flow's velocity in float64."""
    return reference.mlp(flow.mlp, obs, action, embedding(t).repeat(len(obs), 0))


def at(obs, *flows):
    return [partial(flow, jnp.asarray(obs, jnp.float32)) for flow in flows]


def drift(flow, obs, action, t, over):
    return 2 * velocity(flow, obs, action, t) - action / over


@pytest.fixture(scope="module")
def path():
    """Flows, observations, noise, and the path they make, step by step."""
    fine, base, h = policy(0), policy(1), 1 / STEPS
    obs = np.asarray(jax.random.normal(jax.random.key(2), (ROWS, OBS)), np.float64)
    noise = np.asarray(jax.random.normal(KEY, (STEPS, ROWS, ACTION)), np.float64)
    points = [noise[0]]
    for k in range(STEPS - 1):
        a, t = points[-1], k * h
        sigma = np.sqrt(2 * (1 - t + h) / (t + h))
        step = h * drift(fine, obs, a, t, over=t + h)
        points.append(a + step + np.sqrt(h) * sigma * noise[k + 1])
    a = points[-1]
    points.append(a + h * velocity(base, obs, a, 1 - h))
    return fine, base, obs, noise, np.stack(points)


def adjoints(base, obs, points, end):
    """Gradients of `end` · a_T to every earlier point of the base flow's own chain.

    Its steps take the drift at their later point, with the noise that leads along `points`.
    """

    def chain(action, k):
        for i in range(k, STEPS):
            leap, t = points[i + 1] - points[i], (i + 1) / STEPS

            def step(a, leap=leap, t=t):
                return a + drift(base, obs, a + leap, t, over=t) / STEPS

            action = step(action) + (points[i + 1] - step(points[i]))  # the noise stays
        return (action * end).sum(-1)

    return np.stack(
        [reference.finite_differences(lambda a, k=k: chain(a, k), points[k]) for k in range(STEPS)]
    )


def test_rollout_equals_numpy(path):
    fine, base, obs, noise, points = path
    actual, v = rollout(*at(obs, fine, base), jnp.asarray(noise, jnp.float32))
    np.testing.assert_allclose(actual, points, atol=1e-4)
    expected = [velocity(fine, obs, a, k / STEPS) for k, a in enumerate(points[:-1])]
    np.testing.assert_allclose(v, expected, atol=1e-4)


def test_lean_adjoint_equals_finite_differences(path):
    _, base, obs, _, points = path
    end = np.random.default_rng(0).normal(size=(ROWS, ACTION))
    expected = adjoints(base, obs, points, end)
    v, actual = lean_adjoint(*at(obs, base), *(jnp.asarray(x, jnp.float32) for x in (points, end)))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    v_expected = [velocity(base, obs, points[k], k / STEPS) for k in range(STEPS)]
    np.testing.assert_allclose(v, v_expected, atol=1e-4)


@pytest.mark.parametrize("hyper", [{}, {"temperature": 0.7}])
def test_loss_and_its_gradient_equal_finite_differences(path, hyper):
    fine, base, obs, _, points = path
    config = configured(QAM, width=8, depth=2, denoise_steps=STEPS, **hyper)
    q = Ensemble(OBS, ACTION, members=2, width=8, depth=2, key=jax.random.key(4))

    def mean_q(action):
        action = np.clip(action, -1, 1)
        return np.mean([reference.mlp(m, obs, action)[:, 0] for m in q.members], axis=0)

    assert (abs(points[-1]) > 1).any() and (abs(points[-1]) < 1).any()  # both sides of the clip
    end = -hyper.get("temperature", 0.1) * reference.finite_differences(mean_q, points[-1])
    adjoint = adjoints(base, obs, points, end)

    def loss(flow):
        total = 0.0
        for k in range(STEPS):
            t, h = k / STEPS, 1 / STEPS
            sigma = np.sqrt(2 * (1 - t + h) / (t + h))
            moved = velocity(flow, obs, points[k], t) - velocity(base, obs, points[k], t)
            total += ((2 / sigma * moved + sigma * adjoint[k]) ** 2).sum(-1).mean()
        return np.asarray(total)

    obs32, action, zero = jnp.asarray(obs, jnp.float32), jnp.zeros((ROWS, ACTION)), jnp.zeros(ROWS)
    batch = Batch(obs32, action, zero, zero, obs32)
    learner = eqx.tree_at(
        lambda x: x.v_fine, QAM.create(Spec(OBS, ACTION, 1), config, jax.random.key(0)), fine
    )
    others = {"policy": SimpleNamespace(bind=bound(base)), "critic": SimpleNamespace(target_q=q)}
    run = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda x: x.loss(batch, KEY, others), has_aux=True)
    )
    (actual, metrics), gradient = run(learner)
    assert float(actual) == pytest.approx(float(loss(fine)), rel=1e-4)
    assert float(metrics["end_adjoint"]) == pytest.approx(abs(end).mean(), rel=1e-3)

    gradient = gradient.v_fine.mlp
    for leaf in (
        lambda mlp: mlp.kernels[-1],
        lambda mlp: mlp.kernels[1],
        lambda mlp: mlp.scales[0],
    ):
        expected = reference.finite_differences(
            lambda x, leaf=leaf: loss(eqx.tree_at(lambda f: leaf(f.mlp), fine, x)), leaf(fine.mlp)
        )
        np.testing.assert_allclose(leaf(gradient), expected, rtol=2e-3, atol=2e-3)


MEAN, STD, SLOPE, TEMPERATURE = -0.1, 0.3, 4.0, 0.5


def slope(t):
    """∂v/∂a of the exact flow of N(MEAN, STD²)."""
    return (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)


def gaussian(obs, action, t):
    t = t[:, None]
    return MEAN + slope(t) * (action - t * MEAN)


def closed_form_shift(steps):
    """How far the fine-tuned flow's mean lies from the base flow's, both in `steps` steps.

    The adjoint is the same on all paths: v_fine - v_base = -σ²/2 · adjoint, a number.
    """
    h, adjoint, added = 1 / steps, -TEMPERATURE * SLOPE, np.zeros(steps)
    for k in reversed(range(steps)):
        later = (k + 1) * h
        adjoint *= 1 + h * (2 * slope(later) - 1 / later)
        added[k] = -(1 - k * h + h) / (k * h + h) * adjoint
    shift = 0.0
    for k in range(steps):
        shift += h * (slope(k * h) * shift + added[k])
    return shift


class Affine(eqx.Module):
    """A velocity gain[k] · a + offset[k] at flow time k/T: contains the optimum."""

    gain: jax.Array
    offset: jax.Array

    def __call__(self, obs, action, t):
        k = jnp.round(t * len(self.gain)).astype(int)
        return self.gain[k][:, None] * action + self.offset[k][:, None]


def train(learner, steps, rows, rate):
    obs, zero = jnp.zeros((rows, 1)), jnp.zeros(rows)
    batch = Batch(obs, jnp.zeros((rows, 1)), zero, zero, obs)
    critic = SimpleNamespace(target_q=lambda obs, action: SLOPE * action.T * jnp.ones((2, 1)))
    others = {"policy": SimpleNamespace(bind=bound(gaussian)), "critic": critic}
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    arrays, static = eqx.partition(learner, eqx.is_array)

    def step(carry, key):
        arrays, state = carry
        loss = lambda x: eqx.combine(x, static).loss(batch, key, others)[0]  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(arrays), state)
        return (optax.apply_updates(arrays, updates), state), None

    carry = arrays, optimizer.init(arrays)
    keys = jax.random.split(jax.random.key(1), steps)
    return eqx.combine(jax.jit(lambda c: jax.lax.scan(step, c, keys)[0])(carry)[0], static)


def sample(velocity, steps):
    noise = jax.random.normal(jax.random.key(2), (20_000, 1))
    return np.asarray(euler(partial(velocity, jnp.zeros((20_000, 1))), noise, steps=steps))


def learner_of(steps, width=8):
    config = configured(QAM, width=width, depth=2, denoise_steps=steps, temperature=TEMPERATURE)
    return QAM.create(Spec(1, 1, 1), config, jax.random.key(0))


def test_reaches_the_kl_regularized_optimum():
    steps = 50
    learner = learner_of(steps)
    start = Affine(jnp.zeros(steps), jnp.zeros(steps))
    learner = eqx.tree_at(lambda x: x.v_fine, learner, start)
    learner = train(learner, 2000, 64, 0.05)
    plain, tuned = sample(gaussian, steps), sample(learner.v_fine, steps)
    shift = tuned.mean() - plain.mean()
    assert shift == pytest.approx(closed_form_shift(steps), rel=0.01)
    assert shift == pytest.approx(TEMPERATURE * SLOPE * STD**2, rel=0.05)
    assert tuned.std() == pytest.approx(plain.std(), rel=0.02)


def test_a_network_of_ten_steps_reaches_its_closed_form():
    learner = train(learner_of(10, width=32), 2000, 64, 3e-3)
    plain, tuned = sample(gaussian, 10), sample(learner.v_fine, 10)
    assert tuned.mean() - plain.mean() == pytest.approx(closed_form_shift(10), rel=0.05)
    assert tuned.std() == pytest.approx(plain.std(), rel=0.05)
