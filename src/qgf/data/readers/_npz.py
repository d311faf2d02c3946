"""npz files whose arrays are known before they are read."""

import zipfile
from pathlib import Path

import numpy as np

from qgf.data.readers._layout import same_shape, undamaged
from qgf.data.readers._recording import Column


def npz_columns(path: Path) -> dict[str, Column]:
    """Return every array of a file, as it lies there. UserError if the file cannot be read."""
    columns = {}
    with undamaged(path), zipfile.ZipFile(path) as file:
        for member in file.namelist():
            if not member.endswith(".npy"):
                continue
            with file.open(member) as opened:
                version = "read_array_header_{}_{}".format(*np.lib.format.read_magic(opened))
                shape, _, dtype = getattr(np.lib.format, version)(opened)
            name = member.removesuffix(".npy")
            columns[name] = Column(shape, dtype, lambda name=name: _read(path, name))
    return columns


def npz_joined(files: dict[Path, dict[str, Column]]) -> dict[str, Column]:
    """Return the arrays that every one of several files has, one file after the other.

    Args:
        files: the `npz_columns` of each.

    Raises:
        UserError: an array has rows of different shapes.
    """
    parts = {
        name: [each.get(name) for each in files.values()] for name in next(iter(files.values()))
    }
    joined = {}
    for name, columns in parts.items():
        if None in columns:
            continue
        row = same_shape(
            name, [(file, c.shape[1:]) for file, c in zip(files, columns, strict=True)]
        )
        joined[name] = Column(
            (sum(column.shape[0] for column in columns), *row),
            columns[0].dtype,
            lambda columns=columns: np.concatenate([column.read() for column in columns]),
        )
    return joined


def _read(path: Path, name: str) -> np.ndarray:
    with undamaged(path), np.load(path, allow_pickle=False) as file:
        return file[name]
