"""HDF5 files: fields of arrays, or of a group per episode."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from qgf.data.readers._layout import damaged, lay_out, optional
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
    try:
        with h5py.File(path, "r") as file:
            yield file
    # As which of these h5py tells what is damaged depends on where it is.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise damaged(path, error) from None


def leaves(group: Any, prefix: str = "") -> dict[str, Any]:
    """Return every data set below a group, by its path from there.

    Raises:
        UserError: one claims to be larger than what it keeps can be, compressed or not.
    """
    found = {}
    for name, value in group.items():
        if hasattr(value, "shape"):
            if value.nbytes > PLAIN + PACKED * value.id.get_storage_size():
                raise UserError(
                    f"{value.file.filename} cannot be read (it claims {value.nbytes:,} bytes for "
                    f"{value.name} and keeps {value.id.get_storage_size():,}); it is damaged"
                )
            found[f"{prefix}{name}"] = value
        elif hasattr(value, "items"):
            found.update(leaves(value, f"{prefix}{name}/"))
    return found


def numbered(group: Any, prefix: str) -> list[str]:
    """Return the names PREFIX0, PREFIX1, … of a group in the order of their numbers."""
    numbers = [name.removeprefix(prefix) for name in group if name.startswith(prefix)]
    return [f"{prefix}{number}" for number in sorted(filter(str.isdigit, numbers), key=int)]


def episode_lengths(
    path: Path, file: Any, groups: Sequence[str], name: str
) -> Int[np.ndarray, " episode"]:
    """Return how many rows a field has in every episode. UserError if one lacks it, or is empty."""
    lengths = []
    for group in groups:
        found = leaves(file[group])
        if name not in found:
            raise UserError(f"{path} has no {name} in {group}")
        lengths.append(len(found[name]))
        if not lengths[-1]:
            raise UserError(f"{path}: {group} has no steps; remove it")
    return np.array(lengths)


def episode_columns(
    path: Path,
    extra: str,
    file: Any,
    groups: Sequence[str],
    lengths: Int[np.ndarray, " episode"],
    of_state: frozenset[str],
    lasts: dict[str, str],
) -> tuple[dict[str, Column], dict[str, str]]:
    """Return the fields that a group per episode holds, and why others cannot be used.

    Args:
        of_state: names of those that describe states.
        lasts: for some of these, the field of the states after each of the same rows.
    """
    found = [leaves(file[group]) for group in groups]
    rows = int((lengths + 1).sum())
    columns, refused = {}, {}
    for name, dataset in found[0].items():
        if dataset.ndim == 0 or not all(name in others for others in found):
            refused[name] = "not every step of every episode has it"
            continue

        def read(name: str = name) -> np.ndarray:
            with hdf5_file(path, extra) as file:
                parts = [(group, _rows(path, file[group], name, lasts)) for group in groups]
            return lay_out(str(path), name, parts, lengths, of_state=name in of_state)

        columns[name] = Column((rows, *dataset.shape[1:]), dataset.dtype, read)
    return columns, refused


def _rows(path: Path, group: Any, name: str, lasts: dict[str, str]) -> np.ndarray:
    rows = group[name][()]
    if name not in lasts or not rows.ndim:
        return rows
    after = group[lasts[name]][()]
    if after.shape != rows.shape:
        raise UserError(
            f"{path}: {name} of shape {rows.shape} and {lasts[name]} of shape {after.shape} do not "
            f"fit together in {group.name}"
        )
    return np.concatenate([rows, after[-1:]])
