"""Rewards of a recording, and where its task ended: its own, by rule, by people, or a function."""

import csv
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from qgf._named import import_function
from qgf._numbers import real_numbers
from qgf.data.readers._recording import LABELS, Recording
from qgf.errors import UserError, nearest
from qgf.files import reading

FUNCTION = "module:function"
HEAD = ("episode", "success")
SUCCEEDED = {"1": True, "true": True, "s": True, "0": False, "false": False, "f": False}
"""what a person may write about an episode, in small letters"""


class Labels(NamedTuple):
    """What is said about every row's action; None where nobody says anything.

    The reward of a last row, which has no action, is that of the one before again: where returns
    are taken to go on after a recording, they go on like this.

    Attributes:
        reward: what it earned.
        terminated: whether the task ended with it.
        success: whether it solved the task.
    """

    reward: Float[np.ndarray, " row"] | None
    terminated: Bool[np.ndarray, " row"] | None
    success: Bool[np.ndarray, " row"] | None


def labels(recording: Recording, reward: str | None) -> Labels:
    """Return the rewards that `Fields.reward` asks for, and where the task ended.

    Raises:
        UserError: there are no such rewards, or they cannot be computed.
    """
    reward = recording.reward if reward is None else reward
    if reward is None:
        return Labels(None, recording.terminated, recording.solved())
    if reward in RULES:
        return RULES[reward](recording)
    if reward in {**recording.columns, **recording.refused}:
        of_action = recording.of_action(reward)
        return Labels(of_action, recording.terminated, recording.solved())
    if reward.startswith(LABELS):
        return _by_people(recording, Path(reward.removeprefix(LABELS)))
    if ":" in reward:
        return Labels(*_by_function(recording, reward), recording.solved())
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
    rules = [rule for rule in RULES if rule not in JUDGED or recording.success is not None]
    return (*fields, *rules, f"{LABELS}FILE", FUNCTION)


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


def _success(recording: Recording) -> Labels:
    found = _first_success(recording, _solved(recording, "success"))
    return found._replace(success=recording.solved())


def _first_success(recording: Recording, solved: Bool[np.ndarray, " row"]) -> Labels:
    ended = solved & ~recording.last
    newly = ended & ~np.concatenate([[False], ended[:-1]])
    if recording.terminated is not None:
        ended |= recording.terminated
    return Labels(newly.astype(np.float32), ended, solved & ~recording.last)


def _sparse(recording: Recording) -> Labels:
    solved = _solved(recording, "sparse")
    # Where a task is given up, it is as if it were never solved: to end there would be a gain.
    ended = solved & ~recording.last
    return Labels(np.where(solved, 0.0, -1.0).astype(np.float32), ended, recording.solved())


def _last_step(recording: Recording) -> Labels:
    return _first_success(recording, _final(recording, slice(None)))


def _final(recording: Recording, episodes: slice | np.ndarray) -> Bool[np.ndarray, " row"]:
    """Whether the row's action is the last one of these episodes."""
    solved = np.zeros(len(recording.last), bool)
    solved[recording.ends[episodes] - 1] = True
    return solved


RULES: dict[str, Callable[[Recording], Labels]] = {
    "success": _success,
    "sparse": _sparse,
    "last-step": _last_step,
}
"""by name; what follows the first success earns nothing"""
JUDGED = ("success", "sparse")
"""those of them that need to be told where the task is solved"""


def read_labels(path: Path, episodes: int) -> dict[int, bool]:
    """Return whether episodes succeeded, as a file with the columns episode and success says.

    Args:
        path: of a CSV file; episodes are numbered from 0, success is 1 or 0, true or false, s or f.
        episodes: how many there are.

    Raises:
        UserError: it cannot be read, or speaks of an episode that does not exist or of one twice.
    """
    with reading(path), open(path, newline="", encoding="utf-8-sig") as file:
        try:
            rows = csv.DictReader(file, skipinitialspace=True)
            names = rows.fieldnames or ()
            given = [(rows.line_num, *(row.get(name) or "" for name in HEAD)) for row in rows]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no readable CSV: {error}") from None
    if absent := [name for name in HEAD if name not in names]:
        raise UserError(
            f"{path} has no column {absent[0]!r}; its first line must be episode,success"
        )
    found: dict[int, bool] = {}
    for line, episode, success in given:
        number, said = episode.strip(), SUCCEEDED.get(success.strip().lower())
        place = f"{path}, line {line}"
        if not number.isdecimal() or int(number) >= episodes:
            raise UserError(
                f"{place}: there is no episode {number!r}; they are numbered 0 to {episodes - 1}"
            )
        if said is None:
            raise UserError(f"{place}: success of episode {number} is {success!r}; write 1 or 0")
        if int(number) in found:
            raise UserError(f"{place}: episode {number} has a label already; leave one")
        found[int(number)] = said
    return found


def _by_people(recording: Recording, path: Path) -> Labels:
    """Return 1 for the last action of the episodes that a file calls successes, else 0."""
    count = len(recording.ends)
    said = read_labels(path, count)
    if absent := [number for number in range(count) if number not in said]:
        raise UserError(
            f"{path} says nothing about episode {absent[0]} of {recording.source} ({len(absent)} "
            f"of {count} are without a label); qgf data label asks for those that are left"
        )
    won = np.array([said[number] for number in range(count)])
    return _first_success(recording, _final(recording, won))


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


def _by_function(recording: Recording, name: str) -> tuple[np.ndarray, np.ndarray | None]:
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
    return reward, terminated


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
