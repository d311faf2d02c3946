"""Training: one loop for every learner, with checkpoints, resume, validation and logs."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import itertools
import json
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from qgf._files import atomic_open, write_json
from qgf._progress import progress
from qgf._update import Fixed, Learners, State, create_state, train_steps, validation_losses
from qgf.checkpoint import (
    find_checkpoint,
    kinds_held,
    list_checkpoints,
    load_arrays,
    load_learner,
    load_record,
    prune_checkpoints,
    save_arrays,
    save_checkpoint,
)
from qgf.config import Config, Spec
from qgf.data.dataset import Chunks, Dataset, rotation
from qgf.data.goals import GoalChunks, GoalDataset
from qgf.data.manifest import Manifest, load_manifest
from qgf.envs import EnvName
from qgf.errors import UserError
from qgf.learners import CRITICS, GOAL_CRITICS, LEARNERS, Learner
from qgf.methods import find_method, kinds_of

Logger = Literal["none", "tensorboard", "wandb"]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training, raised after the state was saved."""


@dataclass(frozen=True)
class _Run:
    """What the loop needs and does not change."""

    out: Path
    config: Config
    dataset: Dataset
    seeds: jax.Array
    frozen: Learners


def train(
    env: str,
    data: Path,
    out: Path,
    config: Config,
    *,
    seeds: Sequence[int] = (0,),
    method: str = "qgf",
    critic: str | None = None,
    policy: Path | None = None,
    base: Path | None = None,
    resume: bool = False,
    logger: Logger = "none",
) -> None:
    """Train all learners a method acts with, side by side; write the run to `out`.

    Args:
        env: a single-task environment; one of goals (…-oraclerep-v0); or one without a task,
            to train the policy alone or, with a critic of goals, for goals that are whole
            observations.
        data: a folder of OGBench-layout shards.
        seeds: all are trained at once, in one compiled program.
        method: a name of METHODS; "qgf" is a flow policy (BC) and a critic (IQL).
        critic: kind of the critic: "iql" for a task, "dqc" or "goal-iql" for goals.
        policy: a run whose policy is taken as it is.
        base: a run of which every learner the method needs is taken as it is.
        resume: continue the run in `out`; a larger config.steps prolongs it.

    Raises:
        UserError: unfit data or arguments, another run in `out`, or a loss that is not
            finite (the last checkpoint stays).
        TrainingInterrupted: Ctrl-C; the state was saved.
    """
    for seed in seeds:
        if not 0 <= seed < 2**31:
            raise UserError(f"a training seed must lie in [0, 2^31), got {seed}")
    manifest = load_manifest(data)
    kinds = _kinds(env, method, critic)
    dataset = _dataset(manifest, env, config, kinds)
    validation = jax.device_put(dataset.validation())
    spec = dataset.spec(validation)
    sources = _sources(env, method, kinds, policy, base)
    record = _record(env, method, kinds, dataset, spec, config, seeds, sources)
    start = _find_start(out, record, resume)
    step = 0 if start is None else int(start.name)
    rotating = rotation(dataset, config.resident_gb, config.rotate_every, step)
    # All that can be wrong shows itself here, before anything is written.
    rotating = itertools.chain([next(rotating)], rotating)
    package = _logger_package(logger)
    if start is None:
        frozen = {role: _borrow(role, source, record) for role, source in sources.items()}
        write_json(out / "config.json", record)
        for role, learner in frozen.items():
            save_arrays(out / f"{role}.safetensors", learner)
    else:
        record["borrowed"] = load_record(out)["borrowed"]
        write_json(out / "config.json", record)
        frozen = {role: load_learner(out, role) for role in sources}

    run = _Run(out, config, dataset, jnp.asarray(seeds), frozen)
    state = create_state(record["learners"], spec, config, run.seeds)
    if start is not None:
        state = State(
            {
                role: load_arrays(start / f"{role}.safetensors", learner)
                for role, learner in state.learners.items()
            },
            load_arrays(start / "optimizer.safetensors", state.optimizer),
        )
    _truncate_metrics(out / "metrics.jsonl", step)
    with _writer(logger, package, out, record) as log:
        _loop(run, state, validation, rotating, step, log)


