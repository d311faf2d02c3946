"""EDP against the minimizer of its loss in closed form, and against NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from learning import (
    STD,
    Spy,
    batch_of,
    bound,
    configured,
    draw_gaussian,
    fit,
    gaussian_velocity,
    normal,
    others as stand_ins,
)

from qgf.config import Spec
from qgf.core.critic import Ensemble, aggregate
from qgf.core.networks import time_embedding
from qgf.learners.edp import EDP

SLOPE = np.array([2.0, -1.0])  # Q(s, a) = SLOPE · a


def edp(**settings):
    return EDP.create(
        Spec(2, 2, 1), configured(EDP, width=32, depth=2, **settings), jax.random.key(0)
    )


@pytest.mark.parametrize("weight", [1e4, 8.0])
def test_velocity_is_the_flow_s_moved_along_the_slope_of_q(weight):
    # At every (s, a_t, t) the loss is λ/2 ‖v − (a_1 − a_0)‖² − (1 − t) SLOPE · v in two
    # dimensions, which is least at E[a_1 − a_0 | a_t] + (1 − t) SLOPE / λ.
    others = stand_ins(critic={"bind": lambda obs: lambda action: action @ SLOPE})
    draw = lambda key: draw_gaussian(key, 1024)  # noqa: E731
    learner = fit(edp(bc_weight=weight), others, draw, steps=1500, rate=1e-2)
    obs, noise = draw(jax.random.key(7)).obs, normal(1024, 2)
    t = jnp.linspace(0, 0.8, 1024)
    noisy = (1 - t[:, None]) * noise + t[:, None] * (obs + STD * normal(1024, 2, seed=1))
    plain = gaussian_velocity(obs, noisy, t)
    shift = (1 - t[:, None]) * SLOPE / weight
    actual = learner.bind(obs)(noisy, t)
    assert np.sqrt(np.square(actual - plain - shift).mean()) < 0.06
    np.testing.assert_allclose((actual - plain - shift).mean(0), 0, atol=0.02)


@pytest.mark.parametrize("settings, weight", [({}, 100), ({"bc_weight": 0.5}, 0.5)])
def test_loss_and_gradient_equal_numpy(settings, weight):
    learner = edp(**settings)
    q = Ensemble(2, 2, members=2, width=16, depth=2, key=jax.random.key(1))
    critic = lambda obs, action: aggregate(q(obs, action))  # noqa: E731
    others, key = stand_ins(critic={"bind": bound(critic)}), jax.random.key(3)
    batch = batch_of(normal(16, 2), jnp.clip(normal(16, 2, seed=1), -1, 1))
    spy = Spy(learner.policy)
    eqx.tree_at(lambda x: x.policy, learner, spy).loss(batch, key, others)
    obs, noisy, t = spy.inputs
    embedding = np.asarray(time_embedding(jnp.asarray(t, jnp.float32)), float)
    t = t[:, None]
    target = (np.asarray(batch.action) - noisy) / (1 - t)
    clean = noisy + (1 - t) * reference.mlp(learner.policy.mlp, obs, noisy, embedding)
    assert 5 < (abs(clean) > 1).sum() < 27  # the clip stops the gradient there

    def loss_at(bias):
        mlp = eqx.tree_at(lambda x: x.biases[-1], learner.policy.mlp, bias)
        v = reference.mlp(mlp, obs, noisy, embedding)
        clean = np.clip(noisy + (1 - t) * v, -1, 1)
        values = np.min([reference.mlp(m, obs, clean) for m in q.members], axis=0)
        return weight * ((v - target) ** 2).mean() - values.mean()

    loss = lambda learner: learner.loss(batch, key, others)[0]  # noqa: E731
    bias = learner.policy.mlp.biases[-1]
    assert float(loss(learner)) == pytest.approx(loss_at(bias), rel=1e-5)
    gradient = eqx.filter_grad(loss)(learner).policy.mlp.biases[-1]
    expected = reference.finite_differences(loss_at, bias)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_times_follow_the_configuration():
    learner, others = (
        edp(times="grid", denoise_steps=4),
        stand_ins(critic={"bind": lambda obs: lambda action: obs[:, 0]}),
    )
    spy = Spy(lambda obs, action, t: action)
    batch = batch_of(normal(99, 2), normal(99, 2, seed=1))
    eqx.tree_at(lambda x: x.policy, learner, spy).loss(batch, jax.random.key(0), others)
    assert set(4 * spy.inputs[2]) == {0, 1, 2, 3, 4}
