"""Tasks of Meta-World as environments that qgf takes: --env examples.metaworld.tasks:hammer

Each is Meta-World's single task with the goal in the observation (39 numbers: hand, gripper and
objects now and one step ago, and the goal). A reset draws where objects and goal are, all from its
seed. A step pays -1 until the task is solved and 0 then, which ends the episode, as STEPS steps do.
Source: Yu et al. 2019, Meta-World; McLean et al. 2025, Meta-World+.
"""

import warnings
from typing import Any

import gymnasium
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

STEPS = 125
"""environment steps of an episode, of Meta-World's 500: its experts need 50 to 100"""


def button_press() -> gymnasium.Env:
    return make("button-press")


def door_open() -> gymnasium.Env:
    return make("door-open")


def drawer_open() -> gymnasium.Env:
    return make("drawer-open")


def hammer() -> gymnasium.Env:
    return make("hammer")


def lever_pull() -> gymnasium.Env:
    return make("lever-pull")


def plate_slide() -> gymnasium.Env:
    return make("plate-slide")


def make(name: str) -> gymnasium.Env:
    """Return a task by Meta-World's name without its version, e.g. "button-press"."""
    return gymnasium.wrappers.TimeLimit(_Task(f"{name}-v3"), STEPS)


class _Task(gymnasium.Wrapper):
    def __init__(self, name: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-goal-observable"](seed=0)
        # Otherwise a reset returns to the objects and the goal drawn when it was made.
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        super().__init__(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self.env.seed(seed)  # Meta-World's reset takes no notice of one
        return self.env.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, _, truncated, info = self.env.step(action)
        solved = bool(info["success"])
        return obs, solved - 1.0, solved, truncated, info
