"""Guided sampling against closed forms, by hand, and against plain sampling."""

import functools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qgf.core.critic import Ensemble, aggregate
from qgf.core.flow import FAILED, FlowPolicy, euler
from qgf.core.guidance import (
    ESTIMATORS,
    guided_sample,
    guided_sample_counting,
    one_step_clean,
    q_gradient,
    qgf_jacobian_regularized,
    qgf_jacobian_smooth,
)
from qgf.core.networks import time_embedding
from qgf.errors import UserError

# The policy N(MEAN + obs, ROOT ROOTᵀ), with noise a_0 and action a_1 of covariance
# Cov(a_1, a_0) = CROSS: at t = 0 already the clean action then depends on the noise, and as
# CROSS is not symmetric, neither are the Jacobians.
MEAN = np.array([0.1, -0.2, 0.0])
ROOT = np.array([[0.25, 0.1, 0.0], [-0.1, 0.2, 0.1], [0.05, -0.15, 0.3]])
CROSS = 0.6 * ROOT
PEAK = np.array([-0.2, 0.1, 0.3])
CURVATURE = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, -0.4], [0.0, -0.4, 0.5]])
STEPS = 10


def slope(t):
    """A of the exact velocity MEAN + obs + A (a - t (MEAN + obs)): a regression of a_1 - a_0."""
    one = np.eye(3)
    variance = (1 - t) ** 2 * one + t**2 * ROOT @ ROOT.T + t * (1 - t) * (CROSS + CROSS.T)
    covariance = t * ROOT @ ROOT.T - (1 - t) * one + (1 - t) * CROSS - t * CROSS.T
    return covariance @ np.linalg.inv(variance)


SLOPES = np.stack([slope(t) for t in np.arange(31) / 30], dtype=np.float32)


def velocity(obs, action, t):
    """For t on the grids of 10 and of 3 steps."""
    mean, a = MEAN + obs, jnp.asarray(SLOPES)[jnp.round(30 * t).astype(int)]
    return mean + jnp.einsum("bij,bj->bi", a, action - t[:, None] * mean)


def critic(obs, action):
    away = action - PEAK
    return -0.5 * jnp.einsum("bi,ij,bj->b", away, CURVATURE, away)


def at(obs, *functions):
    """The velocity and the critic above, or others, bound to observations."""
    return [partial(function, obs) for function in functions or (velocity, critic)]


def closed_form(name, obs, action, k, steps=STEPS):
    """v and g for one row after k of `steps` Euler steps; every map in them is affine."""
    mean, one, t = MEAN + obs, np.eye(3), k / steps
    v = mean + slope(t) @ (action - t * mean)
    one_step, clean = one + (1 - t) * slope(t), action + (1 - t) * v
    chain, end = one, action
    for s in np.arange(k, steps) / steps:
        end = end + (mean + slope(s) @ (end - s * mean)) / steps
        chain = (one + slope(s) / steps) @ chain
    assert abs(clean).max() < 1 and abs(end).max() < 1  # well inside the clip
    ortho = reference.nearest_orthogonal(one_step)
    at, jacobian = {
        "qgf": (clean, one),
        "qfql": (action, one),
        "bptt": (end, chain),
        "qgf-chain": (end, one),
        "qgf-jacobian": (clean, one_step),
        "qgf-jacobian-regularized": (clean, (one_step + one) / 2),
        "qgf-jacobian-ortho": (clean, ortho),
        "qgf-jacobian-smooth": (clean, one_step),  # the same everywhere
    }[name]
    return v, jacobian.T @ CURVATURE @ (PEAK - at)


def closed_form_sample(name, obs, action, weight, steps=STEPS):
    for k in range(steps):
        v, g = closed_form(name, obs, action, k, steps)
        action = action + (v + weight * g) / steps
    return np.clip(action, -1, 1)


def rows(function, *arrays):
    """The function of every row, in float64."""
    arrays = [np.asarray(array, np.float64) for array in arrays]
    return [function(*row) for row in zip(*arrays, strict=True)]


