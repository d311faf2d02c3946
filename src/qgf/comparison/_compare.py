"""Many methods on many tasks under one protocol: train what is missing, evaluate, tabulate.

One policy serves all tasks of a domain, one critic all test-time methods of a task. What a
method is tuned by is chosen once per domain, on tune episodes of all its tasks together, and
reported on other episodes. A comparison that was cut off goes on where it was.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qgf.act.rollout import Arm, actor
from qgf.comparison._costs import count, milliseconds
from qgf.comparison._trainings import Plan, learners, run_folder, source, spec, train_all
from qgf.comparison.leaderboard import leaderboard, write_leaderboard
from qgf.comparison.protocol import (
    check_facts,
    check_task,
    opinions,
    read_episodes,
    run_episodes,
    variant,
)
from qgf.config import Config
from qgf.data.manifest import load_manifest
from qgf.data.readers import Fields
from qgf.errors import UserError, check_counts, check_seed
from qgf.evaluation._evaluate import figures
from qgf.executor import Executor
from qgf.files import locked, read_value, write_value
from qgf.methods.table import CLONED, canonical, find_method, kinds_of, settings
from qgf.run.checkpoint import of_seed
from qgf.run.evaluation import SettingResult, choose


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
    fields: Fields | None = None,
    success: str | None = None,
    executor: Executor | None = None,
) -> dict:
    """Compare methods on tasks; write OUT/leaderboard.{json,md,html} and return the first.

    Args:
        envs: tasks, as `qgf.tasks.find_task` takes them.
        methods: names of METHODS; CLONED is always among them.
        data: recorded episodes for every data set that the environments need: OGBench's in any
            order, those of others in the order of the environments.
        out: folder of all runs and results; what it holds already is reused.
        config: the settings of all trainings, with hyperparameters of the learners.
        seeds: training seeds.
        episodes: test episodes of a method, task and training seed.
        tune_episodes: those on which a setting is chosen, again of a task and training seed.
        workers: environment processes.
        slots: episodes that run at a time.
        seed: of the environments and the noise.
        fields: which recorded fields are used, where a task does not say it.
        success: how success is told, where a task does not say it: a key of `info`, or
            return:NUMBER. If a task says none, all are judged by their returns.
        executor: what runs trainings side by side, e.g. `qgf.executor.Processes()`; by default they
            are run one after the other in this process.

    Raises:
        UserError: unfit names or data, or `out` holds results of other settings.
    """
    check_counts({"episodes": episodes, "tune_episodes": tune_episodes})
    check_counts({"workers": workers, "slots": slots})
    check_seed("the evaluation's seed", seed)
    envs = tuple(dict.fromkeys(envs))
    names = tuple(dict.fromkeys(canonical(name) for name in (CLONED, *methods)))
    counts = {"tune": tune_episodes, "test": episodes}
    sizing = workers, slots, seed, fields or Fields(), success
    plan = Plan(Path(out), {}, config, tuple(seeds), counts, *sizing)
    plan = dataclasses.replace(plan, data=_folders(plan, envs, data))
    with locked(plan.out):
        check_facts(plan)
        train_all(plan, names, envs, executor)
        entries, searched = [], {}
        domains = {env: plan.task(env).domain for env in envs}
        for dataset in dict.fromkeys(domains.values()):
            tasks = [env for env in envs if domains[env] == dataset]
            tunable = {name: settings(name) for name in names if len(settings(name)) > 1}
            _evaluate(plan, tasks, "tune", tunable)
            tried = {name: _tried(plan, name, tasks) for name in names}
            searched[dataset] = {
                name: _described(plan, name, tasks, rows) for name, rows in tried.items()
            }
            chosen = {n: choose(rows) if len(rows) > 1 else rows[0] for n, rows in tried.items()}
            tests = {name: [(row.weight, row.samples)] for name, row in chosen.items()}
            _evaluate(plan, tasks, "test", tests)
            for name, row in chosen.items():
                entries += [_entry(plan, name, env, row) for env in tasks]
        sizes = {_size(plan, env): env for env in reversed(envs)}
        costs = {
            size: {name: _cost(plan, name, env) for name in names} for size, env in sizes.items()
        }
        result = leaderboard(entries, costs, plan.facts()) | {"settings": searched}
        write_leaderboard(plan.out, result)
    return result


def _tried(plan: Plan, name: str, tasks: Sequence[str]) -> list[SettingResult]:
    """Return every setting of a method, with its tune episodes on the tasks of one domain.

    These are run only where there is something to choose.
    """
    tried = settings(name)
    if len(tried) == 1:
        return [SettingResult(*tried[0])]
    rows = []
    for setting in tried:
        tunes = [read_episodes(plan, name, env, "tune", setting) for env in tasks]
        rows.append(SettingResult(*setting, tune=figures(np.concatenate(tunes, axis=1))))
    return rows


def _described(
    plan: Plan, name: str, tasks: Sequence[str], tried: Sequence[SettingResult]
) -> list[dict]:
    """Return the settings of a method as JSON, with what the critic thinks of its actions."""
    found = np.mean([opinions(plan, name, env, settings(name)) for env in tasks], axis=0).tolist()
    return [
        row.json() | {"q_gain": gain, "moved": moved}
        for row, (gain, moved) in zip(tried, found, strict=True)
    ]


def _entry(plan: Plan, name: str, env: str, chosen: SettingResult) -> dict:
    """Return a method's test episodes of one task, at the setting chosen for the domain."""
    data = read_episodes(plan, name, env, "test", (chosen.weight, chosen.samples))
    tune = {} if chosen.tune is None else chosen.tune.json()
    return {
        "env": env,
        "method": name,
        "weight": chosen.weight,
        "samples": chosen.samples,
        "episodes": None if np.isnan(data[..., 0]).any() else data[..., 0].astype(int).tolist(),
        "returns": data[..., 1].tolist(),
        "fallbacks": int(data[..., 3].sum()),
        "tune": {k: tune[k] for k in ("success", "return", "episodes") if k in tune},
    }


