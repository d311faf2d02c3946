"""Guidance in PyTorch against closed forms, the sampler in JAX, and critics in JAX."""

import shutil
import subprocess
import sys
import typing
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import torch
from test_guidance import SLOPES, closed_form_sample, rows
from test_own_data import TINY, arrays

import qgf
import qgf.core
from qgf.config import Config, Spec
from qgf.core.critic import Aggregation
from qgf.data.normalization import Normalization
from qgf.errors import UserError
from qgf.files import read_record, write_record
from qgf.learners import LEARNERS
from qgf.learners._learner import EnsembleCritic
from qgf.run import load_learner, of_seed
from qgf.run.checkpoint import config_record, save_checkpoint
from qgf.torch import (
    ESTIMATORS,
    FAILED,
    from_jax,
    guided_sample,
    guided_sample_counting,
    load_critic,
    reversed_time,
)

from test_guidance import CURVATURE, MEAN, PEAK  # isort: skip

torch.set_num_threads(1)  # what is this small only waits for others
OLD = Path(__file__).parent / "fixtures" / "version-0.1.0" / "run"
MIX = np.array([[0.8, -0.5, 0.2], [0.3, 0.9, -0.6], [-0.4, 0.1, 1.1]], np.float32)


def drawn(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def gaussian(obs):
    """The policy and critic of test_guidance, whose samples are known in closed form."""
    mean, slopes, curvature, peak = (
        torch.tensor(np.asarray(x, np.float32)) for x in (MEAN + obs, SLOPES, CURVATURE, PEAK)
    )

    def velocity(action, t):
        a = slopes[torch.round(30 * t).long()]
        return mean + torch.einsum("bij,bj->bi", a, action - t[:, None] * mean)

    def critic(action):
        away = action - peak
        return -0.5 * torch.einsum("bi,ij,bj->b", away, curvature, away)

    return velocity, critic


def bent(xp, obs):
    """A nonlinear velocity and critic, in PyTorch or JAX; many of their actions are clipped."""
    mix, obs = xp.asarray(MIX), xp.asarray(obs)
    velocity = lambda a, t: 1.5 * xp.tanh(a @ mix + obs * (1 + t[:, None]))  # noqa: E731
    critic = lambda a: xp.sum(xp.cos(a @ mix - 0.3) + xp.tanh(a + obs), -1)  # noqa: E731
    return velocity, critic


@pytest.mark.parametrize("steps", [10, 3])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_guided_actions_in_closed_form_with_a_weight_for_every_row(name, steps):
    random = np.random.default_rng(0)
    obs, noise = (random.uniform(-x, x, (20, 3)).astype(np.float32) for x in (0.1, 1.5))
    weights = np.linspace(0, 1, 20, dtype=np.float32)
    actual, unguided = guided_sample_counting(
        *gaussian(obs),
        torch.tensor(noise),
        torch.tensor(weights),
        steps=steps,
        estimator=ESTIMATORS[name],
    )
    expected = rows(partial(closed_form_sample, name, steps=steps), obs, noise, weights)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert unguided.tolist() == [0] * 20


def in_jax(name, obs, noise, weight, steps=10):
    sample = partial(qgf.core.guided_sample, steps=steps, estimator=qgf.core.ESTIMATORS[name])
    return sample(*bent(jnp, obs), jnp.asarray(noise), jnp.asarray(weight))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_actions_are_those_of_the_sampler_in_jax(name):
    obs, noise = drawn(32, 3), drawn(32, 3, seed=1, scale=1.5)
    weight = np.linspace(0, 2, 32, dtype=np.float32)
    actual = guided_sample(
        *bent(torch, obs), torch.tensor(noise), torch.tensor(weight), estimator=ESTIMATORS[name]
    )
    expected = in_jax(name, obs, noise, weight)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert 0.2 < (abs(actual) == 1).float().mean() < 0.9


def test_estimators_differ():
    functions, noise = bent(torch, drawn(32, 3)), torch.tensor(drawn(32, 3, seed=1))
    found = [guided_sample(*functions, noise, 1.0, estimator=e) for e in ESTIMATORS.values()]
    assert min((x - y).abs().max() for i, x in enumerate(found) for y in found[:i]) > 0.02


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("vector", [False, True])
def test_other_bounds_are_another_unit(name, vector):
    """In units of which 1 is 4 of the data's, ∇Q is 4 times, and a push as far 1/4 as large."""
    obs, noise = drawn(8, 3), torch.tensor(drawn(8, 3, seed=1, scale=1.5))
    velocity, critic = bent(torch, obs)
    sample = partial(guided_sample, estimator=ESTIMATORS[name])
    expected = 4 * sample(velocity, critic, noise, 0.5)
    bounds = (torch.full((3,), -4.0), torch.full((3,), 4.0)) if vector else (-4, 4)
    wide = (lambda a, t: 4 * velocity(a / 4, t)), (lambda a: critic(a / 4))
    actual = sample(*wide, 4 * noise, 0.5 * 16, bounds=bounds)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (abs(actual) == 4).any() and (abs(actual) < 3).any()


# One step from (3, 0.5) with velocity (-1, 0): the clean action (2, 0.5).
@pytest.mark.parametrize(
    "name, bounded, free",
    [("qgf", -2, -4), ("qfql", -6, -6), ("bptt", 0, -4), ("qgf-jacobian", 0, -4)],
)
def test_what_the_clip_does(name, bounded, free):
    action, velocity = torch.tensor([[3.0, 0.5]]), torch.tensor([[-1.0, 0.0]])
    for bounds, first in (((-1, 1), bounded), (None, free)):
        seen = []

        def look(*args, seen=seen):
            seen.append(ESTIMATORS[name](*args))
            return seen[-1]

        bowl = lambda a: -a.square().sum(-1)  # noqa: E731
        flow = lambda a, t: velocity + 0 * a  # noqa: E731
        found = guided_sample(flow, bowl, action, 0.1, steps=1, estimator=look, bounds=bounds)
        assert [x.tolist() for x in seen[0]] == [[[-1, 0]], [[first, -1]]]
        pushed = torch.tensor([[2 + 0.1 * first, 0.4]])
        torch.testing.assert_close(found, pushed if bounds is None else pushed.clamp(-1, 1))


def test_weight_0_is_plain_euler_and_asks_no_critic():
    velocity, _ = bent(torch, drawn(8, 3))
    noise = torch.tensor(drawn(8, 3, seed=1))
    action = noise
    for k in range(7):
        action = action + velocity(action, torch.full((8,), k / 7)) / 7
    for weight in (0.0, torch.tensor(0.0), torch.zeros(8)):
        found = guided_sample(velocity, lambda a: 1 / 0, noise, weight, steps=7)
        assert torch.equal(found, action.clamp(-1, 1))
    some = guided_sample(*bent(torch, drawn(8, 3)), noise, torch.arange(8) / 8, steps=7)
    assert torch.equal(some[0], action[0].clamp(-1, 1))


def test_time_that_runs_the_other_way():
    velocity, critic = bent(torch, drawn(8, 3))
    noise, times = torch.tensor(drawn(8, 3, seed=1)), []

    def theirs(action, t):
        times.append(float(t[0]))
        return -velocity(action, 1 - t)

    actual = guided_sample(reversed_time(theirs), critic, noise, 0.5, steps=4)
    torch.testing.assert_close(actual, guided_sample(velocity, critic, noise, 0.5, steps=4))
    assert times == [1, 0.75, 0.5, 0.25]


class Networks(torch.nn.Module):
    """A policy and a critic with an encoder each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encode = torch.nn.Linear(3, 16)
        layers = (torch.nn.Linear(16 + 4, 32), torch.nn.GELU(), torch.nn.Linear(32, 3))
        self.flow = torch.nn.Sequential(*layers)
        self.q = torch.nn.Sequential(
            torch.nn.Linear(19, 32), torch.nn.GELU(), torch.nn.Linear(32, 1)
        )

    def sample(self, obs, noise, weight, **options):
        features = self.encode(obs)
        self.flow(
            torch.cat([features, noise, noise[:, :1]], -1)
        )  # so that autocast keeps its weights
        velocity = lambda a, t: self.flow(torch.cat([features, a, t[:, None]], -1))  # noqa: E731
        critic = lambda a: self.q(torch.cat([features, a], -1))[:, 0]  # noqa: E731
        return guided_sample(velocity, critic, noise, weight, **options)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_inference_mode_autocast_and_parameters_without_gradients(name):
    networks = Networks()
    inputs = torch.tensor(drawn(16, 3)), torch.tensor(drawn(16, 3, seed=1)), 3.0
    sample = partial(networks.sample, *inputs, estimator=ESTIMATORS[name])
    expected = sample()
    assert not expected.requires_grad and all(p.grad is None for p in networks.parameters())
    with torch.inference_mode():
        assert torch.equal(sample(), expected)
        assert torch.is_inference_mode_enabled()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rough = sample()
    assert rough.dtype == torch.float32 and not torch.equal(rough, expected)
    torch.testing.assert_close(rough, expected, rtol=0, atol=0.03)
    plain = networks.sample(*inputs[:2], 0.0)
    assert (plain - expected).abs().max() > 0.1


@pytest.mark.parametrize("dtype, atol", [("float64", 1e-5), ("float16", 0.02), ("bfloat16", 0.1)])
def test_sampling_goes_on_in_the_dtype_of_the_noise(dtype, atol):
    velocity, critic = bent(torch, drawn(8, 3))
    noise, times = torch.tensor(drawn(8, 3, seed=1)), []

    def widened(action, t):
        times.append(t.dtype)
        return velocity(action.float(), t.float())

    expected = guided_sample(velocity, critic, noise, 0.5)
    dtype = getattr(torch, dtype)
    actual = guided_sample(widened, lambda a: critic(a.float()), noise.to(dtype), 0.5)
    assert actual.dtype == dtype and {*times} == {torch.promote_types(dtype, torch.float32)}
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_gradient_that_is_not_usable_leaves_its_rows_step_unguided(name, bad):
    velocity, critic = bent(torch, drawn(4, 3))
    noise = torch.tensor(drawn(4, 3, seed=1))
    slope = torch.tensor([0, bad, 0, 0], dtype=torch.float32)

    def steep(action):
        return critic(action) + torch.where(slope == 0, 0, slope * action[:, 0])

    free = {"estimator": ESTIMATORS[name], "bounds": None}  # a clip would cut the bad slope off
    actual, unguided = guided_sample_counting(velocity, steep, noise, 0.5, **free)
    assert unguided.tolist() == [0, 10, 0, 0]
    weights = torch.tensor([0.5, 0, 0.5, 0.5])
    expected = guided_sample(velocity, critic, noise, weights, **free)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_a_velocity_that_is_not_finite_is_an_error_that_names_the_row():
    def broken(action, t):
        return torch.where((t[:, None] > 0.4) & (torch.arange(4)[:, None] == 2), torch.nan, action)

    critic = lambda a: -a.square().sum(-1)  # noqa: E731
    for weight in (0.0, 0.5):
        actions, counts = guided_sample_counting(broken, critic, torch.ones(4, 3), weight)
        assert counts.tolist() == [0, 0, FAILED, 0] and actions[2].tolist() == [0] * 3
        assert actions.isfinite().all()
        with pytest.raises(UserError, match=r"^no action for row 2: the velocity became NaN"):
            guided_sample(broken, critic, torch.ones(4, 3), weight)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (5,), (2, 3, 4)])
def test_any_shape_that_leads_with_the_batch(shape):
    def critic(action):
        return -(action - 0.5).square().reshape(len(action), -1 if action.numel() else 0).sum(-1)

    for estimator in ESTIMATORS.values():
        found = guided_sample(lambda a, t: -a, critic, torch.ones(shape), 1.0, estimator=estimator)
        assert found.shape == shape


# Critics in JAX


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_critic_in_jax(name):
    obs, noise = drawn(16, 3), drawn(16, 3, seed=1)
    traced = []

    def critic(obs, action):
        traced.append(action.shape)
        return bent(jnp, obs)[1](action)

    q, velocity = from_jax(critic), bent(torch, obs)[0]
    for given in (torch.tensor(obs), obs):
        with torch.inference_mode():
            bound = lambda a, given=given: q(given, a)  # noqa: E731
            start = torch.tensor(noise)
            actual = guided_sample(velocity, bound, start, 0.5, estimator=ESTIMATORS[name])
            np.testing.assert_allclose(actual, in_jax(name, obs, noise, 0.5), atol=1e-5)
    assert traced == [(16, 3)]


def test_a_critic_in_jax_is_differentiable_in_pytorch():
    obs, action = drawn(8, 3), torch.tensor(drawn(8, 3, seed=1), requires_grad=True)
    q = from_jax(lambda obs, action: bent(jnp, obs)[1](action))
    weights = torch.arange(8.0)
    found = q(torch.tensor(obs.T.copy()).T, action)  # in another order in memory
    (actual,) = torch.autograd.grad((weights * found).sum(), action)
    values = bent(torch, obs)[1](action)
    (expected,) = torch.autograd.grad((weights * values).sum(), action)
    torch.testing.assert_close(found, values)
    torch.testing.assert_close(actual, expected)
    before = found.detach().clone()
    with torch.no_grad():
        action += 1
    assert torch.equal(found, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_critic_in_jax_takes_the_dtype_of_the_noise(dtype):
    q = from_jax(lambda action: -jnp.square(action - 0.25).sum(-1))
    noise = torch.zeros((4, 3), dtype=dtype)
    found = guided_sample(lambda a, t: 0 * a, q, noise, 0.5, steps=1)
    assert found.dtype == dtype and found.tolist() == [[0.25] * 3] * 4


# Critics of runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on recorded arrays, whose observations and actions are normalized; read-only."""
    folder = tmp_path_factory.mktemp("torch") / "run"
    qgf.train("none", qgf.from_arrays(**arrays()), folder, TINY, seeds=(3, 5))
    return folder


def with_critic(trained, folder, kind, goal=0, **hyper):
    """The run with another critic, whose every array is drawn at random."""
    shutil.copytree(trained, folder)
    record = read_record(folder / "config.json")
    record["learners"]["critic"], record["spec"]["goal"] = kind, goal
    own = LEARNERS[kind].Hyper(**hyper)
    config = Config(width=12, depth=2, chunk=3, hyper=(own,))
    record["config"] = config_record(config, record["learners"].values())
    write_record(folder / "config.json", record)

    create = partial(LEARNERS[kind].create, Spec(**record["spec"]), config)
    keys = jax.random.split(jax.random.key(0), 2)
    shapes = eqx.filter_eval_shape(eqx.filter_vmap(create), keys)
    leaves, tree = jax.tree.flatten(eqx.filter(shapes, lambda x: hasattr(x, "shape")))
    arrays = [drawn(*leaf.shape, seed=i, scale=0.4) for i, leaf in enumerate(leaves)]
    critic = jax.tree.unflatten(tree, arrays)
    save_checkpoint(folder, TINY.steps, {"critic": critic})
    return folder


def assert_twins(run, seed, goal=None, obs=None):
    """Values and action gradients of the critics in PyTorch and in JAX are the same."""
    critic = load_critic(run, seed=seed)
    record = read_record(run / "config.json")
    learner = of_seed(load_learner(run, "critic", seeds=[seed]), 0)
    size, chunk = critic.spec.obs, critic.spec.chunk_action
    obs = drawn(16, size, scale=3) if obs is None else obs
    action = drawn(16, chunk, seed=1, scale=0.7)
    goals = None if goal is None else jnp.broadcast_to(goal, (16, goal.shape[-1]))
    q = learner.bind(jnp.asarray(Normalization.of(record).observed(obs)), goals)

    @jax.jit
    def evaluate(action):
        values, pullback = jax.vjp(q, action)
        return values, pullback(jnp.ones(16))[0]

    values, expected = map(np.asarray, evaluate(action))
    given = torch.tensor(action).reshape(16, -1, critic.spec.action).requires_grad_()
    theirs = critic.at(torch.tensor(obs), None if goal is None else torch.tensor(goal))(given)
    (gradient,) = torch.autograd.grad(theirs.sum(), given)
    np.testing.assert_allclose(theirs.detach(), values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient.flatten(1), expected, rtol=1e-5, atol=1e-5)
    assert abs(expected).max(1).min() > 1e-3
    return values


@pytest.mark.parametrize("seed", [3, 5])
def test_a_trained_critic_is_the_one_in_jax(trained, seed):
    assert load_learner(trained, "critic").config.width == TINY.width
    assert read_record(trained / "config.json")["normalization"]["observation"]
    assert_twins(trained, seed)


def test_a_critic_of_version_0_1_0():
    one, other = (assert_twins(OLD, seed) for seed in (3, 5))
    assert abs(one - other).max() > 1e-3


CRITICS = [name for name, kind in LEARNERS.items() if issubclass(kind, EnsembleCritic)]


@pytest.mark.parametrize(
    "kind, ensemble", [("iql", 1), ("iql", 3), *((kind, 2) for kind in CRITICS)]
)
def test_every_kind_of_critic_and_aggregation(kind, ensemble, trained, tmp_path):
    goal = drawn(16, 2, seed=2) if LEARNERS[kind].goal_conditioned else None
    found = []
    for how, kappa in (*((how, 0.0) for how in typing.get_args(Aggregation)), ("mean", 0.7)):
        hyper = {"ensemble": ensemble, "aggregation": how, "kappa": kappa}
        folder = tmp_path / f"{how}-{kappa}"
        run = with_critic(trained, folder, kind, 0 if goal is None else 2, **hyper)
        found.append(assert_twins(run, 5, goal))
    far = [abs(x - y).max() for i, x in enumerate(found) for y in found[:i]]
    assert min(far) > 1e-3 if ensemble > 1 else max(far) < 1e-6
    if goal is not None:
        assert_twins(run, 3, goal[0])


def test_what_makes_a_critic_of_an_ensemble_is_known():
    """Another setting of how an ensemble becomes one Q must reach PyTorch, too."""
    assert EnsembleCritic.Hyper.__dataclass_fields__.keys() == {"ensemble", "aggregation", "kappa"}


def test_actions_in_the_units_of_the_data(trained):
    critic = load_critic(trained)
    action = drawn(4, 3, 2)
    expected = Normalization.of(read_record(trained / "config.json")).action.apply(action)
    np.testing.assert_allclose(critic.normalize(torch.tensor(action)), expected, rtol=1e-6)


def test_a_loaded_critic_guides_in_inference_mode_and_lower_precision(trained):
    noise = torch.tensor(drawn(4, 3, 2))
    velocity = lambda a, t: -a  # noqa: E731
    expected = guided_sample(velocity, load_critic(trained).at(drawn(4, 3)), noise, 0.3)
    with torch.inference_mode():
        critic = load_critic(trained)
        q = critic.at(torch.tensor(drawn(4, 3)))
        assert torch.equal(guided_sample(velocity, q, noise, 0.3), expected)
        with torch.autocast("cpu", torch.bfloat16):
            rough = guided_sample(velocity, q, noise, 0.3)
    half = guided_sample(velocity, critic.bfloat16().at(drawn(4, 3)), noise, 0.3)
    for found in (rough, half):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    assert not [p for p in critic.parameters() if p.requires_grad]


ALONE = """
import sys
import torch
import qgf.torch
critic = qgf.torch.load_critic(sys.argv[1])
noise = torch.zeros(4, critic.spec.chunk, critic.spec.action)
q = critic.at(torch.ones(4, critic.spec.obs))
action = qgf.torch.guided_sample(lambda a, t: -a, q, noise, 1.0)
assert action.abs().max() > 0
print([name for name in ("jax", "equinox", "optax", "gymnasium") if name in sys.modules])
"""


def test_without_jax(trained):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, trained], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr


