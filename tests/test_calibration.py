"""The unitless guidance weight, against closed forms; and the study of one default for all."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from telling import draws, intervals, tells

from qgf.act.calibration import AUTO, auto_weight, flow_sizes, guidance_scale
from qgf.act.policy import sample_actions
from qgf.config import Config
from qgf.core.guidance import guided_sample
from qgf.errors import UserError
from qgf.evaluation.statistics import paired_difference, success_interval
from qgf.run._validation import validation_batch
from qgf.run.checkpoint import load_learner, load_record, of_seed
from studies import calibration
from studies._scale import best

STEPS = 5
TIMES = np.arange(STEPS) / STEPS
ACTION = jnp.broadcast_to(jnp.array([0.5, -0.25, 0.125]), (4096, 3))
SLOPE = jnp.array([3.0, -4.0, 12.0])


def linear(action):
    return action @ SLOPE


def to_data(action, t):
    """The flow of a point mass: from anywhere to ACTION in what time is left."""
    return (ACTION[: len(action)] - action) / (1 - t[:, None])


def test_gradient_of_a_linear_critic_and_velocity_of_an_affine_flow():
    affine = lambda action, t: 2 * action + 1  # noqa: E731
    v, g = flow_sizes(affine, linear, ACTION, STEPS)
    assert g == pytest.approx(13 / np.sqrt(3), rel=1e-6)
    # a_t = (1 − t) a_0 + t a_1 has mean t a_1 and variance (1 − t)².
    a1 = np.asarray(ACTION[0], float)
    square = [(2 * t * a1 + 1) ** 2 + 4 * (1 - t) ** 2 for t in TIMES]
    assert v == pytest.approx(np.sqrt(np.mean(square)), rel=0.01)
    assert guidance_scale(affine, linear, ACTION, STEPS) == pytest.approx(float(v / g), rel=1e-6)


def test_gradient_is_that_at_the_one_step_clean_action():
    square = lambda action: -jnp.square(action - 2).sum(-1) / 2  # noqa: E731
    v, g = flow_sizes(to_data, square, ACTION, STEPS)
    assert g == pytest.approx(np.sqrt(np.mean((2 - np.asarray(ACTION[0], float)) ** 2)), rel=1e-5)
    # v = a_1 − a_0 at every time.
    assert v == pytest.approx(np.sqrt(1 + np.mean(np.square(ACTION[0]))), rel=0.01)
    far = lambda action, t: jnp.full_like(action, 100.0)  # noqa: E731
    assert flow_sizes(far, square, ACTION, STEPS)[1] == pytest.approx(1)  # clipped to 1


class Curved(eqx.Module):
    """A critic with curvature, and units and an offset of its own."""

    unit: jax.Array
    offset: jax.Array

    def __call__(self, action):
        return self.unit * (jnp.sin(3 * action) * SLOPE).sum(-1) + self.offset


def test_units_of_q_cancel():
    action = ACTION[:64]
    one, four, ten, shifted = (
        Curved(jnp.asarray(unit), jnp.asarray(offset))
        for unit, offset in ((1.0, 0.0), (4.0, 0.0), (10.0, 0.0), (1.0, 7.0))
    )
    scale = guidance_scale(to_data, one, action, STEPS)
    assert guidance_scale(to_data, four, action, STEPS) == scale / 4
    assert guidance_scale(to_data, shifted, action, STEPS) == scale
    tenth = guidance_scale(to_data, ten, action, STEPS)
    assert tenth == pytest.approx(float(scale) / 10, rel=1e-6)
    noise = jax.random.normal(jax.random.key(1), action.shape)
    sample = eqx.filter_jit(
        lambda critic, weight: guided_sample(to_data, critic, noise, weight, steps=STEPS)
    )
    wanted = sample(one, 0.3 * scale)
    np.testing.assert_allclose(sample(ten, 0.3 * tenth), wanted, atol=1e-5)
    assert abs(sample(ten, 0.3 * scale) - wanted).max() > 0.1


def test_without_a_gradient_there_is_no_scale():
    flat = lambda action: 0 * action.sum(-1)  # noqa: E731
    assert guidance_scale(to_data, flat, ACTION[:8], STEPS) == 0
    broken = lambda action: jnp.sqrt(-1 - action.sum(-1) ** 2)  # noqa: E731
    assert guidance_scale(to_data, broken, ACTION[:8], STEPS) == 0


class Constant(eqx.Module):
    """A flow, or the slope of a critic, that is the same everywhere."""

    value: jax.Array
    config: Config = eqx.field(static=True, default=Config(denoise_steps=STEPS))
    fixed_steps = False

    def bind(self, obs, goal, repeats):
        return lambda action, t=None: (
            action @ self.value if t is None else jnp.broadcast_to(self.value, action.shape)
        )


def test_every_training_seed_is_guided_by_its_own_scale():
    # Slopes of about 0.1: most actions stay inside [-1, 1], so that a push is w · slope.
    slope = 0.1 * jax.random.normal(jax.random.key(0), (2, 3))
    scales = jnp.array([0.5, 4.0])
    learners = {"policy": Constant(jnp.zeros((2, 3))), "critic": Constant(slope)}
    learners |= {"scale": calibration.Scale(scales)}
    assert {*calibration.AUTO.roles} == learners.keys()  # no other learner reaches `act`
    obs, noise = jnp.zeros((64, 2)), jax.random.normal(jax.random.key(1), (1, 64, 3))
    act = eqx.filter_jit(sample_actions)
    for i, scale in enumerate(scales):
        one, wanted = of_seed(learners, i), noise[0] + 0.25 * scale * slope[i]
        found, _ = act(calibration.AUTO, one, obs, noise, jnp.full(64, 0.25))
        inside = abs(wanted) < 1
        assert inside.sum() > 50
        np.testing.assert_allclose(found[inside], wanted[inside], atol=1e-5)


def outcomes(success, total=0.0, seeds=2, episodes=10):
    """Episodes of which the first `success` of every seed succeed."""
    table = np.zeros((seeds, episodes, 4))
    table[:, :success, 0], table[..., 1] = 1, total
    return table


def test_best_setting_is_that_of_all_tasks_together():
    one = {0.1: outcomes(9), 0.2: outcomes(6), 0.4: outcomes(6)}
    other = {0.1: outcomes(0), 0.2: outcomes(5), 0.4: outcomes(5)}
    assert best([one]) == 0.1
    assert best([one, other]) == 0.2  # the smaller of two that are level
    assert best([one, other | {0.4: outcomes(5, total=1.0)}]) == 0.4


def test_differences_are_paired_and_averaged_over_tasks():
    random = np.random.default_rng(3)
    tasks = [
        {name: random.random((2, 8)) < rate for name, rate in (("bc", 0.3), ("default", 0.7))}
        for _ in range(3)
    ]
    alone = calibration.against(tasks[:1])["bc"]
    assert alone == paired_difference(tasks[0]["default"], tasks[0]["bc"])
    mean, (low, high) = calibration.against(tasks)["bc"]
    assert mean == pytest.approx(
        np.mean([task["default"].mean() - task["bc"].mean() for task in tasks])
    )
    assert low < mean < high
    # Of three independent tasks the mean is known better than of one.
    assert high - low < alone[1][1] - alone[1][0]


def study(default, tuned, carried):
    """The study's data, when so many of ten episodes of every seed succeed."""
    env = "cube-single-play-singletask-task{}-v0"
    tasks, wins = [], []
    for i, (a, b, c) in enumerate(zip(default, tuned, carried, strict=True)):
        ways = {name: outcomes(n) for name, n in (("bc", 1), ("tuned", b), ("carried", c))}
        ways["default"] = outcomes(a)
        wins.append({name: table[..., 0] > 0 for name, table in ways.items()})
        w = {"tuned": 0.1, "carried": 0.03, "default": 0.07}
        found = {name: calibration.figures(table).json() for name, table in ways.items()}
        against = calibration.against(wins[-1:], 200)
        tasks.append({"env": env.format(i + 4), "w": w, "ways": found, "against": against})
    tune = [calibration.figures(outcomes(n)).json() for n in (5, 8)]
    return {
        "training_seeds": 2,
        "units": [0.1, 0.4],
        "default": 0.4,
        "carried": 0.03,
        "chosen_on": [{"env": env.format(2), "tune": tune}],
        "held_out": tasks,
        "against": calibration.against(wins, 200),
    }


