"""D4RL's layout, as npz, HDF5 or arrays in memory: one row for every action.

`terminals` mark where the task ended, `timeouts` where the recording did; the state after an
episode's last action is there only where `next_observations` are. What follows the last mark is an
episode that was cut off. Source: d4rl.offline_env.OfflineEnv.get_dataset, d4rl.qlearning_dataset.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from qgf.data.readers._hdf5 import hdf5_file, leaves
from qgf.data.readers._layout import ends_of, file_kind, followed, with_ends
from qgf.data.readers._npz import npz_columns
from qgf.data.readers._recording import Column, Recording, one_per_row, with_columns
from qgf.errors import UserError, first_line

SUCCESS = ("success", "infos/success", "is_success", "infos/is_success")
STEPS = ("observations", "actions", "rewards")
MARKS = ("terminals", "timeouts")
NEXT = "next_observations"
EXTRA = "robomimic"


def fits(path: Path) -> bool:
    """Whether it is a file of these arrays."""
    names = columns(path).keys()
    # Terminals alone are OGBench's, and so are masks, which come with its rewards.
    own = "masks" not in names and (names & {"rewards", "timeouts"} or "terminals" not in names)
    return names >= {"observations", "actions"} and bool(own)


def read(path: Path) -> Recording:
    """Read a file. UserError if it is damaged, or its arrays do not belong together."""
    return _recording(str(path), (path,), columns(path))


def from_arrays(
    observations: ArrayLike | Mapping[str, ArrayLike],
    actions: ArrayLike,
    *,
    rewards: ArrayLike | None = None,
    terminals: ArrayLike | None = None,
    timeouts: ArrayLike | None = None,
    next_observations: ArrayLike | None = None,
    **more: ArrayLike,
) -> Recording:
    """Return a recording of arrays in memory, which have one row for every action.

    Args:
        observations: the state before the action; a dictionary's are named observations/KEY.
        actions: what was done.
        rewards: of the action.
        terminals: not 0 where the task ended with the action.
        timeouts: not 0 where the episode ended with the action for another reason.
        next_observations: the state after the action; without it, the last of an episode is
            unseen.
        more: further fields; one named success says where the task was solved.

    Raises:
        UserError: the arrays do not belong together, or nothing marks an episode's end.
    """
    own = {"observations": observations}
    if isinstance(observations, Mapping):
        own = {f"observations/{key}": array for key, array in observations.items()}
    own |= {"actions": actions, "rewards": rewards, "terminals": terminals, "timeouts": timeouts}
    own |= {NEXT: next_observations, **more}
    given = {name: _in_memory(name, each) for name, each in own.items() if each is not None}
    return _recording("the arrays", (), given)


def _in_memory(name: str, value: object) -> Column:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be made an array: {first_line(error)}") from None
    return Column(array.shape, array.dtype, lambda: array)


def columns(path: Path) -> dict[str, Column]:
    """Return all arrays of a file as they lie there; none if it is of another kind."""
    kind = file_kind(path)
    if kind == "npz":
        return npz_columns(path)
    if kind != "HDF5":
        return {}
    with hdf5_file(path, EXTRA) as file:
        return {
            name: Column(found.shape, found.dtype, lambda name=name: _read(path, name))
            for name, found in leaves(file).items()
        }


def _read(path: Path, name: str) -> np.ndarray:
    with hdf5_file(path, EXTRA) as file:
        return file[name][()]


def _recording(source: str, files: tuple[Path, ...], steps: Mapping[str, Column]) -> Recording:
    """Lay out fields that have one row for every action."""
    known = {name: steps[name] for name in (*STEPS, *MARKS, NEXT) if name in steps}
    rows = {column.shape[:1] for column in known.values()}
    if len(rows) > 1 or () in rows:
        said = ", ".join(f"{name} {column.shape}" for name, column in sorted(known.items()))
        raise UserError(
            f"{source} has fields of different lengths: {said}; each needs a row per action"
        )
    marks = {n: one_per_row(source, n, steps[n]) != 0 for n in MARKS if n in steps}
    stops = np.flatnonzero(np.any([*marks.values()], axis=0))
    if not len(stops):
        raise UserError(
            f"{source} has no mark of an end of an episode in {' or '.join(MARKS)}; "
            "mark the last step of every episode in timeouts"
        )
    (rows,), ended = rows.pop(), marks.get("terminals")
    last = ends_of(np.diff(np.union1d(stops, rows - 1), prepend=-1))

    def read_steps(name: str) -> np.ndarray:
        array = with_ends(steps[name].read(), last)
        if name == "observations" and NEXT in steps:
            return followed(source, name, array, with_ends(steps[NEXT].read(), last), last)
        return array

    columns, refused = {}, {}
    for name, column in steps.items():
        if column.shape[:1] != (rows,):
            refused[name] = f"its shape, {column.shape}, has no row for every action"
        elif name not in (*MARKS, NEXT):
            shape = (len(last), *column.shape[1:])
            columns[name] = Column(shape, column.dtype, lambda name=name: read_steps(name))
    parts = tuple(name for name in columns if name.startswith("observations/"))
    return with_columns(
        Recording(
            format="d4rl",
            source=source,
            files=files,
            columns={},
            last=last,
            observation=("observations",) if "observations" in columns else parts,
            action="actions",
            reward="rewards",
            success=next((name for name in SUCCESS if name in columns), None),
            of_state=frozenset({"observations", *parts}).intersection(columns),
            terminated=None if ended is None else with_ends(ended, last) & ~last,
            unseen=None if NEXT in steps else last,
            refused=refused,
        ),
        columns,
    )
