"""Run folders: configuration, checkpoints of arrays, and how a policy is read back.

RUN/config.json                     what was asked for, versions, data hashes
RUN/metrics.jsonl                   losses
RUN/checkpoints/STEP/*.safetensors  one file a learner, and the optimizer's state
RUN/checkpoints/STEP/state.json     step, the SHA-256 of each of these files, what was logged
"""

import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
import safetensors
import safetensors.numpy

from qgf.config import Config, Spec
from qgf.data.readers import split_format, with_format
from qgf.errors import UserError
from qgf.files import (
    TEMPORARY,
    atomic_open,
    check_form,
    read_record,
    reading,
    retire,
    sha256,
    write_record,
)
from qgf.learners import LEARNERS, Learner

LATER = ("n-step", "task-dqc", "emaq")  # learners that there were not yet up to format 2
Tree = TypeVar("Tree")
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


def save_arrays(path: Path, tree: Any) -> str:
    """Write every array of `tree` to a safetensors file, named by its place in the tree.

    Returns:
        SHA-256 of the file.
    """
    content = _content(tree)
    with atomic_open(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def arrays_digest(tree: Any) -> str:
    """Return the SHA-256 that `save_arrays` would return, without writing."""
    return hashlib.sha256(_content(tree)).hexdigest()


def _content(tree: Any) -> bytes:
    return safetensors.numpy.save({_name(at): np.asarray(leaf) for at, leaf in _leaves(tree)})


def load_arrays(path: Path, like: Tree, sha256: str | None) -> Tree:
    """Return `like` (arrays or their shapes) with the arrays of a safetensors file.

    Args:
        sha256: of the file; None where it was not noted (records of format 1).

    Raises:
        UserError: the file is missing, damaged, or holds other arrays than `like`, or NaN.
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
    places = _leaves(like)
    wanted = {_name(at): (leaf.shape, leaf.dtype) for at, leaf in places}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if wanted != found:
        differ = sorted(set(wanted.items()) ^ set(found.items()), key=str)[0][0]
        raise UserError(f"{path} does not fit its config.json: {differ} differs")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path} has NaN or infinity in {name}; use another checkpoint")
    leaves = [jax.numpy.asarray(arrays[_name(at)]) for at, _ in places]
    shapes, static = eqx.partition(like, _is_array)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(shapes), leaves), static)


def save_checkpoint(
    run: Path, step: int, trees: dict[str, Any], log: dict[str, Any] | None = None
) -> None:
    """Write checkpoints/STEP as a whole: it appears complete or not at all.

    Args:
        log: a `Log` as a dict, by default that of a run of which nothing was logged.
    """
    folder = run / "checkpoints"
    target = folder / f"{step:08d}"
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
        temporary.chmod(0o755)
        digests = {
            name: save_arrays(temporary / f"{name}.safetensors", tree)
            for name, tree in trees.items()
        }
        state = {"step": step, "sha256": digests, **(log or {"logged": {}, "window": []})}
        write_record(temporary / "state.json", state)
        if target.exists():
            retire(target)
        os.replace(temporary, target)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def list_checkpoints(run: Path) -> list[int]:
    """Return the step of every complete checkpoint, in rising order."""
    folders = (path.parent for path in (run / "checkpoints").glob("*/state.json"))
    return sorted(int(f.name) for f in folders if re.fullmatch(r"[0-9]{8,18}", f.name))


def prune_checkpoints(run: Path, keep: int, every: int = 1) -> None:
    """Remove all but the last `keep` checkpoints.

    Args:
        every: steps between checkpoints; one between them, where a training was stopped, goes
            when a later one is there, so that stopping leaves no trace.
    """
    steps = list_checkpoints(run)
    regular = [step for step in steps if step % every == 0 or step == steps[-1]]
    for step in set(steps) - set(regular[-keep:]):
        retire(run / "checkpoints" / f"{step:08d}")


def find_checkpoint(run: Path, which: str = "last") -> Path:
    """Return the folder of checkpoint "last" or a step's number.

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


def load_record(run: Path) -> dict:
    """Return a run's config.json, with the default of every setting that it lacks.

    Data that were moved together with the run are found where they lie now.

    Raises:
        UserError: the folder is missing or holds no run, or config.json is damaged or of a
            version that knew other settings.
    """
    run = Path(run)
    path = run / "config.json"
    if not path.exists():
        what = "holds no run (no config.json)" if run.is_dir() else "does not exist"
        raise UserError(f"{run} {what}; train one with `qgf train --out {run}`")
    record = read_record(path)
    check_form(record, RECORD, str(path))
    version = record["versions"]["qgf"]
    for role, kind in kinds_held(record).items():
        if kind not in LEARNERS:
            raise UserError(
                f"{path} has a {role} of a kind that this qgf does not know, {kind!r}: it was "
                f"written by qgf {version}; use that version"
            )
    if not record["seeds"] or not {"obs", "action", "chunk"} <= record["spec"].keys() <= {
        *Spec._fields
    }:
        raise UserError(f"{path} is damaged: it has no seeds, or other sizes than qgf knows")
    parts = [(record, record["learners"].values())]
    parts += [(part, [part["kind"]]) for part in record["borrowed"].values()]
    for part, kinds in parts:
        part["config"] = _checked(part["config"], [*kinds], path, version)
    data = record["data"]
    moved = (run / str(data.get("relative", ""))).resolve()
    named, path = split_format(data["folder"])
    if not path.exists() and "relative" in data and moved.exists():
        data["folder"] = str(with_format(named, moved))
    return record


def config_record(config: Config, kinds: Iterable[str]) -> dict[str, Any]:
    """Return settings as config.json holds them, with the hyperparameters of these kinds."""
    shared = {name: value for name, value in vars(config).items() if name != "hyper"}
    hyper = {kind: dataclasses.asdict(config.of(LEARNERS[kind].Hyper)) for kind in kinds}
    return shared | {"hyper": hyper}


def read_config(settings: dict[str, Any]) -> Config:
    """Return the settings of which `config_record` made this, in whatever format."""
    settings = _nested(settings, (kind for kind in LEARNERS if kind not in LATER))
    hyper = {LEARNERS[kind].Hyper(**values) for kind, values in settings["hyper"].items()}
    return Config(**settings | {"hyper": tuple(hyper)})


def config_of(record: dict, role: str) -> Config:
    """Return the settings with which a run's learner, trained or borrowed, was trained."""
    return read_config(record["borrowed"].get(role, record)["config"])


def _nested(settings: dict[str, Any], kinds: Iterable[str]) -> dict[str, Any]:
    """Return settings in the present form: to format 2, hyperparameters stood among the others.

    One name was for all learners then, and null for the default of each.
    """
    if "hyper" in settings:
        return settings
    own = {kind: {f.name for f in dataclasses.fields(LEARNERS[kind].Hyper)} for kind in LEARNERS}
    given = {name: value for name, value in settings.items() if value is not None}
    hyper = {kind: {name: given[name] for name in own[kind] & given.keys()} for kind in kinds}
    every = set.union(*own.values())
    return {k: v for k, v in settings.items() if k not in every} | {"hyper": hyper}


def _checked(
    settings: dict[str, Any], kinds: list[str], path: Path, version: str
) -> dict[str, Any]:
    """Return settings with all defaults. UserError if they are not such as this qgf knows."""
    settings = _nested(settings, kinds)
    check_form(settings, {"hyper": {str: dict}}, f"{path}: config")
    hyper = settings["hyper"]
    if hyper.keys() != {*kinds}:
        raise UserError(f"{path} is damaged: it has hyperparameters of other learners than it says")
    shared = {name: value for name, value in settings.items() if name != "hyper"}
    parts = [(Config, shared), *((LEARNERS[kind].Hyper, hyper[kind]) for kind in kinds)]
    for form, values in parts:
        hints = typing.get_type_hints(form)
        unknown = values.keys() - {field.name for field in dataclasses.fields(form)}
        if unknown:
            raise UserError(
                f"{path} has a setting that this qgf does not know, {min(unknown)!r}: it was "
                f"written by qgf {version}; use that version"
            )
        for name, value in values.items():
            if not _fits(value, hints[name]):
                raise UserError(f"{path} is damaged: {name} cannot be {str(value)[:40]!r}")
    try:
        return config_record(read_config(settings), kinds)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of an annotation's type."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)


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
        which: "last" or a step's number.

    Raises:
        UserError: no such run, checkpoint, learner or seed.
    """
    run, record = Path(run), load_record(run)
    kind = kinds_held(record).get(name)
    if kind is None:
        raise UserError(f"{run} has no {name}; train one with `qgf train`")
    path, digest = _file(run, record, name, which)
    config = config_of(record, name)
    spec = Spec(**record["spec"])
    keys = jax.random.split(jax.random.key(0), len(record["seeds"]))
    like = eqx.filter_eval_shape(
        lambda: eqx.filter_vmap(lambda key: LEARNERS[kind].create(spec, config, key))(keys)
    )
    learner = load_arrays(path, like, digest)
    missing = [seed for seed in seeds or [] if seed not in record["seeds"]]
    if missing:
        raise UserError(f"{run} has no {name} of seed {missing[0]}; it has {record['seeds']}")
    index = np.array([record["seeds"].index(seed) for seed in seeds or record["seeds"]])
    return of_seed(learner, index)


def learner_hash(run: Path, name: str, which: str = "last") -> str:
    """Return the SHA-256 of the file that `load_learner` reads.

    Raises:
        UserError: no such run or checkpoint, or the file, whose hash was not noted, is gone.
    """
    path, digest = _file(Path(run), load_record(run), name, which)
    with reading(path):
        return digest or sha256(path)


def _file(run: Path, record: dict, name: str, which: str) -> tuple[Path, str | None]:
    """Return the file of a learner, and its SHA-256 if that was noted."""
    if name in record["borrowed"]:
        return run / f"{name}.safetensors", record["borrowed"][name].get("sha256")
    folder = find_checkpoint(run, which)
    return folder / f"{name}.safetensors", digest_of(folder, name)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(eqx.filter(tree, _is_array))[0]


def _name(path: Any) -> str:
    return ".".join(jax.tree_util.keystr((part,)).strip(".[]'\"") for part in path)
