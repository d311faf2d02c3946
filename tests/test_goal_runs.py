"""Goal-conditioned runs: trained, evaluated and guided like any other, with a goal that varies."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TASK, TINY, train_and_release

import qgf
import qgf.act.rollout
from qgf.data.dataset import Dataset
from qgf.data.goals import GoalDataset
from qgf.errors import UserError
from qgf.evaluation._evaluate import evaluate
from qgf.learners import DQC
from qgf.methods.table import METHODS
from qgf.run.checkpoint import load_learner, load_record
from qgf.run.trainer import train
from qgf.tasks import find_task
from qgf.tasks._workers import Workers
from qgf.tasks.ogbench.collect import collect

ENV = "cube-single-play-oraclerep-v0"
PAPER = ("puzzle-4x6", "cube-octuple")  # the largest of each family
HEEDFUL = [name for name, m in METHODS.items() if m.kind == "test-time" and name != "bc"]
KEY = jax.random.key(0)
CHUNKS = {"chunk": 5, "discount": 0.99}


@pytest.fixture(scope="module")
def goal_run(data, run, tmp_path_factory):
    """A DQC critic for goals beside the policy of a single-task run; read-only."""
    folder = tmp_path_factory.mktemp("goals") / "run"
    train_and_release(ENV, data, folder, TINY, seeds=(3, 5), policy=run)
    return folder


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(
        qgf.act.rollout, "Workers", functools.partial(Workers, max_episode_steps=10)
    )


def test_policy_is_the_single_task_runs(run, goal_run):
    record = load_record(goal_run)
    assert record["learners"] == {"critic": "dqc"} and record["spec"]["goal"] == 3
    ours, theirs = (load_learner(folder, "policy") for folder in (goal_run, run))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_goals_are_ogbenchs(data):
    """The oracle representation of a state is what the environment calls its goal there."""
    dataset = GoalDataset(find_task(ENV).open(data), DQC.Hyper(), **CHUNKS)
    chunks = dataset.validation()
    env = qgf.make_env(ENV)
    with np.load(next(Path(data).glob("*-val.npz"))) as file:
        qpos, qvel = file["qpos"], file["qvel"]
    env.reset(seed=0)
    for row in (0, 57, 90):
        env.unwrapped.set_state(qpos[row], qvel[row])
        np.testing.assert_allclose(
            chunks.goal[row], env.unwrapped.compute_oracle_observation(), atol=1e-5
        )
    source = find_task("cube-single-play-v0").open(data)
    whole = GoalDataset(source, DQC.Hyper(), **CHUNKS).validation()
    np.testing.assert_array_equal(whole.goal, whole.chunks.obs)


def test_policy_batch_is_that_of_a_task(data):
    """So that the same seed clones the same policy, with goals or without."""
    plain = Dataset(find_task(TASK).open(data), **CHUNKS).validation()
    goals = GoalDataset(find_task(ENV).open(data), DQC.Hyper(), **CHUNKS).validation()
    a, b = (jax.device_put(chunks).sample(KEY, 64) for chunks in (plain, goals))
    np.testing.assert_array_equal(a.obs, b.obs)
    np.testing.assert_array_equal(a.action, b.action)


def test_evaluation_runs_all_goals(goal_run, short):
    result = evaluate(goal_run, [0.5], episodes=2, tune_episodes=1, slots=10)
    test = result.methods["qgf"].test.json()
    assert test["episodes"] == 2 * 5 * 2 and len(test["goals"]) == 5
    assert np.mean([goal["success"] for goal in test["goals"]]) == test["success"]
    assert {goal["episodes"] for goal in test["goals"]} == {4}


def test_goals_reach_the_critic(goal_run):
    """A batch of goals gives what each goal gives alone; without guidance goals do not matter."""
    policy = qgf.load(goal_run)
    obs = np.zeros((2, policy.spec.obs), np.float32)
    goals = np.array([[0, 0, 0], [1, -1, 0]], np.float32)
    both = policy.act(obs, goal=goals, key=KEY, weight=1.0)
    for i in range(2):
        same = policy.act(obs, goal=goals[i], key=KEY, weight=1.0)
        np.testing.assert_allclose(both[i], same[i], atol=1e-5)
        assert abs(both[i] - same[1 - i]).max() > 0 or i == 0
    assert abs(policy.act(obs, goal=goals[0], key=KEY, weight=1.0) - both)[1].max() > 1e-6
    plain = policy.act(obs, key=KEY, weight=0.0)
    np.testing.assert_array_equal(plain, policy.act(obs, goal=goals, key=KEY, weight=0.0))


@pytest.mark.parametrize("name", HEEDFUL)
def test_every_test_time_method_heeds_the_goal(name, goal_run):
    method, policy = METHODS[name], qgf.load(goal_run, method=name)
    settings = {"weight": 1.0 if method.weights else 0.0}
    settings["samples"] = 4 if method.samples != (1,) else 1
    obs = np.zeros((8, policy.spec.obs), np.float32)
    here, there = (
        policy.act(obs, goal=np.full((8, 3), shift, np.float32), key=KEY, **settings)
        for shift in (-3.0, 3.0)
    )
    assert np.isfinite(here).all() and abs(here - there).max() > 1e-4


def test_guidance_climbs_toward_the_goal_asked_for(goal_run):
    policy = qgf.load(goal_run)
    critic = jax.tree.map(lambda x: x[0], load_learner(goal_run, "critic"))
    obs = np.random.default_rng(0).normal(size=(16, policy.spec.obs)).astype(np.float32)
    for shift in (-1.0, 1.0):
        goal = np.full((16, 3), shift, np.float32)
        q = critic.bind(jnp.asarray(obs), jnp.asarray(goal))
        actions = [
            policy.act(obs, goal=goal, key=KEY, weight=w).reshape(16, -1) for w in (0.0, 1.0)
        ]
        plain, guided = (np.asarray(q(jnp.asarray(a))) for a in actions)
        assert (guided > plain).mean() > 0.9


def test_any_policy_of_the_domain_takes_the_critic(policy_run, goal_run):
    goal = np.ones(3, np.float32)
    obs = np.zeros(28, np.float32)
    guided = qgf.load(policy_run, critic=goal_run).act(obs, goal=goal, key=KEY, weight=1.0)
    own = qgf.load(goal_run).act(obs, goal=goal, key=KEY, weight=0.0)
    assert guided.shape == own.shape


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (np.zeros(4), r"a goal of cube-single-play-oraclerep-v0 must be 3 finite numbers.*\(4,\)"),
        (np.zeros((2, 3)), r"got shape \(2, 3\)"),
        (np.array([0, np.nan, 0]), "with NaN"),
        (None, "leads to goals; name one with goal=, 3 numbers"),
    ],
)
def test_wrong_goals(goal_run, goal, message):
    policy = qgf.load(goal_run)
    with pytest.raises(UserError, match=message):
        policy.act(np.zeros(28), goal=goal, key=KEY, weight=1.0)


def test_goal_where_none_is_asked_for(run):
    with pytest.raises(UserError, match=r"is of cube-single-play-singletask-task1-v0, which takes"):
        qgf.load(run).act(np.zeros(28), goal=np.zeros(3), key=KEY, weight=1.0)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (TASK, {"critic": "dqc"}, "dqc learns to reach goals, but .* is one task; use …-oraclerep"),
        (ENV, {"critic": "iql"}, "iql learns one task, which .* does not name"),
        (ENV, {"critic": "dcq"}, r"no critic 'dcq'; there are: iql,"),
        (ENV, {"method": "edp"}, "has no rewards, so there is no critic for edp"),
        ("cube-double-play-oraclerep-v0", {}, "needs cube-double-play-v0"),
    ],
)
def test_unfit_training(data, tmp_path, env, options, message):
    with pytest.raises(UserError, match=message):
        train(env, data, tmp_path / "run", TINY, **options)
    assert not (tmp_path / "run").exists()


def test_short_critic_chunk(data, tmp_path):
    with pytest.raises(UserError, match=r"critic_chunk \(3\) must be at least chunk \(5\)"):
        train(ENV, data, tmp_path / "run", TINY.having(DQC.Hyper(critic_chunk=3)))


def test_runs_of_goals_and_of_tasks_do_not_mix(run, goal_run):
    with pytest.raises(UserError, match="is of cube-single-play-oraclerep-v0 with"):
        evaluate(run, critic=goal_run)


def test_a_tasks_critic_may_guide_a_policy_trained_for_goals(run, goal_run, short):
    result = evaluate(goal_run, [0.5], critic=run, episodes=1, tune_episodes=1, slots=4)
    assert result.env == TASK and not result.methods["qgf"].test.goals


@pytest.mark.slow
@pytest.mark.parametrize("domain", PAPER)
def test_domains_of_the_paper(domain, tmp_path, short):
    collect(f"{domain}-play-v0", tmp_path / "data", 1, 1, 1, None, 0, 61)
    config = replace(TINY, steps=20, hyper=(DQC.Hyper(critic_chunk=10),))
    train_and_release(f"{domain}-play-oraclerep-v0", tmp_path / "data", tmp_path / "run", config)
    result = evaluate(tmp_path / "run", [0.5], episodes=1, tune_episodes=1, workers=1, slots=5)
    assert len(result.methods["qgf"].test.goals) == 5


@pytest.mark.slow
def test_sparse_rewards(tmp_path):
    """Of a puzzle, whose own reward counts the buttons that are not as they should be."""
    collect("puzzle-4x5-play-v0", tmp_path, 1, 1, 1, None, 0, 61)
    env, options = "puzzle-4x5-play-singletask-task1-v0", {"chunk": 5, "discount": 0.5}
    own, sparse = (
        Dataset(find_task(env).open(tmp_path, sparse=sparse), **options).validation()
        for sparse in (False, True)
    )
    unsolved = sparse.mask == 1
    assert unsolved.any() and (own.reward[unsolved] < -2).all()
    np.testing.assert_allclose(sparse.reward[unsolved], -(1 + 1 / 2 + 1 / 4 + 1 / 8 + 1 / 16))


def test_the_python_of_the_page_runs(goal_run):
    page = (Path(__file__).parent.parent / "docs/many-goals.md").read_text()
    act, batch = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(act.replace('"runs/goals"', repr(str(goal_run))), names)
    exec(batch, names)
    assert names["chunks"].shape == (2, 5, 5)
    assert not np.array_equal(names["chunks"][0], names["chunks"][1])
