"""Search over whole actions against trying and stepping one by one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qgf.core.flow import FAILED
from qgf.core.search import best_of_n, best_of_n_counting, gradient_steps
from qgf.errors import UserError


def critic(obs, action):
    return -jnp.square(action - 0.5 * obs).sum(-1)


def test_best_of_n_equals_brute_force():
    random = np.random.default_rng(0)
    obs = random.normal(size=(6, 3)).astype(np.float32)
    noise = random.normal(size=(5, 6, 3)).astype(np.float32)
    actual = best_of_n(partial(critic, obs), jnp.tanh(noise + obs))
    picked = set()
    for row in range(6):
        tried = [np.tanh(noise[i, row] + obs[row]) for i in range(5)]
        best = max(range(5), key=lambda i: -((tried[i] - 0.5 * obs[row]) ** 2).sum())
        picked.add(best)
        np.testing.assert_allclose(actual[row], tried[best], rtol=1e-5)
    assert len(picked) > 2


def test_a_sample_of_unknown_value_is_not_the_best():
    actions = jnp.array([[[0.0]], [[-1.0]], [[1.0]]])
    actual = best_of_n(lambda action: jnp.sqrt(action[:, 0]), actions)
    assert actual.tolist() == [[1.0]]


def in_trees(obs, action):
    """The critic's formula, of a tree of observations and actions of shape (batch, 3, 1)."""
    assert obs["image"].shape == (len(action), 2, 2) and action.shape[1:] == (3, 1)
    return critic(obs["state"], action[..., 0])


def tree(obs):
    return {"state": jnp.asarray(obs), "image": jnp.zeros((len(obs), 2, 2))}


def test_best_of_n_with_samples_that_are_not_finite_equals_brute_force():
    random = np.random.default_rng(0)
    obs = random.normal(size=(6, 3)).astype(np.float32)
    noise = random.uniform(-1.5, 1.5, (5, 6, 3, 1)).astype(np.float32)
    bad = random.uniform(size=(5, 6)) < 0.5
    bad[:, 4] = [True, True, True, False, True]  # but for one
    bad[:, 5] = False
    noise[bad, 1] = random.choice([np.nan, np.inf, -np.inf], bad.sum())[:, None]
    actual = best_of_n(partial(in_trees, tree(obs)), jnp.asarray(noise))
    for row in range(6):
        fit = [np.clip(noise[i, row], -1, 1) for i in range(5) if np.isfinite(noise[i, row]).all()]
        expected = max(fit, key=lambda a: -((a[:, 0] - 0.5 * obs[row]) ** 2).sum())
        np.testing.assert_allclose(actual[row], expected, rtol=1e-6)
    assert bad.any(0).sum() > 3


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_a_finite_action_of_no_value_is_better_than_none(value):
    worthless = lambda action: jnp.full(len(action), value)  # noqa: E731
    actions = jnp.array([[[jnp.nan]], [[jnp.inf]], [[0.25]]])
    assert best_of_n(worthless, actions).tolist() == [[0.25]]


def test_rows_without_any_finite_action():
    actions = jnp.full((2, 3, 1), 0.5).at[:, 1].set(jnp.nan).at[0, 2].set(jnp.inf)
    q = partial(critic, jnp.zeros((3, 1)))
    best, counts = jax.jit(partial(best_of_n_counting, jax.vmap(q)))(actions)
    assert best.tolist() == [[0.5], [0.0], [0.5]] and counts.tolist() == [0, FAILED, 0]
    line = "no action for row 1: none of the actions to choose from is finite"
    with pytest.raises(UserError, match=line):
        best_of_n(q, actions)


SHAPED = np.zeros((2, 3, 1), np.float32)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"actions": SHAPED[0, 0]},
            r"^actions must be floats of shape \(n, batch, …\), got fl",
        ),
        ({"actions": SHAPED[:0]}, r"^actions must be floats of .* of \(0, 3, 1\)"),
        ({"actions": SHAPED.astype(int)}, "^actions must be floats of .* got int64"),
        ({"actions": None}, "^actions must be floats of .* got NoneType"),
        ({"critic": lambda a: a}, r"^the critic must give .* shape \(3,\), got"),
        ({"critic": lambda a: None}, "^the critic must give .* got NoneType"),
    ],
)
def test_unfit_arguments_of_best_of_n(change, message):
    arguments = {"critic": partial(critic, SHAPED[0]), "actions": SHAPED}
    with pytest.raises(UserError, match=message):
        reference.undecorated(best_of_n)(**(arguments | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"step_size": 1e39}, r"^step_size must be a finite number of at least 0 .*, got 1e\+39"),
        ({"step_size": np.nan}, "^step_size must be a finite number .* in float32, got nan"),
        ({"step_size": -0.1}, "^step_size must be a finite number of at least 0 .*, got -0.1"),
        ({"step_size": np.zeros(2)}, r"^step_size must be one real number or one per row \(3\)"),
        ({"steps": 0}, "^steps must be at least 1 and a whole number, got 0"),
        ({"steps": True}, "^steps must be at least 1 and a whole number, got True"),
        ({"action": SHAPED[0] + np.nan}, "^action must be finite, but row 0 is not"),
        ({"action": SHAPED[0] > 0}, "^action must be floating numbers"),
    ],
)
def test_unfit_arguments_of_gradient_steps(change, message):
    arguments = {"critic": partial(critic, SHAPED[0]), "action": SHAPED[0], "step_size": 0.1}
    with pytest.raises(UserError, match=message):
        reference.undecorated(gradient_steps)(**(arguments | change))


