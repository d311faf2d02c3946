"""The scaling study: counts by hand, overfitting of known curves, words and figure."""

import dataclasses
import json

import equinox as eqx
import jax
import pytest
from telling import draws, tells

from qgf.comparison import Plan
from qgf.config import PRESETS, Config, Spec
from qgf.learners import LEARNERS
from studies import scaling
from studies._runs import SMOKE

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


def test_verdicts_and_numbers_follow_the_data():
    said = scaling.say(data((0.2, 0.6, 0.8), (0.5, 0.5, 0.2), OVERFIT, OVERFIT))
    # From the smallest size to the best, its millions of parameters, and how many times more.
    assert tells(said, 20, 15, 25, 80, 75, 85, 0.32, 4.0)
    assert "not what the paper" not in said and "not seen" not in said
    assert tells(said, 50, -50, 0, 0, 50, -50, 20, 15, 25)  # of policy, critic and qam; QAM's end
    said = scaling.say(data((0.5, 0.5, 0.4), (0.2, 0.5, 0.8)))
    assert "not what the paper" in said and "not seen" in said
    assert tells(said, 0, 0, 0, 0, 0, 0, 80, 75, 85)
    assert tells(said, 50, 45, 55, 20, 15, 25, 80, 75, 85)  # qgf is best where it is smallest
    # From nothing, no number of times more can be told.
    said = scaling.say(data((0.0, 0.6, 0.8), (0.2, 0.5, 0.8)))
    assert "not what the paper" in said and tells(said, 0, -5, 5, 80, 75, 85, 0.32, 20, 15, 25)


def test_a_gain_within_the_intervals_is_none():
    assert scaling._gains(data((0.2, 0.28, 0.31), (0, 0, 0))["rows"], "qgf")
    assert not scaling._gains(data((0.2, 0.28, 0.29), (0, 0, 0))["rows"], "qgf")


def test_figure_has_success_and_the_losses_of_every_size():
    shown = data((0.2, 0.6, 0.8), (0.5, 0.4, 0.3), OVERFIT)
    success, *losses = scaling.draw(shown).axes
    sizes = [row["actor_parameters"] for row in shown["rows"]]
    for shares in ((0.2, 0.6, 0.8), (0.5, 0.4, 0.3), (0.1, 0.1, 0.1)):
        assert draws(success, sizes, shares, tolerance=0.06)
    assert [axes.get_ylabel().split()[-1] for axes in losses] == ["policy", "critic", "qam"]
    for axes, curves in zip(losses, (FALLING, FALLING, OVERFIT), strict=True):
        for split in ("train", "validation"):
            assert draws(axes, *zip(*curves[split], strict=True))