def test_without_pytorch():
    code = "import sys; sys.modules['torch'] = None\nimport qgf.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("UserError: this needs torch; install it with: pip install 'qgf[torch]'")


# What does not fit


ROWS = torch.zeros(2, 3)
LEARNED = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": ROWS.int()}, r"^noise must be floating .* got int32 of shape \(2, 3\)"),
        ({"noise": torch.tensor(1.0)}, r"^noise must be floating .* got float32 of shape \(\)"),
        ({"noise": ROWS.numpy()}, "^noise must be a torch tensor, got ndarray"),
        ({"noise": ROWS / ROWS}, "^noise must be finite, but row 0 is not"),
        ({"weight": -0.5}, "^weight must be a finite number of at least 0 in float32, got -0.5"),
        ({"weight": torch.tensor([0.5, -1])}, r"^weight must be a finite .* got -1.0$"),
        ({"weight": float("nan")}, "^weight must be a finite number .* got nan"),
        ({"weight": 1e39}, r"^weight must be a finite number of .* in float32, got"),
        ({"weight": 1e5, "noise": ROWS.half()}, "^weight must be a finite number .* in float16"),
        (
            {"weight": torch.zeros(3)},
            r"^weight must be one real .* \(2\), got float32 of .* \(3,\)",
        ),
        ({"weight": True}, "^weight must be one real number .* got bool"),
        ({"weight": 1j}, "^weight must be one real number .* got complex64"),
        ({"weight": "much"}, "^weight must be one number or one per row, got str"),
        ({"weight": None}, "^weight must be one number or one per row, got NoneType"),
        ({"steps": 0}, "^steps must be at least 1 and a whole number, got 0"),
        ({"steps": 2.5}, "^steps must be at least 1 and a whole number, got 2.5"),
        ({"bounds": (1, -1)}, "^bounds must have the least action first"),
        ({"bounds": (torch.nan, 1)}, "^bounds must have the least action first, and no NaN"),
        ({"bounds": 1}, r"^bounds must be a pair, .* that broadcast to \(3,\)"),
        ({"bounds": (torch.zeros(2), 1)}, r"^bounds must be a pair, .* broadcast to \(3,\)"),
        (
            {"velocity": lambda a, t: a[:, :2]},
            r"^the velocity must give .* float32 of shape \(2, 2\)",
        ),
        ({"velocity": lambda a, t: 0.0}, "^the velocity must give .* got float"),
        ({"critic": lambda a: a}, r"^the critic must give .* \(2,\) on cpu, got .* \(2, 3\)"),
        ({"critic": lambda a: a.sum()}, r"^the critic must give .* got float32 of shape \(\)"),
        ({"critic": lambda a: a.sum(-1).int()}, "^the critic must give .* got int32"),
        ({"critic": lambda a: a.sum(-1).to("meta")}, "^the critic must give .* on meta"),
        ({"critic": lambda a: a.detach().sum(-1)}, "^the critic's values have no gradient"),
        ({"critic": lambda a: a.detach() @ LEARNED}, "^the critic's values have no gradient"),
        ({"critic": from_jax(lambda a: a)}, r"^the critic must give .* got float32 of .* \(2, 3\)"),
        ({"critic": from_jax(lambda a: 1.0)}, "^the critic must give .* got float"),
        ({"estimator": lambda v, q, a, *_: (a, a.sum(-1))}, "^the estimator must give "),
    ],
)
def test_unfit_arguments(change, message):
    arguments = {
        "velocity": lambda a, t: -a,
        "critic": lambda a: a.sum(-1),
        "noise": ROWS,
        "weight": 1.0,
        **change,
    }
    with pytest.raises(UserError, match=message) as found:
        reference.undecorated(guided_sample_counting)(**arguments)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "obs, goal, message",
    [
        (np.zeros((2, 4)), None, r"^an observation must be 3 finite numbers, got shape \(2, 4\)"),
        (np.full((2, 3), np.nan), None, "^an observation must be .* with NaN or infinity"),
        (np.zeros(3), None, r"^observations must be of shape \(batch, 3\)"),
        ("all", None, "^an observation must be an array of numbers"),
        (np.zeros((2, 3)), np.zeros(2), "^the critic takes no goal; leave it out"),
    ],
)
def test_unfit_observations(trained, obs, goal, message):
    with pytest.raises(UserError, match=message):
        reference.undecorated(load_critic(trained).at)(load_critic(trained), obs, goal)


