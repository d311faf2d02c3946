"""The compute study: operations of methods by hand, and words that follow the data."""

import jax
import numpy as np
import pytest
from telling import draws, tells

from qgf._costs import flops
from qgf.config import Config, Spec
from qgf.learners import LEARNERS
from qgf.methods import METHODS
from qgf.statistics import wilson_interval
from qgf.studies import compute

SPEC = Spec(obs=7, action=3, chunk=2)  # 6 action dimensions
POLICY = (7 + 6 + 16) * 8 + 8 * 8 + 8 * 6  # multiplications of one forward pass: 344
Q = (7 + 6) * 8 + 8 * 8 + 8  # 176
Q_BACKWARD = 8 * 8 + 8 * 6  # the last layer is no matrix, and the first only its action rows: 112
# Backward through the policy, the product with the first kernel gives all its inputs' parts.


@pytest.fixture(scope="module")
def learners():
    config = Config(width=8, depth=2)
    return {
        role: LEARNERS[kind].create(SPEC, config, jax.random.key(0))
        for role, kind in (("policy", "bc"), ("critic", "iql"))
    }


@pytest.mark.parametrize(
    ("name", "samples", "products"),
    [
        ("bc", 1, 10 * POLICY),
        ("bfn", 2, 2 * (10 * POLICY + 2 * Q)),
        ("bfn-4", 4, 4 * (10 * POLICY + 2 * Q)),
        ("qgf", 1, 10 * (POLICY + 2 * Q + Q_BACKWARD)),
        ("qgf+bfn", 2, 2 * (10 * (POLICY + 2 * Q + Q_BACKWARD) + 2 * Q)),
        ("gradstep", 1, 10 * POLICY + 3 * (2 * Q + Q_BACKWARD)),
        ("bptt", 1, 55 * 2 * POLICY + 10 * (2 * Q + Q_BACKWARD)),
    ],
)
def test_matrix_products_of_an_action_by_hand(name, samples, products, learners):
    counted = compute.count(METHODS[name], learners, SPEC, 0.1, samples)
    assert counted.products == 2 * products
    assert counted.others > 0
    # The count of the comparisons takes the critic's backward pass for as long as its forward.
    own = {role: learners[role] for role in METHODS[name].roles}
    assert counted.products == pytest.approx(samples * flops(METHODS[name], own), rel=0.15)


def test_unguided_the_critic_costs_nothing(learners):
    counted = compute.count(METHODS["qgf"], learners, SPEC, 0.0, 1)
    assert counted.products == 2 * 10 * POLICY


def row(label, share, cost, family="bfn", samples=1):
    wins = (np.arange(100).reshape(2, 50) % 50 < 50 * share).astype(int)
    total = int(wins.sum())
    return {
        "family": family,
        "label": label,
        "weight": 0.03 if "qgf" in family else 0.0,
        "samples": samples,
        "wins": wins.tolist(),
        "success": total / 100,
        "ci95": wilson_interval(total, 100),
        "episodes": 100,
        "flops": cost * 1e6,
        "products": cost * 1e6,
        "hand": cost * 1e6,
        "products_to_hand": 1.0,
        "ms": {"1": cost, "50": 10.0 * cost},
    }


def example(qgf, bfn4, bfn16, both, cost):
    rows = [
        row("BC", 0.1, 1.0),
        row("BFN(4)", bfn4, cost, samples=4),
        row("BFN(16)", bfn16, 4 * cost, samples=16),
        row("qgf", qgf, 2.0, "qgf"),
        row("QGF+BFN(4)", both, 8.0, "qgf+bfn", 4),
        row("gradstep", 0.5, 1.5, "gradstep"),
    ]
    return {"env": "e", "seeds": 2, "tune_episodes": 10, "rows": rows}


def test_verdicts_and_numbers_follow_the_data():
    agreeing = compute.say(example(0.9, 0.5, 0.9, 0.9, 7.0))
    # QGF less BFN(4), and what BFN(4) costs of QGF's FLOPs and milliseconds, alone and for 50.
    assert "QGF − BFN(4) is +40 (" in agreeing and tells(agreeing, 3.5, 3.5, 3.5, 50)  # one by one
    assert tells(agreeing, 10, 10)  # weights chosen on so many tune episodes
    assert agreeing.count("as the paper says") == 3 and "unlike" not in agreeing
    opposite = compute.say(example(0.4, 0.9, 0.9, 0.1, 1.5))
    assert "QGF − BFN(4) is -50 (" in opposite and "QGF+BFN(4) − BFN(16) is -80" in opposite
    assert opposite.count("unlike the paper") == 3 and "as the paper says" not in opposite
    # A difference not shown, a cost that is higher but not far, and more than the claim.
    dearer = compute.say(example(0.4, 0.4, 0.1, 0.9, 3.0))
    assert dearer.count("unlike the paper") == 1 and "as the paper says" not in dearer
    assert tells(dearer, 1.5, 1.5, 1.5)
    effects = [said.split("search on top ")[1].split()[0] for said in (agreeing, opposite, dearer)]
    assert effects == ["shows", "harms.", "helps."]


def test_a_preset_without_the_comparisons_compares_nothing():
    data = example(0.9, 0.5, 0.9, 0.9, 7.0)
    data |= {"tune_episodes": 0, "rows": [data["rows"][0], data["rows"][3]]}
    said = compute.say(data)
    assert "paper says" not in said and "unlike" not in said and "chosen on" not in said


def test_figure_has_success_against_both_costs():
    panels = compute.draw(example(0.9, 0.5, 0.7, 0.8, 7.0)).axes
    assert len(panels) == 2
    for axes in panels:
        assert draws(axes, [1, 7, 28], [0.1, 0.5, 0.7])
        assert draws(axes, [2], [0.9]) and draws(axes, [8], [0.8]) and draws(axes, [1.5], [0.5])
        assert [text.get_text() for text in axes.texts] == ["1", "4", "16", "4"]
    assert len({color for color, _, _ in compute.STYLES.values()}) == len(compute.STYLES)
