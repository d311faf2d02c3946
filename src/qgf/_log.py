"""A run's metrics: a line a seed in metrics.jsonl, and a logger if one is chosen."""

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qgf._files import atomic_open
from qgf.errors import UserError

Logger = Literal["none", "tensorboard", "wandb"]


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, which the resumed run will write again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with atomic_open(path, "w") as file:
        file.writelines(kept)


@contextlib.contextmanager
def metrics_writer(logger: Logger, package: Any, out: Path, record: dict) -> Iterator[Callable]:
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


def logger_package(logger: Logger) -> Any:
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
