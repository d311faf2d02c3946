"""Run folders: configuration, checkpoints of arrays, and how a policy is read back.

RUN/config.json                     what was asked for, versions, data hashes
RUN/metrics.jsonl                   losses
RUN/checkpoints/STEP/*.safetensors  one file a learner, and the optimizer's state
RUN/checkpoints/STEP/state.json     step, the SHA-256 of each of these files, what was logged
"""

import dataclasses
import hashlib
import os
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
import safetensors.numpy

from qgf._folders import (
    digest_of as digest_of,
    find_checkpoint as find_checkpoint,
    kinds_held as kinds_held,
    learner_file,
    list_checkpoints as list_checkpoints,
    read_arrays,
    read_run,
    read_state as read_state,
    seed_index,
)
from qgf.config import Config, Spec
from qgf.data.readers import split_format, with_format
from qgf.errors import UserError
from qgf.files import TEMPORARY, atomic_open, check_form, reading, retire, sha256, write_record
from qgf.learners import LEARNERS, Learner

LATER = ("n-step", "task-dqc", "emaq")  # learners that there were not yet up to format 2
Tree = TypeVar("Tree")


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
    arrays = read_arrays(path, sha256)
    places = _leaves(like)
    wanted = {_name(at): (leaf.shape, leaf.dtype) for at, leaf in places}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if wanted != found:
        differ = sorted(set(wanted.items()) ^ set(found.items()), key=str)[0][0]
        raise UserError(f"{path} does not fit its config.json: {differ} differs")
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


def load_record(run: Path) -> dict:
    """Return a run's config.json, with the default of every setting that it lacks.

    Data that were moved together with the run are found where they lie now.

    Args:
        run: folder of the run.

    Raises:
        UserError: the folder is missing or holds no run, or config.json is damaged or of a
            version that knew other settings.
    """
    run = Path(run)
    path, record = run / "config.json", read_run(run)
    version = record["versions"]["qgf"]
    for role, kind in kinds_held(record).items():
        if kind not in LEARNERS:
            raise UserError(
                f"{path} has a {role} of a kind that this qgf does not know, {kind!r}: it was "
                f"written by qgf {version}; use that version"
            )
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
    """Return the settings of which `config_record` made this, in whatever format.

    Args:
        settings: the "config" of a run's config.json.
    """
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


def of_seed(tree: Tree, index: Any) -> Tree:
    """Return the part of learners, whose arrays lead with the training-seed axis, at `index`.

    Args:
        tree: learners, or any tree of arrays.
        index: position of the training seed; None adds the axis instead.
    """
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)


def load_learner(
    run: Path, name: str, *, which: str = "last", seeds: list[int] | None = None
) -> Learner:
    """Read one learner of a run; its arrays lead with the axis of `seeds` (default: all).

    Args:
        run: folder of the run.
        name: the learner's role: "policy", "critic", or that of a method.
        which: "last" or a step's number.
        seeds: training seeds of the run.

    Returns:
        The learner.

    Raises:
        UserError: no such run, checkpoint, learner or seed.
    """
    run, record = Path(run), load_record(run)
    path, digest = learner_file(run, record, name, which)
    kind = kinds_held(record)[name]
    config = config_of(record, name)
    spec = Spec(**record["spec"])
    keys = jax.random.split(jax.random.key(0), len(record["seeds"]))
    like = eqx.filter_eval_shape(
        lambda: eqx.filter_vmap(lambda key: LEARNERS[kind].create(spec, config, key))(keys)
    )
    learner = load_arrays(path, like, digest)
    index = [seed_index(run, record, name, seed) for seed in seeds or record["seeds"]]
    return of_seed(learner, np.array(index))


def learner_hash(run: Path, name: str, which: str = "last") -> str:
    """Return the SHA-256 of the file that `load_learner` reads.

    Raises:
        UserError: no such run or checkpoint, or the file, whose hash was not noted, is gone.
    """
    path, digest = learner_file(Path(run), load_record(run), name, which)
    with reading(path):
        return digest or sha256(path)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(eqx.filter(tree, _is_array))[0]


def _name(path: Any) -> str:
    return ".".join(jax.tree_util.keystr((part,)).strip(".[]'\"") for part in path)
