"""Training: one loop for every learner, with checkpoints, resume, validation and logs."""

import contextlib
import dataclasses
import itertools
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qgf._progress import progress
from qgf.config import Config, check_seeds
from qgf.data.dataset import Chunks, Dataset
from qgf.data.goals import GoalChunks, GoalDataset, GoalDraws
from qgf.data.normalization import Normalization, Normalized, fit
from qgf.data.readers import Fields, Recording, convert, own
from qgf.data.rotation import rotation
from qgf.data.source import Source
from qgf.errors import Terminated, UserError
from qgf.files import TEMPORARY, locked, read_record, sweep, write_record
from qgf.learners import LEARNERS
from qgf.run._log import Log, Logger, metrics_writer, started, truncate_metrics
from qgf.run._record import (
    DATA,
    borrow,
    borrow_again,
    check_hyper,
    check_same,
    clear,
    find_start,
    learners_of,
    make_record,
    sources_of,
)
from qgf.run._update import (
    Fixed,
    Learners,
    State,
    check_memory,
    create_state,
    train_steps,
    validation_losses,
)
from qgf.run.checkpoint import (
    config_of,
    digest_of,
    find_checkpoint,
    list_checkpoints,
    load_arrays,
    load_record,
    prune_checkpoints,
    save_checkpoint,
)
from qgf.run.run import Run
from qgf.tasks import Task, find_task

