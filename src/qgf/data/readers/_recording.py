"""What a recording of any format holds, in one layout, and what is used of it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from qgf.data.trajectories import Trajectories
from qgf.errors import UserError, nearest

# By NumPy's letter for them.
REFUSED_KINDS = {
    "c": "complex numbers",
    "O": "objects, as rows of different shapes are",
    "U": "text",
    "S": "text",
    "T": "text",
    "V": "records",
    "M": "dates",
    "m": "spans of time",
}

LABELS = "success-csv:"
"""before the name of a file of labels"""


@dataclass(frozen=True)
class Fields:
    """Which of a recording's fields are used; None stands for what its format calls so.

    Attributes:
        obs: the observations, joined in this order.
        action: the actions.
        reward: a field; "success" (1 at the first success, where the task ends), "sparse" (-1
            until the first success, where the task ends, then 0), "last-step" (1 for the last
            action of every episode, where the task ends), "success-csv:FILE" (the same of those
            episodes that a file with the columns episode and success calls so), or
            "module:function".
    """

    obs: tuple[str, ...] | None = None
    action: str | None = None
    reward: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read beside the recording."""
        labelled = self.reward is not None and self.reward.startswith(LABELS)
        return (Path(self.reward.removeprefix(LABELS)),) if labelled else ()


DEFAULTS = Fields()
ROLES = ("action", "reward", "success", "goal", "achieved")
"""what fields of a recording are called by name"""


