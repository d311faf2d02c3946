"""The study of optimizers of Q: distances by brute force, figures by hand, words by the data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from telling import tells

from qgf.core.guidance import ESTIMATORS
from qgf.data.manifest import load_manifest
from studies import q_optimizer
from studies._neighbours import Neighbours, training_points


def velocity(action, t):
    """The flow of N(0, 1) in every dimension: it stands still but for Gaussian contraction."""
    return ((2 * t - 1) / ((1 - t) ** 2 + t**2))[:, None] * action


class Critic(eqx.Module):
    obs: jax.Array
    slope: jax.Array

    def __call__(self, action):
        return self.obs[:, 0] + action @ self.slope


def brute_force(data, points):
    """Distances in float64, pair by pair, constant columns left out by name."""
    data, points = np.asarray(data, float), np.asarray(points, float)
    kept = [k for k in range(data.shape[1]) if len(set(data[:, k])) > 1]
    spread = np.array([np.sqrt(np.mean((data[:, k] - data[:, k].mean()) ** 2)) for k in kept])
    return np.array(
        [min(np.sqrt((((p - row)[kept] / spread) ** 2).sum()) for row in data) for p in points]
    )


def test_nearest_neighbours_are_those_of_brute_force():
    random = np.random.default_rng(0)
    scales = np.array([1e-3, 1.0, 50.0, 1.0, 3.0])
    data = random.normal(size=(300, 5)) * scales + [0, 100, 0, 0, -7]
    data[:, 3] = 0.1  # never varies, so that a query's own value there does not count
    close = data[[0, 150, 299]] + 1e-3 * scales  # the first and the last row among them
    points = np.concatenate([data[40:50] + random.normal(size=(10, 5)) * scales, close])
    data, points = data.astype(np.float32), points.astype(np.float32)
    expected = brute_force(data, points)
    assert expected[-1] < 0.01 < expected[0]
    for block in (64, 300, 1000):
        found = Neighbours(data).distance(points, block)
        np.testing.assert_allclose(found, expected, rtol=2e-3)
    np.testing.assert_allclose(Neighbours(data).distance(data[7:9]), 0, atol=1e-6)


def test_points_are_all_chunks_of_the_training_data(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for tail, lengths in (("", (9, 7)), ("-val", (6,))):
        obs, action = random.normal(size=(sum(lengths), 28)), random.uniform(-1, 1, (16, 5))
        action = action[: len(obs)]
        terminals = np.zeros(len(obs))
        terminals[np.cumsum(lengths) - 1] = 1
        arrays = {"observations": obs, "actions": action, "terminals": terminals}
        np.savez(tmp_path / f"cube-single-play-v0{tail}.npz", **arrays)
        # The last row of a trajectory of n holds an observation only: n − 5 chunks of 5 actions.
        starts = {"": [0, 1, 2, 3, 9, 10], "-val": []}[tail]
        rows += [np.concatenate([obs[i], action[i : i + 5].ravel()]) for i in starts]
    shards = load_manifest(tmp_path).shards
    record = {
        "env": "cube-single-play-v0",
        "config": {"chunk": 5, "discount": 0.99, "sparse_rewards": False},
        "data": {"folder": str(tmp_path), "sha256": {s.file: s.sha256 for s in shards}},
    }
    np.testing.assert_array_equal(training_points(record), np.float32(rows))


def test_figures_of_actions_by_hand():
    obs = jnp.array([[1.0], [3.0]])
    actions = [jnp.array([[0.5, 0.0], [0.0, -1.0]]), jnp.zeros((2, 2))]
    seeds = [
        {"policy": velocity, "critic": Critic(obs, jnp.array(slope))}
        for slope in ([2.0, 1.0], [0, 0.0])
    ]
    data = np.array([[1, 0, 0], [3, 0, 0], [1, 1, 1], [3, 1, 1.0]])
    found = q_optimizer.judge(seeds, obs, actions, Neighbours(data))
    # Standard deviations of the data: 1, ½, ½. Q of the first seed: 1 + 1 and 3 − 1.
    assert found["q"] == pytest.approx((2 + 2) / 2 / 2 + (1 + 3) / 2 / 2)
    assert found["distance"] == pytest.approx((0.5 / 0.5 + 1 / 0.5) / 2 / 2, rel=1e-5)
    squares = (0.25 + 1) / 2 / 2
    assert found["log_likelihood"] == pytest.approx(-squares / 2 - np.log(2 * np.pi), abs=1e-3)


def row(weight, gain, success, distance):
    return {
        "weight": weight,
        "samples": 1,
        "q": -10 + gain,
        "gain": gain,
        "distance": distance,
        "log_likelihood": -distance,
        "success": success,
        "ci95": (success - 0.1, success + 0.1),
        "qgf_ahead": 0.8 - success,
        "qgf_ahead_ci95": (0.75 - success, 0.85 - success),
    }


def made(worst, best):
    """Data in which one estimator has the most Q and distance and the least success."""
    rows = {name: [row(0.1, 1.0, 0.5, 2.0), row(0.3, 2.0, 0.4, 3.0)] for name in ESTIMATORS}
    rows[worst] = [row(0.1, 3.0, 0.2, 2.0), row(0.3, 6.0, 0.0, 9.0)]
    rows[best] = [row(0.1, 1.0, 0.8, 2.0), row(0.3, 2.5, 0.6, 2.5)]
    rows |= {"bc": [row(0.0, 0.0, 0.3, 1.0)], "bfn": [row(0.0, 1.5, 0.9, 1.0)]}
    return {
        "env": "e",
        "states": 3,
        "seeds": 2,
        "tune_episodes": 7,
        "test_episodes": 40,
        "data": {"q": -9.0, "distance": 1.25, "log_likelihood": 4.0},
        "chosen": {name: found[0]["weight"] for name, found in rows.items()},
        "rows": rows,
    }


def test_verdicts_and_numbers_follow_the_data():
    agreeing = made("qfql", "qgf")
    assert [*q_optimizer.verdicts(agreeing).values()] == [True] * 5
    said = q_optimizer.say(agreeing)
    assert tells(said, -4, -4, -7.5, -10)  # the highest Q; that of qfql, of qgf and of BC
    assert tells(said, 0.1, 3, 20, 10, 30, 2)  # qfql's weight, gain, success and distance
    assert tells(said, 40, 95, 1.25) and tells(said, 50, 45, 55)
    turned = made("qgf", "qfql")
    turned["rows"]["bfn"] = [row(0.0, 1.5, 0.1, 1.0)]
    assert not any(q_optimizer.verdicts(turned).values())
    for text, place in (
        (said, "As the paper says: "),
        (q_optimizer.say(turned), "Unlike the paper"),
    ):
        (_, listed) = text.split(place)
        assert all(part in listed for part in q_optimizer.verdicts(agreeing))


def test_a_tie_bears_out_nothing():
    data = made("qfql", "qgf")
    for found in data["rows"].values():
        for one in found:
            one |= {"q": 1.0, "success": 0.0, "distance": 1.0}
    assert not any(q_optimizer.verdicts(data).values())


def test_weight_of_equal_q_is_the_nearest_gain():
    data = made("qfql", "qgf")
    data["chosen"]["qgf"] = 0.3  # a gain of 2.5
    assert q_optimizer.at_equal_q(data, "qfql")["gain"] == 3.0
    assert q_optimizer.at_equal_q(data, "bptt")["gain"] == 2.0
    assert q_optimizer.at_chosen(data, "qgf")["success"] == 0.6


def test_figure_has_a_curve_an_estimator():
    data = made("qfql", "qgf")
    figure = q_optimizer.draw(data)
    for axes, key in zip(figure.axes, ("success", "distance", "log_likelihood"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert ESTIMATORS.keys() <= lines.keys()
        # Every curve begins at the cloned policy, which is weight 0.
        np.testing.assert_array_equal(lines["qfql"].get_xdata(), [0, 3, 6])
        expected = [one[key] for one in (*data["rows"]["bc"], *data["rows"]["qfql"])]
        np.testing.assert_array_equal(lines["qfql"].get_ydata(), expected)
