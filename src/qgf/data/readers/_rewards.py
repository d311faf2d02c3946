"""Rewards of a recording, and where its task ended: its own, by rule, or by a function."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from qgf._named import import_function
from qgf._numbers import real_numbers
from qgf.data.readers._recording import Recording
from qgf.errors import UserError, nearest

FUNCTION = "module:function"


class Labels(NamedTuple):
    """What is said about every row's action; None where nobody says anything.

    The reward of a last row, which has no action, is that of the one before again: where returns
    are taken to go on after a recording, they go on like this.

    Attributes:
        reward: what it earned.
        terminated: whether the task ended with it.
    """

    reward: Float[np.ndarray, " row"] | None
    terminated: Bool[np.ndarray, " row"] | None


def labels(recording: Recording, reward: str | None) -> Labels:
    """Return the rewards that `Fields.reward` asks for, and where the task ended.

    Raises:
        UserError: there are no such rewards, or they cannot be computed.
    """
    if reward is None:
        reward = recording.reward
        if reward is None:
            return Labels(None, recording.terminated)
    if reward in RULES:
        return RULES[reward](recording, _solved(recording, reward))
    if reward in {**recording.columns, **recording.refused}:
        return Labels(recording.of_action(reward), recording.terminated)
    if ":" in reward:
        return _by_function(recording, reward)
    known = possible_rewards(recording)
    raise UserError(
        f"{recording.source} has no rewards {reward!r}.{nearest(reward, known)} "
        f"There could be: {', '.join(known)}"
    )


def possible_rewards(recording: Recording) -> tuple[str, ...]:
    """Return what a recording's rewards could be: fields of one number, and rules."""
    taken = {recording.action, *recording.of_state, *RULES}
    fields = [
        name
        for name, column in recording.columns.items()
        if name not in taken and int(np.prod(column.shape[1:])) == 1
    ]
    rules = [] if recording.success is None else [*RULES]
    return (*fields, *rules, FUNCTION)


def _solved(recording: Recording, rule: str) -> Bool[np.ndarray, " row"]:
    """Whether the task was solved by the row's action or an earlier one of its episode."""
    solved = recording.solved()
    if solved is None:
        known = ", ".join(possible_rewards(recording))
        raise UserError(
            f"{recording.source} does not say where the task is solved, so there are no rewards "
            f"{rule!r}. There could be: {known}"
        )
    count = np.cumsum(solved)
    first = recording.ends - recording.lengths
    before = np.repeat(count[first] - solved[first], recording.lengths + 1)
    return count > before


def _success(recording: Recording, solved: Bool[np.ndarray, " row"]) -> Labels:
    ended = solved & ~recording.last
    newly = ended & ~np.concatenate([[False], ended[:-1]])
    if recording.terminated is not None:
        ended |= recording.terminated
    return Labels(newly.astype(np.float32), ended)


def _sparse(recording: Recording, solved: Bool[np.ndarray, " row"]) -> Labels:
    # Where a task is given up, it is as if it were never solved: to end there would be a gain.
    return Labels(np.where(solved, 0.0, -1.0).astype(np.float32), solved & ~recording.last)


Rule = Callable[[Recording, Bool[np.ndarray, " row"]], Labels]
RULES: dict[str, Rule] = {"success": _success, "sparse": _sparse}
"""by name, from where the task has been solved; what follows the first success earns nothing"""


class Episode(Mapping[str, np.ndarray]):
    """The fields of one episode, n + 1 rows of each."""

    def __init__(self, names: list[str], read: Callable[[str], np.ndarray], rows: slice):
        self._names, self._read, self._rows = names, read, rows

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "row ..."]:
        return self._read(name)[self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _by_function(recording: Recording, name: str) -> Labels:
    """Return what a function says of every episode.

    It is given an `Episode` of n actions and returns their n rewards, or a pair: these, and n marks
    of the task's end.
    """
    function = import_function(name)
    read = functools.cache(recording.column)
    reward = np.zeros(len(recording.last), np.float32)
    terminated = recording.terminated
    spans = zip(recording.ends.tolist(), recording.lengths.tolist(), strict=True)
    for number, (end, length) in enumerate(spans):
        rows = slice(end - length, end + 1)
        place = f"{name} on episode {number} of {recording.source}"
        try:
            said = function(Episode([*recording.columns], read, rows))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{place} raised {type(error).__name__}: {error}") from error
        rewards, *marks = said if isinstance(said, tuple) else (said,)
        reward[end - length : end] = _checked(rewards, "rewards", length, place)
        reward[end] = reward[end - 1]
        if marks:
            terminated = np.zeros(len(reward), bool) if number == 0 else terminated
            terminated[end - length : end] = _checked(marks[0], "marks", length, place) != 0
    return Labels(reward, terminated)


def _checked(said: object, what: str, length: int, place: str) -> Float[np.ndarray, " action"]:
    try:
        array = real_numbers(said)
    except TypeError:
        raise UserError(f"{place} returned no numbers as {what}") from None
    if array.shape != (length,):
        raise UserError(
            f"{place} returned {what} of shape {array.shape}; it has {length} actions, so the "
            f"shape must be ({length},)"
        )
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).argmax())
        raise UserError(f"{place} returned NaN or infinity in its {what}, first in row {bad}")
    return array
