"""Run folders: configuration, checkpoints of arrays, and how a policy is read back.

RUN/config.json                     what was asked for, versions, data hashes
RUN/metrics.jsonl                   losses
RUN/checkpoints/STEP/*.safetensors  one file a learner, and the optimizer's state
RUN/checkpoints/STEP/state.json     step and validation loss
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
import safetensors
import safetensors.numpy

from qgf._files import atomic_open, read_json, write_json
from qgf.config import Config, Spec
from qgf.errors import UserError
from qgf.learners import LEARNERS, Learner

Tree = TypeVar("Tree")
RECORD = {"env", "seeds", "config", "spec", "borrowed", "learners", "data"}


def save_arrays(path: Path, tree: Any) -> None:
    """Write every array of `tree` to a safetensors file, named by its place in the tree."""
    arrays = {_name(at): np.asarray(leaf) for at, leaf in _leaves(tree)}
    with atomic_open(path) as file:
        file.write(safetensors.numpy.save(arrays))


def load_arrays(path: Path, like: Tree) -> Tree:
    """Return `like` (arrays or their shapes) with the arrays of a safetensors file.

    Raises:
        UserError: the file is missing, damaged, or holds other arrays than `like`.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; train again or name another checkpoint") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); use another checkpoint") from None
    places = _leaves(like)
    wanted = {_name(at): leaf.shape for at, leaf in places}
    found = {name: array.shape for name, array in arrays.items()}
    if wanted != found:
        differ = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        raise UserError(f"{path} does not fit its config.json: {differ} differs")
    leaves = [jax.numpy.asarray(arrays[_name(at)]) for at, _ in places]
    shapes, static = eqx.partition(like, _is_array)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(shapes), leaves), static)


def save_checkpoint(run: Path, step: int, trees: dict[str, Any], state: dict) -> None:
    """Write checkpoints/STEP as a whole: it appears complete or not at all."""
    folder = run / "checkpoints"
    target = folder / f"{step:08d}"
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        temporary.chmod(0o755)
        for name, tree in trees.items():
            save_arrays(temporary / f"{name}.safetensors", tree)
        write_json(temporary / "state.json", {"step": step, **state})
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def list_checkpoints(run: Path) -> dict[int, dict]:
    """Return the state.json of every complete checkpoint, by step in rising order."""
    states = sorted((run / "checkpoints").glob("[0-9]*/state.json"))
    return {int(path.parent.name): read_json(path) for path in states}


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints, the best one, and abandoned writes."""
    states = list_checkpoints(run)
    kept = {*list(states)[-keep:], best_step(states)}
    folder = run / "checkpoints"
    for step in set(states) - kept:
        # Renamed first: what is left of a broken-off removal must not look like a checkpoint.
        os.replace(folder / f"{step:08d}", folder / f".writing-{step:08d}")
    for abandoned in folder.glob(".writing-*"):
        shutil.rmtree(abandoned, ignore_errors=True)


def best_step(states: dict[int, dict]) -> int:
    """Return the step with the lowest validation loss."""
    return min(states, key=lambda step: states[step]["validation_loss"])


def find_checkpoint(run: Path, which: str = "last") -> Path:
    """Return the folder of checkpoint "last", "best" or a step's number.

    Raises:
        UserError: the run has no checkpoint, or not that one.
    """
    states = list_checkpoints(run)
    if not states:
        raise UserError(f"{run} has no checkpoint; train it with `qgf train --out {run}`")
    step = {"last": max(states), "best": best_step(states)}.get(which)
    if step is None:
        step = int(which) if which.isdecimal() else None
    if step not in states:
        raise UserError(
            f"{run} has no checkpoint {which!r}; it has {', '.join(map(str, states))}, last, best"
        )
    return run / "checkpoints" / f"{step:08d}"


def load_record(run: Path) -> dict:
    """Return a run's config.json.

    Raises:
        UserError: the folder is missing or holds no run.
    """
    run = Path(run)
    if not (run / "config.json").exists():
        what = "holds no run (no config.json)" if run.is_dir() else "does not exist"
        raise UserError(f"{run} {what}; train one with `qgf train --out {run}`")
    record = read_json(run / "config.json")
    missing = RECORD - set(record) if isinstance(record, dict) else RECORD
    if missing:
        raise UserError(f"{run / 'config.json'} is not a run's: it has no {min(missing)!r}")
    return record


def kinds_held(record: dict) -> dict[str, str]:
    """Return the kind of every learner of a run, trained or borrowed, by role."""
    return record["learners"] | {k: v["kind"] for k, v in record["borrowed"].items()}


def of_seed(tree: Tree, index: Any) -> Tree:
    """Return the part of learners, whose arrays lead with the training-seed axis, at `index`."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)


def load_learner(
    run: Path, name: str, *, which: str = "last", seeds: list[int] | None = None
) -> Learner:
    """Read one learner of a run; its arrays lead with the axis of `seeds` (default: all).

    Args:
        name: the learner's role: "policy", "critic", or that of a method.
        which: "last", "best" or a step's number.

    Raises:
        UserError: no such run, checkpoint, learner or seed.
    """
    run, record = Path(run), load_record(run)
    borrowed, kind = record["borrowed"].get(name), kinds_held(record).get(name)
    if kind is None:
        raise UserError(f"{run} has no {name}; train one with `qgf train`")
    path = (run if borrowed else find_checkpoint(run, which)) / f"{name}.safetensors"
    config = Config(**(borrowed or record)["config"])
    spec = Spec(**record["spec"])
    keys = jax.random.split(jax.random.key(0), len(record["seeds"]))
    like = eqx.filter_eval_shape(
        lambda: eqx.filter_vmap(lambda key: LEARNERS[kind].create(spec, config, key))(keys)
    )
    learner = load_arrays(path, like)
    missing = [seed for seed in seeds or [] if seed not in record["seeds"]]
    if missing:
        raise UserError(f"{run} has no {name} of seed {missing[0]}; it has {record['seeds']}")
    index = np.array([record["seeds"].index(seed) for seed in seeds or record["seeds"]])
    return of_seed(learner, index)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(eqx.filter(tree, _is_array))[0]


def _name(path: Any) -> str:
    return ".".join(jax.tree_util.keystr((part,)).strip(".[]'\"") for part in path)
