"""What a task is: where episodes are run, what recorded ones pay, what success is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from qgf.errors import UserError

if TYPE_CHECKING:
    from qgf.data.readers import Fields
    from qgf.data.source import Source


NO_TASK = "none"
"""name of the task of recorded episodes without an environment"""


class Task:
    """A task, or the goals that an environment asks for.

    Attributes:
        name: as `find_task` takes it.
        domain: tasks of one domain share their data, and so one policy.
        part: name of the task within its domain.
        rewarded: whether its episodes are judged, by rewards or success.
        unjudged: where they are not, what to do instead of evaluating.
        goals: how many goals are asked for in turn; 0 where a critic takes none.
        goal_conditioned: whether goals are what is asked for, so that a critic needs them.
        key: under which `info` must say whether the task is solved; None if it need not.
        threshold: the return from which on an episode counts as solved; None if there is none.
        filmed: what `make` takes by name so that its environments render, and what
            `render` does; None where there is no environment.
        normalized: whether data are normalized unless the settings say otherwise.
    """

    name: str
    domain: str
    part: str = "task"
    rewarded: bool = True
    unjudged: str = ""
    goals: int = 0
    goal_conditioned: bool = False
    key: str | None = None
    threshold: float | None = None
    normalized: bool = True
    filmed: tuple[dict[str, Any], dict[str, Any]] | None = None

    def make(self, **kwargs: Any) -> gymnasium.Env:
        """Return an environment. UserError if there is none, or it does not start.

        Args:
            kwargs: Gymnasium's `max_episode_steps`, or the environment's own.
        """
        raise UserError(self.unjudged)

    def open(
        self,
        path: Path,
        fields: "Fields | None" = None,
        *,
        sparse: bool = False,
        trust: bool = False,
    ) -> "Source":
        """Return recorded episodes, labelled with what the task pays: by default what they say.

        Args:
            path: file or folder of the recorded episodes.
            fields: which fields of the files are used, where the task does not say it.
            sparse: a reward is -1 until the task is solved, then 0.
            trust: do not compare every file with its hash.

        Raises:
            UserError: they are missing, damaged, or of another task.
        """
        # Environment processes read this file but never JAX, which data come with.
        from qgf.data.readers import Fields
        from qgf.data.recorded import Recorded

        return Recorded(path, fields or Fields())

    def check(self, source: "Source") -> None:
        """Raise UserError if recorded episodes are not of this task's environment.

        Args:
            source: recorded episodes that `open` returned.
        """

    def judged_by(self, rule: str) -> "Task":
        """Return the task with another rule of success. UserError if it has one of its own.

        Args:
            rule: a key of `info`, or return:NUMBER.
        """
        raise UserError(self.unjudged)

    def success(self, info: dict[str, Any]) -> bool | None:
        """Whether a step, of which the environment gave `info`, solved the task.

        None: it does not say.

        Args:
            info: what the environment's `step` returned last.
        """
        return None


def find_task(name: str, obs: Sequence[str] = ()) -> Task:
    """Return the task of a name, as --env takes it. UserError if there is none.

    Args:
        name: OGBench's (…-singletask-taskN-v0, …-oraclerep-v0, or the data's own), the id of a
            registered environment (gymnasium:ID), a function that makes one (module:factory), or
            "none" where there are recorded episodes alone.
        obs: names of the recorded fields that are the observation, in order; an environment whose
            observations are a Dict gives those parts. Without any, all of them, sorted.
    """
    from qgf.tasks.gymnasium import GymnasiumTask, NoTask
    from qgf.tasks.ogbench.task import OGBenchTask

    if name == NO_TASK:
        return NoTask()
    return GymnasiumTask(name, obs) if ":" in name else OGBenchTask(name)
