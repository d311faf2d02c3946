"""D4RL's layout, as npz, HDF5 or arrays in memory: one row for every action.

`terminals` mark where the task ended, `timeouts` where the recording did; the state after an
episode's last action is there only where `next_observations` are. What follows the last mark is an
episode that was cut off. Source: d4rl.offline_env.OfflineEnv.get_dataset, d4rl.qlearning_dataset.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from qgf.data.readers._hdf5 import hdf5_file, leaves
from qgf.data.readers._layout import ends_of, file_kind, lay_out, split_steps
from qgf.data.readers._npz import npz_columns
from qgf.data.readers._recording import Column, Recording, with_columns
from qgf.errors import UserError

REQUIRED = {"observations", "actions", "rewards", "terminals"}
SUCCESS = ("success", "infos/success", "is_success", "infos/is_success")
MARKS = ("terminals", "timeouts")
NEXT = "next_observations"
EXTRA = "robomimic"


def fits(path: Path) -> bool:
    """Whether it is a file of these arrays."""
    names = _columns(path).keys()
    if "masks" in names:  # OGBench's own, which come with its rewards
        return False
    return names >= REQUIRED or names >= {"observations", "actions", *MARKS}


def read(path: Path) -> Recording:
    """Read a file. UserError if it is damaged, or its arrays do not belong together."""
    return _recording(str(path), (path,), _columns(path))


def from_arrays(
    observations: np.ndarray | Mapping[str, np.ndarray],
    actions: np.ndarray,
    *,
    rewards: np.ndarray | None = None,
    terminals: np.ndarray | None = None,
    timeouts: np.ndarray | None = None,
    next_observations: np.ndarray | None = None,
    **more: np.ndarray,
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
    own = {
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": next_observations,
        **more,
    }
    if isinstance(observations, Mapping):
        own |= {f"observations/{key}": array for key, array in observations.items()}
    else:
        own |= {"observations": observations}
    arrays = {name: np.asarray(array) for name, array in own.items() if array is not None}
    columns = {
        name: Column(array.shape, array.dtype, lambda array=array: array)
        for name, array in arrays.items()
    }
    return _recording("the arrays", (), columns)


def _columns(path: Path) -> dict[str, Column]:
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
    known = {name: steps[name] for name in (*REQUIRED, *MARKS, NEXT) if name in steps}
    rows = {name: column.shape[:1] for name, column in sorted(known.items())}
    if len(set(rows.values())) > 1 or () in rows.values():
        said = ", ".join(f"{name} {column.shape}" for name, column in sorted(known.items()))
        raise UserError(f"{source} has fields of different lengths: {said}")
    marks = {name: _mark(source, name, steps[name]) for name in MARKS if name in steps}
    ended = np.logical_or.reduce([*marks.values()]) if marks else np.zeros(0, bool)
    if not ended.any():
        raise UserError(
            f"{source} has no mark of an end of an episode in {' or '.join(MARKS)}; "
            "mark the last step of every episode in timeouts"
        )
    stops = np.flatnonzero(ended)
    if stops[-1] != len(ended) - 1:
        stops = np.append(stops, len(ended) - 1)
    lengths = np.diff(np.concatenate([[-1], stops]))
    last = ends_of(lengths)

    def laid_out(name: str, array: np.ndarray) -> np.ndarray:
        return lay_out(source, name, split_steps(array, lengths), lengths)

    def read_steps(name: str) -> np.ndarray:
        array = laid_out(name, steps[name].read())
        if name == "observations" and NEXT in steps:
            array[last] = steps[NEXT].read()[stops]
        return array

    columns, refused = {}, {}
    for name, column in steps.items():
        if column.shape[:1] != ended.shape:
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
            reward="rewards" if "rewards" in columns else None,
            success=next((name for name in SUCCESS if name in columns), None),
            of_state=frozenset({"observations", *parts}).intersection(columns),
            terminated=laid_out("terminals", marks["terminals"]) & ~last
            if "terminals" in marks
            else None,
            unseen=None if NEXT in steps else last,
            refused=refused,
        ),
        columns,
    )


def _mark(source: str, name: str, column: Column) -> Bool[np.ndarray, " step"]:
    if column.dtype.kind not in "biuf" or np.prod(column.shape[1:]) != 1:
        raise UserError(
            f"{source}: {name} of type {column.dtype} and shape {column.shape} is no mark per step"
        )
    return column.read().reshape(-1) != 0
