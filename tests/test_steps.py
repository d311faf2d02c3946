"""The steps study: its sampler against closed forms, and words that follow the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from telling import draws, intervals, tells

from qgf.core.guidance import guided_sample
from qgf.evaluation.statistics import wilson_interval
from studies import steps
from studies.steps import Sampler, flow_times, guided_path_sample

NOISE = jnp.linspace(-1.2, 1.2, 12).reshape(6, 2)
MEAN, STD = 0.1, 0.3


def velocity(action, t):
    """The flow from N(0, 1) to N(MEAN, STD²); exactly, noise z ends at MEAN + STD·z."""
    t = t[:, None]
    variance = (1 - t) ** 2 + (STD * t) ** 2
    return MEAN + (STD**2 * t - (1 - t)) / variance * (action - MEAN * t)


def linear(action):
    return action @ jnp.array([0.2, -0.3])


def quadratic(action):
    return -jnp.square(action - 0.4).sum(-1)


def reference(critic_gradient, weight, count=4000):
    """The guided flow in float64 by the classical Runge-Kutta method, in NumPy."""

    def u(a, t):
        variance = (1 - t) ** 2 + (STD * t) ** 2
        v = MEAN + (STD**2 * t - (1 - t)) / variance * (a - MEAN * t)
        return v + weight * critic_gradient(np.clip(a + (1 - t) * v, -1, 1))

    a, h = np.asarray(NOISE, float), 1 / count
    for k in range(count):
        t = k * h
        k1 = u(a, t)
        k2 = u(a + h / 2 * k1, t + h / 2)
        k3 = u(a + h / 2 * k2, t + h / 2)
        a = a + h / 6 * (k1 + 2 * k2 + 2 * k3 + u(a + h * k3, t + h))
    return np.clip(a, -1, 1)


CASES = {
    "unguided": (linear, 0.0, lambda: MEAN + STD * np.asarray(NOISE, float)),
    "linear": (linear, 0.5, lambda: reference(lambda a: np.array([0.2, -0.3]), 0.5)),
    "quadratic": (quadratic, 0.5, lambda: reference(lambda a: -2 * (a - 0.4), 0.5)),
}


@functools.cache
def ending(case):
    return CASES[case][2]()


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order, case, grid):
    critic, weight, _ = CASES[case]
    exact = ending(case)

    def error(count):
        times = flow_times(grid, count)
        with jax.enable_x64(True):
            noise = jnp.asarray(np.asarray(NOISE, np.float64))
            found, unguided = guided_path_sample(velocity, critic, noise, weight, times, solver)
        assert not unguided.any()
        return np.abs(np.asarray(found) - exact).max()

    coarse, fine = error(40), error(80)
    assert fine < 0.01
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("count", [1, 4, 10])
def test_uniform_euler_is_the_guided_sampler(count):
    weight = jnp.array([0.0, 0.1, 0.3, 1.0, 2.0, 5.0])
    expected = guided_sample(velocity, quadratic, NOISE, weight, steps=count)
    found, _ = guided_path_sample(velocity, quadratic, NOISE, weight, flow_times("uniform", count))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_heun_step_by_hand():
    weight = 0.5
    v = np.asarray(velocity(NOISE, jnp.zeros(6)))
    u = v - 2 * weight * (np.clip(NOISE + v, -1, 1) - 0.4)
    ahead = np.asarray(NOISE) + u
    end = np.asarray(velocity(jnp.asarray(ahead), jnp.ones(6)))
    end = end - 2 * weight * (np.clip(ahead, -1, 1) - 0.4)  # at t = 1 the action itself
    expected = np.clip(np.asarray(NOISE) + (u + end) / 2, -1, 1)
    found, _ = guided_path_sample(velocity, quadratic, NOISE, weight, np.array([0.0, 1.0]), "heun")
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 4), ("heun", 8)])
def test_rows_without_a_gradient_go_on_unguided(solver, evaluations):
    def broken(action):
        return jnp.ones(6).at[2].set(jnp.inf) * quadratic(action)

    times = flow_times("quadratic", 4)
    found, unguided = guided_path_sample(velocity, broken, NOISE, 0.3, times, solver)
    assert unguided.tolist() == [0, 0, evaluations, 0, 0, 0]
    plain, _ = guided_path_sample(velocity, quadratic, NOISE, 0.0, times, solver)
    guided, _ = guided_path_sample(velocity, quadratic, NOISE, 0.3, times, solver)
    expected = guided.at[2].set(plain[2])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_grids():
    np.testing.assert_allclose(flow_times("uniform", 4), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(flow_times("quadratic", 4), [0, 7 / 16, 12 / 16, 15 / 16, 1])


def test_evaluations():
    assert Sampler("heun", "uniform", 5).evaluations == 10


def rows(solver, grid, shares, error):
    found = []
    for n, share in zip((2, 4, 10, 20), shares, strict=True):
        wins = (np.arange(100).reshape(2, 50) % 50 < 50 * share).astype(int)
        total = int(wins.sum())
        row = Sampler(solver, grid, n // 2 if solver == "heun" else n)._asdict()
        row |= {"evaluations": n, "error": error / n, "wins": wins.tolist(), "ms": n / 10}
        row |= {"success": total / 100, "ci95": wilson_interval(total, 100), "episodes": 100}
        found.append(row)
    return found


def example(euler, heun, quadratic, error):
    return {
        "env": "e",
        "seeds": 2,
        "weight": 0.1,
        "tune_episodes": 10,
        "rows": [
            *rows("bc", "uniform", [0.1] * 4, 1.0),
            *rows("euler", "uniform", euler, 1.0),
            *rows("heun", "uniform", heun, error),
            *rows("euler", "quadratic", quadratic, error),
        ],
    }


def bought(said):
    """What is said of Heun, and of the quadratic grid."""
    return said.split("Heun against uniform Euler")[1].split("The quadratic grid")


def test_verdicts_and_numbers_follow_the_data():
    said = steps.say(example([0.2, 0.9, 0.9, 0.9], [0.2, 0.9, 0.9, 0.9], [0.8, 0.9, 0.9, 0.9], 0.5))
    assert tells(said, 0.1, 10, 100)  # the weight, tune and test episodes
    assert tells(said, 4, 0, 0, 0, 0.4, 1)  # T = 4 is +0 (0 to 0) points from T = 10, and its ms
    heun, quadratic = bought(said)
    # Points at 2, 4, 10 and 20 evaluations; then at how many of how many actions are nearer.
    assert tells(heun, 0, 0, 0, 2, 0, 0, 0, 4) and heun.rstrip().endswith("4 of 4 counts.")
    assert "better" not in heun and "worse" not in heun
    assert tells(quadratic, 20, 2, 4, 4) and "better at 2;" in quadratic
    said = steps.say(example([0.2, 0.5, 0.9, 0.9], [0.2, 0.1, 0.9, 0.3], [0.2, 0.5, 0.9, 0.9], 2.0))
    assert "T = 10:" in said
    heun, quadratic = bought(said)
    assert "worse at 4, 20;" in heun and tells(heun, 20, 0, 4)
    assert "better" not in quadratic and "worse" not in quadratic


def test_figure_shows_every_sampler_against_both_costs():
    shares = {"bc": [0.1] * 4, "euler": [0.2, 0.3, 0.4, 0.5], "heun": [0.3] * 4, "grid": [0.4] * 4}
    data = example(shares["euler"], shares["heun"], shares["grid"], 1.0)
    panels = steps.draw(data).axes
    assert len(panels) == 2
    for axes, costs in zip(panels, ([2, 4, 10, 20], [0.2, 0.4, 1, 2]), strict=True):
        assert all(draws(axes, costs, share, tolerance=0.06) for share in shares.values())
        ends = np.sort([segment[:, 1] for segment in intervals(axes)])
        wanted = [row["ci95"] for row in data["rows"]]
        np.testing.assert_allclose(np.sort(ends, 0), np.sort(wanted, 0), atol=1e-9)
