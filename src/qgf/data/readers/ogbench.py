"""OGBench's npz files: the last row of an episode, a terminal, holds its last observation.

A file NAME-val.npz beside NAME.npz validates. Source: ogbench.utils.load_dataset.
"""

import re
from pathlib import Path

import numpy as np

from qgf.data.manifest import FILE, load_manifest, read_manifest
from qgf.data.readers._layout import file_kind
from qgf.data.readers._npz import npz_columns, read_npz_array
from qgf.data.readers._recording import Column, Recording, with_columns
from qgf.errors import UserError

OF_ACTION = ("actions", "rewards", "masks", "terminals")


def fits(path: Path) -> bool:
    """Whether it is a file, or a folder of files, in OGBench's layout."""
    files = _files(path)
    if not files or file_kind(files[0]) != "npz":
        return False
    names = npz_columns(files[0]).keys()
    # "rewards" come with "masks" here; without them they are D4RL's as well as OGBench's.
    return {"observations", "actions", "terminals"} <= names and "timeouts" not in names


def read(path: Path) -> Recording:
    """Read the files. UserError if one is damaged or cut off, or they do not belong together."""
    if (path / FILE).exists():
        load_manifest(path)  # compares every file with its SHA-256
    files = _files(path)
    columns = {file: npz_columns(file) for file in files}
    names = [n for n in columns[files[0]] if all(n in c for c in columns.values())]
    marks = [_terminals(file) for file in files]
    last = np.concatenate(marks)
    return with_columns(
        Recording(
            format="ogbench",
            source=str(path),
            files=(*files, path / FILE) if (path / FILE).exists() else tuple(files),
            columns={},
            last=last,
            observation=("observations",),
            action="actions",
            reward="rewards" if "rewards" in names else None,
            of_state=frozenset(names) - {*OF_ACTION},
            terminated=_ended(files) if "masks" in names else None,
            validation=_validation(files, marks),
        ),
        {name: _joined(files, name, columns) for name in names if name != "terminals"},
    )


def _files(path: Path) -> list[Path]:
    """Return the files that belong to a path, every training file before its -val counterpart."""
    if (path / FILE).is_file():
        return [path / shard.file for shard in read_manifest(path).shards]
    if path.is_dir():
        names = [p for p in path.iterdir() if p.suffix == ".npz" and not p.name.startswith(".")]
        return sorted(names, key=lambda p: (p.stem.removesuffix("-val"), p.stem))
    beside = path.with_name(f"{path.stem}-val.npz")
    return [path, beside] if beside.exists() else [path]


def _terminals(path: Path) -> np.ndarray:
    if "terminals" not in npz_columns(path):
        raise UserError(f"{path} is not of the same data: it has no 'terminals'")
    last = read_npz_array(path, "terminals").reshape(-1) != 0
    if not last.any():
        raise UserError(f"{path} has no mark of an end of an episode in its terminals")
    if not last[-1]:
        raise UserError(f"{path} does not end with a terminal row; it is cut off")
    return last


def _ended(files: list[Path]) -> np.ndarray:
    masks = np.concatenate([read_npz_array(file, "masks").reshape(-1) for file in files])
    return masks == 0


def _validation(files: list[Path], marks: list[np.ndarray]) -> np.ndarray | None:
    counts = [int(last.sum()) for last in marks]
    is_val = np.repeat([bool(re.search(r"-val$", file.stem)) for file in files], counts)
    return np.flatnonzero(is_val) if 0 < is_val.sum() < len(is_val) else None


def _joined(files: list[Path], name: str, columns: dict[Path, dict[str, Column]]) -> Column:
    first = columns[files[0]][name]
    for file in files:
        if columns[file][name].shape[1:] != first.shape[1:]:
            raise UserError(
                f"{name} changes its shape: {first.shape[1:]} in {files[0]}, "
                f"{columns[file][name].shape[1:]} in {file}"
            )
    rows = sum(columns[file][name].shape[0] for file in files)
    return Column(
        (rows, *first.shape[1:]),
        first.dtype,
        lambda: np.concatenate([columns[file][name].read() for file in files]),
    )