def assert_close(actual, expected):
    """To 1e-5 of the largest entry."""
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@functools.cache
def formula_sampler(name, steps=STEPS):
    """Sampling with the formulas above, the critic scaled, with an extra slope for each row."""

    def sample(obs, noise, weight, scale, extra):
        def q(action):
            return scale * critic(obs, action) + jnp.where(extra == 0, 0, extra * action[:, 0])

        return guided_sample_counting(
            partial(velocity, obs), q, noise, weight, steps=steps, estimator=ESTIMATORS[name]
        )

    jitted = jax.jit(sample)

    def compiled_once(obs, noise, weight, scale=1.0, extra=0.0):
        weight, extra = (jnp.asarray(np.broadcast_to(x, len(obs)), "f4") for x in (weight, extra))
        return jitted(obs, noise, weight, jnp.asarray(scale, "f4"), extra)

    return compiled_once


@pytest.fixture
def start():
    random = np.random.default_rng(0)
    obs = random.uniform(-0.1, 0.1, (20, 3)).astype(np.float32)
    return jnp.asarray(obs), jnp.asarray(random.uniform(-1.5, 1.5, (20, 3)), jnp.float32)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gaussian_policy_and_quadratic_critic_in_closed_form(name, start):
    obs, action = start[0], 0.5 * start[1]
    estimate = jax.jit(partial(ESTIMATORS[name], *at(obs)), static_argnums=2)
    for k in range(STEPS):
        expected = rows(partial(closed_form, name, k=k), obs, action)
        actual = estimate(action, jnp.full(20, k / STEPS), STEPS)
        for x, y in zip(actual, zip(*expected, strict=True), strict=True):
            assert_close(x, y)


@pytest.mark.parametrize(
    "name, steps", [*((name, STEPS) for name in ESTIMATORS), ("bptt", 3), ("qgf-chain", 3)]
)
def test_guided_actions_in_closed_form_with_a_weight_for_every_row(name, steps, start):
    weights = jnp.linspace(0, 1, 20)
    expected = rows(partial(closed_form_sample, name, steps=steps), *start, weights)
    actual, unguided = formula_sampler(name, steps)(*start, weights)
    assert_close(actual, expected)
    assert unguided.tolist() == [0] * 20


def test_one_weight_for_all_rows(start):
    expected = rows(partial(closed_form_sample, "qgf", weight=0.5), *start)
    assert_close(guided_sample(*at(start[0]), start[1], 0.5), expected)


def test_estimators_differ(start):
    t = jnp.full(20, 0.3)
    g = [
        jax.jit(partial(f, *at(start[0])), static_argnums=2)(start[1], t, STEPS)[1]
        for name, f in ESTIMATORS.items()
        if name != "qgf-jacobian-smooth"  # equals qgf-jacobian where that is constant
    ]
    far = [abs(x - y).max() for i, x in enumerate(g) for y in g[:i]]
    assert min(far) > 0.02


def test_guidance_raises_q(start):
    weights = (0.0, 0.3, 1.0, 3.0)
    q = [float(critic(None, guided_sample(*at(start[0]), start[1], w)).mean()) for w in weights]
    assert sorted(q) == q and q[-1] > q[0] + 0.01


@functools.cache
def networks(width=64, depth=2):
    policy = FlowPolicy(11, 10, width=width, depth=depth, key=jax.random.key(0))
    q = Ensemble(11, 10, members=2, width=width, depth=depth, key=jax.random.key(1))
    return policy, lambda obs, action: aggregate(q(obs, action)), q


