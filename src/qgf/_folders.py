"""Run folders as files: the record, checkpoints, arrays. Without JAX, which PyTorch does without.

`qgf.run.checkpoint` says what lies in a run's folder, and makes learners of it.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from qgf.config import Spec
from qgf.errors import UserError
from qgf.files import check_form, read_record, reading

RECORD = {
    "env": str,
    "method": str,
    "seeds": [int],
    "config": dict,
    "spec": {str: int},
    "learners": {str: str},
    "borrowed": {str: {"run": str, "kind": str, "config": dict}},
    "data": {"folder": str, "name": str, "sha256": {str: str}},
    "versions": {"qgf": str},
    "device": str,
}


def read_run(run: Path) -> dict[str, Any]:
    """Return a run's config.json, whose settings and kinds of learners are not yet checked.

    Raises:
        UserError: the folder is missing or holds no run, or config.json is damaged.
    """
    path = run / "config.json"
    if not path.exists():
        what = "holds no run (no config.json)" if run.is_dir() else "does not exist"
        raise UserError(f"{run} {what}; train one with `qgf train --out {run}`")
    record = read_record(path)
    check_form(record, RECORD, str(path))
    if not record["seeds"] or not {"obs", "action", "chunk"} <= record["spec"].keys() <= {
        *Spec._fields
    }:
        raise UserError(f"{path} is damaged: it has no seeds, or other sizes than qgf knows")
    return record


def list_checkpoints(run: Path) -> list[int]:
    """Return the step of every complete checkpoint, in rising order.

    Args:
        run: folder of the run.
    """
    folders = (path.parent for path in (run / "checkpoints").glob("*/state.json"))
    return sorted(int(f.name) for f in folders if re.fullmatch(r"[0-9]{8,18}", f.name))


def find_checkpoint(run: Path, which: str = "last") -> Path:
    """Return the folder of checkpoint "last" or a step's number.

    Args:
        run: folder of the run.
        which: "last" or a step's number.

    Raises:
        UserError: the run has no checkpoint, or not that one.
    """
    steps = list_checkpoints(run)
    if not steps:
        raise UserError(f"{run} has no checkpoint; train it with `qgf train --out {run}`")
    step = steps[-1] if which == "last" else int(which) if _STEP.fullmatch(which) else None
    if step not in steps:
        raise UserError(
            f"{run} has no checkpoint {which!r}; it has {', '.join(map(str, steps))}, last"
        )
    return run / "checkpoints" / f"{step:08d}"


_STEP = re.compile(r"[0-9]{1,18}")


def digest_of(checkpoint: Path, name: str) -> str | None:
    """Return the SHA-256 that a checkpoint's state.json notes for NAME.safetensors.

    None if it is of format 1, which notes none. UserError if it is damaged.
    """
    state = read_state(checkpoint)
    if "sha256" not in state:
        return None
    check_form(state, {"sha256": {name: str}}, str(checkpoint / "state.json"))
    return state["sha256"][name]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's state.json.

    UserError if it is damaged, or the folder was renamed.
    """
    path = checkpoint / "state.json"
    state = read_record(path)
    check_form(state, {"step": int}, str(path))
    if state["step"] != int(checkpoint.name):
        raise UserError(f"{path} is of step {state['step']}: {checkpoint} was renamed")
    return state


def kinds_held(record: dict) -> dict[str, str]:
    """Return the kind of every learner of a run, trained or borrowed, by role."""
    return record["learners"] | {k: v["kind"] for k, v in record["borrowed"].items()}


def learner_file(run: Path, record: dict, name: str, which: str) -> tuple[Path, str | None]:
    """Return the file of a learner, and its SHA-256 if that was noted.

    Raises:
        UserError: no such learner or checkpoint.
    """
    if name not in kinds_held(record):
        raise UserError(f"{run} has no {name}; train one with `qgf train`")
    if name in record["borrowed"]:
        return run / f"{name}.safetensors", record["borrowed"][name].get("sha256")
    folder = find_checkpoint(run, which)
    return folder / f"{name}.safetensors", digest_of(folder, name)


def seed_index(run: Path, record: dict, name: str, seed: int) -> int:
    """Return where a learner's arrays of a training seed stand. UserError if there are none."""
    if seed not in record["seeds"]:
        raise UserError(f"{run} has no {name} of seed {seed}; it has {record['seeds']}")
    return record["seeds"].index(seed)


def read_arrays(path: Path, sha256: str | None) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name.

    Args:
        sha256: of the file; None where it was not noted (records of format 1).

    Raises:
        UserError: the file is missing or damaged, or holds NaN.
    """
    with reading(path):
        content = path.read_bytes()
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(
            f"{path} is damaged (its SHA-256 differs from the one noted when it was written); "
            "use another checkpoint"
        )
    try:
        arrays = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); use another checkpoint") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path} has NaN or infinity in {name}; use another checkpoint")
    return arrays
