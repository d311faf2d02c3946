"""The public way in: a trained run, and a user's own two functions."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import TASK, TINY, release_memory
from evaluations import evaluated

import qgf
from qgf.act.calibration import auto_weight
from qgf.act.policy import sample_actions
from qgf.core.flow import FAILED, bounded
from qgf.methods.table import METHODS, bind
from qgf.run.checkpoint import load_learner, load_record
from qgf.run.trainer import train

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def policy(run):
    return qgf.load(run, seed=5)


@pytest.fixture(scope="module")
def obs(data):
    return np.load(data / "cube-single-play-v0-000.npz")["observations"][[0, 50, 150]]


def by_hand(run, seed, obs, noise, weights):
    """The guided sampler written out, for one training seed by position."""
    take = lambda x: x[seed] if isinstance(x, jax.Array) else x  # noqa: E731
    policy, critic = (jax.tree.map(take, load_learner(run, name)) for name in ("policy", "critic"))
    obs, action = jnp.asarray(obs), noise
    for k in range(10):
        t = jnp.full(len(obs), k / 10)
        v = policy.policy(obs, action, t)
        clean = jnp.clip(action + (1 - t[:, None]) * v, -1, 1)
        g = jax.grad(lambda a: critic.target_q(obs, a).min(0).sum())(clean)
        action = action + (v + weights[:, None] * g) / 10
    return jnp.clip(action, -1, 1), lambda a: critic.target_q(obs, a).min(0)


@pytest.mark.parametrize("weight", [0.0, 0.5, np.array([0.0, 0.1, 2.0])])
def test_act_equals_sampling_by_hand(weight, policy, run, obs):
    noise = jax.random.normal(KEY, (1, 3, 25))[0]
    expected, _ = by_hand(run, 1, obs, noise, np.broadcast_to(weight, 3))
    actual = policy.act(obs, key=KEY, weight=weight)
    assert actual.shape == (3, 5, 5)
    np.testing.assert_allclose(actual, expected.reshape(3, 5, 5), atol=1e-5)


def test_samples_are_the_best_of_so_many(policy, run, obs):
    noise = jax.random.normal(KEY, (4, 3, 25))
    tries = [by_hand(run, 1, obs, noise[i], np.full(3, 0.1)) for i in range(4)]
    q = np.array([critic(actions) for actions, critic in tries])
    expected = [tries[q[:, row].argmax()][0][row] for row in range(3)]
    actual = policy.act(obs, key=KEY, weight=0.1, samples=4)
    np.testing.assert_allclose(actual.reshape(3, 25), expected, atol=1e-5)


def test_a_chunk_goes_on_from_the_one_before(policy, run, obs):
    left = np.random.default_rng(0).uniform(-0.8, 0.8, (3, 3, 5)).astype(np.float32)
    options = {"previous": left, "delay": np.array([0, 1, 3])}
    actual = policy.act(obs, key=KEY, weight=0.3, **options)
    network = jax.tree.map(
        lambda x: x[1] if isinstance(x, jax.Array) else x, load_learner(run, "policy")
    )
    critic = by_hand(run, 1, obs, jnp.zeros((3, 25)), np.zeros(3))[1]
    expected = qgf.guided_sample(
        lambda a, t: network.policy(jnp.asarray(obs), a.reshape(3, 25), t).reshape(a.shape),
        lambda a: critic(a.reshape(3, 25)),
        jax.random.normal(KEY, (1, 3, 25)).reshape(3, 5, 5),
        0.3,
        **options,
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    free = policy.act(obs, key=KEY, weight=0.3)
    assert abs(actual[2, :3] - left[2]).max() < abs(free[2, :3] - left[2]).max()
    np.testing.assert_allclose(
        policy.act(obs, key=KEY, weight=0.3, previous=left[:, :0]), free, atol=1e-6
    )


def test_a_previous_chunk_that_does_not_fit_is_refused(policy, obs):
    for previous, delay, line in (
        (np.zeros((3, 6, 5)), 0, "previous must have the shape"),
        (np.zeros((2, 2, 5)), 0, "previous must be the actions left"),
        (np.zeros((3, 2, 5)), 3, "from 0 to the 2 actions left"),
        (np.full((3, 2, 5), np.inf), 0, "previous must be finite"),
    ):
        with pytest.raises(qgf.UserError, match=line):
            policy.act(obs, key=KEY, weight=0.1, previous=previous, delay=delay)


def test_shapes(policy, obs):
    batch = policy.act(obs, key=KEY, weight=0.1)
    assert isinstance(batch, np.ndarray) and abs(batch).max() <= 1
    assert policy.act(obs[0], key=KEY, weight=0.1).shape == (5, 5)
    grid = policy.act(np.stack([obs, obs]), key=KEY, weight=np.array([[0.0] * 3, [1.0] * 3]))
    assert grid.shape == (2, 3, 5, 5)
    flat = policy.act(np.concatenate([obs, obs]), key=KEY, weight=np.array([0.0] * 3 + [1.0] * 3))
    assert grid.tobytes() == flat.tobytes()


def test_the_key_decides(policy, obs):
    first, again = (policy.act(obs, key=KEY, weight=0.1) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    other = policy.act(obs, key=jax.random.key(8), weight=0.1)
    assert abs(first - other).max() > 0.1


def test_seeds_and_checkpoints_differ(run, policy, obs):
    actions = policy.act(obs, key=KEY, weight=0.0)
    for other in (qgf.load(run), qgf.load(run, seed=5, checkpoint="20")):
        assert abs(other.act(obs, key=KEY, weight=0.0) - actions).max() > 1e-3
    with pytest.raises(qgf.UserError, match=r"no policy of seed 4; it has \[3, 5\]"):
        qgf.load(run, seed=4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"obs": np.zeros(27)}, r"must be 28 finite numbers, got shape \(27,\)"),
        ({"obs": np.float32(1)}, r"must be 28 finite numbers, got shape \(\)"),
        ({"obs": np.full(28, np.nan)}, "with NaN or infinity"),
        ({"weight": -0.1}, "at least 0, got -0.1"),
        ({"weight": float("nan")}, "at least 0, got nan"),
        ({"weight": 1e39}, "at least 0, got 1e"),
        ({"weight": np.array([0.1, -0.1, 0.0])}, "at least 0"),
        ({"weight": np.array(0.1j)}, "a weight must be real numbers"),
        ({"weight": np.zeros(2)}, r"weight has shape \(2,\) for observations of \(3,\)"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"samples": 1.5}, "samples must be at least 1 and a whole number, got 1.5"),
        ({"samples": True}, "samples must be at least 1 and a whole number, got True"),
        ({"obs": np.full(28, 1e39)}, "with NaN or infinity"),
        ({"obs": np.zeros(28, complex)}, "an observation must be real numbers, got complex128"),
        ({"obs": "observation"}, "an observation must be real numbers, got <U11"),
        ({"obs": [[0.0], [0.0, 1.0]]}, "an observation must be real numbers, setting an array"),
        ({"key": 7}, "key must be one JAX key"),
        ({"key": np.zeros(3)}, "key must be one JAX key"),
    ],
)
def test_unfit_arguments(change, message, policy, obs):
    arguments = {"obs": obs, "key": KEY, "weight": 0.1} | change
    with pytest.raises(qgf.UserError, match=message):
        # Annotations would refuse some of these; a user's call is not checked.
        reference.undecorated(policy.act)(policy, **arguments)


def test_an_observation_beyond_what_the_networks_can_compute_is_named(policy, obs):
    obs = np.stack([obs, obs])
    obs[1, 2] = 3e38
    for weight in (0.0, 0.1):
        for samples in (1, 4):
            with pytest.raises(qgf.UserError, match=r"no action for row \(1, 2\): the velocity"):
                policy.act(obs, key=KEY, weight=weight, samples=samples)
    with pytest.raises(qgf.UserError, match="no action for row 0: the velocity became NaN"):
        policy.act(obs[1, 2], key=KEY, weight=0.1)


def test_samples_without_an_action_are_never_the_best():
    """Four samples of three rows against a loop, with a critic that prefers the action 0."""
    noise = np.random.default_rng(0).uniform(0.2, 1.5, (4, 3, 2)).astype(np.float32)
    noise[[0, 2, 3], 1] = np.nan
    noise[:, 2] = np.nan

    def act(bound, noise, weight, steps):
        action, counts = bounded(noise, jnp.arange(12))
        return action, counts  # 0 for those that failed

    bound = lambda obs, goal, repeats: lambda action: -jnp.square(action).sum(-1)  # noqa: E731
    critic = SimpleNamespace(bind=bound, config=TINY, fixed_steps=False)
    method = dataclasses.replace(METHODS["bc"], roles=("critic",), act=act)
    sample = jax.jit(lambda z: sample_actions(method, {"critic": critic}, obs3, z, jnp.zeros(3)))
    obs3 = jnp.zeros((3, 1))
    actions, counts = sample(noise)
    best = min((np.clip(noise[i, 0], -1, 1) for i in range(4)), key=lambda a: np.square(a).sum())
    np.testing.assert_allclose(actions[:2], [best, np.clip(noise[1, 1], -1, 1)], rtol=1e-6)
    assert actions[2].tolist() == [0, 0]
    assert counts.tolist() == [0 + 3 + 6 + 9, 4, FAILED]


AUTO = 0.25


@pytest.fixture
def evaluated_run(run, tmp_path, monkeypatch):
    """A run evaluated with qgf, whose choice was 0.7; no measured weight differs from AUTO."""
    monkeypatch.setattr(qgf.act.policy, "auto_weight", lambda learners, record, steps: AUTO)
    copied = shutil.copytree(run, tmp_path / "run")
    evaluated(copied, 0.7)
    return copied


def default_weight(folder, obs, *, samples=1, steps=None, **options):
    """Which of three weights a policy takes by default, told by its actions."""
    policy, how = qgf.load(folder, **options), {"samples": samples, "steps": steps}
    default = policy.act(obs, key=KEY, **how)
    (found,) = (
        w
        for w in (0.0, AUTO, 0.7)
        if policy.act(obs, key=KEY, weight=w, **how).tobytes() == default.tobytes()
    )
    assert policy.default_weight(samples, steps) == found
    return found


def test_weight_chosen_by_eval_is_the_default(evaluated_run, obs, tmp_path):
    assert default_weight(evaluated_run, obs) == 0.7
    assert default_weight(evaluated_run, obs, seed=5) == 0.7
    assert default_weight(evaluated_run.rename(tmp_path / "moved"), obs) == 0.7


def test_a_chosen_weight_is_used_for_nothing_else(evaluated_run, run, other_critic, obs):
    for change in (
        {"checkpoint": "20"},
        {"critic": other_critic},
        {"method": "qfql"},
        {"samples": 2},
        {"steps": 9},
    ):
        assert default_weight(evaluated_run, obs, **change) == AUTO
    # And the other way about: what another critic chose is no choice for the run's own.
    evaluated(evaluated_run, 0.7, critic=other_critic)
    assert default_weight(evaluated_run, obs) == AUTO
    assert default_weight(evaluated_run, obs, critic=other_critic) == 0.7
    evaluated(evaluated_run, 0.7, steps=9)
    assert default_weight(evaluated_run, obs) == AUTO
    assert default_weight(evaluated_run, obs, steps=9) == 0.7
    evaluated(evaluated_run, 0.7, method="qgf+bfn", samples=4)
    assert default_weight(evaluated_run, obs, method="qgf+bfn", samples=4) == 0.7
    assert default_weight(evaluated_run, obs, method="qgf+bfn") == AUTO


def test_a_chosen_weight_does_not_survive_more_training(evaluated_run, data, obs):
    release_memory()  # training compiles programs of its own
    longer = dataclasses.replace(TINY, steps=60)
    train(TASK, data, evaluated_run, longer, seeds=(3, 5), resume=True)
    assert default_weight(evaluated_run, obs) == AUTO
    assert default_weight(evaluated_run, obs, checkpoint="40") == 0.7


def test_without_a_choice_a_guided_flow_takes_a_weight_of_its_own_scale(run, obs):
    policy = qgf.load(run, seed=5)
    default = policy.act(obs, key=KEY)
    learners = {role: load_learner(run, role, seeds=[5]) for role in ("policy", "critic")}
    weight = auto_weight(learners, load_record(run))
    assert default.tobytes() == policy.act(obs, key=KEY, weight=weight).tobytes()


def test_acting_reads_no_file(evaluated_run, obs):
    policy = qgf.load(evaluated_run)
    shutil.rmtree(evaluated_run)
    assert policy.act(obs, key=KEY).tobytes() == policy.act(obs, key=KEY, weight=0.7).tobytes()


def test_programs_are_compiled_for_few_batch_sizes_and_padding_does_not_matter(policy, monkeypatch):
    """Against the sampler on unpadded rows, with the noise of an unpadded batch."""
    rows = np.random.default_rng(0).normal(size=(300, 28)).astype(np.float32)
    weights = np.linspace(0, 0.5, 300).astype(np.float32)
    found = {}
    traced = []

    def counted(method, learners, obs, *args, **options):
        traced.append(len(obs))
        return sample_actions(method, learners, obs, *args, **options)

    monkeypatch.setattr(qgf.act.policy, "sample_actions", counted)
    for n in (1, 3, 6, 8, 300):
        found[n] = policy.act(rows[:n], key=KEY, weight=weights[:n], samples=2)
    assert traced == [1, 4, 8, 512]
    method = METHODS["qgf"]
    for n in (3, 6, 300):
        actions = found[n]
        noise = jax.random.normal(KEY, (2, n, 25))
        plain, _ = sample_actions(
            method, policy._learners, jnp.asarray(rows[:n]), noise, jnp.asarray(weights[:n])
        )
        np.testing.assert_allclose(actions.reshape(n, 25), plain, atol=1e-5)
    assert policy.act(rows[:0], key=KEY, weight=0.1).shape == (0, 5, 5)


def test_denoising_steps_are_a_choice(policy, run, obs):
    noise = jax.random.normal(KEY, (1, 3, 25))[0]
    bound = bind(policy._learners, jnp.asarray(obs))
    velocity, critic = bound["policy"], bound["critic"]
    for steps in (1, 3):
        expected = qgf.guided_sample(velocity, critic, noise, 0.5, steps=steps)
        actual = policy.act(obs, key=KEY, weight=0.5, steps=steps).reshape(3, 25)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    with pytest.raises(qgf.UserError, match="denoising steps must be at least 1 and a whole"):
        policy.act(obs, key=KEY, weight=0.5, steps=0)


@pytest.mark.parametrize("text", ["{}", "[]", "{", "\0", '{"methods": {"qgf": {"weight": 0.7}}}'])
def test_a_damaged_evaluation_is_named(text, evaluated_run, obs):
    (evaluated_run / "eval.json").write_text(text)
    policy = qgf.load(evaluated_run)
    with pytest.raises(qgf.UserError, match=r"eval\.json"):
        policy.act(obs, key=KEY)
    policy.act(obs, key=KEY, weight=0.1)


def test_acting_writes_nothing(run, obs, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    qgf.load(copied).act(obs, key=KEY)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_step_size_has_no_default_but_the_chosen(evaluated_run, obs):
    with pytest.raises(qgf.UserError, match=r"no weight was chosen for gradstep .* `qgf eval"):
        qgf.load(evaluated_run, method="gradstep").act(obs, key=KEY)
    evaluated(evaluated_run, 0.7, method="gradstep")
    assert default_weight(evaluated_run, obs, method="gradstep") == 0.7


def test_a_method_that_is_not_tuned_takes_no_weight(run, obs):
    policy = qgf.load(run, method="bfn")
    with pytest.raises(qgf.UserError, match="bfn is not tuned by a weight"):
        policy.act(obs, key=KEY, weight=0.1, samples=2)
    default = policy.act(obs, key=KEY, samples=2)
    assert default.tobytes() == policy.act(obs, key=KEY, weight=0.0, samples=2).tobytes()


def test_policy_without_critic(policy_run, other_critic, obs):
    policy = qgf.load(policy_run)
    plain = policy.act(obs, key=KEY, weight=0.0)
    for change in ({"weight": 0.1}, {"weight": 0.0, "samples": 2}):
        with pytest.raises(qgf.UserError, match="has no critic"):
            policy.act(obs, key=KEY, **change)
    both = qgf.load(other_critic)
    np.testing.assert_allclose(both.act(obs, key=KEY, weight=0.0), plain, atol=1e-6)


def test_a_users_own_functions():
    """A straight flow to obs, and a critic that wants 0.2 more."""
    obs, noise = jnp.full((4, 2), 0.3), jax.random.normal(KEY, (4, 2))
    velocity = lambda action, t: (obs - action) / (1 - t[:, None])  # noqa: E731
    critic = lambda action: -((action - obs - 0.2) ** 2).sum(-1) / 2  # noqa: E731
    np.testing.assert_allclose(qgf.euler(velocity, noise), obs, atol=1e-6)
    # The last step lands on obs + w · 0.2 / 10, whatever came before.
    actions = qgf.guided_sample(velocity, critic, noise, 1.0)
    np.testing.assert_allclose(actions, obs + 0.02, atol=1e-5)
    best = qgf.best_of_n(critic, jnp.stack([obs, obs + 0.1, obs - 0.1]))
    np.testing.assert_allclose(best, obs + 0.1)
    assert float(qgf.flow_matching_loss(velocity, obs, KEY)) < 1e-8
    with pytest.raises(AttributeError, match="no attribute 'guide'"):
        _ = qgf.guide
