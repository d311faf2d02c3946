"""Minari's folders: data/main_data.hdf5, or a folder data/N of Arrow or Parquet per episode.

Observations and infos have a row more than actions, for the state after the last one. Images are
kept as JPEG; they are left alone. Source: minari.dataset._storages, version 0.5.4.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from qgf.data.readers._arrow import as_numpy, number_type, read_column, struct_leaves
from qgf.data.readers._hdf5 import Episodes, hdf5_file, numbered
from qgf.data.readers._layout import ends_of, lay_out
from qgf.data.readers._recording import Column, Recording, one_per_row, with_columns
from qgf.errors import UserError
from qgf.files import check_form, read_json

EXTRA = "minari"
MAIN = "main_data.hdf5"
METADATA = "metadata.json"
SUCCESS = ("infos/success", "infos/is_success")
CHOICES = {"Discrete", "MultiDiscrete", "MultiBinary"}
"""spaces whose actions are no amounts"""


def fits(path: Path) -> bool:
    """Whether it is a data set's folder, its folder `data`, or its HDF5 file."""
    return _folder(path) is not None


def read(path: Path) -> Recording:
    """Read a data set. UserError if it is damaged, or of a storage that is not known."""
    folder = _folder(path)
    assert folder is not None, path
    metadata = _metadata(folder)
    kind = metadata["data_format"]
    if kind not in STORAGES:
        raise UserError(f"{folder} is stored as {kind!r}; qgf reads {', '.join(STORAGES)}")
    files, lengths, columns, of_state, refused = STORAGES[kind](folder)
    if metadata.get("total_episodes", len(lengths)) != len(lengths):
        raise UserError(
            f"{folder} holds {len(lengths)} episodes, but its {METADATA} says "
            f"{metadata['total_episodes']}; it is damaged, or not downloaded whole"
        )
    spaces = {field: _spaces(folder, metadata, field) for field in ("observations", "actions")}
    jpeg = bool(metadata.get("jpeg_encoding", True))
    for field, parts in spaces.items():
        refused |= {n: why for n, space in parts.items() if (why := _refusal(space, field, jpeg))}
    columns = {name: column for name, column in columns.items() if name not in refused}
    last = ends_of(lengths)
    observed = [name for name in columns if name.split("/")[0] == "observations"]
    order = [*spaces["observations"], *observed]
    terminated = columns.pop("terminations", None)
    columns.pop("truncations", None)
    return with_columns(
        Recording(
            format="minari",
            source=str(path),
            files=tuple(files),
            columns={},
            last=last,
            # In the order in which Gymnasium flattens them; images are chosen by name.
            observation=tuple(
                sorted((n for n in observed if len(columns[n].shape) < 4), key=order.index)
            ),
            action="actions",
            reward="rewards",
            success=next((name for name in SUCCESS if name in columns), None),
            of_state=of_state.intersection(columns),
            terminated=terminated
            and (one_per_row(str(path), "terminations", terminated) != 0) & ~last,
            refused=refused,
        ),
        columns,
    )


def _folder(path: Path) -> Path | None:
    """Return the folder of the files that hold the episodes, if there is one."""
    if path.name == MAIN:
        path = path.parent
    for folder in (path / "data", path):
        if (folder / MAIN).is_file():
            return folder
        if (folder / METADATA).is_file() and "data_format" in _metadata(folder):
            return folder
    return None


def _metadata(folder: Path) -> dict[str, Any]:
    if not (folder / METADATA).exists():  # before version 0.5 it was in the HDF5 file
        return {"data_format": "hdf5"}
    metadata = read_json(folder / METADATA)
    check_form(metadata, dict, str(folder / METADATA))
    metadata = {"data_format": "hdf5"} | metadata if (folder / MAIN).is_file() else metadata
    if "data_format" in metadata:
        check_form(metadata, {"data_format": str}, str(folder / METADATA))
    return metadata


def _spaces(folder: Path, metadata: dict[str, Any], field: str) -> dict[str, dict[str, Any]]:
    """Return the spaces that the metadata give for a field's parts, in Gymnasium's order."""
    text = metadata.get(f"{field[:-1]}_space")
    if not isinstance(text, str):
        return {}
    separator = "_index_" if metadata["data_format"] == "hdf5" else ""
    try:
        found = dict(_leaves(json.loads(text), field, separator))
        for space in found.values():
            check_form(space, {"type": str}, field)
        return found
    except (ValueError, AttributeError, UserError):
        raise UserError(
            f"{folder / METADATA} is damaged: its {field[:-1]}_space is not readable"
        ) from None


