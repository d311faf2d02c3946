"""Search over whole actions against trying and stepping one by one."""

import jax.numpy as jnp
import numpy as np

from qgf.search import best_of_n, gradient_steps


def sample(obs, noise):
    return jnp.tanh(noise + obs)


def critic(obs, action):
    return -jnp.square(action - 0.5 * obs).sum(-1)


def test_best_of_n_equals_brute_force():
    random = np.random.default_rng(0)
    obs = random.normal(size=(6, 3)).astype(np.float32)
    noise = random.normal(size=(5, 6, 3)).astype(np.float32)
    actual = best_of_n(sample, critic, jnp.asarray(obs), jnp.asarray(noise))
    picked = set()
    for row in range(6):
        tried = [np.tanh(noise[i, row] + obs[row]) for i in range(5)]
        best = max(range(5), key=lambda i: -((tried[i] - 0.5 * obs[row]) ** 2).sum())
        picked.add(best)
        np.testing.assert_allclose(actual[row], tried[best], rtol=1e-5)
    assert len(picked) > 2


def test_a_sample_of_unknown_value_is_not_the_best():
    noise = jnp.array([[[0.0]], [[-1.0]], [[1.0]]])
    actual = best_of_n(lambda o, z: z, lambda o, a: jnp.sqrt(a[:, 0]), jnp.zeros((1, 1)), noise)
    assert actual.tolist() == [[1.0]]


def test_gradient_steps_approach_a_peak_geometrically():
    # On -‖a - p‖² a step multiplies the distance to the peak by 1 - 2α.
    random = np.random.default_rng(0)
    obs, action = (random.uniform(-1, 1, (6, 3)).astype(np.float32) for _ in range(2))
    peak = 0.5 * obs.astype(np.float64)
    sizes = np.linspace(0, 0.9, 6)
    for steps in (1, 3, 5):
        shrunk = (1 - 2 * sizes[:, None]) ** steps
        actual, skipped = gradient_steps(
            critic, jnp.asarray(obs), jnp.asarray(action), jnp.asarray(sizes), steps=steps
        )
        np.testing.assert_allclose(actual, peak + shrunk * (action - peak), rtol=1e-5, atol=1e-6)
        assert skipped.tolist() == [0] * 6
    actual, _ = gradient_steps(critic, jnp.asarray(obs), jnp.asarray(action), 0.25)
    np.testing.assert_allclose(actual, peak + (action - peak) / 8, rtol=1e-5, atol=1e-6)


def test_gradient_steps_clip_every_step():
    # 0.5 → -0.3 → -1.1, clipped to -1, where the slope turns: → -0.2 (from -1.1: -0.3).
    def valley(obs, action):
        return jnp.where(action > -0.95, -2 * action, 2 * action).sum(-1)

    actual, _ = gradient_steps(valley, jnp.zeros((1, 1)), jnp.array([[0.5]]), 0.4, steps=3)
    np.testing.assert_allclose(actual, [[-0.2]], rtol=1e-5)


def test_a_row_stays_where_its_gradient_is_not_finite_and_is_counted():
    # The root ends at 0: row 1 is beyond it at once, row 2 steps across it after two steps.
    def rooted(obs, action):
        return 2 * jnp.sqrt(action[:, 0]) - 3 * action[:, 0] + action[:, 1]

    action = jnp.array([[0.25, 0.1], [-0.5, 0.2], [1.0, 0.3]])
    sizes = jnp.array([0.01, 0.3, 0.3])
    actual, skipped = gradient_steps(rooted, jnp.zeros((3, 1)), action, sizes, steps=4)
    kept = 0.25
    for _ in range(4):
        kept += 0.01 * (kept**-0.5 - 3)
    across = 0.4 + 0.3 * (0.4**-0.5 - 3)  # the first step leads from 1 to 1 + 0.3 (1 - 3)
    expected = [[kept, 0.1 + 4 * 0.01], [-0.5, 0.2], [across, 0.3 + 2 * 0.3]]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert skipped.tolist() == [0, 4, 2]


def test_a_step_too_large_to_be_a_number_ends_at_the_bounds():
    steep = lambda obs, action: 1e30 * (action[:, 0] - action[:, 1])  # noqa: E731
    for size in (1e20, jnp.array([1e20])):
        actual, skipped = gradient_steps(steep, jnp.zeros((1, 1)), jnp.zeros((1, 2)), size)
        assert actual.tolist() == [[1, -1]] and skipped.tolist() == [0]
    infinite = lambda obs, action: jnp.inf * action[:, 0]  # noqa: E731
    actual, skipped = gradient_steps(infinite, jnp.zeros((1, 1)), jnp.full((1, 2), 0.5), 0.0)
    assert actual.tolist() == [[0.5, 0.5]] and skipped.tolist() == [3]
