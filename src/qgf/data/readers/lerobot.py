"""LeRobot's folders, version 3: meta/info.json, meta/episodes and data of Parquet files.

A row is an action and the state before it; the state after an episode's last action is never
there. `next.done` says that a recording ended, not why: the task ended where `next.success` says
so too. Streams of cameras are left alone. Source: lerobot.datasets, version 0.6.1.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from qgf.data.readers._arrow import as_numpy, number_type, read_column, schema
from qgf.data.readers._layout import ends_of, lay_out, split_steps
from qgf.data.readers._recording import Column, Recording, with_columns
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
    columns, refused = _columns(path, info, data, lengths)
    columns |= _labels(path, about, lengths, numbers)
    success = next((name for name in SUCCESS if name in columns), None)
    of_state = frozenset(n for n in columns if n.startswith("observation") or n in COUNTERS)
    return with_columns(
        Recording(
            format="lerobot",
            source=str(path),
            files=(path / INFO, *about, *data),
            columns={},
            last=last,
            observation=tuple(name for name in OBSERVATION if name in columns),
            action="action" if "action" in columns else None,
            reward="next.reward" if "next.reward" in columns else None,
            success=success,
            of_state=of_state,
            terminated=_terminated(columns, success, last),
            unseen=last,
            validation=_validation(path, info, numbers),
            refused=refused,
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
        arrays.append(as_numpy(column, name, EXTRA, file))
        if arrays[-1].shape[1:] != arrays[0].shape[1:]:
            raise UserError(
                f"{name} changes its shape: {arrays[0].shape[1:]} in {data[0]}, "
                f"{arrays[-1].shape[1:]} in {file}"
            )
    return np.concatenate(arrays)


def _columns(
    path: Path, info: dict[str, Any], data: list[Path], lengths: Int[np.ndarray, " episode"]
) -> tuple[dict[str, Column], dict[str, str]]:
    columns, refused = {}, {}
    kinds = schema(data[0], EXTRA)
    for name, feature in info["features"].items():
        if feature["dtype"] in CAMERAS:
            refused[name] = f"it is a camera's stream ({feature['dtype']})"
        elif name not in kinds:
            raise UserError(f"{data[0]} has no column {name!r}, which {INFO} lists")
        elif (dtype := number_type(kinds[name], EXTRA, data[0])) is None:
            refused[name] = f"it is of {kinds[name]}, not of numbers"
        else:

            def read(name: str = name) -> np.ndarray:
                parts = split_steps(_steps(data, name), lengths)
                return lay_out(str(path), name, parts, lengths)

            shape = tuple(feature["shape"])
            shape = (int((lengths + 1).sum()), *(() if shape == (1,) else shape))
            columns[name] = Column(shape, dtype, read)
    return columns, refused


def _labels(
    path: Path,
    about: list[Path],
    lengths: Int[np.ndarray, " episode"],
    numbers: Int[np.ndarray, " episode"],
) -> dict[str, Column]:
    """Return what was added about whole episodes, as outcomes of their last actions."""
    if not about:
        return {}
    kinds = schema(about[0], EXTRA)
    number = _steps(about, "episode_index")
    where = {int(n): row for row, n in enumerate(number)}
    if absent := [int(n) for n in numbers if int(n) not in where]:
        raise UserError(f"{path}: meta/episodes says nothing about episode {absent[0]}")
    columns = {}
    for name, kind in kinds.items():
        dtype = number_type(kind, EXTRA, about[0])
        if "/" in name or name in OF_EPISODE or dtype is None:
            continue

        def read(name: str = name) -> np.ndarray:
            values = _steps(about, name)[[where[int(n)] for n in numbers]]
            rows = np.zeros(int((lengths + 1).sum()), values.dtype)
            rows[np.cumsum(lengths + 1) - 2] = values
            return rows

        shape = (int((lengths + 1).sum()),)
        columns[f"episodes/{name}"] = Column(shape, dtype, read)
    return columns


def _terminated(
    columns: dict[str, Column], success: str | None, last: Bool[np.ndarray, " row"]
) -> Bool[np.ndarray, " row"] | None:
    if success is None:
        return None
    ended = columns[success].read() != 0
    if "next.done" in columns:
        ended &= columns["next.done"].read() != 0
    return ended & ~last


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
