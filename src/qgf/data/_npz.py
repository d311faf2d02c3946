"""One npz file of a dataset: what is read of it, and what must hold before it is believed."""

import contextlib
import zipfile
from pathlib import Path

import numpy as np

from qgf.errors import UserError

Arrays = dict[str, np.ndarray]

REQUIRED = ("observations", "actions", "terminals")


def read_arrays(path: Path, widths: dict[str, int]) -> Arrays:
    """Return those arrays of OGBench's layout that a file holds; others in it are ignored.

    Arguments:
        widths: the environment's `state_widths`.

    Raises:
        UserError: the file cannot be read, lacks an array, or one has another shape than the
            environment's, is not made of finite numbers, or is out of range.
    """
    arrays = _load(path, ["terminals", *widths])
    absent = [name for name in REQUIRED if name not in arrays]
    if absent:
        raise UserError(f"{path} is not a dataset file: it has no {absent[0]!r}")
    _check_shapes(path, arrays, widths)
    for name, array in arrays.items():
        _check_finite(path, name, array)
    _check_ranges(path, arrays)
    return arrays


def own_rewards(path: Path) -> list[str]:
    """Return which of "rewards" and "masks" a file holds; none if it cannot be read."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        return [name for name in ("rewards", "masks") if f"{name}.npy" in file.namelist()]
    return []


def _load(path: Path, names: list[str]) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in names if name in file}
    except MemoryError as error:
        raise UserError(
            f"{path} does not fit into memory ({error}); free some or, if its size is wrong, "
            "download or collect it again"
        ) from None
    # A damaged zip shows itself as BadZipFile, zlib.error, EOFError, ValueError, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or repr(error)
        raise UserError(f"{path} cannot be read ({reason}); download or collect it again") from None


def _check_shapes(path: Path, arrays: Arrays, widths: dict[str, int]) -> None:
    for name, array in arrays.items():
        width = (widths[name],) if name in widths else ()
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path} has {name} of type {array.dtype}; they must be real numbers")
        if array.shape[1:] != width or array.ndim == 0:
            needed = ", ".join(map(str, ("rows", *width)))
            raise UserError(
                f"{path} has {name} of shape {array.shape}, but the environment needs ({needed}); "
                "the data are of another one, or damaged"
            )
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise UserError(f"{path} has arrays of different lengths ({rows}); collect it again")


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
        bad = ~np.isfinite(array.astype(np.float32, copy=False))
    if bad.any():
        row = bad.reshape(len(bad), -1).any(axis=1).argmax()
        raise UserError(
            f"{path} has NaN or infinity in {name}, first in row {row}; "
            "remove that episode or collect the shard again"
        )


def _check_ranges(path: Path, arrays: Arrays) -> None:
    terminals, actions = arrays["terminals"], arrays["actions"]
    if len(terminals) == 0 or not terminals[-1]:
        raise UserError(f"{path} does not end with a terminal row; it is cut off: collect it again")
    outside = ((actions < -1 - 1e-6) | (actions > 1 + 1e-6)).any(axis=1)
    if outside.any():
        raise UserError(
            f"{path} has an action outside [-1, 1], first in row {outside.argmax()}; "
            "scale the actions to [-1, 1]"
        )
