"""Gymnasium environments as tasks: by id, by factory, with their own spaces and rewards."""

import json
import sys
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from test_own_data import TINY

import qgf
from qgf.cli import main
from qgf.comparison import Plan, protocol, run_episodes, variant
from qgf.data import Fields, convert, from_arrays
from qgf.data.recorded import Recorded
from qgf.errors import UserError
from qgf.evaluation import evaluate, format_result
from qgf.run import read_evaluation, task_of, write_evaluation
from qgf.tasks import find_task
from qgf.tasks._workers import Workers

PENDULUM = "gymnasium:Pendulum-v1"


def play(task, episodes, steps):
    """Random episodes of an environment, in D4RL's layout."""
    env, rng = task.make(), np.random.default_rng(0)
    rows = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        for step in range(steps):
            action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
            after, reward, terminated, *_ = env.step(action)
            rows.append((obs, action, reward, after, terminated, step == steps - 1))
            obs = after
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return from_arrays(**dict(zip(names, columns, strict=True)))


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    out = tmp_path_factory.mktemp("pendulum") / "run"
    return qgf.train(PENDULUM, play(find_task(PENDULUM), 4, 20), out, TINY, seeds=(0, 1))


def test_the_environment_gets_actions_in_its_own_units(pendulum):
    """And returns are sums of its own rewards: replayed by hand, step for step."""
    result = evaluate(pendulum.path, (0.1,), episodes=2, tune_episodes=1, slots=2, workers=1)
    arm = result.methods["bc"].test.json()
    assert result.measure.name == "return" and "success" not in arm
    assert arm["length"] == 200 and -2000 < arm["return"] < 0
    low, high = arm["return_ci95"]
    assert low <= arm["return"] <= high
    best = max(result.methods["qgf"].settings, key=lambda row: row.tune.return_)
    assert result.methods["qgf"].weight == best.weight
    gain = best.test.return_ - arm["return"]
    assert result.methods["qgf"].test.difference == pytest.approx(gain, abs=1e-3)
    write_evaluation(pendulum.path, result)
    assert read_evaluation(pendulum.path).measure.name == "return"
    assert f"{arm['return']:.4g}" in format_result(result)


def test_a_chunk_is_played_in_the_units_of_the_data(pendulum):
    """The actions that the environment gets are those that the policy gives, step for step."""
    policy = qgf.load(pendulum.path)
    env = find_task(PENDULUM).make()
    obs, _ = env.reset(seed=3)
    chunk = policy.act(obs, key=jax.random.key(0), weight=0.0)
    total = sum(env.step(action)[1] for action in chunk)
    with Workers(find_task(PENDULUM), 1, 1) as pool:
        pool.request({0: ("reset", {"seed": 3})})
        reply = pool.request({0: ("act", chunk)})[0]
    assert reply.reward == pytest.approx(total) and reply.success is None
    assert np.abs(chunk).max() <= 2.0


