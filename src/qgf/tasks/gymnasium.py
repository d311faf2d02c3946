"""Any Gymnasium environment as a task: by its registered id, or by a function that makes it."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from qgf._named import import_function
from qgf._numbers import real_numbers
from qgf.errors import UserError, first_line
from qgf.tasks.task import NO_TASK, Task

if TYPE_CHECKING:
    from qgf.data.source import Source

PREFIX = "gymnasium:"
RETURN = "return"
SUCCESS = ("success", "is_success")
"""keys of `info` under which environments say that the task is solved"""


class GymnasiumTask(Task):
    """An environment that pays rewards; what recorded episodes paid stands in their files."""

    filmed = ({"render_mode": "rgb_array"}, {})

    def __init__(self, name: str, obs: Sequence[str] = ()):
        """Take "gymnasium:ID", or "module:factory", of which factory(**kwargs) makes one.

        Args:
            obs: the parts of a Dict observation, by the names that recorded fields have
                (observations/NAME or NAME), in order.
        """
        self.name = self.domain = name
        self._obs = tuple(obs)

    def judged_by(self, rule: str) -> "GymnasiumTask":
        """Return the task with another rule of success.

        Args:
            rule: a key of `info`, or return:NUMBER, from which on an episode's return is one.
        """
        judged = copy.copy(self)
        kind, _, number = rule.partition(":")
        if kind != RETURN:
            judged.key = rule
            return judged
        try:
            judged.threshold = float(number)
        except ValueError:
            raise UserError(f"a return that is success must be a number, got {rule!r}") from None
        return judged

    def make(self, **kwargs: Any) -> gymnasium.Env:
        limit = kwargs.pop("max_episode_steps", None)
        try:
            env = self._made(**kwargs)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.name} makes no environment: {first_line(error)}") from None
        if not isinstance(env, gymnasium.Env):
            kind = type(env).__name__
            raise UserError(f"{self.name} gave {kind}, not a gymnasium.Env; let it return one")
        _check_spaces(self.name, env)
        try:
            env = _Vector(env, self._obs)
        except TypeError as error:
            raise UserError(
                f"{self.name} has observations that are no numbers: {first_line(error)}"
            ) from None
        return gymnasium.wrappers.TimeLimit(env, limit) if limit else env

    def _made(self, **kwargs: Any) -> Any:
        if self.name.startswith(PREFIX):
            return gymnasium.make(self.name.removeprefix(PREFIX), **kwargs)
        return import_function(self.name)(**kwargs)

    def success(self, info: dict[str, Any]) -> bool | None:
        found = [info[key] for key in (SUCCESS if self.key is None else [self.key]) if key in info]
        return bool(found[0]) if found else None

    def check(self, source: "Source") -> None:
        env = self.make()
        spaces = (env.observation_space, env.action_space)
        env.close()
        for what, space, width in zip(
            ("observations", "actions"), spaces, source.widths, strict=True
        ):
            if space.shape != (width,):
                raise UserError(
                    f"{self.name} has {what} of shape {space.shape}, but those in {source.folder} "
                    f"have {width} numbers; use data of this environment, or other fields (--obs, "
                    "--action)"
                )


class _Vector(gymnasium.ObservationWrapper):
    """An environment whose observations are one vector of float32."""

    def __init__(self, env: gymnasium.Env, names: Sequence[str]):
        super().__init__(env)
        self._parts = [_path(name) for name in names]
        width = len(self.observation(env.observation_space.sample()))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        found = [observation]
        if isinstance(observation, dict):
            found = [_part(observation, part) for part in self._parts or [[]]]
        return np.concatenate([_flat(each) for each in found])


def _path(name: str) -> list[str]:
    """Return where a recorded field lies in the observation; "observations" is all of it."""
    return [word for word in name.removeprefix("observations").split("/") if word]


def _part(observation: Any, path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(observation, dict) or name not in observation:
            there = ", ".join(observation) if isinstance(observation, dict) else "nothing"
            raise UserError(
                f"the environment's observation has no {name!r}; it has {there}: "
                "name its parts with --obs"
            )
        observation = observation[name]
    return observation


def _flat(observation: Any) -> np.ndarray:
    if isinstance(observation, dict):
        return np.concatenate([_flat(observation[name]) for name in sorted(observation)])
    return np.ravel(real_numbers(observation))


class NoTask(Task):
    """Recorded episodes without an environment: to train from, and to guide by, not to run."""

    name = domain = NO_TASK
    rewarded = False
    unjudged = (
        "there is no environment to run: the run was trained from recorded episodes alone; look at "
        "its validation losses (RUN/metrics.jsonl), or train with --env gymnasium:ID or "
        "module:factory"
    )


def _check_spaces(name: str, env: gymnasium.Env) -> None:
    boxes = gymnasium.spaces.Box
    action, observation = (
        getattr(env, f"{what}_space", None) for what in ("action", "observation")
    )
    if not isinstance(action, boxes):
        kind = type(action).__name__
        raise UserError(f"{name} has {kind} actions; a flow policy needs continuous ones (Box)")
    if action.dtype.kind != "f":
        raise UserError(f"{name} has actions of {action.dtype}; a flow policy needs real numbers")
    if not isinstance(observation, boxes | gymnasium.spaces.Dict):
        kind = type(observation).__name__
        raise UserError(f"{name} has {kind} observations; they must be a Box, or a Dict of them")
