"""robomimic's HDF5 files: a group data/demo_i per episode, filters of episodes in mask/.

A row is an action and the state before it; the state after the last one is there only where
`next_obs` is. `dones` may mark every end of a recording (done_mode 1 and 2 of the format's own
script), so the task ended only where the reward says so too. That one above 0 means success
unless the file says that its rewards are shaped. Source: robomimic, docs/datasets/overview and
scripts/dataset_states_to_obs.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from qgf.data.readers._hdf5 import Episodes, hdf5_file, numbered
from qgf.data.readers._layout import ends_of, file_kind
from qgf.data.readers._recording import Column, Recording, one_per_row, with_columns
from qgf.errors import UserError

EXTRA = "robomimic"
VALIDATION = "mask/valid"


def fits(path: Path) -> bool:
    """Whether it is an HDF5 file with episodes data/demo_i."""
    if file_kind(path) != "HDF5":
        return False
    with hdf5_file(path, EXTRA) as file:
        return hasattr(file.get("data"), "items") and bool(numbered(file["data"], "demo_"))


def read(path: Path) -> Recording:
    """Read a file. UserError if it is damaged or its fields do not belong together."""
    with hdf5_file(path, EXTRA) as file:
        demos = numbered(file["data"], "demo_")
        episodes = Episodes(path, EXTRA, file, [f"data/{demo}" for demo in demos], "actions")
        shaped = _shaped(path, file)
        validation = _validation(path, file, demos)
    names = [name for name in episodes.first if not name.startswith("next_obs/")]
    observed = [name for name in names if name.startswith("obs/")]
    after = {name: f"next_{name}" for name in observed if f"next_{name}" in episodes.first}
    columns = {name: episodes.column(name, after.get(name)) for name in names}
    last = ends_of(episodes.lengths)
    return with_columns(
        Recording(
            format="robomimic",
            source=str(path),
            files=(path,),
            columns={},
            last=last,
            # Images are chosen by name; so wide, they are not the observation by default.
            observation=tuple(name for name in observed if len(columns[name].shape) < 3),
            action="actions",
            reward="rewards",
            success=None if shaped else "rewards",
            of_state=frozenset(after or observed),
            terminated=None if shaped else _terminated(path, columns, last),
            unseen=None if after else last,
            validation=validation,
            refused=episodes.refused,
        ),
        columns,
    )


def _shaped(path: Path, file: Any) -> bool:
    """Whether the file says that its rewards are more than marks of success."""
    try:
        args = json.loads(file["data"].attrs.get("env_args", "{}"))
        return bool(args.get("env_kwargs", {}).get("reward_shaping", False))
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged: its env_args are not readable") from None


def _terminated(
    path: Path, columns: dict[str, Column], last: Bool[np.ndarray, " row"]
) -> np.ndarray | None:
    if not {"rewards", "dones"} <= columns.keys():
        return None
    done, reward = (one_per_row(str(path), name, columns[name]) for name in ("dones", "rewards"))
    return (done != 0) & (reward > 0) & ~last


def _validation(path: Path, file: Any, demos: list[str]) -> Int[np.ndarray, " chosen"] | None:
    if VALIDATION not in file:
        return None
    chosen = [name.decode() for name in file[VALIDATION][()]]
    strange = [name for name in chosen if name not in demos]
    if strange:
        raise UserError(f"{path} is damaged: {VALIDATION} names {strange[0]}, which is not there")
    return np.array(sorted(demos.index(name) for name in chosen))