@dataclass(frozen=True)
class Column:
    """One field, read when it is asked for: not all of them need fit into memory.

    Attributes:
        shape: of the whole field, rows first.
        dtype: as it is in the file.
        read: returns all rows, laid out as those of `Trajectories` are.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Shaped[np.ndarray, "row ..."]]


@dataclass(frozen=True)
class Recording:
    """Episodes in the fields of the format they were recorded in.

    An episode of n actions has n + 1 rows, as in `Trajectories`.

    Attributes:
        format: name of the format, one of `READERS`.
        source: how messages name it: its path.
        files: all that was read, for whoever notes what a run was trained on.
        columns: every field that can be used, by the name the format has for it.
        last: the last row of every episode.
        observation: names of the fields that are the observation by default.
        action: name of the actions; None if there are several that could be meant.
        reward: name of the rewards; None if there are none.
        success: name of the field that is above 0 where the task is solved; None if there is none.
        goal: name of the field that says what was asked for; None if there is none.
        of_state: fields that describe a state, so that the last row of an episode has them too,
            if it is not unseen. In others the last row is the one before again; as rewards, they
            are what came of the row's action.
        terminated: whether the task ended with the row's action; None if nobody said.
        unseen: the last rows whose state was not recorded, which repeat the one before.
        validation: numbers of the episodes that the format sets aside; None if it sets none.
        refused: fields that cannot be used, and why.
        achieved: name of the field that says what a goal shows of a state; None if there is none.
        joined: of fields that were converted, the names of those that were joined, in order.
        pictures: of cameras that are no fields, what reads the last picture of an episode.
    """

    format: str
    source: str
    files: tuple[Path, ...]
    columns: Mapping[str, Column]
    last: Bool[np.ndarray, " row"]
    observation: tuple[str, ...]
    action: str | None
    reward: str | None = None
    success: str | None = None
    goal: str | None = None
    of_state: frozenset[str] = frozenset()
    terminated: Bool[np.ndarray, " row"] | None = None
    unseen: Bool[np.ndarray, " row"] | None = None
    validation: Int[np.ndarray, " chosen"] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    achieved: str | None = None
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pictures: Mapping[str, Callable[[int], UInt8[np.ndarray, "height width 3"]]] = field(
        default_factory=dict
    )

    @property
    def ends(self) -> Int[np.ndarray, " episode"]:
        """The last row of every episode."""
        return np.flatnonzero(self.last)

    @property
    def lengths(self) -> Int[np.ndarray, " episode"]:
        """How many actions every episode has."""
        return np.diff(np.concatenate([[-1], self.ends])) - 1

    def column(self, name: str) -> Shaped[np.ndarray, "row ..."]:
        """Return a field as it was recorded.

        Args:
            name: of the field, as the format has it.

        Raises:
            UserError: there is none of that name, its file is damaged, or memory is too small.
        """
        if name in self.refused:
            raise UserError(f"{self.source}: {name} cannot be used: {self.refused[name]}")
        if name not in self.columns:
            raise UserError(
                f"{self.source} has no field {name!r}.{nearest(name, self.columns)} "
                f"There are: {', '.join(self.columns)}"
            )
        try:
            return self.columns[name].read()
        except MemoryError as error:
            raise UserError(
                f"{self.source}: {name} does not fit into memory ({error}); free some, or leave "
                "it out"
            ) from None

    def numbers(self, name: str) -> Float[np.ndarray, "row width"]:
        """Return a field as float32, every row flattened.

        Args:
            name: of the field, as the format has it.

        Raises:
            UserError: there is none of that name, or it is not of finite real numbers.
        """
        recorded = self.column(name)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
            array = np.ascontiguousarray(recorded.reshape(len(recorded), -1), np.float32)
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            first = bad.argmax()
            finite = np.isfinite(recorded[first]).all()
            what = "numbers too large for float32" if finite else "NaN or infinity"
            raise UserError(
                f"{self.source} has {what} in {name}, first in {self.place(first)}; mend or remove "
                "that episode, or choose other fields"
            )
        return array

    def place(self, row: int | np.integer) -> str:
        """Return how messages name a row.

        Args:
            row: its number in the whole recording, from 0.
        """
        episode = int(np.searchsorted(self.ends, row))
        first = self.ends[episode] - self.lengths[episode]
        return f"row {row - first} of episode {episode}"

    def of_action(self, name: str) -> Float[np.ndarray, " row"]:
        """Return a number for every action: a field's, or that of the state it led to.

        Args:
            name: of the field, as the format has it.

        Raises:
            UserError: as `numbers`, or a row has more than one number.
        """
        array = self.numbers(name)
        if array.shape[1] != 1:
            raise UserError(
                f"{self.source}: {name} has {array.shape[1]} numbers per row, where one is needed"
            )
        array = array[:, 0]
        if name not in self.of_state:
            return array
        if self.unseen is not None and self.unseen.any():
            raise UserError(
                f"{self.source}: {name} describes states, and those after the last actions were "
                "not recorded; use a field of actions instead"
            )
        ahead = np.arange(1, len(array) + 1)
        return array[np.where(self.last, ahead - 1, ahead)]

    def solved(self) -> Bool[np.ndarray, " row"] | None:
        """Whether the task was solved by the row's action; None if nobody said."""
        return None if self.success is None else ~self.last & (self.of_action(self.success) > 0)

    def parts(self, fields: Fields) -> tuple[str, ...]:
        """Return the names of the recorded fields that are the observation, in their order.

        Args:
            fields: which fields are asked for.
        """
        names = fields.obs or self.observation
        return tuple(part for name in names for part in self.joined.get(name, (name,)))

    def rewards(self) -> tuple[str, ...]:
        """Return what `Fields.reward` could be."""
        from qgf.data.readers._rewards import possible_rewards  # which needs this module

        return possible_rewards(self)

    def trajectories(self, fields: Fields = DEFAULTS, state: tuple[str, ...] = ()) -> Trajectories:
        """Return the episodes in the fields that were chosen.

        Args:
            fields: what is used.
            state: names of fields that are carried along as `Trajectories.state`.

        Raises:
            UserError: a field does not exist or cannot be used, or a reward cannot be computed.
        """
        from qgf.data.readers._rewards import labels  # which needs this module

        label = labels(self, fields.reward)
        names, action = fields.obs or self.observation, fields.action or self.action
        if action in names:
            raise UserError(f"{self.source}: {action} is the action; it is no observation")
        return Trajectories(
            observation=self._observation(names),
            action=self._action(action),
            last=self.last,
            terminated=label.terminated,
            reward=label.reward,
            unseen=self.unseen if self.of_state.issuperset(names) else self.last,
            success=label.success,
            goal=None if self.goal is None else self.numbers(self.goal),
            achieved=None if self.achieved is None else self.numbers(self.achieved),
            state={name: self.column(name) for name in state},
        )

    def _observation(self, names: tuple[str, ...]) -> Float[np.ndarray, "row obs"]:
        if not names:
            raise self._unsaid("observation", "obs")
        arrays = [self.numbers(name) for name in names]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)

    def _action(self, name: str | None) -> Float[np.ndarray, "row action"]:
        if name is None:
            raise self._unsaid("action", "action")
        if name in self.columns and self.columns[name].dtype.kind == "b":
            raise UserError(
                f"{self.source}: {name} is of bool; an action must be an amount, not a choice"
            )
        return self.numbers(name)

    def _unsaid(self, what: str, option: str) -> UserError:
        unfit = "".join(f"; {name} cannot be used: {why}" for name, why in self.refused.items())
        return UserError(
            f"{self.source} does not say what the {what} is; name it with --{option}. There are: "
            f"{', '.join(self.columns)}{unfit}"
        )


