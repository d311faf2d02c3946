"""What a run is: its learners and where they come from, its config.json, and where it goes on."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from qgf.config import Config, Spec
from qgf.data import Source
from qgf.data.readers import split_format, with_format
from qgf.errors import UserError
from qgf.files import LOCK, TEMPORARY, reading, sha256
from qgf.learners import CRITICS, DEFAULT_GOAL_CRITIC, DEFAULT_KINDS, LEARNERS, Learner
from qgf.methods.table import find_method, kinds_of
from qgf.run._validation import fields_of
from qgf.run.checkpoint import (
    arrays_digest,
    config_of,
    config_record,
    kinds_held,
    list_checkpoints,
    load_learner,
    load_record,
    save_arrays,
)
from qgf.tasks import NO_TASK, Task, find_task

DATA = "data"
"""folder of a run whose episodes were given as arrays"""


def learners_of(task: Task, rewarded: bool, method: str, critic: str | None) -> dict[str, str]:
    """Return the kind of every learner that the method needs, by role.

    Args:
        rewarded: whether the recorded episodes have rewards, from which a critic learns.
    """
    critic = critic or (DEFAULT_GOAL_CRITIC if task.goal_conditioned else None)
    _check_critic(task, rewarded, critic)
    kinds = kinds_of(find_method(method), critic)
    if rewarded:
        return kinds
    # Without a task there is no critic but one of goals, and nothing that learns from a critic.
    free = {
        role: kind
        for role, kind in kinds.items()
        if (critic or role != "critic") and "critic" not in LEARNERS[kind].needs
    }
    if not {*find_method(method).roles} - {"critic"} <= free.keys():
        raise UserError(
            f"{task.name} has no rewards, so there is no critic for {method} to learn from; use "
            "…-singletask-taskN-v0 or, with data of your own, --reward"
        )
    return free


def kinds_to_train(
    env: str | None,
    method: str,
    critic: str | None,
    policy: str | Path | None,
    base: str | Path | None,
) -> list[str]:
    """Return the kinds of the learners that `qgf.run.trainer.train` would train, at most.

    That is where recorded episodes have rewards, if the task can pay any.

    Args:
        env: by default that of `base`, or none.
        method: a name of METHODS.
        critic: kind of the critic; by default the method's own.
        policy: a run whose policy is taken as it is.
        base: a run whose learners are taken as they are.
    """
    base, policy = base and Path(base), policy and Path(policy)
    env = env or (load_record(base)["env"] if base else NO_TASK)
    task = find_task(env)
    goals = critic in CRITICS and CRITICS[critic].goal_conditioned
    kinds = learners_of(task, (task.rewarded or env == NO_TASK) and not goals, method, critic)
    sources = sources_of(env, method, kinds, policy, base)
    return [kind for role, kind in kinds.items() if role not in sources]


def _check_critic(task: Task, rewarded: bool, critic: str | None) -> None:
    if critic is None:
        return
    if critic not in CRITICS:
        raise UserError(f"no critic {critic!r}; there are: {', '.join(CRITICS)}")
    goals = CRITICS[critic].goal_conditioned
    if rewarded and goals:
        raise UserError(
            f"{critic} learns to reach goals, but {task.name} is one task; use …-oraclerep-v0, or "
            f"--critic {DEFAULT_KINDS['critic']}"
        )
    if not rewarded and not goals:
        raise UserError(
            f"{critic} learns one task, which {task.name} does not name; use "
            f"…-singletask-taskN-v0, or --critic {DEFAULT_GOAL_CRITIC}"
        )


def sources_of(
    env: str, method: str, kinds: dict[str, str], policy: Path | None, base: Path | None
) -> dict[str, Path]:
    """Return the run that each borrowed learner comes from, by role."""
    sources = {}
    if base is not None:
        theirs = kinds_held(load_record(base))
        sources = {role: base for role, kind in kinds.items() if theirs.get(role) == kind}
    if policy is not None:
        sources["policy"] = policy
    if kinds.keys() <= sources.keys():
        raise UserError(
            f"nothing is left to train for {method} on {env}; evaluate with `qgf eval` or, for a "
            "critic, name a task: …-singletask-taskN-v0"
        )
    return sources


def check_hyper(config: Config, kinds: dict[str, str], sources: dict[str, Path]) -> None:
    """Raise a UserError if hyperparameters were given that train nothing.

    Args:
        kinds: of all learners of the run, by role.
        sources: the run that each borrowed learner comes from, by role.
    """
    trained = [kind for role, kind in kinds.items() if role not in sources]
    settings = [(config, kind) for kind in trained]
    settings += [(config_of(load_record(sources[r]), r), kinds[r]) for r in sources if r in kinds]
    known = {own.of(LEARNERS[kind].Hyper) for own, kind in settings}
    for hyper in config.hyper:
        if hyper not in known:
            raise UserError(f"{hyper} has no effect: what is trained is {', '.join(trained)}")


def make_record(
    out: Path,
    env: str,
    method: str,
    kinds: dict[str, str],
    source: Source,
    spec: Spec,
    config: Config,
    seeds: Sequence[int],
    sources: dict[str, Path],
) -> dict:
    """Return config.json: all that the run's numbers depend on, but for what is borrowed."""
    packages = ("qgf", "jax", "jaxlib", "equinox", "optax", "numpy", "ogbench", "mujoco")
    shards = [*source.split("train"), *source.split("val")]
    named, path = split_format(source.folder)
    path = path.resolve()
    trained = {role: kind for role, kind in kinds.items() if role not in sources}
    return {
        "env": env,
        "method": method,
        "seeds": list(seeds),
        "config": config_record(config, trained.values()),
        "spec": spec._asdict(),
        "learners": trained,
        "borrowed": {},
        "data": {
            "folder": str(with_format(named, path)),
            "relative": os.path.relpath(path, out.resolve()),
            "name": source.name,
            "rewards": source.rewards,
            "sha256": {shard.file: shard.sha256 for shard in shards},
        },
        "versions": {
            "python": platform.python_version(),
            "qgf": "not installed",  # from a checkout alone, it has no version
            **{name: version for name in packages if (version := _version(name))},
        },
        "device": jax.devices()[0].device_kind,
    }


