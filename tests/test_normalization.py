"""Normalization against what it says: means, deviations, ranges, quantiles; and its inverse."""

from types import SimpleNamespace

import numpy as np
import pytest

from qgf.data import Trajectories
from qgf.data.manifest import Shard
from qgf.data.normalization import Normalization, Normalized, fit
from qgf.errors import UserError


def source(action, observation=None, unseen=None):
    """Training episodes of ten actions each, in two shards."""
    rows = len(action)
    observation = np.zeros((rows, 1), np.float32) if observation is None else observation
    last = np.arange(rows) % 11 == 10
    half = rows // 2
    parts = {
        name: Trajectories(
            observation[part], action[part], last[part], unseen=unseen and last[part]
        )
        for name, part in (("0", slice(half)), ("1", slice(half, None)))
    }
    shards = [Shard(name, "train", 2, half, "") for name in parts]
    names = ("folder", "name", "rewards", "rewarded", "origin", "parts", "widths")
    others = dict.fromkeys(names)
    others["intact"] = lambda part: True
    return SimpleNamespace(
        split=lambda split: shards, read=lambda shard: parts[shard.file], **others
    )


@pytest.fixture
def action():
    rng = np.random.default_rng(0)
    found = rng.normal([3, -50, 7], [2, 10, 0], (44, 3)).astype(np.float32)
    found[10::11] = 1e6  # of last rows, which are no actions
    return found


@pytest.mark.parametrize("kind, ends", [("range", (0, 1)), ("quantiles", (0.01, 0.99))])
def test_actions_fill_the_interval(kind, ends, action):
    scale = fit(source(action), "none", kind)
    done = np.delete(action, np.s_[10::11], 0)
    low, high = np.quantile(done[:, :2].astype(float), ends, axis=0)
    expected = np.clip(2 * (done[:, :2] - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(scale.learned(done)[:, :2], expected, atol=1e-5)
    np.testing.assert_array_equal(scale.learned(done)[:, 2], 0)  # never varies: shifted alone
    inside = (np.abs(scale.learned(done)) < 1).all(1)
    again = scale.acted(scale.learned(done))
    np.testing.assert_allclose(again[inside], done[inside], rtol=1e-5)
    assert (kind == "range") == (np.abs(again - done).max() < 1e-3)  # what was clipped stays so


@pytest.mark.parametrize("unseen", [None, True])
def test_observations_have_mean_0_and_deviation_1(unseen, action):
    rng = np.random.default_rng(1)
    observation = rng.normal([1000, 0], [3, 1e-3], (44, 2)).astype(np.float32)
    scale = fit(source(action, observation, unseen), "standard", "range")
    seen = np.delete(observation, np.s_[10::11], 0) if unseen else observation
    found = scale.observed(seen)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-4)


def test_nothing_asked_for_changes_no_bit(action):
    scale = fit(source(action), "none", "none")
    assert scale == Normalization() == Normalization.of({})
    assert scale.observed(action) is action and scale.acted(action) is action


def test_what_config_json_holds_comes_back(action):
    scale = fit(source(action), "standard", "quantiles")
    again = Normalization.of({"normalization": scale.record()})
    np.testing.assert_array_equal(again.learned(action), scale.learned(action))


def test_actions_outside_are_refused_unless_normalized(action):
    recorded = source(action * np.float32([0, 1, 0]))
    for observations in ("standard", "none"):
        normalization = fit(recorded, observations, "none")
        with pytest.raises(UserError, match=r"leave \[-1, 1\] in dimension 1"):
            Normalized(recorded, normalization).read(recorded.split("train")[0])
    inside = source(action * np.float32([0, 0, 0]))
    Normalized(inside, fit(inside, "none", "none")).read(inside.split("train")[0])
