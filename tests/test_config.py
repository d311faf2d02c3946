"""Hyperparameters: what is refused, and the published ones."""

import pytest

from qgf.config import PRESETS, Config, Spec
from qgf.errors import UserError
from qgf.learners import BC, DQC, IQL, QAM


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, r"steps must lie between 1 and 2,147,483,647, got 0"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"width": -1}, "width must lie between 1 and"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive, got inf"),
        ({"steps": 10**20}, "steps must lie between 1 and 2,147,483,647, got 1000"),
        ({"depth": 10**9}, "depth must lie between 1 and 100, got 1000000000"),
        ({"discount": 1.01}, r"discount must lie in \(0, 1\]"),
        ({"discount": float("nan")}, r"discount must lie in \(0, 1\], got nan"),
        ({"hyper": (IQL.Hyper(expectile=0.7), IQL.Hyper())}, "hyper must hold .* of different"),
        ({"log_every": 150}, r"log_every must be a multiple of dispatch_steps \(100\), got 150"),
        ({"dispatch_steps": 7}, "log_every must be a multiple"),
    ],
)
def test_senseless_values(change, message):
    with pytest.raises(UserError, match=message):
        Config(**change)


@pytest.mark.parametrize(
    "kind, change, message",
    [
        (DQC, {"goal_current": float("nan")}, r"goal_current must lie in \[0, 1\], got nan"),
        (DQC, {"goal_current": 0.6}, "shares that sum to at most 1, got 0.6 and 0.5"),
        (DQC, {"goal_trajectory": -0.1}, r"goal_trajectory must lie in \[0, 1\]"),
        (DQC, {"distill_expectile": 0.0}, r"distill_expectile must lie in \(0, 1\]"),
        (IQL, {"expectile": 1.5}, r"expectile must lie in \(0, 1\]"),
        (IQL, {"ensemble": 501}, "ensemble must lie between 1 and 500, got 501"),
        (QAM, {"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_senseless_hyperparameters(kind, change, message):
    with pytest.raises(UserError, match=message):
        kind.Hyper(**change)


def test_settings_that_say_the_same_are_equal():
    ours, same = IQL.Hyper(expectile=0.7), IQL.Hyper(expectile=0.7)
    assert Config(hyper=(BC.Hyper(), ours)) == Config(hyper=(same,)) != Config()
    assert Config(hyper=(ours,)).having(IQL.Hyper()) == Config()
    both = (ours, DQC.Hyper(critic_chunk=7))
    assert hash(Config(hyper=both)) == hash(Config(hyper=both[::-1]))
    assert Config(hyper=both).of(IQL.Hyper) is ours
    assert Config(hyper=both).of(QAM.Hyper) == QAM.Hyper()


def test_paper_preset_is_the_papers():
    paper = PRESETS["paper"]
    assert (paper.steps, paper.batch_size, paper.width, paper.depth) == (500_000, 1024, 1024, 4)
    assert (paper.learning_rate, paper.chunk, paper.denoise_steps) == (3e-4, 5, 10)
    assert (paper.discount, paper.target_rate, paper.hyper) == (0.999, 0.005, ())
    assert paper.of(IQL.Hyper) == IQL.Hyper(expectile=0.9, ensemble=2, aggregation="min")


def test_spec():
    assert Spec(28, 5, 4).chunk_action == 20
