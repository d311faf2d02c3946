"""LeRobot's folders, version 3: meta/info.json, meta/episodes and data of Parquet files.

A row is an action and the state before it; the state after an episode's last action is never
there. `next.done` says that a recording ended, not why: the task ended where `next.success` says
so too. Streams of cameras are left alone. Source: lerobot.datasets, version 0.6.1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from qgf.data.readers._arrow import as_numpy, number_type, read_column, schema
from qgf.data.readers._cameras import last_pictures
from qgf.data.readers._layout import ends_of, same_shape, with_ends
from qgf.data.readers._recording import Column, Recording, one_per_row, with_columns
from qgf.errors import UserError
from qgf.files import check_form, read_json

EXTRA = "lerobot"
INFO = "meta/info.json"
CAMERAS = ("video", "image")
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
OBSERVATION = ("observation.state", "observation.environment_state")
SUCCESS = ("next.success", "is_success", "success", "episodes/is_success", "episodes/success")
VALIDATION = ("val", "valid", "validation")
# What LeRobot itself writes about an episode; other columns are labels of those who added them.
OF_EPISODE = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")

_FORM = {
    "codebase_version": str,
    "features": {str: {"dtype": str, "shape": [int]}},
    "total_episodes": int,
    "total_frames": int,
}


def fits(path: Path) -> bool:
    """Whether it is a folder with meta/info.json."""
    return (path / INFO).is_file()


def read(path: Path) -> Recording:
    """Read a folder.

    Raises:
        UserError: it is of another version, damaged or not whole, or pyarrow is missing.
    """
    info = read_json(path / INFO)
    check_form(info, _FORM, str(path / INFO))
    if not info["codebase_version"].startswith("v3"):
        raise UserError(
            f"{path} is of LeRobot's format {info['codebase_version']}; qgf reads v3.0: "
            "convert it with LeRobot's convert_dataset_v21_to_v30"
        )
    data, about = _parts(path / "data"), _parts(path / "meta/episodes")
    if not data:
        raise UserError(f"{path} has no data/chunk-*/file-*.parquet; download it whole")
    lengths, numbers = _episodes(path, info, data)
    last = ends_of(lengths)
    columns, refused = _columns(info, data, last)
    columns |= _labels(path, about, numbers, last)
    success = next((name for name in SUCCESS if name in columns), None)
    ends = [name for name in (success, "next.done") if name in columns]
    marks = [one_per_row(str(path), name, columns[name]) != 0 for name in ends]
    of_state = frozenset(n for n in columns if n.startswith("observation") or n in COUNTERS)
    return with_columns(
        Recording(
            format="lerobot",
            source=str(path),
            files=(path / INFO, *about, *data),
            columns={},
            last=last,
            observation=tuple(name for name in OBSERVATION if name in columns),
            action="action",
            reward="next.reward",
            success=success,
            of_state=of_state,
            terminated=success and np.all(marks, axis=0) & ~last,
            unseen=last,
            validation=_validation(path, info, numbers),
            refused=refused,
            pictures=last_pictures(path, info, _of_episodes(about, numbers), data, lengths),
        ),
        columns,
    )


def _parts(folder: Path) -> list[Path]:
    """Return chunk-N/file-M.parquet in the order of their numbers."""
    found = folder.glob("*/*.parquet")
    return sorted(found, key=lambda p: (len(p.parent.name), p.parent.name, len(p.name), p.name))


def _episodes(
    path: Path, info: dict[str, Any], data: list[Path]
) -> tuple[Int[np.ndarray, " episode"], Int[np.ndarray, " episode"]]:
    """Return how many actions every episode has, and its number."""
    index = _steps(data, "episode_index")
    frame = _steps(data, "frame_index")
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    lengths = np.diff(np.append(starts, len(index)))
    if (len(index), len(lengths)) != (info["total_frames"], info["total_episodes"]):
        raise UserError(
            f"{path} holds {len(index):,} frames in {len(lengths):,} episodes, but its {INFO} says "
            f"{info['total_frames']:,} in {info['total_episodes']:,}; it is damaged, or not "
            "downloaded whole"
        )
    if (frame != np.arange(len(index)) - np.repeat(starts, lengths)).any():
        raise UserError(f"{path} is damaged: the frames of an episode are not in their order")
    return lengths, index[starts]


def _steps(data: list[Path], name: str) -> np.ndarray:
    """Return a column of all files, one row for every action."""
    arrays = []
    for file in data:
        column = read_column(file, name, EXTRA)
        if column is None:
            raise UserError(f"{file} has no column {name!r}, which {INFO} lists")
        arrays.append(as_numpy(column, name, file))
    same_shape(name, [(file, a.shape[1:]) for file, a in zip(data, arrays, strict=True)])
    return np.concatenate(arrays)


def _columns(
    info: dict[str, Any], data: list[Path], last: Bool[np.ndarray, " row"]
) -> tuple[dict[str, Column], dict[str, str]]:
    columns, refused = {}, {}
    kinds = schema(data[0], EXTRA)
    for name, feature in info["features"].items():
        if feature["dtype"] in CAMERAS:
            refused[name] = f"it is a camera's stream ({feature['dtype']})"
        elif name not in kinds:
            raise UserError(f"{data[0]} has no column {name!r}, which {INFO} lists")
        elif (dtype := number_type(kinds[name])) is None:
            refused[name] = f"it is of {kinds[name]}, not of numbers"
        else:
            shape = tuple(feature["shape"])
            shape = (len(last), *(() if shape == (1,) else shape))
            columns[name] = Column(
                shape, dtype, lambda name=name: with_ends(_steps(data, name), last)
            )
    return columns, refused


def _labels(
    path: Path,
    about: list[Path],
    numbers: Int[np.ndarray, " episode"],
    last: Bool[np.ndarray, " row"],
) -> dict[str, Column]:
    """Return what was added about whole episodes, as outcomes of their last actions."""
    if not about:
        return {}
    kinds = schema(about[0], EXTRA)
    number = set(_steps(about, "episode_index").tolist())
    if absent := [int(n) for n in numbers if int(n) not in number]:
        raise UserError(f"{path}: meta/episodes says nothing about episode {absent[0]}")
    said = _of_episodes(about, numbers)
    columns = {}
    for name, kind in kinds.items():
        dtype = number_type(kind)
        if "/" in name or name in OF_EPISODE or dtype is None:
            continue

        def read(name: str = name) -> np.ndarray:
            values = said(name)
            rows = np.zeros(len(last), values.dtype)
            rows[np.flatnonzero(last) - 1] = values
            return rows

        columns[f"episodes/{name}"] = Column(last.shape, dtype, read)
    return columns


def _of_episodes(
    about: list[Path], numbers: Int[np.ndarray, " episode"]
) -> Callable[[str], np.ndarray]:
    """Return what reads a column of meta/episodes, in the order of the episodes."""

    def read(name: str) -> np.ndarray:
        where = {int(n): row for row, n in enumerate(_steps(about, "episode_index"))}
        return _steps(about, name)[[where[int(n)] for n in numbers]]

    return read


def _validation(
    path: Path, info: dict[str, Any], numbers: Int[np.ndarray, " episode"]
) -> Int[np.ndarray, " chosen"] | None:
    splits = info.get("splits") or {}
    name = next((name for name in VALIDATION if name in splits), None)
    if name is None:
        return None
    try:
        first, end = map(int, splits[name].split(":"))
    except (ValueError, AttributeError):
        raise UserError(f"{path / INFO}: the split {name!r} is no range of episodes") from None
    return np.flatnonzero((first <= numbers) & (numbers < end))
