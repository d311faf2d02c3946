"""FQL against the minimizer of its loss in closed form, and against NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from learning import (
    Spy,
    batch_of,
    bound,
    configured,
    draw_gaussian,
    fit,
    gaussian_flow,
    gaussian_velocity,
    normal,
    others as stand_ins,
)

from qgf.config import Spec
from qgf.core.critic import Ensemble
from qgf.learners.fql import FQL
from qgf.methods.table import METHODS

SLOPES = np.array([[2.0, 0.0], [0.0, -1.0]])  # Q_i(s, a) = SLOPES_i · a


def fql(**settings):
    return FQL.create(
        Spec(2, 2, 1), configured(FQL, width=32, depth=2, **settings), jax.random.key(0)
    )


@pytest.mark.parametrize("weight", [1e4, 8.0])
def test_actor_is_the_flow_moved_along_the_slope_of_q(weight):
    # The loss is α/2 ‖ω − ODE‖² − c · ω in two dimensions, with c the mean of the slopes.
    others = stand_ins(
        policy={"bind": bound(gaussian_velocity)},
        critic={"q": lambda obs, action: SLOPES @ action.T},
    )
    learner = fit(fql(bc_weight=weight), others, draw_gaussian, steps=1500, rate=1e-2)
    obs, noise = draw_gaussian(jax.random.key(7)).obs, normal(256, 2)
    shift = SLOPES.mean(0) / weight
    expected = gaussian_flow(obs, noise, np.zeros(256), 10) + shift
    actual = act(learner, obs, noise)
    assert abs(expected).max() < 1
    assert np.sqrt(np.square(actual - expected).mean()) < 0.01
    np.testing.assert_allclose((actual - expected).mean(0), 0, atol=0.005)


def act(learner, obs, noise):
    return METHODS["fql"].act({"fql": learner.bind(obs)}, noise, jnp.zeros(len(noise)), 10)[0]


def reference_loss(actor, q, obs, noise, flow, weight):
    action = reference.mlp(actor, obs, noise)
    values = [reference.mlp(m, obs, np.clip(action, -1, 1)).mean() for m in q.members]
    return weight * ((action - flow) ** 2).mean() - np.mean(values)


@pytest.mark.parametrize("settings, weight", [({}, 1000), ({"bc_weight": 0.5}, 0.5)])
def test_loss_and_gradient_equal_numpy(settings, weight):
    learner = fql(denoise_steps=4, **settings)
    learner = eqx.tree_at(lambda x: x.actor.kernels[-1], learner, replace_fn=lambda x: 3 * x)
    q, target_q = (
        Ensemble(2, 2, members=2, width=16, depth=2, key=jax.random.key(i)) for i in (1, 2)
    )
    # Some flows leave [-1, 1], as do some of the actor's actions.
    velocity = lambda obs, action, t: 3 * gaussian_velocity(obs, action, t)  # noqa: E731
    others = stand_ins(policy={"bind": bound(velocity)}, critic={"q": q, "target_q": target_q})
    batch, key = batch_of(2 * normal(16, 2), normal(16, 2, seed=1)), jax.random.key(3)
    spy = Spy(learner.actor)
    eqx.tree_at(lambda x: x.actor, learner, spy).loss(batch, key, others)
    obs, noise = spy.inputs
    flow = noise
    for k in range(4):
        flow = flow + velocity(obs, flow, np.full(16, k / 4)) / 4
    assert abs(flow).max() > 1 and abs(reference.mlp(learner.actor, obs, noise)).max() > 1
    flow = np.clip(flow, -1, 1)

    def loss_at(bias):
        actor = eqx.tree_at(lambda x: x.biases[-1], learner.actor, bias)
        return reference_loss(actor, q, obs, noise, flow, weight)

    loss = lambda learner: learner.loss(batch, key, others)[0]  # noqa: E731
    assert float(loss(learner)) == pytest.approx(loss_at(learner.actor.biases[-1]), rel=1e-5)
    gradient = eqx.filter_grad(loss)(learner).actor.biases[-1]
    expected = reference.finite_differences(loss_at, learner.actor.biases[-1])
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_sample_clips():
    learner = eqx.tree_at(lambda x: x.actor, fql(), lambda obs, noise: obs + 3 * noise)
    actual = act(learner, jnp.full((1, 2), 0.2), jnp.array([[0.1, -1.0]]))
    np.testing.assert_allclose(actual, [[0.5, -1.0]], rtol=1e-6)
