"""The last pictures of episodes in LeRobot's folders, from videos or from pictures in Parquet."""

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from qgf.data.readers._arrow import read_column
from qgf.data.readers._layout import optional, undamaged
from qgf.errors import UserError

EXTRA = "plots"

Picture = UInt8[np.ndarray, "height width 3"]


def last_pictures(
    path: Path,
    info: Mapping[str, Any],
    steps: Callable[[str], np.ndarray],
    data: list[Path],
    lengths: Int[np.ndarray, " episode"],
) -> dict[str, Callable[[int], Picture]]:
    """Return what reads the last picture of an episode, by camera.

    Args:
        path: the folder.
        info: what its meta/info.json says.
        steps: returns a column of meta/episodes, one row for each episode in order.
        data: its Parquet files of rows.
        lengths: how many actions every episode has.
    """
    found: dict[str, Callable[[int], Picture]] = {}
    for name, feature in info["features"].items():
        if feature["dtype"] == "video":
            found[name] = partial(_of_video, path, name, steps, float(info.get("fps") or 0))
        elif feature["dtype"] == "image":
            found[name] = partial(_of_table, data, name, np.cumsum(lengths) - 1)
    return found


def _of_table(
    data: list[Path], name: str, rows: Int[np.ndarray, " episode"], episode: int
) -> Picture:
    """Return a picture that stands in a row, as a file's bytes."""
    image = optional("PIL.Image", EXTRA, data[0])
    row = int(rows[episode])
    for file in data:
        column = read_column(file, name, "lerobot")
        if row < len(column):
            with undamaged(file):
                held = column[row].as_py()
                return np.asarray(image.open(io.BytesIO(held["bytes"])).convert("RGB"))
        row -= len(column)
    raise UserError(f"{data[-1]} ends before episode {episode}; download it whole")


def _of_video(
    path: Path, name: str, steps: Callable[[str], np.ndarray], fps: float, episode: int
) -> Picture:
    """Return the last picture of the part of a video that an episode is."""
    reader = optional("imageio_ffmpeg", EXTRA, path)
    chunk, number, end = (
        steps(f"videos/{name}/{what}")[episode]
        for what in ("chunk_index", "file_index", "to_timestamp")
    )
    file = path / f"videos/{name}/chunk-{int(chunk):03d}/file-{int(number):03d}.mp4"
    if not file.is_file():
        raise UserError(f"{file} does not exist; download the data set's videos too")
    # The first picture from there on: the last one lasts from 1 / fps before the end.
    start = max(0.0, float(end) - 1.5 / fps) if fps else 0.0
    with undamaged(file):
        frames = reader.read_frames(
            str(file), pix_fmt="rgb24", input_params=["-ss", f"{start:.6f}"]
        )
        width, height = next(frames)["size"]
        picture = np.frombuffer(next(frames), np.uint8).reshape(height, width, 3)
        frames.close()
    return picture