def test_verdicts_and_numbers_follow_the_data():
    data = study((9, 10, 10, 10), (10, 10, 10, 10), (3, 4, 4, 4))
    assert calibration.serves(data)  # ten points below on one task, but not more
    said = calibration.say(data)
    assert tells(said, 0.03, 60) and tells(said, 4, -2)
    low, high = success_interval(outcomes(9)[..., 0] > 0)
    assert tells(said, 90, round(100 * low), round(100 * high))
    assert "not good enough" not in said and "clearly better" in said
    data = study((10, 8), (10, 10), (10, 10))
    assert not calibration.serves(data)
    said = calibration.say(data)
    assert "not good enough" in said and "clearly better" not in said
    assert "clearly worse" in calibration.say(study((4, 3), (10, 10), (10, 10)))


def test_average_must_be_known_well_enough():
    data = study((10, 10), (10, 10), (10, 10))
    assert calibration.serves(data)
    for name, difference in (("tuned", (-0.05, (-0.11, 0.01))), ("bc", (0.1, (-0.01, 0.2)))):
        assert not calibration.serves(data | {"against": data["against"] | {name: difference}})


def test_figure_has_every_way_on_every_task():
    data = study((9, 10), (8, 7), (3, 4))
    left, right = calibration.draw(data).axes
    shares = {"bc": (0.1, 0.1), "default": (0.9, 1.0), "tuned": (0.8, 0.7), "carried": (0.3, 0.4)}
    drawn = {tuple(line.get_ydata()) for line in left.lines if line.get_linestyle() == "None"}
    assert {*shares.values()} <= drawn
    ends = np.array([segment[:, 1] for segment in intervals(left)])
    wanted = [task["ways"][name]["ci95"] for name in shares for task in data["held_out"]]
    np.testing.assert_allclose(np.sort(ends, 0), np.sort(wanted, 0))
    assert draws(right, [0.1, 0.4], [0.5, 0.8])
    assert any(list(line.get_xdata()) == [0.4, 0.4] for line in right.lines)  # the default


