"""OGBench's npz files: the last row of an episode, a terminal, holds its last observation.

A file NAME-val.npz beside NAME.npz validates. Source: ogbench.utils.load_dataset.
"""

import re
from pathlib import Path

import numpy as np

from qgf.data.manifest import FILE, load_manifest, read_manifest
from qgf.data.readers._layout import file_kind
from qgf.data.readers._npz import npz_columns, npz_joined
from qgf.data.readers._recording import Column, Recording, one_per_row, with_columns
from qgf.errors import UserError

OF_ACTION = ("actions", "rewards", "masks")


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
    marks = [_terminals(file, columns[file]) for file in files]
    joined = npz_joined(columns)
    del joined["terminals"]
    masks = joined.get("masks")
    return with_columns(
        Recording(
            format="ogbench",
            source=str(path),
            files=(*files, path / FILE) if (path / FILE).exists() else tuple(files),
            columns={},
            last=np.concatenate(marks),
            observation=("observations",),
            action="actions",
            reward="rewards",
            of_state=frozenset(joined) - {*OF_ACTION},
            terminated=masks and one_per_row(str(path), "masks", masks) == 0,
            validation=_validation(files, marks),
        ),
        joined,
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


def _terminals(path: Path, columns: dict[str, Column]) -> np.ndarray:
    if "terminals" not in columns:
        raise UserError(f"{path} is not of the same data: it has no 'terminals'")
    last = one_per_row(str(path), "terminals", columns["terminals"]) != 0
    if not last.any():
        raise UserError(
            f"{path} has no mark of an end of an episode in its terminals; mark the last row of "
            "every episode there"
        )
    if not last[-1]:
        raise UserError(f"{path} does not end with a terminal row; it is cut off: get it again")
    return last


def _validation(files: list[Path], marks: list[np.ndarray]) -> np.ndarray | None:
    counts = [int(last.sum()) for last in marks]
    is_val = np.repeat([bool(re.search(r"-val$", file.stem)) for file in files], counts)
    return np.flatnonzero(is_val) if 0 < is_val.sum() < len(is_val) else None
