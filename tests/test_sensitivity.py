"""The sensitivity study, against critics whose gradients are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from telling import draws, tells

from qgf.core.guidance import ESTIMATORS
from studies import sensitivity

ACTION = jnp.full((64, 2), 0.1)


def velocity(action, t):
    """The flow of N(0.1, 0.01²), whose one-step clean action hardly depends on a."""
    t = t[:, None]
    variance = (1 - t) ** 2 + 1e-4 * t**2
    return 0.1 + (1e-4 * t - (1 - t)) / variance * (action - 0.1 * t)


@pytest.mark.parametrize("name", ["qgf", "qfql", "qgf-chain"])
def test_constant_gradient_does_not_turn(name):
    slope = jnp.array([1.0, -2.0])
    found = sensitivity.cosines(name, velocity, lambda a: a @ slope, ACTION, 4)
    assert found.shape == (4, len(sensitivity.SCALES))
    np.testing.assert_allclose(found, 1, atol=1e-5)


def test_gradient_at_the_noisy_action_turns_as_computed_by_hand():
    critic = lambda action: -jnp.square(action).sum(-1) / 2  # noqa: E731
    found = sensitivity.cosines("qfql", velocity, critic, ACTION, 4)
    noise, direction = np.asarray(jax.random.normal(jax.random.key(0), (2, *ACTION.shape)))
    for k in range(4):
        a = (1 - k / 4) * noise + k / 4 * np.asarray(ACTION)
        for j, scale in enumerate(sensitivity.SCALES):
            b = a + scale * direction
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            assert found[k, j] == pytest.approx(((a * b).sum(1) / norms).mean(), abs=1e-5)


def test_verdict_and_figure_follow_the_data():
    scales, times = [0.1, 0.2, 0.4], [0.0, 0.5]
    data = {"env": "e", "states": 3, "scales": scales, "times": times}
    cosines = {name: [[0.1] * 3] * 2 for name in ESTIMATORS}
    found = ([[0.9, 0.8, 0.7], [0.9, 0.6, 0.3]], [[0.6] * 3] * 2, [[0.5] * 3] * 2, [[0.2] * 3] * 2)
    cosines |= dict(zip(sensitivity.CLAIMED, found, strict=True))
    said = sensitivity.say({**data, "cosines": cosines})
    assert "unlike the paper" not in said
    assert tells(said, 3, 0.1, 0.4, 0.7, 0.6, 0.5, 0.2)  # states, scales, the largest cosines
    by_scale, by_time = sensitivity.draw({**data, "cosines": cosines}).axes
    assert draws(by_scale, scales, [0.9, 0.7, 0.5])  # over flow times
    assert draws(by_time, times, [0.8, 0.6])  # at the middle scale
    turned = cosines | {"bptt": [[0.95] * 3] * 2}
    assert "unlike the paper" in sensitivity.say({**data, "cosines": turned})
    assert sensitivity.STYLES.keys() == ESTIMATORS.keys()
