"""Our environments against OGBench's own, unmodified, with which they must agree."""

import functools

import gymnasium
import numpy as np
import ogbench
import pytest

from qgf.errors import UserError
from qgf.tasks.ogbench.envs import DOMAINS, EnvName, make_env

COLLECT = {"mode": "data_collection", "terminate_at_goal": False}


@functools.cache
def box(seed):
    """The generator that `reset(seed=seed)` gives to the action space."""
    space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
    space.seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    return space


def original(name, seed, monkeypatch, **kwargs):
    """OGBench's environment; only its unseeded action space is replaced by a seeded one."""
    # Gymnasium's checker would reset once without a seed and so leave targets behind.
    kwargs["disable_env_checker"] = True
    env = ogbench.make_env_and_datasets(name, env_only=True, **kwargs)
    box.cache_clear()
    monkeypatch.setattr(type(env.unwrapped), "action_space", property(lambda self: box(seed)))
    return env


def assert_same(ours, theirs):
    assert type(ours) is type(theirs) or np.shape(ours) == np.shape(theirs)
    np.testing.assert_array_equal(ours, theirs)


def assert_same_info(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in theirs:
        if theirs[key] is not None:
            assert_same(ours[key], theirs[key])


def assert_same_rollout(ours, theirs, actions, seed):
    observation, info = theirs.reset(seed=seed)
    our_observation, our_info = ours.reset(seed=seed)
    assert our_observation.dtype == observation.dtype
    assert our_observation.tobytes() == observation.tobytes()
    assert_same_info(our_info, info)
    ends = 0
    for action in actions:
        theirs_now, ours_now = theirs.step(action), ours.step(action)
        assert ours_now[0].tobytes() == theirs_now[0].tobytes()
        assert ours_now[1:4] == theirs_now[1:4]
        assert_same_info(ours_now[4], theirs_now[4])
        assert_same(ours.unwrapped.data.qpos, theirs.unwrapped.data.qpos)
        assert_same(ours.unwrapped.data.qvel, theirs.unwrapped.data.qvel)
        if theirs_now[2] or theirs_now[3]:
            ends += 1
            break
    return ends


def wander(steps, seed=0):
    """Random actions that hold their direction, so that the arm meets things."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.uniform(-1, 1, (steps // 10, 5)), 10, axis=0).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        "cube-single-play-singletask-task2-v0",
        "cube-double-play-singletask-v0",
        "scene-noisy-singletask-task4-v0",
        "puzzle-3x3-play-singletask-task1-v0",
        "scene-play-oraclerep-v0",
        "cube-triple-play-v0",
    ],
)
def test_task_mode_equals_ogbench(name, monkeypatch):
    theirs = original(name, 5, monkeypatch)
    ours = make_env(name)
    options = {} if "singletask" in name else {"options": {"task_id": 3}}
    theirs.reset = functools.partial(theirs.reset, **options)
    ours.reset = functools.partial(ours.reset, **options)
    assert_same_rollout(ours, theirs, wander(300), seed=5)


@pytest.mark.parametrize("domain", ["cube-single", "cube-double", "scene", "puzzle-3x3"])
def test_random_rollouts_equal_ogbench(domain, monkeypatch):
    theirs = original(f"{domain}-play-v0", 1, monkeypatch, max_episode_steps=301, **COLLECT)
    ours = make_env(f"{domain}-v0", max_episode_steps=301, **COLLECT)
    assert assert_same_rollout(ours, theirs, wander(310), seed=1) == 1  # both truncate


def test_solved_task_terminates_as_ogbench(monkeypatch):
    name = "puzzle-4x4-play-singletask-task1-v0"
    theirs, ours = original(name, 0, monkeypatch), make_env(name)
    for env in (ours, theirs):
        env.reset(seed=0)
        env.unwrapped._cur_button_states = env.unwrapped._target_button_states.copy()
    for action in np.zeros((3, 5)):
        expected, actual = theirs.step(action), ours.step(action)
        assert actual[1:4] == expected[1:4]
    # Success is judged before a step, on the state left by the one before.
    assert actual[2] and actual[4]["success"]


def test_lost_cube_is_put_back_as_ogbench_does(monkeypatch):
    name = "scene-play-singletask-task2-v0"
    theirs, ours = original(name, 2, monkeypatch), make_env(name)
    for env in (ours, theirs):
        env.reset(seed=2)
        qpos, qvel = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
        qpos[14:17] = [0.4, 2.0, 0.02]
        env.unwrapped.set_state(qpos, qvel, np.array([0, 1]))
    for action in wander(20):
        expected, actual = theirs.step(action), ours.step(action)
        assert actual[0].tobytes() == expected[0].tobytes()
    assert abs(actual[4]["privileged/block_0_pos"][1]) < 0.5


@pytest.mark.parametrize("name", ["cube-double-play-v0", "scene-play-v0", "puzzle-3x3-play-v0"])
def test_colours_before_rendering_equal_ogbench(name, monkeypatch):
    theirs, ours = original(name, 0, monkeypatch, **COLLECT), make_env(name, **COLLECT)
    assert_same_rollout(ours, theirs, wander(100, seed=3), seed=0)
    other = make_env(name, **COLLECT)  # whose colours must not show
    other.reset(seed=1)
    drawn = []
    # Drawing needs a graphics driver; what would be drawn does not.
    base = type(theirs.unwrapped).__mro__[1]
    monkeypatch.setattr(base, "render", lambda self, *a, **k: drawn.append(self))
    other.unwrapped.render()
    ours.unwrapped.render()
    assert drawn == [other.unwrapped, ours.unwrapped]
    a, b = ours.unwrapped, theirs.unwrapped
    for field in ("geom_rgba", "mat_rgba"):
        assert_same(getattr(a.model, field), getattr(b.model, field))
    for field in ("geom_xpos", "geom_xmat", "cam_xpos", "light_xpos"):
        assert_same(getattr(a.data, field), getattr(b.data, field))


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("cube-double-v0", {}),
        ("cube-single-singletask-task1-v0", {}),
        ("scene-singletask-task2-v0", {}),
        ("scene-v0", COLLECT),
        ("puzzle-3x3-v0", COLLECT),
    ],
)
def test_seed_determines_the_episode(name, kwargs):
    def rollout(env):
        observation, info = env.reset(seed=7)
        rows, infos = [observation, env.action_space.sample()], [info]
        for action in wander(50, seed=2):
            observation, reward, *_, info = env.step(action)
            rows.append(np.append(observation, reward))
            infos.append(info)
        return rows, infos

    used = make_env(name, **kwargs)
    used.reset(seed=1)
    for action in wander(120, seed=4):
        used.step(action)
    np.random.seed(3)
    rows, infos = rollout(make_env(name, **kwargs))
    again, infos_again = rollout(used)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(rows, again, strict=True))
    for a, b in zip(infos, infos_again, strict=True):
        assert_same_info(a, b)


def test_environments_of_one_process_are_independent():
    a, b = make_env("scene-v0", **COLLECT), make_env("scene-v0", **COLLECT)
    a.reset(seed=0)
    alone = [a.step(action)[0] for action in wander(30)]
    a.reset(seed=0)
    b.reset(seed=1)
    beside = []
    for action in wander(30):
        beside.append(a.step(action)[0])
        b.step(-action)
    assert_same(beside, alone)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("cube-single-play-v0", EnvName("cube-single", "play")),
        ("scene-v0", EnvName("scene")),
        ("puzzle-4x5-noisy-singletask-v0", EnvName("puzzle-4x5", "noisy", True)),
        ("cube-octuple-singletask-task3-v0", EnvName("cube-octuple", None, True, 3)),
        ("scene-play-oraclerep-v0", EnvName("scene", "play", oraclerep=True)),
    ],
)
def test_names(name, expected):
    parsed = EnvName.parse(name)
    assert parsed == expected
    assert parsed.env_id in gymnasium.registry
    if parsed.type:
        assert parsed.dataset == f"{parsed.domain}-{parsed.type}-v0"
    else:
        with pytest.raises(UserError, match=f"{parsed.domain}-play-v0"):
            _ = parsed.dataset


def test_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cube-triple-play-v0'"):
        make_env("cube-tripple-play-v0")
    with pytest.raises(UserError, match="no environment 'humanoid'"):
        EnvName.parse("humanoid")


def test_every_domain_is_registered():
    assert all(f"{domain}-v0" in gymnasium.registry for domain in DOMAINS)