def _loop(
    run: _Run,
    state: State,
    validation: Chunks | GoalChunks,
    rotating: Iterator[Chunks | GoalChunks],
    step: int,
    log: Callable,
) -> None:
    config = run.config
    losses: dict[str, np.ndarray] = {}
    window: list[dict[str, np.ndarray]] = []
    data = None
    with progress() as bar, _interrupt() as interrupted:
        task = bar.add_task("training", total=config.steps, completed=step, unit="steps")
        while step < config.steps:
            if data is None or step % config.rotate_every == 0:
                data = None  # freed before the next is loaded
                data = next(rotating)
            # A run prolonged from an odd step falls into step with log_every and the like.
            count = config.dispatch_steps - step % config.dispatch_steps
            count = min(count, config.steps - step)
            fixed = Fixed(data, run.seeds, config, run.frozen)
            state, metrics = train_steps(fixed, state, jnp.asarray(step), count)
            window.append({k: np.asarray(v) for k, v in metrics.items()})
            step += count
            _check_finite(run, window[-1], step)
            bar.update(task, completed=step)
            stop = bool(interrupted)  # once: Ctrl-C may come while this step is logged
            last = stop or step == config.steps
            checkpoint = step % config.checkpoint_every == 0 or last
            # A checkpoint ends the window too, so that a resumed run has the same windows.
            if step % config.log_every == 0 or checkpoint:
                log(
                    "train",
                    step,
                    {k: np.mean([w[k] for w in window], 0) for k in window[0]},
                )
                window = []
            if step % config.validate_every == 0 or checkpoint:
                losses = validation_losses(
                    validation, state.learners, run.frozen, config.batch_size
                )
                losses = {k: np.asarray(v) for k, v in losses.items()}
                _check_finite(run, losses, step)
                log("validation", step, losses)
            if checkpoint:
                _save(run, state, step, losses)
            if stop and step < config.steps:
                raise TrainingInterrupted(f"step {step} is saved; add --resume to continue")


def _save(run: _Run, state: State, step: int, losses: dict[str, np.ndarray]) -> None:
    finite = jax.tree.map(lambda x: jnp.isfinite(x).all(), _arrays(state.learners))
    if not all(map(bool, jax.tree.leaves(finite))):
        _diverged(run, "a parameter", step)
    save_checkpoint(
        run.out,
        step,
        {**state.learners, "optimizer": state.optimizer},
        {"validation_loss": float(losses["loss"].mean())},
    )
    prune_checkpoints(run.out, run.config.keep)


def _arrays(tree: Any) -> Any:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _check_finite(run: _Run, metrics: dict[str, np.ndarray], step: int) -> None:
    for name, values in metrics.items():
        if not np.isfinite(values).all():
            seed = int(run.seeds[np.flatnonzero(~np.isfinite(values))[0]])
            _diverged(run, f"{name} of seed {seed}", step)


def _diverged(run: _Run, what: str, step: int) -> None:
    kept = list(list_checkpoints(run.out))
    last = f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint yet"
    raise UserError(
        f"{what} is no longer finite before step {step}; {last}. Use a smaller --learning-rate "
        f"(now {run.config.learning_rate}) and check the scale of the data"
    )


def _dataset(manifest: Manifest, env: str, config: Config, kinds: dict[str, str]) -> Dataset:
    if kinds.get("critic") in GOAL_CRITICS:
        return GoalDataset(manifest, env, config)
    sizes = {"chunk": config.chunk, "discount": config.discount}
    return Dataset(manifest, env, **sizes, sparse=config.sparse_rewards)


def _kinds(env: str, method: str, critic: str | None) -> dict[str, str]:
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


def _sources(
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


def _record(
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


def _find_start(out: Path, record: dict, resume: bool) -> Path | None:
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


def _borrow(role: str, run: Path, record: dict) -> Learner:
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


def _truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, which the resumed run will write again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with atomic_open(path, "w") as file:
        file.writelines(kept)


@contextlib.contextmanager
def _writer(logger: Logger, package: Any, out: Path, record: dict) -> Iterator[Callable]:
    """Yield log(split, step, metrics): a line a seed in metrics.jsonl, and the chosen logger."""
    send, close = _remote(logger, package, out, record)

    def log(split: str, step: int, metrics: dict[str, np.ndarray]) -> None:
        for i, seed in enumerate(record["seeds"]):
            values = {name: float(value[i]) for name, value in metrics.items()}
            line = {"step": step, "split": split, "seed": seed, **values}
            file.write(json.dumps(line) + "\n")
            send(
                {f"{split}/{name}/seed{seed}": value for name, value in values.items()},
                step,
            )
        file.flush()

    path = out / "metrics.jsonl"
    try:
        with open(path, "a") as file:
            try:
                yield log
            finally:
                close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _logger_package(logger: Logger) -> Any:
    """Import what the chosen logger needs. UserError if it is not installed."""
    if logger == "none":
        return None
    module = {"tensorboard": "tensorboardX", "wandb": "wandb"}[logger]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"--logger {logger} needs {module}; install it with pip install 'qgf[{logger}]'"
        ) from None


def _remote(logger: Logger, package: Any, out: Path, record: dict) -> tuple[Callable, Callable]:
    """Return (send(values, step), close()) of the chosen logger."""
    if logger == "none":
        return (lambda values, step: None), (lambda: None)
    if logger == "wandb":
        run = package.init(project="qgf", name=out.name, dir=out, config=record)
        return run.log, run.finish
    writer = package.SummaryWriter(str(out / "tensorboard"))

    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send, writer.close


@contextlib.contextmanager
def _interrupt() -> Iterator[list[int]]:
    """Turn a first Ctrl-C into a note in the yielded list; a second one interrupts at once."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