def naive(name, policy, ensemble, obs, action, k, steps):
    """g for one row of networks in float64, with every derivative by finite differences."""

    # Not in float64: in float32 the angles of the embedding are off by 1e-3.
    embeddings = np.asarray(time_embedding(jnp.arange(steps) / steps))

    def v(action, k):
        return reference.mlp(policy.mlp, obs[None], action[None], embeddings[k : k + 1])[0]

    def one_step(action):
        return np.clip(action + (1 - k / steps) * v(action, k), -1, 1)

    def chain(action):
        for i in range(k, steps):
            action = action + v(action, i) / steps
        return np.clip(action, -1, 1)

    def q(action):
        return np.min([reference.mlp(m, obs[None], action[None])[:, 0] for m in ensemble.members])

    def slope(at):
        return reference.finite_differences(q, at)

    one_step_j, g = reference.jacobian(one_step, action), slope(one_step(action))
    return {
        "qgf": lambda: g,
        "qfql": lambda: slope(action),
        "bptt": lambda: reference.finite_differences(lambda a: q(chain(a)), action),
        "qgf-chain": lambda: slope(chain(action)),
        "qgf-jacobian": lambda: one_step_j.T @ g,
        "qgf-jacobian-regularized": lambda: (0.5 * one_step_j.T + 0.5 * np.eye(len(g))) @ g,
        "qgf-jacobian-ortho": lambda: (
            reference.nearest_orthogonal(
                reference.jacobian(lambda a: a + (1 - k / steps) * v(a, k), action)
            ).T
            @ g
        ),
    }[name]()


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "qgf-jacobian-smooth"])
def test_networks_against_finite_differences(name):
    policy, q, ensemble = networks(width=12)
    random = np.random.default_rng(0)
    obs = random.uniform(-1, 1, (6, 11)).astype(np.float32)
    action = random.uniform(-1, 1, (6, 10)).astype(np.float32)
    estimate = jax.jit(
        partial(ESTIMATORS[name], *at(jnp.asarray(obs), policy, q)), static_argnums=2
    )
    for k in (0, 2, 3):
        inputs = jnp.asarray(action), jnp.full(6, k / 4)
        actual = estimate(*inputs, 4)
        expected = rows(partial(naive, name, policy, ensemble, k=k, steps=4), obs, action)
        np.testing.assert_allclose(
            actual[0], policy(jnp.asarray(obs), *inputs), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(actual[1], expected, rtol=1e-3, atol=1e-4)
    assert (abs(action + (1 - k / 4) * np.asarray(actual[0])) > 1).any()  # some are clipped


def test_smooth_averages_the_jacobian_around_the_action():
    policy, q, _ = networks(width=12)
    random = np.random.default_rng(0)
    obs = jnp.asarray(random.uniform(-1, 1, (3, 11)), jnp.float32)
    action = jnp.asarray(random.uniform(-0.5, 0.5, (3, 10)), jnp.float32)
    t, points = jnp.full(3, 0.25), []

    def recorded(action, t):
        jax.debug.callback(points.append, action)
        return policy(obs, action, t)

    critic = partial(q, obs)
    estimate = partial(qgf_jacobian_smooth, recorded, critic, steps=4, samples=400, scale=0.02)
    v, g = jax.jit(estimate)(action, t)
    jax.effects_barrier()
    around = np.stack([p for p in points if abs(p - action).max() > 1e-6])
    moved = around - np.asarray(action)
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1], moved.shape), atol=1e-6)
    assert abs(moved[:, 0].std(0) / 0.02 - 1).max() < 0.15
    assert abs(moved[:, 0].mean(0)).max() < 4 * 0.02 / 400**0.5

    def one_step(obs, action):
        return one_step_clean(action[None], policy(obs[None], action[None], t[:1]), t[:1])[0]

    @jax.jit
    def expected():
        jacobian = jax.vmap(jax.vmap(jax.jacobian(one_step, 1)), (None, 0))(obs, around).mean(0)
        return jnp.einsum("bi,bij->bj", q_gradient(critic, one_step_clean(action, v, t)), jacobian)

    np.testing.assert_allclose(g, expected(), rtol=1e-4, atol=1e-5)


def test_smooth_does_not_depend_on_the_batch_or_the_call():
    bent = lambda action, t: jnp.sin(3 * action) * action[:, ::-1]  # noqa: E731
    smooth = partial(ESTIMATORS["qgf-jacobian-smooth"], bent, partial(critic, None), steps=4)
    random = np.random.default_rng(0)
    action = jnp.asarray(random.uniform(-0.4, 0.4, (5, 3)), jnp.float32)
    together = smooth(action, jnp.zeros(5))[1]
    again = smooth(action[3:4], jnp.zeros(1))[1]
    np.testing.assert_allclose(again[0], together[3], rtol=1e-5)
    unsmoothed = ESTIMATORS["qgf-jacobian"](bent, partial(critic, None), action, jnp.zeros(5), 4)[1]
    assert abs(unsmoothed - together).max() > 1e-3


def test_regularized_lies_between_the_jacobian_and_the_identity(start):
    @partial(jax.jit, static_argnums=0)
    def estimate(identity):
        inputs = *at(start[0]), start[1], jnp.full(20, 0.3), STEPS
        return qgf_jacobian_regularized(*inputs, identity=identity)[1]

    expected = {
        name: np.array([g for _, g in rows(partial(closed_form, name, k=3), *start)])
        for name in ("qgf", "qgf-jacobian")
    }
    for x in (0.0, 0.25, 1.0):
        mixed = (1 - x) * expected["qgf-jacobian"] + x * expected["qgf"]
        assert_close(estimate(x), mixed)