def _evaluate(
    plan: Plan, tasks: Sequence[str], split: str, wanted: dict[str, list[tuple[float, int]]]
) -> None:
    for env in tasks:
        variants = {name: variant(plan, name, env, every) for name, every in wanted.items()}
        run_episodes(plan, env, split, variants)


def _size(plan: Plan, env: str) -> str:
    """Return what environments have in common whose networks are of one size."""
    task = plan.task(env)
    return env if task.goal_conditioned else task.domain


def _cost(plan: Plan, name: str, env: str) -> dict:
    """Return what an action and the training of a method cost, measured once and kept."""
    method, sizes = find_method(name), spec(plan, env)
    path = plan.out / "costs" / _size(plan, env) / f"{name}.json"
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


def _folders(plan: Plan, envs: Sequence[str], data: Sequence[Path]) -> dict[str, Path]:
    """Return where the data of every domain lie. UserError if they do not serve its tasks."""
    if not envs:
        raise UserError("name at least one environment with --envs")
    for env in envs:
        check_task(plan.task(env))
    tasks = {plan.task(env).domain: plan.task(env) for env in reversed(envs)}
    names = {Path(path): _dataset_name(path) for path in data}
    found = {name: path for path, name in names.items() if name in tasks}
    missing = [domain for domain in reversed(tasks) if domain not in found]
    left = [path for path, name in names.items() if name not in tasks]
    if len(left) < len(missing):
        raise UserError(f"{missing[len(left)]} needs data of its own; name them with --data")
    found |= dict(zip(missing, left, strict=False))
    for domain, path in found.items():
        _check_fit(plan, tasks[domain].name, path)
    if len(left) > len(missing):
        raise UserError(f"no environment of --envs needs the data in {left[len(missing)]}")
    return found


def _dataset_name(path: Path) -> str | None:
    """Return OGBench's name of a dataset, None if it is none."""
    try:
        return load_manifest(path).name
    except UserError:
        return None  # what it is, and what is wrong with it, is said by who opens it


def _check_fit(plan: Plan, name: str, path: Path) -> None:
    """Raise a UserError unless a critic can learn a task from data, and its spaces are theirs."""
    source = plan.task(name).open(path, plan.fields, trust=True)
    task = plan.task(name, source.parts)
    if not (source.rewarded or task.goal_conditioned):
        raise UserError(f"{path} has no rewards, from which critics learn; choose some by --reward")
    env = task.make()
    shapes = env.observation_space.shape, env.action_space.shape
    env.close()
    if shapes != tuple((width,) for width in source.widths):
        raise UserError(
            f"{task.name} has observations of shape {shapes[0]} and actions of {shapes[1]}, {path} "
            f"holds {source.widths[0]} and {source.widths[1]} numbers; name others by --obs or "
            "--action, or other --data"
        )
