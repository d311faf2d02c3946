"""Recorded episodes: what every reader gives, every task labels, and chunks are cut from."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from qgf.errors import UserError


@dataclass(frozen=True)
class Trajectories:
    """Episodes, one after the other; every array leads with the row axis.

    An episode of n actions has n + 1 rows: the last holds the observation after the last action,
    and its own action and marks are unused; its reward stands for what would be paid after the end,
    where that did not end the task. That a recording ends (`last`) does not say
    that the task ended (`terminated`): what follows the first has a value, what follows the
    second has none.

    Attributes:
        observation: what the policy sees, float32.
        action: what was done, float32.
        last: the last row of every episode.
        terminated: whether the task ended with the row's action; None if nobody said.
        reward: of the row's action, float32; None if there is none.
        unseen: the last rows whose observation was not recorded, which repeat the one before.
            A chunk that ends there serves imitation, and a critic only if the task ended in it.
        success: whether the task was solved by the row's action; None if nobody said.
        goal: what the episode was asked for, float32; None if there is none.
        achieved: what a goal shows of the row's observation; None if that is the observation.
        state: what a task computes rewards from, by name (simulator states).
    """

    observation: Float[np.ndarray, "row obs"]
    action: Float[np.ndarray, "row action"]
    last: Bool[np.ndarray, " row"]
    terminated: Bool[np.ndarray, " row"] | None = None
    reward: Float[np.ndarray, " row"] | None = None
    unseen: Bool[np.ndarray, " row"] | None = None
    success: Bool[np.ndarray, " row"] | None = None
    goal: Float[np.ndarray, "row asked"] | None = None
    achieved: Float[np.ndarray, "row goal"] | None = None
    state: dict[str, Shaped[np.ndarray, "row ..."]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.last)
        for name, array in self.arrays().items():
            if len(array) != rows:
                raise UserError(
                    f"every array must have one row per step: {name} has {len(array)}, the "
                    f"marks of episodes' ends {rows}"
                )
        if not rows or not self.last[-1]:
            raise UserError("the last row must end an episode; there is no mark of an end there")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every array by name, those of `state` as state/NAME."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "state"}
        states = {f"state/{name}": array for name, array in self.state.items()}
        return {name: array for name, array in own.items() if array is not None} | states

    @property
    def ends(self) -> Int[np.ndarray, " episode"]:
        """The last row of every episode."""
        return np.flatnonzero(self.last)

    @property
    def lengths(self) -> Int[np.ndarray, " episode"]:
        """How many actions every episode has."""
        return np.diff(np.concatenate([[-1], self.ends])) - 1

    def take(self, episodes: Int[np.ndarray, " chosen"]) -> "Trajectories":
        """Return some of the episodes, by number.

        Args:
            episodes: their numbers, from 0.
        """
        number = np.concatenate([[0], np.cumsum(self.last)[:-1]])
        rows = np.isin(number, episodes)
        kept = {name: array[rows] for name, array in self.arrays().items() if "/" not in name}
        return Trajectories(**kept, state={name: a[rows] for name, a in self.state.items()})

    def labelled(self) -> "Trajectories":
        """Return them with rewards of 0 where there are none, and no end where none is said."""
        rows = len(self.last)
        reward = np.zeros(rows, np.float32) if self.reward is None else self.reward
        terminated = np.zeros(rows, bool) if self.terminated is None else self.terminated
        return dataclasses.replace(self, reward=reward, terminated=terminated)