@functools.cache
def network_sampler():
    functions = networks()[:2]
    return eqx.filter_jit(lambda obs, *rest: guided_sample(*at(obs, *functions), *rest, steps=4))


@pytest.mark.bit_exact
@pytest.mark.parametrize("rows", [1, 33])
def test_weight_0_is_the_policy_to_the_last_bit(rows):
    obs = jax.random.normal(jax.random.key(2), (rows, 11))
    noise = jax.random.normal(jax.random.key(3), (rows, 10))
    policy = networks()[0]
    plain = eqx.filter_jit(lambda obs, noise: euler(partial(policy, obs), noise, steps=4))(
        obs, noise
    )
    assert network_sampler()(obs, noise, jnp.zeros(rows)).tobytes() == plain.tobytes()
    assert abs(network_sampler()(obs, noise, jnp.full(rows, 0.1)) - plain).max() > 1e-4


@pytest.mark.bit_exact
@pytest.mark.parametrize("name", ESTIMATORS)
def test_weight_0_of_a_formula_is_the_policy_to_the_last_bit(name, start):
    plain = jax.jit(lambda obs, noise: euler(partial(velocity, obs), noise))(*start)
    actions, unguided = formula_sampler(name)(*start, 0.0)
    assert actions.tobytes() == plain.tobytes() and unguided.tolist() == [0] * 20


@pytest.mark.bit_exact
def test_a_weight_for_every_row_equals_separate_calls():
    obs = jax.random.normal(jax.random.key(2), (4, 11))
    noise = jax.random.normal(jax.random.key(3), (4, 10))
    weights = jnp.array([0.0, 0.1, 1.0, 3.0])
    together = network_sampler()(obs, noise, weights)
    for i in range(4):
        alone = network_sampler()(obs, noise, jnp.full(4, weights[i]))
        assert together[i].tobytes() == alone[i].tobytes()


# One step from (3, 0.5) with velocity (-1, 0): the clean action (2, 0.5) is clipped to
# (1, 0.5), where the slope of -a² is (-2, -1); J is I, but for what the clip cuts off.
@pytest.mark.parametrize(
    "name, first",
    [
        ("qgf", -2),
        ("qfql", -6),  # at 3, which is not clipped
        ("bptt", 0),
        ("qgf-chain", -2),
        ("qgf-jacobian", 0),
        ("qgf-jacobian-regularized", -1),
        ("qgf-jacobian-ortho", -2),
        ("qgf-jacobian-smooth", 0),
    ],
)
def test_what_the_clip_does(name, first):
    action = jnp.array([[3.0, 0.5]])
    v, g = ESTIMATORS[name](
        lambda action, t: jnp.zeros_like(action) - jnp.array([1.0, 0.0]),
        lambda action: -jnp.square(action).sum(-1),
        action,
        jnp.zeros(1),
        1,
    )
    assert v.tolist() == [[-1, 0]]
    np.testing.assert_allclose(g, [[first, -1]], rtol=1e-6, atol=1e-6)


def test_the_pushed_action_is_clipped_only_at_the_end():
    # From 3 - 1 = 2 by 1.5 · (-1), the slope of -(a - ½)² at 1.
    actual = guided_sample(
        lambda action, t: -jnp.ones_like(action),
        lambda action: -jnp.square(action - 0.5).sum(-1),
        jnp.array([[3.0], [3.0]]),
        jnp.array([1.5, 0.9]),
        steps=1,
    )
    assert actual.tolist() == [[0.5], [1.0]]


