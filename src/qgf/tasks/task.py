"""What a task is: where episodes are run, what recorded ones pay, what success is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import gymnasium

if TYPE_CHECKING:
    from qgf.data.source import Source


@runtime_checkable
class Task(Protocol):
    """A task, or the goals that an environment asks for.

    Attributes:
        name: as `find_task` takes it.
        domain: tasks of one domain share their data, and so one policy.
        part: name of the task within its domain.
        rewarded: whether it says itself what recorded episodes pay.
        goals: how many goals are asked for in turn; 0 where a critic takes none.
        goal_critic: kind of the critic that goals need; None where none is asked for.
    """

    name: str
    domain: str
    part: str
    rewarded: bool
    goals: int
    goal_critic: str | None

    def make(self, **kwargs: Any) -> gymnasium.Env:
        """Return an environment. UserError if there is none, or it does not start.

        Args:
            kwargs: Gymnasium's `max_episode_steps`, or the environment's own.
        """
        ...

    def open(self, path: Path, *, sparse: bool = False, trust: bool = False) -> "Source":
        """Return recorded episodes, labelled with what the task pays.

        Args:
            sparse: a reward is -1 until the task is solved, then 0.
            trust: do not compare every file with its hash.

        Raises:
            UserError: they are missing, damaged, or of another task.
        """
        ...

    def success(self, info: dict[str, Any]) -> bool:
        """Whether an environment's step, of which it gave `info`, solved the task."""
        ...


def find_task(name: str) -> Task:
    """Return the task of a name, as --env takes it. UserError if there is none."""
    from qgf.tasks.ogbench.task import OGBenchTask

    return OGBenchTask(name)
