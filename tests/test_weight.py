"""The study of the guidance weight, on episodes whose outcomes are known."""

import numpy as np
import pytest
from telling import draws, tells

from qgf.comparison import Plan
from qgf.config import Config
from qgf.evaluation.statistics import success_interval
from qgf.files import write_value
from studies import _scale, weight

ENV = "cube-single-play-singletask-task{}-v0"


def outcomes(success, total=0.0):
    """Ten episodes of two training seeds, of which the first `success` succeed."""
    table = np.zeros((2, 10, 4))
    table[:, :success, 0], table[..., 1] = 1, total
    return table


def task(tune, test, number=1, scale=0.5, gain=(0.0, 1.0, 2.0, 3.0)):
    weights = (0.0, 0.1, 0.3, 1.0)
    opinion = np.array([gain, (0.0, 0.02, 0.05, 0.4)]).T
    tables = [
        {w: outcomes(n) for w, n in zip(weights, split, strict=True)} for split in (tune, test)
    ]
    return {"env": ENV.format(number), **weight.compose(*tables, opinion, scale)}


def study(*tasks):
    return {"training_seeds": 2, "states": 8, "tasks": [*tasks]}


def test_rows_choice_rise_and_fall():
    found = task(tune=(1, 6, 9, 3), test=(2, 9, 7, 3))
    assert [row["u"] for row in found["rows"]] == pytest.approx([0, 0.2, 0.6, 2.0])
    assert [row["test"]["success"] for row in found["rows"]] == [0.2, 0.9, 0.7, 0.3]
    assert found["rows"][2]["test"]["ci95"] == success_interval(outcomes(7)[..., 0] > 0)
    assert [row["moved"] for row in found["rows"]] == [0, 0.02, 0.05, 0.4]
    # Tune episodes choose 0.3, though on test episodes 0.1 is better.
    assert found["chosen"] == found["peak"] == 2
    assert found["rise"][0] == pytest.approx(0.5) and found["fall"][0] == pytest.approx(0.4)
    assert found["rise"][1][0] > 0


def test_peak_lies_between_the_ends_even_where_an_end_is_chosen():
    found = task(tune=(1, 5, 6, 10), test=(1, 5, 6, 10))
    assert found["chosen"] == 3 and found["peak"] == 2
    assert found["fall"][0] == pytest.approx(-0.4)
    found = task(tune=(5, 5, 5, 5), test=(5, 5, 5, 5))
    assert found["chosen"] == 0 and found["peak"] == 1  # level: the smaller weight


def test_scale_of_several_training_seeds_is_their_geometric_mean():
    sizes = {"rms_velocity": [1.0, 2.0], "rms_gradient": [4.0, 0.5]}
    assert _scale.typical_scale(sizes) == pytest.approx(1.0)  # of 0.25 and 4


def test_weights_share_the_episodes_of_comparisons(monkeypatch, tmp_path):
    """Weight 0 is filed as bc, others as qgf; each table comes back under its weight."""
    plan = Plan(tmp_path, {}, Config(), (0,), {"tune": 1, "test": 1})

    def run_episodes(plan, env, split, variants):
        for code, (name, asked) in enumerate(variants.items(), 1):
            for w, samples in asked.settings:
                path = tmp_path / "episodes" / env / name / f"{split} {w:g} of {samples}.json"
                write_value(path, outcomes(code, w).tolist())

    monkeypatch.setattr(_scale, "run_episodes", run_episodes)
    found = _scale.sweep(plan, "env", "test", (0.0, 0.1, 0.3))
    assert {w: (t[0, :, 0].sum(), t[0, 0, 1]) for w, t in found.items()} == {
        0.0: (1, 0.0),
        0.1: (2, 0.1),
        0.3: (2, 0.3),
    }
    assert {path.name for path in (tmp_path / "episodes/env").iterdir()} == {"bc", "qgf"}


def test_verdict_and_numbers_follow_the_data():
    up_and_down = task(tune=(1, 6, 9, 3), test=(2, 8, 9, 3))
    said = weight.say(study(up_and_down))
    spans = [
        round(100 * end)
        for n in (2, 9, 3)
        for end in (n / 10, *success_interval(outcomes(n)[..., 0] > 0))
    ]
    assert tells(said, *spans[:6], 0.3, *spans[6:])
    assert tells(said, 1, 1, 1) and "unlike the paper" not in said  # 1 of 1, 1 of them clearly
    assert tells(said, 0.05, 0.4, 1, 1)  # distances; Q is higher at the largest on 1 of 1
    assert tells(said, 0.3, 0.3, 1.0, 0.6, 0.6, 1.0)  # spread in w and in u, with ratios
    rising = task(tune=(1, 5, 6, 10), test=(1, 5, 6, 10), gain=(0.0, 1.0, 2.0, 1.5))
    said = weight.say(study(up_and_down, rising))
    assert tells(said, 1, 2, 1) and "unlike the paper" in said
    assert [weight._agrees(one) for one in (up_and_down, rising)] == [True, False]


def test_spread_is_told_in_both_units():
    low, high = (
        task(tune=tune, test=(2, 8, 9, 3), number=i, scale=scale)
        for i, (tune, scale) in enumerate((((1, 9, 6, 3), 0.1), ((1, 6, 9, 3), 0.3)))
    )
    said = weight.say(study(low, high))
    assert tells(said, 0.1, 0.3, 3.0, 1, 1, 1.0) and "not closer" not in said
    other = task(tune=(1, 6, 9, 3), test=(2, 8, 9, 3), scale=0.02)
    said = weight.say(study(low, other))
    assert tells(said, 0.1, 0.3, 3.0, 1, 15, 15.0) and "not closer" in said
    unguided = task(tune=(9, 6, 5, 3), test=(2, 8, 9, 3))
    # One task of three chooses weight 0, and the spread is that of the others.
    said = weight.say(study(low, high, unguided))
    assert tells(said, 0, 1, 3, 0.1, 0.3, 3.0)
    assert tells(weight.say(study(unguided)), 0, 1, 1)


def test_figure_has_a_panel_a_task_and_one_for_all():
    tasks = [task(tune=(1, 6, 9, 3), test=(2, 8, 9, 3), number=i) for i in range(1, 6)]
    tasks.append(task(tune=(9, 6, 5, 3), test=(2, 8, 7, 3), number=6))
    panels = weight.draw(study(*tasks)).axes
    assert len(panels) == 7
    w = [0.0, 0.1, 0.3, 1.0]
    assert all(draws(axes, w, [0.2, 0.8, 0.9, 0.3]) for axes in panels[:5])
    assert draws(panels[5], w, [0.2, 0.8, 0.7, 0.3])
    for axes, one, success in ((panels[0], 0.3, 0.9), (panels[5], 0.0, 0.2)):
        assert draws(axes, [one], [success])  # the chosen weight
        assert draws(axes, w, [0, 1 / 3, 2 / 3, 1])  # Q's gain as a share of the largest
        assert draws(axes, w, [0.0, 0.02, 0.05, 0.4])
    assert draws(panels[6], [0.2, 0.6, 2.0], [0.8, 0.7, 0.3])
    assert draws(panels[6], [0.6], [0.9]) and not draws(panels[6], [0.0], [0.2])