def test_one_step_clean_by_hand():
    action, v = jnp.array([[0.5, 0.0], [0.9, -0.9]]), jnp.array([[-1.0, 0.4], [1.0, -1.0]])
    actual = one_step_clean(action, v, jnp.array([0.75, 0.5]))
    np.testing.assert_allclose(actual, [[0.25, 0.1], [1, -1]], rtol=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_ortho_of_a_singular_jacobian_is_orthogonal_and_finite(rank):
    # At t = 0, J = I + A: a projection of the given rank.
    keep = np.diag(np.arange(3) < rank).astype(np.float32)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].astype(np.float32)
    a = jnp.asarray(turn @ keep @ turn.T - np.eye(3, dtype=np.float32))
    action = jnp.asarray(np.full((4, 3), 0.3, np.float32))
    slopes = jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    _, g = ESTIMATORS["qgf-jacobian-ortho"](
        lambda action, t: action @ a.T,
        lambda action: (slopes * action).sum(-1),
        action,
        jnp.zeros(4),
        STEPS,
    )
    np.testing.assert_allclose(g[:3] @ g[:3].T, np.eye(3), atol=1e-5)
    assert g[3].tolist() == [0, 0, 0]
    kept = turn @ keep  # what J keeps, O keeps as it is
    np.testing.assert_allclose(np.asarray(g[:3]).T @ kept, kept, atol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_zero_gradient_does_not_push(name, start):
    actions, unguided = formula_sampler(name)(*start, 5.0, scale=0.0)
    plain = euler(partial(velocity, start[0]), start[1])
    np.testing.assert_allclose(actions, plain, atol=1e-6)
    assert unguided.tolist() == [0] * 20


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_gradient_that_is_not_finite_leaves_its_row_unguided_and_is_counted(name, start):
    bad = jnp.zeros(20).at[2].set(jnp.nan).at[3].set(jnp.inf).at[4].set(jnp.nan)
    weights = jnp.full(20, 0.5).at[jnp.array([4, 5])].set(0)
    sample = formula_sampler(name)
    actual, unguided = sample(*start, weights, extra=bad)
    expected, none = sample(*start, weights.at[2:5].set(0))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert none.tolist() == [0] * 20
    assert unguided.tolist() == [0, 0, 10, 10, 10, *[0] * 15]


def test_only_the_steps_without_a_gradient_are_unguided_and_counted():
    # The critic's slope is 1, but NaN (0 · ∞ and beyond) from 1 on.
    def ends(action):
        return jnp.sqrt(1 - action[:, 0]) * 0 + action[:, 0]

    up = lambda action, t: jnp.full_like(action, 0.5)  # noqa: E731
    start = jnp.array([[0.0], [-0.4]])
    actions, unguided = guided_sample_counting(
        up, ends, start, 1.0, steps=4, estimator=ESTIMATORS["qgf"]
    )
    # Row 0: clean actions 0.5, 0.75, 1: the third gradient is NaN, and so is the fourth.
    # Row 1: 0.1, 0.35, 0.6, 0.85.
    assert unguided.tolist() == [2, 0]
    np.testing.assert_allclose(actions, [[1.0], [1.0]], atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_velocity_that_is_not_finite_fails_its_row_alone(name, weight, start):
    obs, noise = start
    sample = formula_sampler(name)
    expected, none = sample(obs, noise, weight)
    poisoned = obs.at[1, 2].set(jnp.nan).at[7, 0].set(jnp.inf)  # the critic does not see them
    actual, counts = sample(poisoned, noise, weight)
    assert none.tolist() == [0] * 20
    assert counts.tolist() == [FAILED if row in (1, 7) else 0 for row in range(20)]
    expected = expected.at[jnp.array([1, 7])].set(0)
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_weight_that_is_not_finite_leaves_its_row_unguided_in_jit(name, start):
    weights = jnp.full(20, 0.5).at[:3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    sample = formula_sampler(name)
    actual, unguided = sample(*start, weights)
    expected, _ = sample(*start, weights.at[:3].set(0))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert unguided.tolist() == [STEPS] * 3 + [0] * 17


def test_outside_jit_rows_without_an_action_are_named(start):
    obs, noise = start
    poisoned = obs.at[jnp.arange(3, 10)].set(jnp.nan)
    line = r"no action for row 3, 4, 5, 6, 7 and 2 more: the velocity became NaN or infinite"
    for weight in (0.0, 0.5):
        with pytest.raises(UserError, match=line):
            guided_sample(*at(poisoned), noise, weight)
    with pytest.raises(UserError, match=line):
        euler(partial(velocity, poisoned), noise)
    actions, counts = guided_sample_counting(*at(poisoned), noise, 0.5)
    assert counts.tolist() == [0] * 3 + [FAILED] * 7 + [0] * 10 and jnp.isfinite(actions).all()


def test_a_row_that_overflows_on_its_way_fails():
    # Twice half the largest number, then back: every velocity is finite, the action is not.
    largest = jnp.full((2, 1), 3e38).at[0].set(0.1)
    fast = lambda action, t: jnp.where(t[:, None] < 0.5, 1.0, -1.0) * largest  # noqa: E731
    noise = jnp.array([[0.5], [3e38]])
    sample = jax.jit(partial(guided_sample_counting, fast, partial(critic, None), steps=2))
    actions, counts = sample(noise, 0.0)
    assert actions.tolist() == [[0.5], [0.0]] and counts.tolist() == [0, FAILED]


def in_trees(estimator):
    """A sampler whose obs is a dict and whose actions are (batch, 3, 1), of the same formulas.

    Returns:
        (obs, noise, weight, extra) -> actions and counts; `extra` is one more slope of Q, for
        the first entry of every row's action.
    """

    def v(obs, action, t):
        assert obs["image"].shape == (len(action), 2, 2) and action.shape[1:] == (3, 1)
        return velocity(obs["state"], action[..., 0], t)[..., None]

    def q(obs, action):
        assert obs["image"].shape == (len(action), 2, 2) and action.shape[1:] == (3, 1)
        flat, extra = action[..., 0], obs["extra"]
        return critic(obs["state"], flat) + jnp.where(extra == 0, 0, extra * flat[:, 0])

    def sample(obs, noise, weight, extra):
        tree = {"state": obs, "image": jnp.zeros((len(obs), 2, 2)), "extra": extra}
        functions, noise = at(tree, v, q), noise.reshape(-1, 3, 1)
        return guided_sample_counting(*functions, noise, weight, steps=STEPS, estimator=estimator)

    return sample


@pytest.mark.parametrize("name", ESTIMATORS)
def test_observations_in_a_tree_and_actions_of_many_axes_in_closed_form(name, start):
    weights = jnp.linspace(0, 1, 20).at[5].set(0)
    expected = rows(partial(closed_form_sample, name), *start, weights)
    # One infinite entry leaves the whole row unguided.
    extra = jnp.zeros(20).at[5].set(jnp.inf)
    actual, counts = jax.jit(in_trees(ESTIMATORS[name]))(*start, weights.at[5].set(0.7), extra)
    assert_close(actual[..., 0], expected)
    assert actual.shape == (20, 3, 1)
    assert counts.tolist() == [STEPS if row == 5 else 0 for row in range(20)]


MIXED = [  # of noise, of velocity and critic, by how much actions may differ
    (jnp.bfloat16, jnp.float32, 0.02),
    (jnp.float32, jnp.bfloat16, 0.02),
    (jnp.float16, jnp.float32, 0.002),
    (jnp.float32, jnp.float64, 1e-6),
    (jnp.float64, jnp.float32, 1e-6),
]


def mixed(estimator, dtype):
    """A sampler whose velocity and critic, of a row of 3, compute in a dtype of their own."""

    def v(obs, action, t):
        action, t = action.astype(dtype), t.astype(dtype)[:, None]
        return obs.astype(dtype) - (0.5 + t) * action

    q = lambda action: -jnp.square(action.astype(dtype) - 0.3).sum(-1)  # noqa: E731
    return lambda obs, noise, weight: guided_sample_counting(
        partial(v, obs), q, noise, weight, estimator=estimator
    )


def mixed_by_hand(obs, action, weight):
    """Of one row. The Jacobian is a positive number times I: its orthogonal part is I."""
    for t in np.arange(10) / 10:
        v = obs - (0.5 + t) * action
        clean = np.clip(action + (1 - t) * v, -1, 1)
        action = action + (v - 2 * weight * (clean - 0.3)) / 10
    return np.clip(action, -1, 1)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_takes_functions_of_another_floating_dtype(name):
    obs, weight = (jax.ShapeDtypeStruct(shape, "f4") for shape in ((4, 3), ()))
    for dtype, other, _ in MIXED:
        with jax.enable_x64(jnp.float64 in (dtype, other)):
            noise = jax.ShapeDtypeStruct((4, 3), dtype)
            actions, counts = jax.eval_shape(mixed(ESTIMATORS[name], other), obs, noise, weight)
        assert actions.dtype == dtype and counts.dtype == jnp.int32


@pytest.mark.parametrize("name", ["qgf", "qgf-jacobian-ortho"])
@pytest.mark.parametrize("dtype, other, tolerance", MIXED)
def test_sampling_goes_on_in_the_dtype_of_the_noise(name, dtype, other, tolerance, start):
    obs, noise = start[0], np.asarray(start[1]).astype(dtype)
    expected = rows(partial(mixed_by_hand, weight=0.5), obs, noise)
    with jax.enable_x64(jnp.float64 in (dtype, other)):
        sample = jax.jit(mixed(ESTIMATORS[name], other))
        actions, counts = sample(obs, jnp.asarray(noise), 0.5)
    assert actions.dtype == dtype and counts.tolist() == [0] * 20
    np.testing.assert_allclose(np.asarray(actions, float), expected, atol=tolerance)


def test_flow_times_are_told_apart_whatever_the_noise():
    # At one of 300 times the velocity is not 0; bfloat16 has 129 numbers from ½ to 1.
    time = np.float32(257 / 300)
    once = lambda action, t: jnp.where(t[:, None] == time, 150.0, 0.0)  # noqa: E731
    noise = jnp.zeros((2, 1), jnp.bfloat16)
    assert euler(once, noise, steps=300).tolist() == [[0.5], [0.5]]


def test_no_rows(start):
    obs, noise = (x[:0] for x in start)
    for estimator in (ESTIMATORS["qgf"], ESTIMATORS["bptt"]):
        assert guided_sample(*at(obs), noise, 0.5, estimator=estimator).shape == (0, 3)


SHAPED = np.zeros((2, 3), np.float32)
UNFIT = "^weight must be a finite number of at least 0 in"


@pytest.mark.parametrize(
    "change, message",
    [
        *[
            ({"weight": weight}, rf"{UNFIT} float32, got {got}$")
            for weight, got in [
                (1e39, r"1e\+39"),
                (np.float64(-1e39), r"-1e\+39"),
                (float("nan"), "nan"),
                (float("inf"), "inf"),
                (np.array([0.1, np.nan]), "nan"),
                (jnp.array([0.1, -0.5]), "-0.5"),
                (jnp.array([jnp.inf, 0.1]), "inf"),
            ]
        ],
        ({"weight": 1e5, "noise": SHAPED.astype(np.float16)}, f"{UNFIT} float16"),
        *[
            (
                {"weight": weight},
                rf"^weight must be one real number .* per row \(2\), got {got}",
            )
            for weight, got in [
                (np.zeros(3), r"float64 of shape \(3,\)"),
                (np.zeros((2, 1)), r"float64 of shape \(2, 1\)"),
                (True, "bool"),
                (1j, "complex128"),
                ("much", "<U4"),
                (None, "object"),
            ]
        ],
        *[
            ({"steps": steps}, f"^steps must be at least 1 and a whole number, got {steps}$")
            for steps in (0, -1, 2.5, 10.0, True, None, "3")
        ],
        (
            {"noise": SHAPED + 1j},
            r"^noise must be floating .* \(batch, …\), got complex64",
        ),
        ({"noise": SHAPED > 0}, "got bool of shape"),
        ({"noise": SHAPED.astype(int)}, r"got int32 of shape \(2, 3\)"),
        ({"noise": np.float32(1)}, r"got float32 of shape \(\)"),
        ({"noise": "noise"}, "^noise must be an array, got str"),
        ({"noise": SHAPED + np.array([[0], [np.nan]])}, "^noise must be finite, but row 1 is not"),
        (
            {"velocity": lambda a, t: a[:, :2]},
            r"^the velocity must give .* got float32 of shape",
        ),
        ({"velocity": lambda a, t: 0.0}, "^the velocity must give .* got float"),
        ({"velocity": lambda a, t: a + 1j}, "^the velocity must give .* got complex64"),
        (
            {"critic": lambda a: a.sum()},
            r"^the critic must give .* \(2,\), got float32 of .* \(\)",
        ),
        ({"critic": lambda a: a}, r"^the critic must give .* got float32 of shape \(2, 3\)"),
        ({"critic": lambda a: a.sum(-1).astype(int)}, "^the critic must give .* got int32"),
        (
            {"estimator": lambda v, q, a, t, n: (a, a.sum(-1))},
            r"^the estimator must give .* got float32 of shape \(2,\)",
        ),
    ],
)
def test_unfit_arguments(change, message):
    arguments = {
        **dict(zip(("velocity", "critic"), at(SHAPED), strict=True)),
        **{"noise": SHAPED, "weight": 1.0},
        **change,
    }
    with pytest.raises(UserError, match=message) as found:
        reference.undecorated(guided_sample_counting)(**arguments)
    assert "\n" not in str(found.value)


def test_weights_and_steps_that_fit(start):
    sample = reference.undecorated(guided_sample_counting)
    whole = sample(*at(start[0]), start[1], np.int32(1), steps=np.int64(2))
    assert_close(whole[0], rows(partial(closed_form_sample, "qgf", weight=1, steps=2), *start))


@pytest.mark.parametrize("size, weight", [(1e30, 1e20), (3e38, 1.0)])
def test_a_push_too_large_for_the_next_velocity_is_unguided_and_counted(size, weight):
    policy, _, _ = networks(width=12)
    obs = jax.random.normal(jax.random.key(2), (2, 11))
    noise = jax.random.normal(jax.random.key(3), (2, 10))
    row = jnp.array([size, 0.1])
    steep = lambda action: row * action[:, 0]  # noqa: E731
    sample = eqx.filter_jit(partial(guided_sample_counting, partial(policy, obs), steep))
    actual, unguided = sample(noise, jnp.full(2, weight))
    plain = euler(partial(policy, obs), noise)
    np.testing.assert_allclose(actual[0], plain[0], atol=1e-5)
    assert unguided[0] == 10 and jnp.isfinite(actual).all()


def counting(function, counts, forward, backward):
    """The function of (action, …) as it is, adding up the rows it is evaluated on."""

    def add(key):
        return lambda x: counts.update({key: counts[key] + len(x)})

    @jax.custom_vjp
    def counted(*args):
        jax.debug.callback(add(forward), args[0])
        return function(*args)

    def with_pullback(*args):
        jax.debug.callback(add(forward), args[0])
        return jax.vjp(function, *args)

    def pull(pullback, g):
        jax.debug.callback(add(backward), g)  # once for every vector that vmap adds
        return pullback(g)

    counted.defvjp(with_pullback, pull)
    return counted


# For one action of 3 dimensions with T = 10: velocity forward and backward, critic forward
# and backward. The whole Jacobian takes one backward pass for every dimension, bptt and chain
# T - k evaluations at step k = 0 … T - 1, smooth one at the action and 8 around it.
EVALUATIONS = {
    "qgf": (10, 0, 10, 10),
    "qfql": (10, 0, 10, 10),
    "bptt": (55, 55, 10, 10),
    "qgf-chain": (55, 0, 10, 10),
    "qgf-jacobian": (10, 10, 10, 10),
    "qgf-jacobian-regularized": (10, 10, 10, 10),
    "qgf-jacobian-ortho": (10, 10 * 3, 10, 10),
    "qgf-jacobian-smooth": (10 + 10 * 8, 10 * 8, 10, 10),
}


def counted_functions():
    counts = dict.fromkeys(range(4), 0)
    pull = counting(lambda action, t: -action, counts, 0, 1)
    bowl = counting(lambda action: -jnp.square(action).sum(-1), counts, 2, 3)
    return pull, bowl, counts


@pytest.mark.parametrize("name", ESTIMATORS)
def test_network_evaluations(name):
    *functions, counts = counted_functions()
    noise = jnp.full((2, 3), 0.5)
    with jax.disable_jit():
        guided_sample(*functions, noise, 1.0, estimator=ESTIMATORS[name])
        jax.effects_barrier()
    assert tuple(count / 2 for count in counts.values()) == EVALUATIONS[name]


def test_network_evaluations_without_a_weight():
    *functions, counts = counted_functions()
    jax.jit(partial(guided_sample, *functions))(jnp.full((2, 3), 0.5), 0.0)
    jax.effects_barrier()
    assert [count / 2 for count in counts.values()] == [10, 0, 0, 0]


def test_q_gradient_equals_finite_differences():
    _, q, ensemble = networks(width=12, depth=2)
    random = np.random.default_rng(0)
    obs, action = (random.uniform(-1, 1, (5, n)).astype(np.float32) for n in (11, 10))
    members = ensemble.members

    def smaller(action):
        return np.min([reference.mlp(m, obs, action)[:, 0] for m in members], axis=0)

    chosen = np.argmin([reference.mlp(m, obs, action)[:, 0] for m in members], axis=0)
    assert 0 < chosen.sum() < 5  # both members are the smallest somewhere
    expected = reference.finite_differences(smaller, action)
    actual = q_gradient(partial(q, jnp.asarray(obs)), jnp.asarray(action))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_estimator_decides_velocity_and_gradient():
    def up(velocity, critic, action, t, steps):
        assert steps == 5
        return jnp.zeros_like(action), jnp.ones_like(action)

    noise = jnp.zeros((2, 3))
    weights = jnp.array([0.25, 0.5])
    actual = guided_sample(*at(noise), noise, weights, steps=5, estimator=up)
    np.testing.assert_allclose(actual, [[0.25] * 3, [0.5] * 3], rtol=1e-6)