def test_unfit_goals_and_actions(trained, tmp_path):
    critic = load_critic(with_critic(trained, tmp_path / "goals", "dqc", 2))
    obs = torch.zeros(4, 3)
    for goal, message in (
        (None, "^the critic is one of goals; name one, 2 numbers"),
        (torch.zeros(3), r"^a goal must be 2 finite numbers, got shape \(3,\)"),
        (torch.zeros(3, 2), "^goal must be one or one for each of 4 observations"),
    ):
        with pytest.raises(UserError, match=message):
            critic.at(obs, goal)
    with pytest.raises(UserError, match=r"^action chunks must be 6 numbers .* got shape \(4, 2\)"):
        critic.at(obs, torch.zeros(2))(torch.zeros(4, 2))


def test_runs_without_such_a_critic(trained, tmp_path):
    for folder, options, message in (
        (tmp_path / "none", {}, "does not exist"),
        (trained, {"seed": 4}, r"has no critic of seed 4; it has \[3, 5\]"),
        (trained, {"checkpoint": "7"}, "has no checkpoint '7'"),
    ):
        with pytest.raises(UserError, match=message):
            load_critic(folder, **options)
    alone = tmp_path / "alone"
    shutil.copytree(trained, alone)
    record = read_record(alone / "config.json")
    del record["learners"]["critic"]
    write_record(alone / "config.json", record)
    with pytest.raises(UserError, match="has no critic; train one with `qgf train`"):
        load_critic(alone)


def test_a_damaged_critic_is_refused(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (file,) = run.glob("checkpoints/*/critic.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is damaged .its SHA-256 differs"):
        load_critic(run)
    file.write_bytes(whole)
    save_checkpoint(run, TINY.steps, {"critic": {"q": np.zeros((2, 3), np.float32)}})
    with pytest.raises(UserError, match="holds no ensemble of Q networks"):
        load_critic(run)
    record = read_record(with_critic(trained, tmp_path / "other", "iql") / "config.json")
    record["spec"]["action"] = 3
    write_record(tmp_path / "other/config.json", record)
    with pytest.raises(UserError, match=r"does not fit its config.json: target_q differs"):
        load_critic(tmp_path / "other")
