"""python -m benchmarks.costs BOARD.json: what an action of every method on a leaderboard costs.

Costs do not depend on what was learned, so fresh networks of the board's sizes stand for the
trained ones. The operations are those that `qgf compare` counts. Milliseconds are measured only
if asked for, with nothing else on the machine; else those of the board stay.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

import jax
import tyro

from benchmarks.__main__ import ROOT, machine
from benchmarks.against import commit
from qgf.act import Arm, actor
from qgf.comparison import count, milliseconds
from qgf.config import Config, Spec
from qgf.files import read_json, write_json
from qgf.learners import LEARNERS
from qgf.methods import Learners, find_method, kinds_of, settings
from qgf.run import of_seed, read_config
from qgf.tasks.ogbench import make_env


def main(board: tyro.conf.Positional[Path], timed: bool = False) -> None:
    """Measure, print and write into the board.

    Args:
        board: a leaderboard's JSON file, or results/*.json that holds one as "result".
        timed: measure milliseconds too.
    """
    kept = read_json(board)
    result = kept.get("result", kept)
    forms = (Config, *(learner.Hyper for learner in LEARNERS.values()))
    known = {field.name for form in forms for field in dataclasses.fields(form)}
    config = read_config({k: v for k, v in result["facts"]["config"].items() if k in known})
    for dataset, costs in result["costs"].items():
        for name, cost in costs.items():
            cost |= measure(name, dataset, config, timed)
            print(dataset, name, cost, flush=True)
    result["costs_measured"] = {
        "timed": timed,  # else milliseconds are those of the comparison itself
        **machine(),
        "commit": commit(ROOT),
        "command": shlex.join(["python", "-m", "benchmarks.costs", *sys.argv[1:]]),
    }
    write_json(board, kept)


def measure(name: str, dataset: str, config: Config, timed: bool) -> dict:
    """Return "flops", and "ms" by batch size if `timed`, of a method with fresh networks."""
    sizes, method = spec_of(dataset, config), find_method(name)
    held, (weight, samples) = fresh(name, sizes, config), settings(name)[-1]
    cost: dict = {"flops": sum(count(method, of_seed(held, 0), sizes, weight, samples))}
    if timed:
        act = actor(Arm(method, samples=samples), held, sizes, 0)
        cost["ms"] = {str(n): milliseconds(act, sizes, weight, n) for n in (1, 50)}
    return cost


def spec_of(dataset: str, config: Config) -> Spec:
    """Return the sizes of a domain's observations and actions."""
    env = make_env(dataset)
    return Spec(env.observation_space.shape[0], env.action_space.shape[0], config.chunk)


def fresh(name: str, sizes: Spec, config: Config) -> Learners:
    """Return a method's learners at their start; their arrays lead with an axis of one seed."""
    method, kinds = find_method(name), kinds_of(find_method(name))
    learners = {
        role: LEARNERS[kinds[role]].create(sizes, config, jax.random.key(0))
        for role in method.roles
    }
    return of_seed(learners, None)


if __name__ == "__main__":
    tyro.cli(main)
