"""From the layouts of files to one row per step and one more per episode."""

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Bool, Int, Shaped

from qgf.errors import UserError, first_line

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
        UserError: an episode has another number of rows than n or n + 1, whichever the first has,
            or rows of another shape.
    """
    arrays, more = [], (0, 1)
    for (place, array), length in zip(parts, lengths, strict=True):
        if array.shape[:1] not in [(length + rows,) for rows in more]:
            belong = " or ".join(str(length + rows) for rows in more)
            raise UserError(
                f"{source} has fields of different lengths: {place} has {length} actions, but "
                f"{name} of shape {array.shape}, where {belong} rows belong"
            )
        more = (len(array) - length,)
        arrays.append((place, array))
    same_shape(f"{source}: {name}", [(place, array.shape[1:]) for place, array in arrays])
    again = slice(-1, None) if more == (0,) else slice(0)
    return np.concatenate([part for _, array in arrays for part in (array, array[again])])


def same_shape(name: str, shapes: list[tuple[object, tuple[int, ...]]]) -> tuple[int, ...]:
    """Return the shape of a field's rows, which is given for every place that holds some.

    Raises:
        UserError: it is not the same in all of them.
    """
    first, shape = shapes[0]
    for place, other in shapes:
        if other != shape:
            raise UserError(
                f"{name} changes its shape: {shape} in {first}, {other} in {place}; give all rows "
                "one shape, or choose other fields"
            )
    return shape


def with_ends(
    steps: Shaped[np.ndarray, "step ..."], last: Bool[np.ndarray, " row"]
) -> Shaped[np.ndarray, "row ..."]:
    """Lay out one row for every action; the last of an episode is the one before again."""
    return steps[np.arange(len(last)) - np.cumsum(last)]


def followed(
    source: str,
    name: str,
    rows: Shaped[np.ndarray, "row ..."],
    after: Shaped[np.ndarray, "_ ..."],
    last: Bool[np.ndarray, " row"],
) -> Shaped[np.ndarray, "row ..."]:
    """Return a field whose last rows are those of what came after. UserError if these differ."""
    if after.shape != rows.shape or after.dtype.kind not in "biuf":
        raise UserError(
            f"{source}: {name} has rows of shape {rows.shape[1:]}, but what followed them is of "
            f"shape {after.shape[1:]} and {after.dtype}; mend it or leave it out"
        )
    return np.where(last.reshape(-1, *[1] * (rows.ndim - 1)), after, rows)


def optional(module: str, extra: str, path: Path) -> ModuleType:
    """Import what only some formats need. UserError that names the extra where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(
            f"{path} needs {package} to be read; install it with: pip install 'qgf[{extra}]'"
        ) from None


@contextlib.contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Make a UserError of what a library raises in the block, where a file is damaged.

    As which error it shows depends on where the damage is.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{path} cannot be read ({reason}); it is damaged or cut off: get it again"
        ) from None
