"""Gather evaluations of Meta-World: python -m examples.metaworld.summary [--out FILE]"""

import argparse
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from examples.metaworld import collect, tasks
from qgf.files import read_json, write_json

PACKAGES = ("qgf", "jax", "equinox", "numpy", "gymnasium", "mujoco", "metaworld")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--runs", type=Path, default=Path("out/metaworld"))
    parser.add_argument("--out", type=Path, default=Path("results/metaworld.json"))
    args = parser.parse_args()
    found = {path.parent.name: read_json(path) for path in args.runs.glob("*/eval.json")}
    for task, result in sorted(found.items()):
        bc, qgf = (result["methods"][name] for name in ("bc", "qgf"))
        ours = qgf["test"]
        (low, high), weight = ours["difference_ci95"], qgf["weight"]
        print(
            f"{task}: BC {bc['test']['success']:.0%}, QGF {ours['success']:.0%} at w = {weight:g}, "
            f"{ours['difference']:+.0%} ({low:+.0%} to {high:+.0%}), {ours['episodes']} episodes"
        )
    commit = ("git", "rev-parse", "--short", "HEAD")
    write_json(
        args.out,
        {
            "commit": subprocess.check_output(commit, text=True).strip(),
            "commands": [
                f"sh examples/metaworld/run.sh {' '.join(sorted(found))}",
                "python -m examples.metaworld.summary",
            ],
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in PACKAGES},
            },
            "steps": tasks.STEPS,
            "noise": collect.NOISE,
            "random": collect.RANDOM,
            "results": dict(sorted(found.items())),
        },
    )


if __name__ == "__main__":
    main()
