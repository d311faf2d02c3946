"""From the layouts of files to one row per step and one more per episode."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Bool, Int, Shaped

from qgf.errors import UserError

MAGIC = {b"PK\3\4": "npz", b"\x89HDF": "HDF5", b"PAR1": "Parquet", b"ARRO": "Arrow"}
"""what a file begins with"""


def file_kind(path: Path) -> str | None:
    """Return which of `MAGIC` a file is by its content; None for a folder or any other file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return MAGIC.get(file.read(4))


def ends_of(lengths: Int[np.ndarray, " episode"]) -> Bool[np.ndarray, " row"]:
    """Mark the last row of every episode, of as many actions as `lengths` says."""
    last = np.zeros(int((lengths + 1).sum()), bool)
    last[np.cumsum(lengths + 1) - 1] = True
    return last


def lay_out(
    source: str,
    name: str,
    parts: Iterable[tuple[str, Shaped[np.ndarray, "_ ..."]]],
    lengths: Int[np.ndarray, " episode"],
) -> Shaped[np.ndarray, "row ..."]:
    """Join a field's arrays of all episodes, with n + 1 rows for n actions.

    Args:
        parts: of each episode its name in messages and its array, of n or n + 1 rows. Where the
            last is missing, it is the one before again.

    Raises:
        UserError: an episode has another number of rows, or rows of another shape than the first.
    """
    arrays, shape = [], None
    for (place, array), length in zip(parts, lengths, strict=True):
        if array.ndim == 0 or len(array) not in (length, length + 1):
            raise UserError(
                f"{source} has fields of different lengths: {place} has {length} actions, but "
                f"{name} of shape {array.shape}"
            )
        shape = array.shape[1:] if shape is None else shape
        if array.shape[1:] != shape:
            raise UserError(
                f"{source}: {name} changes its shape: {shape} in the first episode, "
                f"{array.shape[1:]} in {place}"
            )
        arrays.append(array)
        if len(array) == length:
            arrays.append(array[-1:])
    return np.concatenate(arrays)


def split_steps(
    array: Shaped[np.ndarray, "step ..."], lengths: Int[np.ndarray, " episode"]
) -> list[tuple[str, Shaped[np.ndarray, "_ ..."]]]:
    """Return the parts that `lay_out` takes, of an array that holds one row for every action."""
    pieces = np.split(array, np.cumsum(lengths)[:-1])
    return [(f"episode {number}", piece) for number, piece in enumerate(pieces)]


def optional(module: str, extra: str, path: Path) -> ModuleType:
    """Import what only some formats need. UserError that names the extra where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(
            f"{path} needs {package} to be read; install it with: pip install 'qgf[{extra}]'"
        ) from None


def damaged(path: Path, error: Exception) -> UserError:
    """Return what is said of a file that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or repr(error)
    return UserError(f"{path} cannot be read ({reason}); it is damaged or cut off")