@pytest.fixture
def pair(run):
    return {role: load_learner(run, role) for role in ("policy", "critic")}


def test_weight_of_a_run_follows_its_scale(run, pair):
    record = load_record(run)
    batch = validation_batch(record, 512)
    scales = []
    for i in range(2):
        policy, critic = of_seed((pair["policy"], pair["critic"]), i)
        scale = guidance_scale(policy.bind(batch.obs), critic.bind(batch.obs), batch.action, 10)
        scales.append(float(scale))
    assert auto_weight(pair, record) == pytest.approx(AUTO * np.mean(scales), rel=1e-5)
    # Other roles, and their order, do not matter.
    more = {"bfn": None, **dict(reversed(pair.items()))}
    assert auto_weight(more, record) == auto_weight(pair, record)
    # A seed whose critic has no gradient is left out.
    half = {**pair, "critic": flattened(pair["critic"], seeds=[0])}
    assert auto_weight(half, record) == pytest.approx(AUTO * scales[1], rel=1e-5)


def flattened(critic, seeds):
    """The critic with the last kernels of some training seeds at 0, so that it is constant."""
    last = lambda c: [member.kernels[-1] for member in c.target_q.members]  # noqa: E731
    zeros = [kernel.at[jnp.array(seeds)].set(0) for kernel in last(critic)]
    return eqx.tree_at(last, critic, zeros)


def test_critic_without_a_gradient_does_not_guide(run, pair, capsys):
    flat = {**pair, "critic": flattened(pair["critic"], seeds=[0, 1])}
    assert auto_weight(flat, load_record(run)) == 0
    assert capsys.readouterr().err.count("\n") == 1


def test_weight_cannot_be_measured_without_the_data(run, pair, tmp_path):
    record = load_record(run)
    record["data"]["folder"] = str(tmp_path / "gone")
    with pytest.raises(UserError, match="gone is gone; name where they are"):
        auto_weight(pair, record)
