"""The compute study: words and a figure that follow the data."""

import numpy as np
from telling import draws, tells

from qgf.evaluation.statistics import wilson_interval
from studies import compute


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
