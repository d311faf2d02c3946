"""python -m benchmarks: how fast training, acting, collecting and evaluating are.

Ratios are taken inside one run, with both sides taking turns. Run it with nothing else on
the machine. QGF_PEER names a checkout of the authors' code to compare with (see peer.py).
"""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import jax
import tyro

from benchmarks import collecting, dqc, evaluating, latency, training
from qgf.files import read_json, write_json

Part = Literal["training", "latency", "collecting", "evaluating", "dqc"]


def main(
    parts: tuple[Part, ...] = get_args(Part),
    seconds: float = 10.0,
    json: Path | None = None,
) -> None:
    """Measure and print; ratios above 1 are faster for rates, below 1 for times.

    Args:
        parts: what to measure.
        seconds: length of one turn of training, and of one latency.
        json: also write the figures here; parts not measured now stay as they were.
    """
    peer = "QGF_PEER" in os.environ
    if peer:
        from benchmarks import peer as peers

        peers.use()
    measures = {
        "training": lambda: training.measure(peer, seconds),
        "latency": lambda: latency.measure(peer, seconds),
        "collecting": collecting.measure,
        "evaluating": lambda: {"5 weights x 20 episodes": evaluating.measure(peer)},
        "dqc": lambda: dqc.measure(seconds),
    }
    result = read_json(json) if json is not None and json.exists() else {}
    for part in parts:
        print(part, flush=True)
        figures = measures[part]()
        result[part] = {"conditions": {**_machine(), "seconds": seconds}, "figures": figures}
        for name, values in figures.items():
            line = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
            print(f"  {name:24} {line}", flush=True)
        if json is not None:
            write_json(json, result)


def _machine() -> dict:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    tyro.cli(main)