def test_gradient_steps_of_rows_that_are_not_finite():
    action = jnp.array([[0.5], [jnp.nan], [0.5], [0.5], [3.0]])
    sizes = jnp.array([0.25, 0.25, jnp.nan, jnp.inf, jnp.inf])
    step = jax.jit(partial(gradient_steps, partial(critic, jnp.zeros((5, 1)))))
    actual, skipped = step(action, sizes)
    # To the peak at 0 by half the way each time; nowhere, but not beyond the bounds.
    assert actual.tolist() == [[0.5 / 8], [0.0], [0.5], [0.5], [1.0]]
    assert skipped.tolist() == [0, FAILED, 3, 3, 3]


def test_gradient_steps_of_trees_and_many_axes():
    random = np.random.default_rng(0)
    obs, action = (random.uniform(-1, 1, (6, 3)).astype(np.float32) for _ in range(2))
    sizes = np.linspace(0, 0.9, 6)
    actual, skipped = gradient_steps(
        partial(in_trees, tree(obs)), jnp.asarray(action)[..., None], jnp.asarray(sizes)
    )
    peak = 0.5 * obs.astype(np.float64)
    expected = peak + (1 - 2 * sizes[:, None]) ** 3 * (action - peak)
    np.testing.assert_allclose(actual[..., 0], expected, rtol=1e-5, atol=1e-6)
    assert skipped.tolist() == [0] * 6


def test_gradient_steps_approach_a_peak_geometrically():
    # On -‖a - p‖² a step multiplies the distance to the peak by 1 - 2α.
    random = np.random.default_rng(0)
    obs, action = (random.uniform(-1, 1, (6, 3)).astype(np.float32) for _ in range(2))
    peak = 0.5 * obs.astype(np.float64)
    sizes = np.linspace(0, 0.9, 6)
    for steps in (1, 3, 5):
        shrunk = (1 - 2 * sizes[:, None]) ** steps
        actual, skipped = gradient_steps(
            partial(critic, obs), jnp.asarray(action), jnp.asarray(sizes), steps=steps
        )
        np.testing.assert_allclose(actual, peak + shrunk * (action - peak), rtol=1e-5, atol=1e-6)
        assert skipped.tolist() == [0] * 6
    actual, _ = gradient_steps(partial(critic, obs), jnp.asarray(action), 0.25)
    np.testing.assert_allclose(actual, peak + (action - peak) / 8, rtol=1e-5, atol=1e-6)


def test_gradient_steps_clip_every_step():
    # 0.5 → -0.3 → -1.1, clipped to -1, where the slope turns: → -0.2 (from -1.1: -0.3).
    def valley(action):
        return jnp.where(action > -0.95, -2 * action, 2 * action).sum(-1)

    actual, _ = gradient_steps(valley, jnp.array([[0.5]]), 0.4, steps=3)
    np.testing.assert_allclose(actual, [[-0.2]], rtol=1e-5)


def test_a_row_stays_where_its_gradient_is_not_finite_and_is_counted():
    # The root ends at 0: row 1 is beyond it at once, row 2 steps across it after two steps.
    def rooted(action):
        return 2 * jnp.sqrt(action[:, 0]) - 3 * action[:, 0] + action[:, 1]

    action = jnp.array([[0.25, 0.1], [-0.5, 0.2], [1.0, 0.3]])
    sizes = jnp.array([0.01, 0.3, 0.3])
    actual, skipped = gradient_steps(rooted, action, sizes, steps=4)
    kept = 0.25
    for _ in range(4):
        kept += 0.01 * (kept**-0.5 - 3)
    across = 0.4 + 0.3 * (0.4**-0.5 - 3)  # the first step leads from 1 to 1 + 0.3 (1 - 3)
    expected = [[kept, 0.1 + 4 * 0.01], [-0.5, 0.2], [across, 0.3 + 2 * 0.3]]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert skipped.tolist() == [0, 4, 2]


def test_a_step_too_large_to_be_a_number_ends_at_the_bounds():
    steep = lambda action: 1e30 * (action[:, 0] - action[:, 1])  # noqa: E731
    for size in (1e20, jnp.array([1e20])):
        actual, skipped = gradient_steps(steep, jnp.zeros((1, 2)), size)
        assert actual.tolist() == [[1, -1]] and skipped.tolist() == [0]
    infinite = lambda action: jnp.inf * action[:, 0]  # noqa: E731
    actual, skipped = gradient_steps(infinite, jnp.full((1, 2), 0.5), 0.0)
    assert actual.tolist() == [[0.5, 0.5]] and skipped.tolist() == [3]
