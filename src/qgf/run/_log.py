"""A run's metrics: a line a seed in metrics.jsonl, and a logger if one is chosen."""

import contextlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qgf.errors import UserError, first_line
from qgf.files import atomic_open, check_form, parse_json, reading, seal, sealed
from qgf.run.checkpoint import read_state

Logger = Literal["none", "tensorboard", "wandb"]


TAIL = 8192  # bytes, more than a line
LINE = {"step": int, "split": str, "seed": int}


@dataclass
class Log:
    """What a checkpoint knows of the log, so that a stop between two lines leaves no trace.

    Attributes:
        logged: the last step that was logged of each split.
        window: training metrics since then, of which the next line is the mean: for every device
            call a number per training seed, by name.
    """

    logged: dict[str, int] = field(default_factory=dict)
    window: list[dict[str, list[float]]] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Path) -> "Log":
        """Return what a checkpoint's state.json says. UserError if it is damaged."""
        state = read_state(checkpoint)
        if "logged" not in state:  # earlier versions logged whenever they saved
            return cls({"train": state["step"], "validation": state["step"]})
        form = {"logged": {str: int}, "window": [{str: [float]}]}
        check_form(state, form, str(checkpoint / "state.json"))
        return cls(state["logged"], state["window"])

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Note the training metrics of a device call."""
        self.window.append({name: values.tolist() for name, values in metrics.items()})

    def mean(self) -> dict[str, np.ndarray]:
        """Return the mean of the window, which is then empty."""
        window, self.window = self.window, []
        return {k: np.mean(np.array([w[k] for w in window], np.float32), 0) for k in window[0]}


def read_metrics(path: Path, log: Log) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a last line that was cut off is left out.

    Args:
        log: of the run's last checkpoint, up to which there must be lines.

    Raises:
        UserError: the file cannot be read, or a line is missing or not what was written.
    """
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        if line is None:
            raise _damaged(path, number)
    _check_end(path, lines, log)
    return lines


def last_step(run: Path) -> int:
    """Return the last step that a run has logged, 0 before the first; to show, not to go by."""
    with contextlib.suppress(OSError), (run / "metrics.jsonl").open("rb") as file:
        file.seek(-min(TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
        lines = map(_line, file.read().split(b"\n")[:-1])  # of which the first may be cut
        return max((line["step"] for line in lines if line is not None), default=0)
    return 0


def truncate_metrics(path: Path, log: Log) -> None:
    """Drop the lines after the last that was logged, which the resumed run will write again.

    So are damaged lines behind the last of them: a machine that lost its power leaves such.

    Raises:
        UserError: a line up to `step` is damaged or missing.
    """
    lines = _lines(path) if path.exists() else []
    step = max(log.logged.values(), default=0)
    kept = [i for i, line in enumerate(lines) if line is not None and line["step"] <= step]
    for i in range(kept[-1] if kept else 0):
        if lines[i] is None:
            raise _damaged(path, i + 1)
    if path.exists():
        _check_end(path, [lines[i] for i in kept], log)
    with atomic_open(path, "w") as file:
        file.writelines(json.dumps(lines[i]) + "\n" for i in kept)


def _check_end(path: Path, lines: list[dict[str, Any]], log: Log) -> None:
    """Raise a UserError unless the last line of every split and seed is there."""
    seeds = {line["seed"] for line in lines} or {0}
    there = {(line["split"], line["step"], line["seed"]) for line in lines}
    for split, step in log.logged.items():
        if not {(split, step, seed) for seed in seeds} <= there:
            raise UserError(
                f"{path} lacks lines of step {step}, of which there is a checkpoint; restore it, "
                "or delete it to go on without what it held"
            )


def _lines(path: Path) -> list[dict[str, Any] | None]:
    """Return every whole line, None in place of a damaged one."""
    with reading(path):
        return [_line(text) for text in path.read_bytes().split(b"\n")[:-1]]


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = parse_json(text)
        check_form(line, LINE, "")
        check_form(line, {str: (int, float, str)}, "")
    except (ValueError, UserError):
        return None
    # Lines of earlier versions have no checksum.
    return line if "checksum" not in line or sealed(line) else None


def _damaged(path: Path, number: int) -> UserError:
    return UserError(f"{path}, line {number}, is damaged; restore it, or delete the line")


@contextlib.contextmanager
def metrics_writer(send: Callable, out: Path, seeds: Sequence[int]) -> Iterator[Callable]:
    """Yield log(split, step, metrics): a line a seed in metrics.jsonl, and the chosen logger.

    Args:
        send: of `started`.
        seeds: in the order of the metrics' values.
    """

    def log(split: str, step: int, metrics: dict[str, np.ndarray]) -> None:
        for i, seed in enumerate(seeds):
            values = {name: float(value[i]) for name, value in metrics.items()}
            line = {"step": step, "split": split, "seed": seed, **values}
            file.write(json.dumps(seal(line)) + "\n")
            send(
                {f"{split}/{name}/seed{seed}": value for name, value in values.items()},
                step,
            )
        file.flush()
        os.fsync(file.fileno())

    path = out / "metrics.jsonl"
    try:
        with open(path, "a") as file:
            yield log
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def started(logger: Logger, out: Path, record: dict) -> Iterator[Callable]:
    """Yield send(values, step) of the chosen logger, which runs as long as the block.

    Raises:
        UserError: it is not installed, W&B knows no account, or (`send` too) it cannot write.
    """
    if logger == "none":
        yield lambda values, step: None
        return
    package = {"tensorboard": "tensorboardX.event_file_writer", "wandb": "wandb"}[logger]
    try:
        module = importlib.import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise UserError(
            f"--logger {logger} needs {name}; install it with pip install 'qgf[{logger}]'"
        ) from None
    start, errors = {"tensorboard": _tensorboard, "wandb": _wandb}[logger](module)

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except errors as error:
            first = first_line(error).rstrip(".")
            raise UserError(f"--logger {logger}: {first}; --logger none does without") from None

    with told():
        send, close = start(out, record)
    try:
        yield told()(send)
    finally:
        told()(close)()


def _wandb(module: Any) -> tuple[Callable, tuple]:
    def start(out: Path, record: dict) -> tuple[Callable, Callable]:
        run = module.init(project="qgf", name=out.name, dir=out, config=record)
        return run.log, run.finish

    # Its settings, which also come from the environment, are refused with a ValueError.
    return start, (OSError, ValueError, module.errors.Error)


def _tensorboard(module: Any) -> tuple[Callable, tuple]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    def start(out: Path, record: dict) -> tuple[Callable, Callable]:
        (out / "tensorboard").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and what waits for it waits forever.
        writer = module.EventsWriter(str(out / "tensorboard" / "events"))

        def send(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                writer.write_event(event)
            writer.flush()

        return send, writer.close

    return start, (OSError,)