def _version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_start(out: Path, resume: bool) -> int:
    """Return the step at which training in `out` begins: 0 if it holds no checkpoint yet.

    Without a checkpoint a folder is as good as new, whatever a run that came to nothing left.
    """
    steps, names = list_checkpoints(out), _names(out)
    if steps:
        if not resume:
            raise UserError(
                f"{out} already holds a run; add --resume to continue it, or use another --out"
            )
        return steps[-1]
    if "config.json" in names:
        load_record(out)  # another program's file of this name is not ours to replace
    foreign = {name for name in names if not _ours(name)}
    if foreign:
        raise UserError(f"{out} exists and is no run (it holds {min(foreign)}); use another --out")
    if resume and "config.json" not in names:
        raise UserError(f"{out} holds no run to resume; leave --resume out to start one")
    return 0


def _names(out: Path) -> set[str]:
    with reading(out):
        return {path.name for path in out.iterdir()}


def _ours(name: str) -> bool:
    """Whether a run without a checkpoint may hold a file or folder of that name."""
    known = {LOCK, DATA, "config.json", "metrics.jsonl", "checkpoints", "tensorboard", "wandb"}
    roles = {f"{role}.safetensors" for role in (*DEFAULT_KINDS, *LEARNERS)}
    return name in known | roles or name.startswith(TEMPORARY)


def clear(out: Path) -> None:
    """Remove what a run that came to nothing left."""
    for path in out.iterdir():
        if path.suffix in (".safetensors", ".json", ".jsonl"):
            path.unlink()
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(out / name, ignore_errors=True)


def check_same(out: Path, record: dict) -> None:
    """Raise a UserError if the run in `out` was started with other settings than `record`."""
    old = load_record(out)
    differ = _differences(old, record)
    if differ:
        raise UserError(
            f"{out} was started with another configuration: {differ}; resume with the old one"
        )
    last = list_checkpoints(out)[-1]
    if last > record["config"]["steps"]:
        raise UserError(f"{out} is already at step {last}; resume with --steps of at least that")


def _differences(old: dict, new: dict) -> str:
    def flat(record: dict) -> dict[str, Any]:
        config = {k: v for k, v in record["config"].items() if k not in ("steps", "keep", "hyper")}
        for kind, hyper in record["config"]["hyper"].items():
            config |= {f"{kind}'s {k}": v for k, v in hyper.items()}
        data = {"data " + k: v for k, v in record["data"]["sha256"].items()}
        data["fields"] = fields_of(record)
        return config | data | {k: record[k] for k in ("env", "method", "seeds", "learners")}

    a, b = flat(old), flat(new)
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return ", ".join(f"{name} was {a.get(name)}, now {b.get(name)}" for name in names)


def borrow(out: Path, sources: dict[str, Path], record: dict) -> dict[str, Learner]:
    """Copy other runs' learners, of the same seeds, into `out`; note them in `record`."""
    # All are read before any is written.
    found = {role: _borrowed(role, run, record) for role, run in sources.items()}
    for role, (learner, source) in found.items():
        digest = save_arrays(out / f"{role}.safetensors", learner)
        record["borrowed"][role] = source | {"sha256": digest}
    return {role: learner for role, (learner, _) in found.items()}


def borrow_again(out: Path, sources: dict[str, Path], record: dict) -> dict[str, Learner]:
    """Return the learners that the run in `out` borrowed; note them in `record`.

    UserError if `sources` are others. The same run in another place is told by its arrays.
    """
    old = load_record(out)["borrowed"]
    for role, run in sources.items():
        if str(run.resolve()) != old[role]["run"]:
            learner, source = _borrowed(role, run, record)
            if arrays_digest(learner) != sha256(out / f"{role}.safetensors"):
                raise UserError(
                    f"{role} was that of {old[role]['run']}, now that of {run}; resume with the "
                    "old one"
                )
            old[role] |= source
    record["borrowed"] = old
    return {role: load_learner(out, role) for role in sources}


def _borrowed(role: str, run: Path, record: dict) -> tuple[Learner, dict]:
    """Return another run's learner, and where it is from and how it was trained."""
    other, parts = load_record(run), record["data"]["parts"]
    for name, ours, theirs in (
        ("data", record["data"]["name"], other["data"]["name"]),
        ("chunk", record["config"]["chunk"], other["config"]["chunk"]),
        ("observations", parts, other["data"].get("parts", parts)),
        ("env", record["env"], record["env"] if role == "policy" else other["env"]),
    ):
        if ours != theirs:
            raise UserError(f"the {role} of {run} has {name} {theirs}, this run {ours}")
    learner = load_learner(run, role, seeds=record["seeds"])
    kind = kinds_held(other)[role]
    config = config_record(config_of(other, role), [kind])
    return learner, {"run": str(run.resolve()), "kind": kind, "config": config}
