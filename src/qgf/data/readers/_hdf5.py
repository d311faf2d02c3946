"""HDF5 files: fields of arrays, or of a group per episode."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qgf.data.readers._layout import ends_of, followed, lay_out, optional, undamaged
from qgf.data.readers._recording import Column
from qgf.errors import UserError

PLAIN = 100_000_000
"""bytes that a data set may have without keeping any, as one that was never written to"""
PACKED = 2_000
"""beyond what deflate compresses to one byte"""


@contextlib.contextmanager
def hdf5_file(path: Path, extra: str) -> Iterator[Any]:
    """Open a file for reading while the block runs.

    Args:
        extra: what installs h5py.

    Raises:
        UserError: h5py is missing, or the file cannot be read.
    """
    h5py = optional("h5py", extra, path)
    with undamaged(path), h5py.File(path, "r") as file:
        yield file


class Stored(NamedTuple):
    """An array as it lies in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype


def leaves(group: Any, prefix: str = "") -> dict[str, Stored]:
    """Return every data set below a group, by its path from there; a data set has none.

    Raises:
        UserError: one claims to be larger than what it keeps can be, compressed or not.
    """
    found = {}
    for name, value in getattr(group, "items", list)():
        if hasattr(value, "shape"):
            if value.nbytes > PLAIN + PACKED * value.id.get_storage_size():
                raise UserError(
                    f"{value.file.filename} cannot be read (it claims {value.nbytes:,} bytes for "
                    f"{value.name} and keeps {value.id.get_storage_size():,}); it is damaged"
                )
            found[f"{prefix}{name}"] = Stored(value.shape, value.dtype)
        elif hasattr(value, "items"):
            found.update(leaves(value, f"{prefix}{name}/"))
    return found


def numbered(group: Any, prefix: str) -> list[str]:
    """Return the names PREFIX0, PREFIX1, … of a group in the order of their numbers."""
    numbers = [name.removeprefix(prefix) for name in group if name.startswith(prefix)]
    return [f"{prefix}{number}" for number in sorted(filter(str.isdigit, numbers), key=int)]


class Episodes:
    """The fields of a file that has a group per episode.

    Attributes:
        lengths: how many actions every episode has.
        first: the first episode's arrays of the fields that every episode has.
        refused: the others, and why they cannot be used.
    """

    def __init__(self, path: Path, extra: str, file: Any, groups: list[str], counted: str):
        """Look at an open file.

        Args:
            extra: what installs h5py.
            counted: the field that has a row for every action.

        Raises:
            UserError: an episode lacks that, or is empty.
        """
        self._path, self._extra, self._groups = path, extra, groups
        found = [leaves(file[group]) for group in groups]
        for group, fields in zip(groups, found, strict=True):
            if counted not in fields or not fields[counted].shape:
                raise UserError(f"{path} has no {counted} in {group}")
            if not fields[counted].shape[0]:
                raise UserError(f"{path}: {group} has no steps; remove it")
        self.lengths = np.array([fields[counted].shape[0] for fields in found])
        self.first = {
            name: stored
            for name, stored in found[0].items()
            if stored.shape and all(name in fields for fields in found)
        }
        absent = sorted(set().union(*found) - self.first.keys())
        self.refused = {name: "not every step of every episode has it" for name in absent}

    def column(self, name: str, after: str | None = None) -> Column:
        """Return a field; `after` is the one that holds the states after each of its rows."""

        def read() -> np.ndarray:
            rows = self._rows(name)
            if after is None:
                return rows
            return followed(str(self._path), name, rows, self._rows(after), last)

        last, stored = ends_of(self.lengths), self.first[name]
        return Column((len(last), *stored.shape[1:]), stored.dtype, read)

    def _rows(self, name: str) -> np.ndarray:
        with hdf5_file(self._path, self._extra) as file:
            parts = [(group, file[group][name][()]) for group in self._groups]
        return lay_out(str(self._path), name, parts, self.lengths)
