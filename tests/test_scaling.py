"""The scaling study: counts by hand, overfitting of known curves, words and figure."""

import copy
import dataclasses
import json

import equinox as eqx
import jax
import pytest
from matplotlib.figure import Figure

from qgf.config import PRESETS, Config, Spec
from qgf.learners import LEARNERS
from qgf.protocol import Plan
from qgf.studies import scaling
from qgf.studies._runs import SMOKE

FALLING = {
    "train": [(100, 2.0), (200, 1.0), (300, 0.5)],
    "validation": [(100, 2.0), (200, 1.5), (300, 1.4)],
}
OVERFIT = {**FALLING, "validation": [(100, 1.5), (200, 1.2), (300, 1.8)]}
# Validation and training loss rise together: something else is wrong.
DIVERGING = {**OVERFIT, "train": [(100, 2.0), (200, 1.0), (300, 1.5)]}


def test_parameters_by_hand():
    make = lambda key: LEARNERS["bc"].create(Spec(3, 2, 2), Config(width=8, depth=2), key)  # noqa: E731
    policy = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 3))
    inputs = 3 + 4 + 16
    one = (inputs + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 4 + 2 * 8  # and one LayerNorm
    assert scaling.parameters(policy) == 3 * one


def test_losses_are_means_over_training_seeds(tmp_path):
    lines = [
        {"step": step, "split": split, "seed": seed, "loss": step + seed + (split == "train")}
        for step in (100, 200)
        for split in ("train", "validation")
        for seed in (0, 4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert scaling.losses(tmp_path) == {
        "train": [(100, 103.0), (200, 203.0)],
        "validation": [(100, 102.0), (200, 202.0)],
    }


def test_overfitting_is_a_rise_of_the_validation_loss_while_the_training_loss_falls():
    assert scaling.rise(OVERFIT) == pytest.approx((0.5, -0.5))
    assert scaling.rise(FALLING) == (0, 0)
    found = [scaling.overfits(curves) for curves in (FALLING, OVERFIT, DIVERGING)]
    assert found == [False, True, False]
    slight = {**FALLING, "validation": [(100, 1.5), (200, 1.2), (300, 1.23)]}
    assert not scaling.overfits(slight)


def test_plans_share_data_and_differ_in_width(tmp_path):
    base = Plan(tmp_path, {"d": tmp_path}, PRESETS["laptop"], (0, 1), {"tune": 5, "test": 25})
    narrow, wide = (scaling.plan_of(base, "laptop", width) for width in (64, 256))
    assert narrow.config == dataclasses.replace(wide.config, width=64)
    assert (narrow.seeds, wide.seeds) == ((0,), (0,)) and narrow.out != wide.out
    assert narrow.config.steps == wide.config.steps == 4000 and narrow.data == base.data
    smoke = dataclasses.replace(base, config=SMOKE)
    assert scaling.plan_of(smoke, "smoke", SMOKE.width) == smoke
    assert scaling.plan_of(smoke, "smoke", 16).config == dataclasses.replace(SMOKE, width=16)


def figures(success):
    return {"success": success, "ci95": (success - 0.05, success + 0.05), "episodes": 50}


def data(qgf, qam, qam_curves=FALLING, policy=FALLING):
    rows = [
        {
            "width": 64 * 2**i,
            "actor_parameters": 20_000 * 4**i,
            "test": {"qgf": figures(q), "qam": figures(other), "bc": figures(0.1)},
            "losses": {"policy": policy, "critic": FALLING, "qam": qam_curves},
        }
        for i, (q, other) in enumerate(zip(qgf, qam, strict=True))
    ]
    return {"env": scaling.ENV, "training_seeds": 1, "steps": 4000, "rows": rows}


def test_words_follow_the_data():
    claimed = data((0.2, 0.6, 0.8), (0.5, 0.5, 0.2), OVERFIT, OVERFIT)
    said = scaling.say(claimed)
    assert "qgf goes from 20% (15 to 25) at the smallest size to 80% (75 to 85)" in said
    assert "0.32M (4.0 times, intervals apart)" in said
    assert "That is as the paper says of gains." in said
    assert "qam overfits (+50% and -50%)" in said and "is seen here" in said
    assert "QAM collapses there, with 20%" in said and "training seed (95%" in said

    opposite = scaling.say(data((0.5, 0.5, 0.4), (0.2, 0.5, 0.8)))
    assert "That is not what the paper says of gains." in opposite
    assert "qam does not overfit (+0% and +0%)" in opposite
    assert "QAM does not collapse" in opposite and "not seen here" in opposite
    assert "qgf is nowhere better than at the smallest size, with 50% (45 to 55)" in opposite
    both = scaling.say(data((0.0, 0.6, 0.8), (0.2, 0.5, 0.8)))
    assert "not what the paper says of gains" in both
    assert "0% (-5 to 5) at the smallest size to 80% (75 to 85) at its best, 0.32M (int" in both


def test_a_gain_within_the_intervals_is_none():
    assert scaling._gains(data((0.2, 0.28, 0.31), (0, 0, 0))["rows"], "qgf")
    assert not scaling._gains(data((0.2, 0.28, 0.29), (0, 0, 0))["rows"], "qgf")


def test_figure():
    figure = scaling.draw(copy.deepcopy(data((0.2, 0.6, 0.8), (0.5, 0.5, 0.2), OVERFIT)))
    assert isinstance(figure, Figure) and len(figure.axes) == 4
    assert [axes.get_ylabel() for axes in figure.axes[1:]] == [
        f"loss of {role}" for role in ("policy", "critic", "qam")
    ]
