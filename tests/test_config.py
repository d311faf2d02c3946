"""Hyperparameters: what is refused, and the published ones."""

import pytest

from qgf.config import PRESETS, Config, Spec
from qgf.errors import UserError


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, r"steps must lie between 1 and 2,147,483,647, got 0"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"width": -1}, "width must lie between 1 and"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive, got inf"),
        ({"goal_current": float("nan")}, "goal_current must be positive, got nan"),
        ({"steps": 10**20}, "steps must lie between 1 and 2,147,483,647, got 1000"),
        ({"depth": 10**9}, "depth must lie between 1 and 100, got 1000000000"),
        ({"expectile": 1.5}, r"expectile must lie in \(0, 1\]"),
        ({"discount": 1.01}, r"discount must lie in \(0, 1\]"),
        ({"distill_expectile": 0.0}, "distill_expectile must be positive"),
        ({"goal_current": 0.6}, "shares that sum to at most 1, got 0.6 and 0.5"),
        ({"goal_trajectory": -0.1}, "shares that sum to at most 1"),
        ({"log_every": 150}, r"log_every must be a multiple of dispatch_steps \(100\), got 150"),
        ({"dispatch_steps": 7}, "log_every must be a multiple"),
    ],
)
def test_senseless_values(change, message):
    with pytest.raises(UserError, match=message):
        Config(**change)


def test_paper_preset_is_the_papers():
    paper = PRESETS["paper"]
    assert (paper.steps, paper.batch_size, paper.width, paper.depth) == (500_000, 1024, 1024, 4)
    assert (paper.learning_rate, paper.chunk, paper.denoise_steps) == (3e-4, 5, 10)
    assert (paper.discount, paper.expectile, paper.target_rate) == (0.999, 0.9, 0.005)
    assert (paper.ensemble, paper.aggregation) == (2, "min")


def test_spec():
    assert Spec(28, 5, 4).chunk_action == 20
