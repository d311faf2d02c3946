"""python -m benchmarks.gpu: what training and acting reach on a GPU, in one unattended run.

With the full preset meant for one GPU and less than 25 minutes; the file is written after every
part. QGF_PEER names a checkout of the authors' code to compare with (see peer.py). `--preset small`
runs anywhere in less than a minute and shows only that everything works.
"""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np
import tyro

from benchmarks import against, latency, training
from benchmarks.__main__ import ROOT, keep
from qgf.config import PRESETS, Config
from qgf.errors import UserError

Part = Literal["training", "precision", "acting"]

# Of a matrix product's factors, as JAX calls them. Products are summed in float32 in any case.
# JAX's own default on recent GPUs is TF32; other devices may take all of these for float32.
PRECISIONS = {"float32": "highest", "TF32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"}
LOSSES = ("policy/bc_loss", "critic/critic_loss", "critic/value_loss")


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        sizes: settings of a training, by the name of its networks' size.
        seeds: numbers of training seeds in one program.
        batches: numbers of observations acted at.
        dispatch: gradient steps of one device call.
        points: such calls of a loss curve.
        seconds: of one measured turn, and of a loss curve at most.
        rounds: turns, of which the median is taken.
    """

    sizes: dict[str, Config]
    seeds: tuple[int, ...]
    batches: tuple[int, ...]
    dispatch: int
    points: int
    seconds: float
    rounds: int


PLANS = {
    "full": Plan(
        sizes={"3x256": PRESETS["laptop"], "4x1024": PRESETS["paper"]},
        seeds=(1, 4, 10),
        batches=(1, 50, 1024),
        dispatch=100,
        points=50,
        seconds=8.0,
        rounds=3,
    ),
    "small": Plan(
        sizes={"2x16": Config(width=16, depth=2, batch_size=8)},
        seeds=(1, 2),
        batches=(1, 5),
        dispatch=5,
        points=4,
        seconds=0.1,
        rounds=1,
    ),
}


def main(
    preset: Literal["full", "small"] = "full",
    parts: tuple[Part, ...] = get_args(Part),
    json: Path = ROOT / "results/gpu.json",
) -> None:
    """Measure, print and write.

    Args:
        preset: how much is measured; "small" takes less than a minute on a CPU.
        parts: what is measured; others stay in the file as they were.
        json: where the figures go.
    """
    plan, peer = PLANS[preset], "QGF_PEER" in os.environ
    if peer:
        from benchmarks import peer as peers

        peers.use()
    measures = {
        "training": lambda: rates(plan, peer),
        "precision": lambda: precisions(plan),
        "acting": lambda: acting(plan, peer),
    }
    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    conditions = {"command": command, "commit": against.commit(ROOT), "preset": preset}
    keep({part: measures[part] for part in parts}, json, conditions)


def rates(plan: Plan, peer: bool) -> dict:
    """Return gradient steps per second, each of all seeds, and of the peer's.

    The peer trains one seed in a program, so that of n seeds it takes n programs one after the
    other: its rate is that of one seed divided by n.
    """
    found = {}
    for name, config in plan.sizes.items():
        theirs = training.theirs(config) if peer else None
        other = _median(theirs, plan) if theirs else None
        for count in plan.seeds:
            rate = _median(training.ours(config, plan.dispatch, count), plan)
            row = {"steps_per_second": rate, "seed_steps_per_second": count * rate}
            if other is not None:
                row |= {"peer_steps_per_second": other / count, "ratio": count * rate / other}
            found[f"{name} batch {config.batch_size}, {count} seeds"] = row
    return found


def _median(run, plan: Plan) -> float:
    return float(np.median([run(plan.seconds) for _ in range(plan.rounds)]))


def precisions(plan: Plan) -> dict:
    """Return, for each precision, gradient steps per second, and each loss after so many steps.

    All train the same seed on the same batches, so that curves differ by the precision alone.
    """
    found = {}
    for name, config in plan.sizes.items():
        curves: dict[str, list[dict[str, float]]] = {}
        for precision, setting in PRECISIONS.items():
            with jax.default_matmul_precision(setting):
                curves[precision], rate = _curve(config, plan)
            found[f"{name} {precision}"] = {"steps_per_second": rate}
        for loss in LOSSES:
            for precision, points in curves.items():
                found[f"{name} {loss} {precision}"] = {
                    str(plan.dispatch * (i + 1)): point[loss] for i, point in enumerate(points)
                }
    return found


def _curve(config: Config, plan: Plan) -> tuple[list[dict[str, float]], float]:
    """Return the mean losses of every device call, and the steps per second after the first."""
    advance = training.stepper(config, plan.dispatch)
    points = [_losses(advance())]
    start = time.perf_counter()
    while len(points) < plan.points and time.perf_counter() - start < plan.seconds:
        points.append(_losses(advance()))
    return points, plan.dispatch * (len(points) - 1) / (time.perf_counter() - start)


def _losses(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(metrics[name][0]) for name in LOSSES}


def acting(plan: Plan, peer: bool) -> dict:
    """Return milliseconds to a batch of guided actions, and guided actions per second."""
    sizes = {name: (config.width, config.depth) for name, config in plan.sizes.items()}
    found = latency.measure(peer, plan.seconds, sizes, plan.batches)
    batches = [batch for _ in plan.sizes for batch in plan.batches]
    for row, batch in zip(found.values(), batches, strict=True):
        row["actions_per_second"] = 1000 * batch / row["ms"]
    return found


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(str(error))