def one_per_row(source: str, name: str, column: Column) -> Shaped[np.ndarray, " row"]:
    """Read a field that has one number per row. UserError if it has something else."""
    if column.dtype.kind not in "biuf" or np.prod(column.shape[1:]) != 1:
        raise UserError(
            f"{source}: {name} of type {column.dtype} and shape {column.shape} has not one number "
            "per row; mend it or leave it out"
        )
    return column.read().reshape(-1)


def held_out(episodes: "Recording | Trajectories") -> Int[np.ndarray, " chosen"]:
    """Return the numbers of the episodes that validate, always the same.

    They are those that the format sets aside; else every tenth, and the last one of fewer than
    ten. A single episode is not set aside.

    Args:
        episodes: a recording, or its trajectories.
    """
    if isinstance(episodes, Recording) and episodes.validation is not None:
        return episodes.validation
    number = len(episodes.ends)
    if 1 < number < 10:
        return np.array([number - 1])
    return np.arange(number)[9::10]


def split_episodes(recording: Recording) -> dict[str, Int[np.ndarray, " chosen"]]:
    """Return the numbers of the episodes of each split: those `held_out`, and all others."""
    val = held_out(recording)
    return {"train": np.setdiff1d(np.arange(len(recording.ends)), val), "val": val}


def with_columns(recording: Recording, columns: Mapping[str, Column]) -> Recording:
    """Return the recording with those of the columns that are of numbers, and why others are not.

    Of the names it calls its fields by, those that there are remain.

    Raises:
        UserError: a column has another number of rows than the episodes.
    """
    usable, refused = {}, {}
    for name, column in columns.items():
        if column.dtype.kind in REFUSED_KINDS:
            refused[name] = f"it is of {REFUSED_KINDS[column.dtype.kind]} ({column.dtype})"
        elif 0 in column.shape[1:]:
            refused[name] = f"it is empty: its shape is {column.shape}"
        elif column.shape[:1] != recording.last.shape:
            raise UserError(
                f"{recording.source} has fields of different lengths: {name} of shape "
                f"{column.shape}, where the episodes have {len(recording.last):,} rows; each "
                "needs as many"
            )
        else:
            usable[name] = column
    refused |= recording.refused
    absent = {r: None for r in ROLES if getattr(recording, r) not in {**usable, **refused}}
    observation = tuple(name for name in recording.observation if name in usable)
    changed = {**absent, "observation": observation or recording.observation}
    return dataclasses.replace(recording, columns=usable, refused=refused, **changed)
