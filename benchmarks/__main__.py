"""python -m benchmarks: how fast training, acting, collecting and evaluating are.

Ratios are taken inside one run, with both sides taking turns. Run it with nothing else on
the machine. QGF_PEER names a checkout of the authors' code to compare with (see peer.py), and
--against another checkout of this project (see against.py).
"""

import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import jax
import tyro

from benchmarks import (
    against as others,
    aggregation,
    collecting,
    dqc,
    evaluating,
    latency,
    streaming,
    training,
)
from qgf.errors import UserError
from qgf.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent

Part = Literal[
    "training",
    "latency",
    "collecting",
    "evaluating",
    "dqc",
    "aggregation",
    "streaming",
    "reading",
]


def main(
    parts: tuple[Part, ...] = get_args(Part),
    seconds: float = 10.0,
    json: Path | None = None,
    against: Path | None = None,
    rounds: int = 5,
) -> None:
    """Measure and print; ratios above 1 are faster for rates, below 1 for times.

    Args:
        parts: what to measure.
        seconds: length of one turn of training, and of one latency.
        json: also write the figures here; parts not measured now stay as they were.
        against: root of another checkout of this project: its figures and ours, in turns.
        rounds: how often each of the two measures each part.
    """
    conditions = {"commit": others.commit(ROOT), "seconds": seconds}
    if against is not None:
        there = against.resolve()
        conditions |= {"against": others.commit(there), "rounds": rounds}
        measures = {"against": lambda: others.measure(ROOT, there, parts, seconds, rounds)}
    else:
        known = _measures(seconds)
        measures = {part: known[part] for part in parts}
    keep(measures, json, conditions)


def keep(measures: dict[str, Callable[[], dict]], json: Path | None, conditions: dict) -> None:
    """Measure part after part; print each and write it into the file, beside what is there."""
    result = read_json(json) if json is not None and json.exists() else {}
    for part, measure in measures.items():
        print(part, flush=True)
        load = os.getloadavg()[0]
        figures = measure()  # before the device is asked for its name, which reserves its memory
        facts = {**machine(), **conditions, "seed": 0, "load_before": load}
        result[part] = {"conditions": facts, "figures": figures}
        for name, values in figures.items():
            line = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
            print(f"  {name:24} {line}", flush=True)
        if json is not None:
            write_json(json, result)


def _measures(seconds: float) -> dict[str, Callable[[], dict]]:
    peer = "QGF_PEER" in os.environ
    if peer:
        from benchmarks import peer as peers

        peers.use()
    return {
        "training": lambda: training.measure(peer, seconds),
        "latency": lambda: latency.measure(peer, seconds),
        "collecting": collecting.measure,
        "evaluating": lambda: {"5 weights x 20 episodes": evaluating.measure(peer)},
        "dqc": lambda: dqc.measure(seconds),
        "aggregation": aggregation.measure,
        "streaming": streaming.measure,
        "reading": streaming.reading,
    }


def machine() -> dict:
    """Return what figures depend on beside the code: command, cores, device, versions."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(str(error))
