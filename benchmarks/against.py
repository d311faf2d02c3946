"""This checkout's figures beside those of another checkout of this project, in one run.

It tells whether a change made something faster or slower: a ratio of 1.03 is three per cent more
of the figure here than there.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qgf.errors import UserError
from qgf.files import read_json


def measure(here: Path, there: Path, parts: Sequence[str], seconds: float, rounds: int) -> dict:
    """Return, for every figure that both have, medians over the rounds and of the ratios in them.

    Each checkout's benchmarks measure its own code, in a process for every part and round. The two
    take turns, and the first of a round is the second of the next, so that a drift of the machine
    meets both. "lowest" and "highest" are the extremes of the ratio over the rounds.

    Args:
        here: one checkout.
        there: the other, by whose figures the first's are divided.
        parts: what both measure, by the names of `python -m benchmarks --parts`.
        seconds: length of one turn within a process.
        rounds: processes for every part and checkout.

    Raises:
        UserError: one of the two is not a checkout, or its benchmarks fail.
    """
    trees = [here, there]
    for tree in trees:
        if not ((tree / "src/qgf").is_dir() and (tree / "benchmarks/__main__.py").is_file()):
            raise UserError(f"no checkout of this project at {tree}: name its root")
    kept: dict[str, list[list[float]]] = {}
    for part in parts:
        for turn in range(rounds):
            found: list[dict[str, float]] = [{}, {}]
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                found[side] = _figures(trees[side], part, seconds)
            for name in [name for name in found[0] if name in found[1]]:
                kept.setdefault(name, []).append([figures[name] for figures in found])
    return {name: _row(*np.transpose(values)) for name, values in kept.items()}


def commit(tree: Path) -> str:
    """Return the hash of a checkout's commit, with "-dirty" behind it where files were changed."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _figures(tree: Path, part: str, seconds: float) -> dict[str, float]:
    """Return what a checkout's own benchmarks find, without the peer."""
    env = {name: value for name, value in os.environ.items() if name != "QGF_PEER"}
    env["PYTHONPATH"] = os.pathsep.join([str(tree / "src"), env.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        options = ["--parts", part, "--seconds", str(seconds), "--json", str(path)]
        command = [sys.executable, "-m", "benchmarks", *options]
        done = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"the benchmarks of {tree} fail:\n{done.stderr}")
        figures = read_json(path)[part]["figures"]
    return {
        f"{part} {name} {key}": value
        for name, values in figures.items()
        for key, value in values.items()
    }


def _row(here: np.ndarray, there: np.ndarray) -> dict[str, float]:
    ratio = here / there
    return {
        "here": float(np.median(here)),
        "there": float(np.median(there)),
        "ratio": float(np.median(ratio)),
        "lowest": float(ratio.min()),
        "highest": float(ratio.max()),
    }
