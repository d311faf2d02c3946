"""The critics study: returns of real episodes by hand, accuracy against SciPy, words, figure."""

import copy
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from telling import draws, tells

from qgf.comparison import Plan
from qgf.config import Config, Spec
from qgf.learners import IQL, LEARNERS
from studies import _rollouts, critics


class Corridor(gymnasium.Env):
    """The state counts steps; the first action component says whether the goal is reached."""

    def __init__(self, limit):
        self.limit = limit

    def reset(self, seed):
        self.at, self.solved = 100 * seed, False
        self.steps = 0
        return np.array([self.at]), {}

    def step(self, action):
        """As OGBench's: the reward is of the state before the action."""
        reward, terminated = (0.0, True) if self.solved else (-1.0, False)
        self.solved = action[0] > 0
        self.steps += 1
        self.at += 1
        return np.array([self.at]), reward, terminated, self.steps == self.limit, {}


def act(solving_turn):
    def chunk(obs, turn):
        action = np.full((2, 1), -0.5)
        action[0] = 0.5 if turn == solving_turn else -0.5
        return action

    return chunk


def test_returns_of_a_solved_episode():
    # Solved by the first action of chunk 2, that is in state 5: rewards -1 × 5, then 0.
    chunks = _rollouts.episode(Corridor(50), 3, act(2), 200, 0.5)
    assert chunks.obs.ravel().tolist() == [300, 302, 304]
    assert chunks.action.tolist() == [[-0.5, -0.5], [-0.5, -0.5], [0.5, -0.5]]
    returns = [-sum(0.5**i for i in range(left)) for left in (5, 3, 1)]
    np.testing.assert_allclose(chunks.returns, returns)


def test_returns_of_an_episode_that_is_cut_off():
    # 7 steps, the last inside a chunk; -1 forever is -2. Only chunks that begin before step 4.
    chunks = _rollouts.episode(Corridor(7), 0, act(99), 4, 0.5)
    assert chunks.obs.ravel().tolist() == [0, 2]
    assert chunks.returns.tolist() == [-2, -2]
    # All are equal to the last bit, or ranks would find an order in them.
    long = _rollouts.episode(Corridor(498), 0, act(999), 200, 0.99)
    assert len(long.returns) == 100 and set(long.returns.tolist()) == {-100.0}


def test_accuracy_equals_scipy():
    random = np.random.default_rng(0)
    returns = random.integers(-5, 0, 40).astype(np.float32)  # with ties
    q = (returns + random.normal(2, 1, 40)).round(1)
    found = _rollouts.accuracy(q, returns)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(q, returns).statistic)
    assert found["bias"] == pytest.approx(q.mean() - returns.mean(), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt(((q - returns) ** 2).mean()))
    assert found["return"] == pytest.approx(returns.mean()) and found["chunks"] == 40
    assert _rollouts.accuracy(q, np.full(40, -5, np.float32))["spearman"] is None


def test_every_seed_is_asked_for_its_own_chunks():
    critic = SimpleNamespace(bind=lambda obs: lambda action: obs[:, 0] + action[:, 0])
    one, two = (
        _rollouts.Chunks(np.full((n, 1), x), np.zeros((n, 1)), np.arange(n, dtype=np.float32))
        for n, x in ((3, 1.0), (4, 5.0))
    )
    found = _rollouts.accuracies(critic, [one, two], [two, two])
    assert found["cloned"]["bias"] == pytest.approx(((1 - 1) + (5 - 1.5)) / 2)
    assert found["guided"]["bias"] == pytest.approx(5 - 1.5)
    assert (found["cloned"]["chunks"], found["guided"]["chunks"]) == (7, 8)
    assert found["cloned"]["spearman"] is None
    known = _rollouts.mean([{"a": None, "chunks": 1}, {"a": 2.0, "chunks": 2}])
    assert known == {"a": 2.0, "chunks": 3}


def test_the_averaged_critic_is_the_mean_of_the_same_networks():
    config = Config(width=8, depth=2)
    critic = LEARNERS["iql"].create(Spec(3, 2, 1), config, jax.random.key(0))
    obs, action = jax.random.normal(jax.random.key(1), (2, 5, 3))[0], jnp.zeros((5, 2))
    changed = critics.averaged({"critic": critic, "policy": None})["critic"]
    both = np.asarray(critic.target_q(obs, action))
    np.testing.assert_allclose(changed.bind(obs)(action), both.mean(0), rtol=1e-6)
    np.testing.assert_allclose(critic.bind(obs)(action), both.min(0), rtol=1e-6)


