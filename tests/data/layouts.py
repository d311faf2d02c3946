"""The same few episodes in every format that qgf reads, and arrays in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet

from qgf.data import Recording, from_arrays
from qgf.data.readers import own
from qgf.files import sha256, write_record

LENGTHS = (4, 3, 5)
NAMES = {
    "observations": "observation",
    "actions": "action",
    "rewards": "reward",
    "terminals": "last",
}
"""what OGBench's arrays are called in a folder of our own"""


class Layout(NamedTuple):
    """A way to keep episodes.

    Attributes:
        reader: name of the format that it is read as.
        obs, action, reward: what the fields are called.
        write: puts episodes into a folder and returns the path to read, or what is in memory.
    """

    reader: str
    obs: str
    action: str
    reward: str
    write: Callable[[Path, list[dict]], Path | Recording]


def episodes() -> list[dict]:
    """Return episodes of whole numbers that every type keeps, the last of which is solved."""
    rng = np.random.default_rng(5)
    return [
        {
            "obs": rng.integers(0, 9, (length + 1, 3)).astype(np.float32),
            "action": rng.integers(0, 2, (length, 2)).astype(np.float32),
            "reward": np.arange(length, dtype=np.float32),
            "terminal": np.arange(length) == (length - 1 if number == 2 else -1),
            "timeout": np.arange(length) == (length - 1 if number < 2 else -1),
        }
        for number, length in enumerate(LENGTHS)
    ]


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Join the rows of all episodes; rows of different shapes become objects."""
    if len({part.shape[1:] for part in parts}) == 1:
        order = "F" if all(np.isfortran(part) for part in parts) else "C"
        return np.asarray(np.concatenate(parts), parts[0].dtype, order=order)
    rows = [row for part in parts for row in part]
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


def flat(episodes: list[dict]) -> dict[str, np.ndarray]:
    """Return D4RL's arrays."""
    parts = {
        "observations": [e["obs"][:-1] for e in episodes],
        "next_observations": [e.get("next", e["obs"][1:]) for e in episodes],
        "actions": [e["action"] for e in episodes],
        "rewards": [e["reward"] for e in episodes],
        "terminals": [e["terminal"] for e in episodes],
        "timeouts": [e["timeout"] for e in episodes],
    }
    return {name: joined(each) for name, each in parts.items()}


def _repeated(episodes: list[dict], name: str) -> list[np.ndarray]:
    return [np.concatenate([e[name], e[name][-1:]]) for e in episodes]


def _states(episodes: list[dict]) -> dict[str, np.ndarray]:
    """Return arrays that have a row for the last state of an episode too."""
    ends = [np.append(0 * e["timeout"], (e["timeout"] | e["terminal"]).any()) for e in episodes]
    return {
        "observations": joined([e["obs"] for e in episodes]),
        "actions": joined(_repeated(episodes, "action")),
        "rewards": joined(_repeated(episodes, "reward")),
        "terminals": joined(ends).astype(bool),
    }


def write_ogbench(folder: Path, episodes: list[dict]) -> Path:
    masks = 1.0 - joined(_repeated(episodes, "terminal"))
    np.savez(folder / "data.npz", **_states(episodes), masks=masks)
    return folder / "data.npz"


def write_npz(folder: Path, episodes: list[dict]) -> Path:
    np.savez(folder / "data.npz", **flat(episodes))
    return folder / "data.npz"


def write_hdf5(folder: Path, episodes: list[dict]) -> Path:
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name, array in flat(episodes).items():
            _put(file, name, array)
    return folder / "data.hdf5"


def in_memory(folder: Path, episodes: list[dict]) -> Recording:
    return from_arrays(**flat(episodes))


def write_robomimic(folder: Path, episodes: list[dict]) -> Path:
    with h5py.File(folder / "data.hdf5", "w") as file:
        for number, e in enumerate(episodes):
            demo = file.create_group(f"data/demo_{number}")
            fields = {
                "obs/state": e["obs"][:-1],
                "next_obs/state": e.get("next", e["obs"][1:]),
                "actions": e["action"],
                "rewards": e["reward"],
                "dones": e["timeout"] | e["terminal"],
            }
            for name, array in fields.items():
                _put(demo, name, array, "gzip" if array.size else None)
    return folder / "data.hdf5"


def write_minari(folder: Path, episodes: list[dict]) -> Path:
    (folder / "data").mkdir()
    _describe(folder, episodes, "hdf5")
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        for number, e in enumerate(episodes):
            for name, array in _minari(e).items():
                _put(file.require_group(f"episode_{number}"), name, array)
    return folder


