"""Tests of the example, in its own environment: python -m pytest examples/metaworld"""

import numpy as np
import pytest

pytest.importorskip("metaworld")

from examples.metaworld import collect, tasks

FACTORIES = (
    tasks.button_press,
    tasks.door_open,
    tasks.drawer_open,
    tasks.hammer,
    tasks.lever_pull,
    tasks.plate_slide,
)


def play(env, seed):
    """Observations of an episode of actions that the seed fixes."""
    rng = np.random.default_rng(seed)
    rows, ended = [env.reset(seed=seed)[0]], False
    while not ended and len(rows) < 40:
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 4))
        assert terminated == bool(info["success"]) and reward == terminated - 1
        rows.append(obs)
        ended = terminated or truncated
    return np.array(rows)


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_a_seed_fixes_an_episode_whatever_ran_before_it(factory):
    fresh, used = factory(), factory()
    other = play(used, 1)
    first, again = play(fresh, 2), play(used, 2)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()


def test_recorded_episodes_are_those_of_the_environment(monkeypatch):
    """Replayed by hand: the same states, paid -1 per step until the last, which solves the task."""
    monkeypatch.setattr(collect, "NOISE", 0.1)
    data = collect.collect("drawer-open", 2, seed=3)
    end = 1 + int((data["terminals"] | data["timeouts"]).argmax())
    seed = np.random.default_rng([3, 0])
    seed.uniform()
    env = tasks.drawer_open()
    obs, _ = env.reset(seed=int(seed.integers(2**31)))
    for t in range(end):
        np.testing.assert_array_equal(data["observations"][t], obs.astype(np.float32))
        obs, reward, terminated, truncated, _ = env.step(data["actions"][t])
        assert data["rewards"][t] == reward and data["terminals"][t] == terminated
        assert data["timeouts"][t] == truncated
    assert data["terminals"][end - 1] and end < tasks.STEPS
    np.testing.assert_array_equal(data["next_observations"][end - 1], obs.astype(np.float32))


def test_an_episode_that_is_not_solved_stops_and_does_not_end(monkeypatch):
    monkeypatch.setattr(collect, "RANDOM", 1.0)
    data = collect.collect("hammer", 1, seed=0)
    assert len(data["rewards"]) == tasks.STEPS and (data["rewards"] == -1).all()
    assert not data["terminals"].any() and data["timeouts"].tolist() == [False] * 124 + [True]