Callback = Callable[[str, int, dict[str, np.ndarray]], None]


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
    data: str | Path | Recording,
    out: str | Path,
    config: Config,
    *,
    seeds: Sequence[int] = (0,),
    method: str = "qgf",
    critic: str | None = None,
    fields: Fields | None = None,
    policy: Path | None = None,
    base: Path | None = None,
    resume: bool = False,
    logger: Logger = "none",
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train all learners a method acts with, side by side; write the run to `out`.

    Which rewards are used is printed.

    Args:
        env: a task, as `qgf.tasks.find_task` takes it. One that pays nothing trains the policy
            alone or, with a critic of goals, for goals that are whole observations.
        data: a folder of OGBench-layout shards, or recorded episodes of another format; those in
            memory are kept in OUT/data.
        out: folder of the run.
        config: its settings, with hyperparameters of the learners that are trained.
        seeds: all are trained at once, in one compiled program.
        method: a name of METHODS; "qgf" is a flow policy (BC) and a critic (IQL).
        critic: kind of the critic, a name of CRITICS: "iql" for a task, "dqc" for goals, …
        fields: which fields of the recorded episodes are used, where the task does not say it.
        policy: a run whose policy is taken as it is.
        base: a run of which every learner the method needs is taken as it is.
        resume: continue the run in `out`; a larger config.steps prolongs it.
        logger: where metrics go beside metrics.jsonl: "none", "tensorboard" or "wandb".
        callbacks: each is called with split ("train" or "validation"), step and metrics (a value
            per training seed, by name) whenever they are logged; what it raises ends the training.

    Returns:
        The run in `out`.

    Raises:
        UserError: unfit data or arguments, another run in `out`, or a loss that is not
            finite (the last checkpoint stays).
        TrainingInterrupted: Ctrl-C; the state was saved.
    """
    check_seeds(seeds)
    out = Path(out)
    with locked(out), contextlib.ExitStack() as undo:
        step = find_start(out, resume)
        fields = fields or Fields()
        if isinstance(data, Recording):
            data, fields = _kept(data, fields, out, step), Fields()
            if not step:
                undo.callback(shutil.rmtree, data)
        data = Path(data)
        task = find_task(env)
        source = task.open(data, fields, sparse=config.sparse_rewards)
        find_task(env, source.parts).check(source)
        kinds = learners_of(task, source.rewarded, method, critic)
        sources = sources_of(env, method, kinds, policy, base)
        check_hyper(config, kinds, sources)
        normalization = _normalization(source, task, config, policy or base)
        source = Normalized(source, normalization)
        dataset = _dataset(source, config, kinds, sources)
        validation = jax.device_put(dataset.validation())
        spec = dataset.spec(validation)
        record = make_record(out, env, method, kinds, source, spec, config, seeds, sources)
        record["data"]["fields"] = dataclasses.asdict(fields)
        record["data"]["parts"] = list(source.parts)
        record["normalization"] = normalization.record()
        if step:
            check_same(out, record)
        check_memory(record["learners"], spec, config, jnp.asarray(seeds))
        sizes = config.resident_gb, config.rotate_every, config.dispatch_steps
        rotating = rotation(dataset, *sizes, step)
        # All that can be wrong shows itself here, before anything is written to stay.
        rotating = itertools.chain([next(rotating)], rotating)
        undo.pop_all()
        if not step:
            clear(out)
        with started(logger, out, record) as send:
            if step:
                frozen = borrow_again(out, sources, record)
                sweep(out / "checkpoints")
                prune_checkpoints(out, config.keep, config.checkpoint_every)
            else:
                frozen = borrow(out, sources, record)
            write_record(out / "config.json", record)
            run = _Run(out, config, dataset, jnp.asarray(seeds), frozen)
            state = create_state(record["learners"], spec, config, run.seeds)
            if step:
                state = _restore(find_checkpoint(out), state)
            log = Log.of(find_checkpoint(out)) if step else Log()
            truncate_metrics(out / "metrics.jsonl", log)
            print(f"rewards: {source.rewards}")
            with metrics_writer(send, out, seeds) as write:
                write = _all([write, *callbacks])
                _loop(run, state, validation, rotating, step, log, write)
    return Run(out)


def _kept(recording: Recording, fields: Fields, out: Path, step: int) -> Path:
    """Write episodes in memory beside the run that begins with them, and return where."""
    folder, fresh = out / DATA, out / f"{TEMPORARY}{DATA}"
    shutil.rmtree(fresh, ignore_errors=True)
    convert(recording, fields, fresh)
    if not step:
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        return folder
    before, now = (read_record(each / own.FILE)["files"] for each in (folder, fresh))
    shutil.rmtree(fresh)
    if before != now:
        raise UserError(f"the run in {out} began with other episodes; resume it with the same")
    return folder


def _all(callbacks: Sequence[Callback]) -> Callback:
    def call(split: str, step: int, metrics: dict[str, np.ndarray]) -> None:
        for callback in callbacks:
            callback(split, step, metrics)

    return call


def _restore(checkpoint: Path, state: State) -> State:
    """Return the state saved in a checkpoint, shaped like a fresh one."""

    def read(name: str, like: Any) -> Any:
        return load_arrays(checkpoint / f"{name}.safetensors", like, digest_of(checkpoint, name))

    learners = {role: read(role, learner) for role, learner in state.learners.items()}
    return State(learners, read("optimizer", state.optimizer))


def _loop(
    run: _Run,
    state: State,
    validation: Chunks | GoalChunks,
    rotating: Iterator[tuple[Chunks | GoalChunks, int]],
    step: int,
    log: Log,
    write: Callable,
) -> None:
    config = run.config
    data, until = None, step
    with progress() as bar, _interrupt() as interrupted:
        task = bar.add_task("training", total=config.steps, completed=step, unit="steps")
        while step < config.steps:
            if step >= until:
                data = fixed = None  # freed before the next takes its place
                data, until = next(rotating)
            # A run prolonged from an odd step falls into step with log_every and the like.
            count = config.dispatch_steps - step % config.dispatch_steps
            count = min(count, config.steps - step)
            fixed = Fixed(data, run.seeds, config, run.frozen)
            state, metrics = train_steps(fixed, state, jnp.asarray(step), count)
            metrics = {k: np.asarray(v) for k, v in metrics.items()}
            log.add(metrics)
            step += count
            _check_finite(run, metrics, step)
            bar.update(task, completed=step)
            stop = bool(interrupted)  # once: Ctrl-C may come while this step is logged
            checkpoint = step % config.checkpoint_every == 0 or step == config.steps
            if step % config.log_every == 0 or checkpoint:
                write("train", step, log.mean())
                log.logged["train"] = step
            if step % config.validate_every == 0 or checkpoint:
                losses = validation_losses(
                    validation, state.learners, run.frozen, config.batch_size
                )
                losses = {k: np.asarray(v) for k, v in losses.items()}
                _check_finite(run, losses, step)
                write("validation", step, losses)
                log.logged["validation"] = step
            if checkpoint or stop:
                _save(run, state, step, log)
            if stop:
                raise _stopped(interrupted, f"step {step} is saved; add --resume to continue")
        if interrupted:  # since the last step was logged
            raise _stopped(interrupted, f"step {step} is saved, the last")


def _save(run: _Run, state: State, step: int, log: Log) -> None:
    finite = jax.tree.map(lambda x: jnp.isfinite(x).all(), _arrays(state.learners))
    if not all(map(bool, jax.tree.leaves(finite))):
        _diverged(run, "a parameter", step)
    trees = {**state.learners, "optimizer": state.optimizer}
    save_checkpoint(run.out, step, trees, dataclasses.asdict(log))
    prune_checkpoints(run.out, run.config.keep, run.config.checkpoint_every)


def _arrays(tree: Any) -> Any:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _check_finite(run: _Run, metrics: dict[str, np.ndarray], step: int) -> None:
    for name, values in metrics.items():
        if not np.isfinite(values).all():
            seed = int(run.seeds[np.flatnonzero(~np.isfinite(values))[0]])
            _diverged(run, f"{name} of seed {seed}", step)


def _diverged(run: _Run, what: str, step: int) -> None:
    kept = list_checkpoints(run.out)
    last = f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint yet"
    raise UserError(
        f"{what} is no longer finite before step {step}; {last}. Use a smaller --learning-rate "
        f"(now {run.config.learning_rate}) and check the scale of the data"
    )


def _normalization(source: Source, task: Task, config: Config, other: Path | None) -> Normalization:
    """Return what another run's networks were trained with, or what fits the training data."""
    if other is not None:
        return Normalization.of(load_record(other))
    usual = ("standard", "range") if task.normalized else ("none", "none")
    chosen = (config.normalize_observations, config.normalize_actions)
    asked = [own if each == "auto" else each for each, own in zip(chosen, usual, strict=True)]
    return fit(source, *asked)


def _dataset(
    source: Source, config: Config, kinds: dict[str, str], sources: dict[str, Path]
) -> Dataset:
    """Return the data as chunks, with goals or returns as the run's critic is trained with them."""
    size = {"chunk": config.chunk, "discount": config.discount}
    for role, kind in kinds.items():
        hyper = LEARNERS[kind].Hyper
        if issubclass(hyper, GoalDraws):
            own = config_of(load_record(sources[role]), role) if role in sources else config
            return GoalDataset(source, own.of(hyper), **size)
        ahead = config.of(hyper).ahead()
        if ahead and role not in sources:
            return Dataset(source, **size, horizon=ahead)
    return Dataset(source, **size)


@contextlib.contextmanager
def _interrupt() -> Iterator[list[int]]:
    """Turn a first Ctrl-C or SIGTERM into a note in the yielded list; a second one acts at once."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What a shell lets its background jobs ignore stays ignored.
    before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        restore()


def _stopped(noted: list[int], message: str) -> KeyboardInterrupt:
    return (Terminated if noted[0] == signal.SIGTERM else TrainingInterrupted)(message)