def write_minari_arrow(folder: Path, episodes: list[dict]) -> Path:
    _describe(folder, episodes, "arrow")
    for number, e in enumerate(episodes):
        rows = len(e["obs"])
        padded = {
            name: np.concatenate([array, np.zeros_like(array, shape=(1, *array.shape[1:]))])
            if len(array) == rows - 1
            else array
            for name, array in _minari(e).items()
        }
        (folder / f"data/{number}").mkdir(parents=True)
        feather.write_feather(
            _table(padded), folder / f"data/{number}/part-0.arrow", compression="uncompressed"
        )
    return folder


def write_lerobot(folder: Path, episodes: list[dict]) -> Path:
    names = {"observation.state": "obs", "action": "action", "next.reward": "reward"}
    columns = {
        to: [row for e in episodes for row in (e[name][:-1] if name == "obs" else e[name])]
        for to, name in names.items()
    }
    lengths = [len(e["action"]) for e in episodes]
    columns["next.done"] = joined([e["timeout"] | e["terminal"] for e in episodes])
    columns["next.success"] = joined([e["terminal"] for e in episodes])
    columns["episode_index"] = np.repeat(np.arange(len(lengths)), lengths)
    columns["frame_index"] = np.concatenate([np.arange(length) for length in lengths])
    features = {
        name: {
            "dtype": str(np.asarray(values[0]).dtype),
            "shape": [*np.shape(values[0])] or [1],
        }
        for name, values in columns.items()
    }
    for file, table in (
        ("data", _table(columns)),
        (
            "meta/episodes",
            pa.table({"episode_index": [*range(len(lengths))], "length": lengths}),
        ),
    ):
        (folder / file / "chunk-000").mkdir(parents=True)
        parquet.write_table(table, folder / file / "chunk-000/file-000.parquet")
    info = {
        "codebase_version": "v3.0",
        "features": features,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def write_own(folder: Path, episodes: list[dict]) -> Path:
    files = []
    for split, part in (("train", episodes[:-1]), ("val", episodes[-1:])):
        if not part:
            continue
        arrays = _states(part)
        arrays["terminated"] = joined(_repeated(part, "terminal"))
        np.savez(folder / f"{split}.npz", **{NAMES.get(n, n): a for n, a in arrays.items()})
        about = {"file": f"{split}.npz", "split": split, "episodes": len(part)}
        digest = sha256(folder / f"{split}.npz")
        files.append({**about, "rows": len(arrays["terminated"]), "sha256": digest})
    record = {"trajectories": own.NUMBER, "source": {}, "files": files}
    write_record(folder / own.FILE, record)
    return folder


LAYOUTS = {
    "ogbench": Layout("ogbench", "observations", "actions", "rewards", write_ogbench),
    "d4rl npz": Layout("d4rl", "observations", "actions", "rewards", write_npz),
    "d4rl hdf5": Layout("d4rl", "observations", "actions", "rewards", write_hdf5),
    "memory": Layout("d4rl", "observations", "actions", "rewards", in_memory),
    "robomimic": Layout("robomimic", "obs/state", "actions", "rewards", write_robomimic),
    "minari hdf5": Layout("minari", "observations", "actions", "rewards", write_minari),
    "minari arrow": Layout("minari", "observations", "actions", "rewards", write_minari_arrow),
    "lerobot": Layout("lerobot", "observation.state", "action", "next.reward", write_lerobot),
    "qgf": Layout("qgf", "observation", "action", "reward", write_own),
}


def _minari(episode: dict) -> dict[str, np.ndarray]:
    return {
        "observations": episode["obs"],
        "actions": episode["action"],
        "rewards": episode["reward"],
        "terminations": episode["terminal"],
        "truncations": episode["timeout"],
    }


def _describe(folder: Path, episodes: list[dict], kind: str) -> None:
    (folder / "data").mkdir(exist_ok=True)
    about = {"data_format": kind, "total_episodes": len(episodes)}
    (folder / "data/metadata.json").write_text(json.dumps(about))


def _put(group: h5py.Group, name: str, array: np.ndarray, compression: str | None = None) -> None:
    if array.dtype == object:
        kept = group.create_dataset(name, len(array), h5py.vlen_dtype(np.float32))
        for row, value in enumerate(array):
            kept[row] = value
    else:
        group.create_dataset(name, data=array, compression=compression)


def _table(columns: dict) -> pa.Table:
    return pa.table(
        {
            name: pa.array([np.asarray(row).tolist() for row in values])
            if isinstance(values, np.ndarray) and values.dtype == object
            else _column(values)
            for name, values in columns.items()
        }
    )


def _column(values: list[np.ndarray] | np.ndarray) -> pa.Array:
    """Return rows of numbers as a column that keeps their type."""
    shape = np.shape(values[0])
    kind = pa.from_numpy_dtype(np.asarray(values[0]).dtype)
    rows = [np.asarray(row).reshape(-1) for row in values]
    if not shape:
        return pa.array([row[0] for row in rows], kind)
    return pa.array(rows, pa.list_(kind))