def test_other_expectiles_are_trained_on_the_same_policy(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(critics, "run_folder", lambda plan, what, env: tmp_path / what)
    monkeypatch.setattr(critics, "train", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(critics, "load_learner", lambda run, role: (run, role))
    monkeypatch.setattr(critics, "learners", lambda plan, name, env: name)
    plan = Plan(tmp_path, {}, Config(), (0,), {})
    loads = critics._loads(plan, "laptop")
    assert [*loads] == [
        "qgf",
        "critic-mean",
        "critic-expectile-0.7",
        "critic-expectile-0.97",
        "qgf-monte-carlo",
    ]
    folder = tmp_path / "critics" / "expectile-0.97"
    held = loads["critic-expectile-0.97"]()
    assert held == {"policy": (folder, "policy"), "critic": (folder, "critic")}
    (((_, env, path, config), options),) = calls
    assert (env, path, options) == (critics.ENV, folder, {"policy": tmp_path / "policy"})
    assert config == plan.config.having(IQL.Hyper(expectile=0.97))


@pytest.mark.parametrize(
    ("preset", "step", "there"),
    [("laptop", 10_000, False), ("laptop", 20_000, True), ("smoke", 20_000, False)],
)
def test_the_bootstrapped_critic_has_part_where_it_is_trained(
    preset, step, there, tmp_path, monkeypatch
):
    run = tmp_path / "runs/cube-single-play/task2/qam-bootstrapped"
    state = run / f"checkpoints/{step:08d}/state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    plan = Plan(tmp_path, {}, Config(steps=20_000), (0,), {})
    assert ("qgf-bootstrapped" in critics._loads(plan, preset)) == there
    assert "qgf-bootstrapped" in critics._loads(plan, "paper")


def row(name, success, gain, spearman):
    test = {"success": success, "ci95": (success - 0.1, success + 0.1), "episodes": 50}
    right = {"spearman": spearman, "bias": 3.5, "rmse": 7.0, "return": -60.0, "chunks": 9}
    label = critics._label(name)
    parts = {"cloned": right, "guided": {**right, "bias": -4.5}}
    return {"name": name, "label": label, "weight": 0.1, "test": test, "over_iql": gain, **parts}


@pytest.fixture
def data():
    none = (0.0, (0.0, 0.0))
    rows = [
        row("qgf", 0.5, none, 0.5),
        row("critic-expectile-0.7", 0.3, (-0.2, (-0.3, -0.1)), 0.3),
        row("qgf-monte-carlo", 0.4, (-0.1, (-0.2, 0.05)), 0.4),
        row("qgf-bootstrapped", 0.7, (0.2, (0.1, 0.3)), 0.7),
    ]
    facts = {"env": critics.ENV, "training_seeds": 2, "rollouts": 20, "discount": 0.99}
    return {**facts, "bc": rows[0]["test"], "critics": rows}


def test_verdicts_and_numbers_follow_the_data(data):
    said = critics.say(data)
    assert tells(said, -60, -100)  # the cloned policy's mean return, and that of never solving
    assert tells(said, 20, 0.9, 95, 10, 30) and "unlike the paper" not in said
    assert tells(said, 1.00, 4) and "do not succeed more" not in said  # ranks of 4 critics
    (differing,) = [part for part in said.split(". ") if part.startswith("Of IQL 0.9 differ")]
    assert differing.split(": ")[1] == "IQL 0.7, bootstrapped"
    assert tells(said, 0.4, 3.5, 7, 0.4, -4.5, 7)

    turned = copy.deepcopy(data)
    turned["critics"][3]["over_iql"] = (-0.1, (-0.2, -0.05))
    for one, spearman in zip(turned["critics"], (0.4, 0.7, 0.5, 0.3), strict=True):
        one["cloned"]["spearman"] = spearman
    said = critics.say(turned)
    assert "unlike the paper" in said
    assert tells(said, -1.00, 4) and "do not succeed more" in said

    # A gain whose interval holds 0 is neither.
    unsure = copy.deepcopy(data)
    unsure["critics"][3]["over_iql"] = (0.1, (-0.05, 0.2))
    said = critics.say(unsure)
    assert tells(said, 10, 0.9, 95, -5, 20)
    assert "unlike the paper" not in said and "as the paper says" not in said


def test_what_was_left_out_gets_no_verdict(data):
    del data["critics"][3]
    said = critics.say(data)
    assert "unlike the paper" not in said and "as the paper says" not in said
    assert tells(said, 1.00, 3)
    for one in data["critics"]:
        one["cloned"]["spearman"] = None
    assert not tells(critics.say(data), 1.00, 3)


def test_figure_has_what_is_known_of_every_critic(data):
    data["critics"][1]["cloned"]["spearman"] = None
    success, ranks, bias = critics.draw(data).axes
    at = [0, 1, 2, 3]
    assert draws(success, [0.5, 0.3, 0.4, 0.7], at)
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in success.lines)  # unguided BC
    drawn = [line.get_xdata() for line in ranks.lines]
    np.testing.assert_array_equal(drawn, [[0.5, np.nan, 0.4, 0.7], [0.5, 0.3, 0.4, 0.7]])
    assert draws(bias, [3.5] * 4, at) and draws(bias, [-4.5] * 4, at)
    labels = [text.get_text() for text in success.get_yticklabels()]
    assert labels == [critics._label(row["name"]) for row in data["critics"]]
