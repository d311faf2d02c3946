"""Many methods on many tasks under one protocol: train what is missing, evaluate, tabulate.

One policy serves all tasks of a domain, one critic all test-time methods of a task. What a
method is tuned by is chosen once per domain, on tune episodes of all its tasks together, and
reported on other episodes. A comparison that was cut off goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qgf.act.rollout import Arm, actor
from qgf.comparison._costs import count, milliseconds
from qgf.comparison.leaderboard import leaderboard, write_leaderboard
from qgf.comparison.protocol import (
    Plan,
    check_facts,
    check_task,
    learners,
    opinions,
    read_episodes,
    run_episodes,
    run_folder,
    source,
    spec,
    variant,
)
from qgf.config import Config
from qgf.data.manifest import load_manifest
from qgf.errors import UserError, check_counts, check_seed
from qgf.evaluation._evaluate import figures
from qgf.files import locked, read_value, write_value
from qgf.methods.table import CLONED, canonical, find_method, kinds_of, settings
from qgf.run._evaluation import choose
from qgf.run.checkpoint import of_seed
from qgf.tasks import find_task


def compare(
    envs: Sequence[str],
    methods: Sequence[str],
    data: Sequence[Path],
    out: Path,
    config: Config,
    *,
    seeds: Sequence[int] = (0, 1),
    episodes: int = 25,
    tune_episodes: int = 5,
    workers: int = 2,
    slots: int = 32,
    seed: int = 0,
) -> dict:
    """Compare methods on tasks; write OUT/leaderboard.{json,md,html} and return the first.

    Args:
        envs: single-task environments.
        methods: names of METHODS; CLONED is always among them.
        data: one folder for every data set that the environments need.
        out: folder of all runs and results; what it holds already is reused.
        seeds: training seeds.
        episodes: test episodes of a method, task and training seed.
        tune_episodes: those on which a setting is chosen, again of a task and training seed.
        workers: environment processes.
        slots: episodes that run at a time.
        seed: of the environments and the noise.

    Raises:
        UserError: unfit names or data, or `out` holds results of other settings.
    """
    check_counts({"episodes": episodes, "tune_episodes": tune_episodes})
    check_counts({"workers": workers, "slots": slots})
    check_seed("the evaluation's seed", seed)
    envs = tuple(dict.fromkeys(envs))
    names = tuple(dict.fromkeys(canonical(name) for name in (CLONED, *methods)))
    counts = {"tune": tune_episodes, "test": episodes}
    folders = _folders(envs, data)
    plan = Plan(Path(out), folders, config, tuple(seeds), counts, workers, slots, seed)
    with locked(plan.out):
        check_facts(plan)
        entries, searched = [], {}
        for dataset in dict.fromkeys(find_task(env).domain for env in envs):
            tasks = [env for env in envs if find_task(env).domain == dataset]
            tunable = {name: settings(name) for name in names if len(settings(name)) > 1}
            _evaluate(plan, tasks, "tune", tunable)
            searched[dataset] = {name: _search(plan, name, tasks) for name in names}
            chosen = {name: _chosen(rows) for name, rows in searched[dataset].items()}
            tests = {name: [(row["weight"], row["samples"])] for name, row in chosen.items()}
            _evaluate(plan, tasks, "test", tests)
            for name, row in chosen.items():
                entries += [_entry(plan, name, env, row) for env in tasks]
        sizes = {_size(env): env for env in reversed(envs)}
        costs = {
            size: {name: _cost(plan, name, env) for name in names} for size, env in sizes.items()
        }
        result = leaderboard(entries, costs, plan.facts()) | {"settings": searched}
        write_leaderboard(plan.out, result)
    return result


def _search(plan: Plan, name: str, tasks: Sequence[str]) -> list[dict]:
    """Return what every setting of a method comes to on the tasks of one domain.

    That is success on tune episodes (where there is something to choose), and what the critic
    thinks of its actions.
    """
    found = np.mean([opinions(plan, name, env, settings(name)) for env in tasks], axis=0)
    rows = []
    for (weight, samples), (gain, moved) in zip(settings(name), found.tolist(), strict=True):
        row = {"weight": weight, "samples": samples, "q_gain": gain, "moved": moved}
        if len(found) > 1:
            tunes = [read_episodes(plan, name, env, "tune", (weight, samples)) for env in tasks]
            row["tune"] = figures(np.concatenate(tunes, axis=1))
        rows.append(row)
    return rows


def _chosen(rows: Sequence[dict]) -> dict:
    return choose(rows) if len(rows) > 1 else rows[0]


def _entry(plan: Plan, name: str, env: str, chosen: dict) -> dict:
    """Return a method's test episodes of one task, at the setting chosen for the domain."""
    data = read_episodes(plan, name, env, "test", (chosen["weight"], chosen["samples"]))
    return {
        "env": env,
        "method": name,
        "weight": chosen["weight"],
        "samples": chosen["samples"],
        "episodes": data[..., 0].astype(int).tolist(),
        "returns": data[..., 1].tolist(),
        "fallbacks": int(data[..., 3].sum()),
        "tune": {k: chosen["tune"][k] for k in ("success", "episodes")} if "tune" in chosen else {},
    }


def _evaluate(
    plan: Plan, tasks: Sequence[str], split: str, wanted: dict[str, list[tuple[float, int]]]
) -> None:
    for env in tasks:
        variants = {name: variant(plan, name, env, every) for name, every in wanted.items()}
        run_episodes(plan, env, split, variants)


def _size(env: str) -> str:
    """Return what environments have in common whose networks are of one size."""
    task = find_task(env)
    return env if task.goal_conditioned else task.domain


def _cost(plan: Plan, name: str, env: str) -> dict:
    """Return what an action and the training of a method cost, measured once and kept."""
    method, sizes = find_method(name), spec(plan, env)
    path = plan.out / "costs" / _size(env) / f"{name}.json"
    if path.exists():
        return read_value(path)
    one = of_seed(learners(plan, name, env), slice(1))
    weight, samples = settings(name)[-1]
    act = actor(Arm(method, samples=samples), one, sizes, 0)
    runs = {run_folder(plan, source(method, name, role), env) for role in kinds_of(method)}
    seconds = [run / "seconds.json" for run in runs]
    known = all(file.exists() for file in seconds)
    cost = {
        "ms": {str(n): milliseconds(act, sizes, weight, n) for n in (1, 50)},
        "flops": sum(count(method, of_seed(one, 0), sizes, weight, samples)),
        "train_seconds": sum(map(read_value, seconds)) / len(plan.seeds) if known else None,
    }
    write_value(path, cost)
    return cost


def _folders(envs: Sequence[str], data: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of every data set the environments need."""
    if not envs:
        raise UserError("name at least one environment with --envs")
    for env in envs:
        check_task(env)
    found = {load_manifest(folder).name: Path(folder) for folder in data}
    for env in envs:
        if find_task(env).domain not in found:
            raise UserError(
                f"{env} needs data of {find_task(env).domain}; name its folder with --data "
                f"(there are {', '.join(found) or 'none'})"
            )
    return found