def _refusal(space: dict[str, Any], field: str, jpeg: bool) -> str | None:
    """Return why a field of that space cannot be used, if so."""
    if space["type"] in CHOICES and field == "actions":
        number = space.get("n", space.get("nvec"))
        return f"it is a choice ({space['type']} of {number}), not an amount"
    return "it is a camera's JPEG images" if jpeg and _is_image(space) else None


def _leaves(space: dict, name: str, separator: str) -> Iterator[tuple[str, dict]]:
    parts = space.get("subspaces", {})
    if not parts:
        yield name, space
        return
    keys = parts.keys() if isinstance(parts, dict) else range(len(parts))
    for key in keys:
        word = key if isinstance(parts, dict) else f"{separator}{key}"
        yield from _leaves(parts[key], f"{name}/{word}", separator)


def _is_image(space: dict) -> bool:
    """Whether Minari takes a space for one of images (its is_image_space, but for the bounds)."""
    shape = space.get("shape")
    if space.get("dtype") != "uint8" or not isinstance(shape, list) or len(shape) not in (2, 3):
        return False
    return all(isinstance(side, int) and side >= 32 for side in shape[:2])


Stored = tuple[
    list[Path], Int[np.ndarray, " episode"], dict[str, Column], frozenset[str], dict[str, str]
]


def _hdf5(folder: Path) -> Stored:
    path = folder / MAIN
    with hdf5_file(path, EXTRA) as file:
        groups = numbered(file, "episode_")
        if not groups:
            raise UserError(f"{path} holds no episodes; download it whole")
        episodes = Episodes(path, EXTRA, file, groups, "rewards")
    lengths = episodes.lengths
    of_state = frozenset(n for n, rows in episodes.first.items() if rows.shape[0] == lengths[0] + 1)
    columns = {n: episodes.column(n) for n in episodes.first}
    files = [path for path in (path, folder / METADATA) if path.exists()]
    return files, lengths, columns, of_state, episodes.refused


def _tables(folder: Path, kind: str) -> Stored:
    """Read what is stored as one table per episode, of as many rows as observations."""
    episodes = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    files = [next(iter(sorted(p.glob(f"*.{kind}"))), p / f"part-0.{kind}") for p in episodes]
    if not files:
        raise UserError(f"{folder} holds no episodes; download it whole")
    rows = [len(_field(file, "rewards")) for file in files]
    if min(rows) < 2:
        raise UserError(f"{files[int(np.argmin(rows))]} has no steps; remove it")
    lengths = np.array(rows) - 1
    columns, refused = {}, {}
    for top in ("observations", "actions", "rewards", "terminations", "truncations", "infos"):
        for name, array in _fields(files[0], top).items():
            if number_type(array.type) is None:
                refused[name] = f"it is of {array.type}, not of numbers"
                continue

            def read(name: str = name) -> np.ndarray:
                arrays = (as_numpy(_field(file, name), name, file) for file in files)
                parts = ((f"episode {number}", array) for number, array in enumerate(arrays))
                return lay_out(str(folder), name, parts, lengths)

            sample = as_numpy(array, name, files[0])
            columns[name] = Column((sum(rows), *sample.shape[1:]), sample.dtype, read)
    of_state = frozenset(name for name in columns if name.startswith(("observations", "infos")))
    return [*files, folder / METADATA], lengths, columns, of_state, refused


def _fields(file: Path, top: str) -> dict[str, Any]:
    column = read_column(file, top, EXTRA)
    return {} if column is None else struct_leaves(column, top)


def _field(file: Path, name: str) -> Any:
    fields = _fields(file, name.split("/")[0])
    if name not in fields:
        raise UserError(f"{file} has no {name}; download it whole")
    return fields[name]


STORAGES = {
    "hdf5": _hdf5,
    "arrow": lambda folder: _tables(folder, "arrow"),
    "parquet": lambda folder: _tables(folder, "parquet"),
}