FACTORY = """
import gymnasium, numpy as np

class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({
        "position": gymnasium.spaces.Box(-9, 9, (2,)), "goal": gymnasium.spaces.Box(-9, 9, (1,)),
    })
    action_space = gymnasium.spaces.Box(-2, 2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}

    def seen(self):
        return {"position": self.at, "goal": np.ones(1)}

    def step(self, action):
        self.at = self.at + 0.1 * action
        near = bool(self.at.min() > 0.7)
        return self.seen(), -1.0 + near, near, False, {"is_success": near}

def reach(**kwargs):
    return gymnasium.wrappers.TimeLimit(Reach(), 30)

def broken():
    raise ValueError("no robot")

def nothing():
    return 7

class Broken(Reach):
    def __init__(self, where):
        self.where = where

    def reset(self, **kwargs):
        if self.where == "reset":
            raise ValueError("no robot\\nat all")
        return super().reset(**kwargs)

    def step(self, action):
        if self.where == "step":
            raise ConnectionError("lost")
        obs, _, *rest = super().step(action)
        return obs, float("nan"), *rest

def fails_in_reset():
    return Broken("reset")

def fails_in_step():
    return Broken("step")

def pays_nan():
    return Broken("")

def leaves():
    raise SystemExit("no licence")

def many():
    return gymnasium.vector.SyncVectorEnv([reach])

def without_spaces():
    class Bare(gymnasium.Env):
        pass
    return Bare()

def with_spaces(**spaces):
    env = Reach()
    for name, space in spaces.items():
        setattr(env, f"{name}_space", space)
    return env

def discrete():
    return with_spaces(action=gymnasium.spaces.Discrete(2))

def buttons():
    return with_spaces(action=gymnasium.spaces.MultiBinary(2))

def whole_numbers():
    return with_spaces(action=gymnasium.spaces.Box(0, 9, (2,), int))

def far():
    return with_spaces(observation=gymnasium.spaces.Box(-1, 1, (4,)))

def three_joints():
    return with_spaces(action=gymnasium.spaces.Box(-1, 1, (3,)))

def table():
    return with_spaces(action=gymnasium.spaces.Box(-1, 1, (2, 1)))

def unbounded():
    return with_spaces(action=gymnasium.spaces.Box(-np.inf, np.inf, (2,)))

def words():
    text = gymnasium.spaces.Dict({"word": gymnasium.spaces.Text(5)})
    return with_spaces(observation=text)

def digits():
    text = gymnasium.spaces.Dict({"word": gymnasium.spaces.Text(1, charset="0123456789")})
    return with_spaces(observation=text)

def pairs():
    return with_spaces(observation=gymnasium.spaces.Tuple([gymnasium.spaces.Box(-1, 1, (2,))]))

class Grows(Reach):
    def step(self, action):
        self.at = np.append(self.at, 0.0)
        return self.seen(), 0.0, False, False, {}

def grows():
    return Grows()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield "my_envs"
    sys.modules.pop("my_envs", None)


def test_parts_of_a_dict_observation_in_the_order_that_is_asked_for(module):
    first, second = (
        find_task(f"{module}:reach", obs).make().reset(seed=3)[0]
        for obs in (("observations/goal", "observations/position"), ())
    )
    assert first.dtype == np.float32 and first.shape == (3,)
    np.testing.assert_array_equal(first, second)  # sorted, goal comes first too
    (third, _) = find_task(f"{module}:reach", ("position",)).make().reset(seed=3)
    np.testing.assert_array_equal(third, first[1:])


DOORS = {"module": "my_envs:{}", "gymnasium": "gymnasium:my/{}-v0"}
BAD = {  # what the factory gives: what is said, for each door where they differ
    "broken": "makes no environment: no robot",
    "leaves": "makes no environment: no licence",
    "nothing": (
        "gave int, not a gymnasium.Env; let it return",
        "must inherit from the gymnasium.Env",
    ),
    "many": ("gave SyncVectorEnv, not a", "must inherit from the gymnasium.Env"),
    "rech": (
        "no function 'rech'. Did you mean 'reach'",
        "module 'my_envs' has no attribute 'rech'",
    ),
    "without_spaces": ("has NoneType actions", "must specify an action space"),
    "discrete": "has Discrete actions; a flow policy needs continuous",
    "buttons": "has MultiBinary actions; a flow policy needs continuous",
    "whole_numbers": "has actions of int64; a flow policy needs real numbers",
    "words": "has observations that are no numbers: got <U",
    "digits": "has observations that are no numbers: got <U1",
    "pairs": "has Tuple observations; they must be a Box, or a Dict",
    "three_joints": "has actions of shape (3,), but those in",
    "table": "has actions of shape (2, 1), but those in",
    "far": "has observations of shape (4,), but those in",
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("factory", BAD)
def test_bad_environments(factory, door, module, tmp_path, capsys):
    """One line before training, and nothing is written."""
    said = BAD[factory] if isinstance(BAD[factory], str) else BAD[factory][[*DOORS].index(door)]
    np.savez("data.npz", **three_numbers())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gymnasium.envs.registration, "registry", {})
        gymnasium.register(f"my/{factory}-v0", entry_point=f"my_envs:{factory}")
        fails_to_train(DOORS[door].format(factory), said, capsys)


@pytest.mark.parametrize(
    "name, said",
    [
        ("my_env:reach", "cannot import 'my_env'"),
        ("quits:reach", "cannot import 'quits' of 'quits:reach': SystemExit: 3"),
        ("my_envs:", "has no function ''"),
        (":reach", "cannot import ''"),
        ("gymnasium:", "makes no environment: Malformed environment ID"),
        ("gymnasium:Pendulm-v1", "doesn't exist. Did you mean: `Pendulum`?"),
    ],
)
def test_names_of_no_environment(name, said, module, capsys):
    np.savez("data.npz", **three_numbers())
    Path("quits.py").write_text("raise SystemExit(3)")
    fails_to_train(name, said, capsys)


def three_numbers():
    """Three episodes in which the observation is of three numbers."""
    rng = np.random.default_rng(0)
    widths = {"observations": 3, "actions": 2}
    drawn = {name: rng.uniform(-2, 2, (30, width)) for name, width in widths.items()}
    return {**drawn, "rewards": rng.normal(size=30), "timeouts": np.arange(30) % 10 == 9}


SMALL = ["--steps", "1", "--width", "2", "--depth", "1", "--chunk", "2", "--batch-size", "2"]


def fails_to_train(env, said, capsys, *options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--env", env, "--data", "data.npz", "--out", "out", *SMALL, *options])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == ""
    assert said in printed.err and printed.err.count("\n") == 1
    assert not Path("out").exists()


def test_parts_that_a_dict_has_not(module):
    with pytest.raises(UserError, match="has no 'speed'; it has goal, position: name its parts"):
        find_task(f"{module}:reach", ("speed",)).make()


def test_unbounded_actions(module, capsys):
    """The space gives no range: the data do, or they must lie in [-1, 1]."""
    np.savez("data.npz", **three_numbers())
    said = "actions leave [-1, 1] in dimension 0; normalize them: --normalize-actions range"
    fails_to_train(f"{module}:unbounded", said, capsys, "--normalize-actions", "none")
    find_task(f"{module}:unbounded").check(Recorded(Path("data.npz"), Fields()))


def test_success_is_what_info_says(module):
    with Workers(find_task(f"{module}:reach"), 1, 1) as pool:
        pool.request({0: ("reset", {"seed": 0})})
        far = pool.request({0: ("act", np.full((1, 2), -2.0))})[0]
        near = pool.request({0: ("act", np.full((30, 2), 2.0))})[0]
    assert far.success is False and near.success is True and near.done and near.length < 30


@pytest.mark.parametrize("rule, expected", [("return:-5000", 1.0), ("return:0", 0.0)])
def test_a_return_may_be_what_success_is(rule, expected, pendulum):
    options = {"methods": ("bc",), "episodes": 2, "tune_episodes": 1, "workers": 1}
    result = evaluate(pendulum.path, success=rule, **options)
    assert result.measure.name == "success"
    assert result.methods["bc"].test.success == expected


def test_a_key_that_never_appears(pendulum):
    with pytest.raises(UserError, match="never says 'solved' in info"):
        evaluate(pendulum.path, (0.1,), success="solved", episodes=1, workers=1)
    with pytest.raises(UserError, match="must be a number, got 'return:much'"):
        evaluate(pendulum.path, (0.1,), success="return:much", episodes=1, workers=1)


@pytest.mark.parametrize(
    "name, message",
    [
        (PENDULUM, r"observations of shape \(3,\), but those in .* have 2 numbers"),
        ("my_envs:nothing", "gave int, not a gymnasium.Env"),
    ],
)
def test_data_of_another_environment_are_refused_before_training(name, message, module, tmp_path):
    data = play(find_task(f"{module}:reach", ("position",)), 3, 10)
    with pytest.raises(UserError, match=message):
        qgf.train(name, data, tmp_path / "run", TINY)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_meets_an_environment_that_has_changed(module, tmp_path):
    data = play(find_task(f"{module}:reach", ("position",)), 3, 10)
    arrays = {"observations/position": data.column("observations")[~data.last]}
    run = qgf.train(f"{module}:reach", in_parts(arrays), tmp_path / "run", TINY)
    path = run.path / "config.json"
    record = json.loads(path.read_text()) | {"env": PENDULUM, "checksum": "edited"}
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"observations of shape \(3,\), the run takes \(2,\)"):
        evaluate(run.path, (0.1,), episodes=1, workers=1)


def in_parts(observations):
    """Three episodes of ten random actions that see a dictionary."""
    rng, rows = np.random.default_rng(1), 30
    return from_arrays(
        {name.removeprefix("observations/"): array for name, array in observations.items()},
        rng.uniform(-2, 2, (rows, 2)).astype(np.float32),
        rewards=rng.normal(size=rows),
        timeouts=np.arange(rows) % 10 == 9,
    )


class Asked(Exception):
    """An environment that was to be made; its argument is the task."""


def asked_by_a_comparison(run, out):
    """The environment in which a comparison that holds this run acts."""

    def workers(task, *sizes):
        raise Asked(task)

    env = run.record["env"]
    plan = Plan(out / "compared", {}, TINY, (0,), {"test": 1})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Asked) as asked:
        patch.setattr(protocol, "run_folder", lambda *what: run.path)
        patch.setattr(protocol, "Workers", workers)
        run_episodes(plan, env, "test", {"bc": variant(plan, "bc", env, [(0.0, 1)])})
    return asked.value.args[0].make()


@pytest.mark.parametrize(
    "obs, shift",
    [
        (None, [5, -3, 1]),  # as they were given, not sorted
        (("observations/goal", "observations/position"), [1, 5, -3]),
        (("observations/position", "observations/goal"), [5, -3, 1]),
    ],
)
def test_the_order_of_a_dict_is_kept_from_the_data_to_the_environment(obs, shift, module, tmp_path):
    """In memory, converted, and asked for: statistics, the run's task and a second run agree."""
    parts = {"position": np.tile([5.0, -3.0], (30, 1)), "goal": np.ones((30, 1))}
    data, fields = in_parts(parts), Fields(obs=obs)
    run = qgf.train(f"{module}:reach", data, tmp_path / "run", TINY, fields=fields)
    convert(data, fields, tmp_path / "data")
    again = qgf.train(f"{module}:reach", tmp_path / "data", tmp_path / "again", TINY)
    for each in (run, again):
        assert each.record["normalization"]["observation"]["shift"] == shift
        first = task_of(each.record).make().reset(seed=3)[0]
        goal = shift.index(1)
        assert first[goal] == 1 and np.abs(np.delete(first, goal)).max() < 1
    assert np.array_equal(asked_by_a_comparison(again, tmp_path).reset(seed=3)[0], first)
    other = Fields(obs=("observations/goal", "observations/position"))
    if shift[0] == 5:
        with pytest.raises(UserError, match=r"has observations .*, this run"):
            out = tmp_path / "other"
            qgf.train(f"{module}:reach", data, out, TINY, fields=other, policy=run.path)


@pytest.mark.parametrize(
    "name, message",
    [
        ("fails_in_reset", "of my_envs:fails_in_reset raised ValueError in reset: no robot"),
        ("fails_in_step", "of my_envs:fails_in_step raised ConnectionError in step: lost"),
        ("pays_nan", "of my_envs:pays_nan gives NaN or infinity"),
        ("grows", r"gives observations of shape \(4,\), but its space says \(3,\)"),
    ],
)
def test_what_an_environment_raises_is_told_in_one_line(name, message, module):
    task = find_task(f"{module}:{name}")
    with Workers(task, 1, 1) as pool, pytest.raises(UserError, match=message):
        pool.request({0: ("reset", {"seed": 0})})
        pool.request({0: ("act", np.zeros((1, 2), np.float32))})
