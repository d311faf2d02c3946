"""npz files whose arrays are known before they are read."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qgf.data.readers._layout import damaged
from qgf.data.readers._recording import Column

HEADERS: dict[tuple[int, int], Callable] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def npz_columns(path: Path) -> dict[str, Column]:
    """Return every array of a file, as it lies there. UserError if the file cannot be read."""
    columns = {}
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.namelist():
                if not member.endswith(".npy"):
                    continue
                with file.open(member) as opened:
                    header = HEADERS[np.lib.format.read_magic(opened)](opened)
                name = member.removesuffix(".npy")
                shape, _, dtype = header
                columns[name] = Column(shape, dtype, lambda name=name: read_npz_array(path, name))
    # A damaged zip shows itself as BadZipFile, zlib.error, EOFError, ValueError, KeyError, ...
    except Exception as error:
        raise damaged(path, error) from None
    return columns


def read_npz_array(path: Path, name: str) -> np.ndarray:
    """Read one array. UserError if that does not work."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[name]
    except MemoryError:
        raise
    except Exception as error:
        raise damaged(path, error) from None
