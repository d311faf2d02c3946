"""What a run is: its learners and where they come from, its config.json, and where it goes on."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from qgf.checkpoint import (
    find_checkpoint,
    kinds_held,
    list_checkpoints,
    load_learner,
    load_record,
)
from qgf.config import Config, Spec
from qgf.data.dataset import Dataset
from qgf.envs import EnvName
from qgf.errors import UserError
from qgf.learners import CRITICS, GOAL_CRITICS, LEARNERS, Learner
from qgf.methods import find_method, kinds_of


def learners_of(env: str, method: str, critic: str | None) -> dict[str, str]:
    """Return the kind of every learner that the method needs, by role."""
    name = EnvName.parse(env)
    critic = critic or ("dqc" if name.oraclerep else None)
    _check_critic(env, critic)
    kinds = kinds_of(find_method(method), critic)
    if name.singletask:
        return kinds
    # Without a task there is no critic but one of goals, and nothing that learns from a critic.
    free = {
        role: kind
        for role, kind in kinds.items()
        if (critic or role != "critic") and "critic" not in LEARNERS[kind].needs
    }
    if not {*find_method(method).roles} - {"critic"} <= free.keys():
        raise UserError(
            f"{env} names no task, so there is no critic for {method} to learn from; "
            "use …-singletask-taskN-v0"
        )
    return free


def _check_critic(env: str, critic: str | None) -> None:
    if critic is None:
        return
    if critic not in CRITICS:
        raise UserError(f"no critic {critic!r}; there are: {', '.join(CRITICS)}")
    if EnvName.parse(env).singletask and critic in GOAL_CRITICS:
        raise UserError(
            f"{critic} learns to reach goals, but {env} is one task; use …-oraclerep-v0, or "
            "--critic iql"
        )
    if not EnvName.parse(env).singletask and critic not in GOAL_CRITICS:
        raise UserError(
            f"{critic} learns one task, which {env} does not name; use …-singletask-taskN-v0, or "
            f"--critic {GOAL_CRITICS[0]}"
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


def make_record(
    env: str,
    method: str,
    kinds: dict[str, str],
    dataset: Dataset,
    spec: Spec,
    config: Config,
    seeds: Sequence[int],
    sources: dict[str, Path],
) -> dict:
    """Return config.json: all that the run's numbers depend on."""
    packages = ("qgf", "jax", "jaxlib", "equinox", "optax", "numpy", "ogbench", "mujoco")
    return {
        "env": env,
        "method": method,
        "seeds": list(seeds),
        "config": dataclasses.asdict(config),
        "spec": spec._asdict(),
        "learners": {role: kind for role, kind in kinds.items() if role not in sources},
        "borrowed": {
            role: {"run": str(run.resolve()), "kind": kinds[role]} for role, run in sources.items()
        },
        "data": {
            "folder": str(dataset.manifest.folder.resolve()),
            "name": dataset.manifest.name,
            "sha256": {shard.file: shard.sha256 for shard in dataset.manifest.shards},
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "device": jax.devices()[0].device_kind,
    }


def find_start(out: Path, record: dict, resume: bool) -> Path | None:
    """Return the checkpoint to continue from, or None for a fresh run; write nothing."""
    path = out / "config.json"
    if not resume:
        if path.exists():
            raise UserError(
                f"{out} already holds a run; add --resume to continue it, or use another --out"
            )
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is no run; use another --out")
        return None
    if not path.exists():
        raise UserError(f"{out} holds no run to resume; leave --resume out to start one")
    differ = _differences(load_record(out), record)
    if differ:
        raise UserError(
            f"{out} was started with another configuration: {differ}; resume with the old one"
        )
    states = list_checkpoints(out)
    if states and max(states) > record["config"]["steps"]:
        raise UserError(
            f"{out} is already at step {max(states)}; resume with --steps of at least that"
        )
    return find_checkpoint(out) if states else None


def _differences(old: dict, new: dict) -> str:
    def flat(record: dict) -> dict[str, Any]:
        config = {k: v for k, v in record["config"].items() if k != "steps"}
        data = {"data " + k: v for k, v in record["data"]["sha256"].items()}
        borrowed = {role: source["run"] for role, source in record["borrowed"].items()}
        same = {k: record[k] for k in ("env", "method", "seeds", "learners")}
        return config | data | borrowed | same

    a, b = flat(old), flat(new)
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return ", ".join(f"{name} was {a.get(name)}, now {b.get(name)}" for name in names)


def borrow(role: str, run: Path, record: dict) -> Learner:
    """Return another run's learner, of the same seeds; note its settings in `record`."""
    other = load_record(run)
    for name, ours, theirs in (
        ("data", record["data"]["name"], other["data"]["name"]),
        ("chunk", record["config"]["chunk"], other["config"]["chunk"]),
        ("env", record["env"], record["env"] if role == "policy" else other["env"]),
    ):
        if ours != theirs:
            raise UserError(f"the {role} of {run} has {name} {theirs}, this run {ours}")
    source = other["borrowed"].get(role, other)
    record["borrowed"][role] |= {"config": source["config"]}
    return load_learner(run, role, seeds=record["seeds"])
