"""Our own folders: one npz file of `Trajectories` per split, and trajectories.json.

The record has the format's number, the rows and SHA-256 of every file, and what they were made of.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qgf.data.readers._npz import npz_columns, npz_joined
from qgf.data.readers._recording import Fields, Recording, one_per_row, split_episodes, with_columns
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError
from qgf.files import atomic_open, check_form, locked, read_record, reading, sha256, write_record

FILE = "trajectories.json"
NUMBER = 1
"""of this layout"""
MARKS = ("last", "terminated", "unseen")
OF_ACTION = ("action", "reward", "success")

_FORM = {
    "trajectories": int,
    "files": [{"file": str, "split": str, "episodes": int, "rows": int, "sha256": str}],
    "source": dict,
}


def fits(path: Path) -> bool:
    """Whether it is a folder with trajectories.json."""
    return (path / FILE).is_file()


def read(path: Path) -> Recording:
    """Read a folder. UserError if a file differs from what was written, or is of a later format."""
    record = read_record(path / FILE)
    check_form(record, _FORM, str(path / FILE))
    if record["trajectories"] != NUMBER:
        raise UserError(
            f"{path / FILE} has layout {record['trajectories']}; this qgf reads {NUMBER}: "
            "upgrade it"
        )
    if not record["files"] or any(Path(e["file"]).name != e["file"] for e in record["files"]):
        raise UserError(f"{path / FILE} is damaged: it lists no files in its folder")
    files = [path / entry["file"] for entry in record["files"]]
    for file, entry in zip(files, record["files"], strict=True):
        with reading(file):
            if sha256(file) != entry["sha256"]:
                raise UserError(f"{file} differs from what {FILE} recorded; convert it again")
    columns = npz_joined({file: npz_columns(file) for file in files})
    counts = [entry["episodes"] for entry in record["files"]]
    is_val = np.repeat([entry["split"] == "val" for entry in record["files"]], counts)
    marks = {n: one_per_row(str(path), n, columns.pop(n)) != 0 for n in MARKS if n in columns}
    return with_columns(
        Recording(
            format="qgf",
            source=str(path),
            files=(path / FILE, *files),
            columns={},
            last=marks["last"],
            observation=("observation",),
            action="action",
            reward="reward",
            success="success",
            goal="goal",
            achieved="achieved",
            of_state=frozenset(columns) - {*OF_ACTION},
            terminated=marks.get("terminated"),
            unseen=marks.get("unseen"),
            validation=np.flatnonzero(is_val),
            joined={"observation": tuple(record["source"].get("parts", ["observations"]))},
        ),
        columns,
    )


def write(folder: Path, parts: Mapping[str, Trajectories], source: Mapping[str, object]) -> None:
    """Write trajectories of every split into a new folder; its record is what comes last.

    Args:
        parts: by split, "train" and "val".
        source: what is noted of where they come from; JSON.

    Raises:
        UserError: the folder is not empty, or cannot be written.
    """
    with locked(folder):
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty; name a new folder")
        files = []
        for split, trajectories in parts.items():
            path = folder / f"{split}.npz"
            with atomic_open(path) as file:
                np.savez(file, **trajectories.arrays())
            files.append(
                {
                    "file": path.name,
                    "split": split,
                    "episodes": len(trajectories.ends),
                    "rows": len(trajectories.last),
                    "sha256": sha256(path),
                }
            )
        write_record(
            folder / FILE, {"trajectories": NUMBER, "source": dict(source), "files": files}
        )


def convert(recording: Recording, fields: Fields, folder: Path) -> dict[str, Trajectories]:
    """Write a recording as one of ours, and return its splits.

    Args:
        recording: what `open_recording` or `from_arrays` returned.
        fields: which of its fields are used.
        folder: a new folder.

    Raises:
        UserError: as `Recording.trajectories` and `write`.
    """
    trajectories = recording.trajectories(fields)
    chosen = split_episodes(recording)
    parts = {split: trajectories.take(e) for split, e in chosen.items() if len(e)}
    source = {
        "format": recording.format,
        "path": recording.source,
        "fields": dataclasses.asdict(fields),
        "parts": recording.parts(fields),
        "files": {str(file): sha256(file) for file in recording.files},
    }
    write(folder, parts, source)
    return parts
