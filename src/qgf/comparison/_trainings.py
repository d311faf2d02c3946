"""The runs of a comparison or a study: what is trained for a method on a task, each made once."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from qgf.act.rollout import SPLITS
from qgf.config import Config, Spec
from qgf.data.readers import Fields
from qgf.executor import Executor, Job, execute
from qgf.files import write_value
from qgf.learners import DEFAULT_KINDS, LEARNERS, only
from qgf.methods.table import (
    CLONED,
    GUIDED,
    METHODS,
    Learners,
    Method,
    find_method,
    kinds_of,
    needs_task,
)
from qgf.run._log import last_step
from qgf.run._record import learners_of
from qgf.run.checkpoint import config_record, list_checkpoints, load_learner, load_record
from qgf.run.trainer import train
from qgf.tasks import Task, find_task

BASE_MEMORY = 1.5e9  # of a training without its data: compiled programs and networks


@dataclass(frozen=True)
class Plan:
    """Where things are and how they are made.

    Attributes:
        out: folder of all runs and results.
        data: folder of the data by data set name.
        seeds: training seeds.
        counts: episodes of a setting, task (or goal) and training seed by split.
        workers, slots, seed: as in `qgf.evaluation._evaluate.evaluate`.
        fields: which recorded fields are used, where a task does not say it.
        success: how success is told, where a task does not say it; as in `evaluate`.
        config: settings of all trainings.
    """

    out: Path
    data: dict[str, Path]
    config: Config
    seeds: tuple[int, ...]
    counts: dict[str, int]
    workers: int = 2
    slots: int = 32
    seed: int = 0
    fields: Fields = Fields()  # noqa: RUF009
    success: str | None = None

    def task(self, env: str, parts: Sequence[str] = ()) -> Task:
        """Return the task of a name, as the episodes of this plan are judged.

        Args:
            env: the task, as `qgf.tasks.find_task` takes it.
            parts: names of the recorded fields that are the observation, where data are known.
        """
        task = find_task(env, parts or self.fields.obs or ())
        return task if self.success is None else task.judged_by(self.success)

    def facts(self) -> dict:
        """Return what all results in `out` have in common."""
        asked = {**vars(self.fields), "success": self.success}
        given = {type(hyper) for hyper in self.config.hyper}
        changed = [kind for kind, learner in LEARNERS.items() if learner.Hyper in given]
        return {
            "seeds": list(self.seeds),
            "config": config_record(self.config, changed),
            "test_episodes": self.counts[SPLITS[1]],
            "tune_episodes": self.counts[SPLITS[0]],
            "seed": self.seed,
            **{k: list(v) if k == "obs" else v for k, v in asked.items() if v is not None},
        }


def learners(plan: Plan, name: str, env: str) -> Learners:
    """Return the learners a method acts with, each trained if it is not there yet.

    Args:
        plan: what is compared, and where its runs and results lie.
        name: a name of METHODS.
        env: the task, as `qgf.tasks.find_task` takes it.
    """
    method = find_method(name)
    return {
        role: load_learner(run_folder(plan, source(method, name, role), env), role)
        for role in method.roles
    }


def source(method: Method, name: str, role: str) -> str:
    """Return the run that holds a method's learner: its role, or the method it is trained for.

    Of the methods that need the same learners that is a train-time one, or else the first.
    """
    kinds = kinds_of(method)
    if kinds[role] == DEFAULT_KINDS.get(role):
        return role
    same = [other for other, one in METHODS.items() if kinds_of(one) == kinds] or [name]
    return min(same, key=lambda other: METHODS[other].kind != "train-time")


class Training(NamedTuple):
    """A run of a comparison: its folder, the environment it is trained for, what it builds on.

    Attributes:
        base: the run whose learners it takes, by the argument of `train` that names it.
    """

    path: Path
    env: str
    method: str
    base: dict[str, str]


def training(plan: Plan, what: str, env: str) -> Training:
    """Return one of the runs of a domain or task: "policy", "critic", or a method's own.

    Args:
        plan: what is compared, and where its runs and results lie.
        what: "policy", "critic", or the method that is trained.
        env: the task, as `qgf.tasks.find_task` takes it.
    """
    task = plan.task(env)
    folder = plan.out / "runs" / task.domain.removesuffix("-v0")
    if what == "policy":
        return Training(folder / what, task.domain, CLONED, {})
    if what == "critic":
        return Training(folder / task.part / what, env, GUIDED, {"policy": "policy"})
    own = {r: k for r, k in kinds_of(METHODS[what]).items() if k != DEFAULT_KINDS.get(r)}
    if needs_task(own):
        return Training(folder / task.part / what, env, what, {"base": "critic"})
    # What no critic enters is trained once for all tasks of a domain.
    return Training(folder / what, task.domain, what, {"base": "policy"})


def run_folder(plan: Plan, what: str, env: str) -> Path:
    """Train one of the runs of a domain or task, if need be, and return its folder.

    Args:
        plan: what is compared, and where its runs and results lie.
        what: "policy", "critic", or the method that is trained.
        env: the task, as `qgf.tasks.find_task` takes it.
    """
    path, domain, method, bases = training(plan, what, env)
    others = {name: run_folder(plan, base, env) for name, base in bases.items()}
    train_to_end(plan, domain, path, plan.config, method=method, **others)
    return path


def train_all(
    plan: Plan, names: Sequence[str], envs: Sequence[str], executor: Executor | None
) -> None:
    """Run `trainings` side by side.

    Args:
        plan: what is compared, and where its runs and results lie.
        names: names of METHODS.
        envs: the tasks, as `qgf.tasks.find_task` takes them.
        executor: None trains them one after the other in this process, when they are needed.
    """
    if executor is not None:
        execute(trainings(plan, names, envs), executor, "steps")


def trainings(
    plan: Plan, names: Sequence[str], envs: Sequence[str], root: Path | None = None
) -> list[Job]:
    """Return the jobs that train what methods on tasks need and what is not there yet.

    Args:
        plan: what is compared, and where its runs and results lie.
        names: names of METHODS.
        envs: the tasks, as `qgf.tasks.find_task` takes them.
        root: the folder in which their paths are their names: `plan.out`, or one around it.
    """
    jobs: dict[str, Job] = {}
    memory = functools.cache(partial(_memory, plan))

    def add(what: str, env: str) -> str:
        path, domain, _, bases = training(plan, what, env)
        name = str(path.relative_to(root or plan.out))
        if name not in jobs and not trained(path, plan.config):
            needs = [add(base, env) for base in bases.values()]
            work = partial(run_folder, plan, what, env)
            jobs[name] = _job(name, plan, path, work, needs, memory(domain))
        return name

    for env in envs:
        for name in names:
            method = find_method(name)
            for role in kinds_of(method):
                add(source(method, name, role), env)
    return [*jobs.values()]


def other_critics(plan: Plan, env: str, configs: Mapping[Path, Config]) -> list[Job]:
    """Return the jobs that train further critics of a task, on the policy of all.

    Args:
        plan: what is compared, and where its runs and results lie.
        env: the task, as `qgf.tasks.find_task` takes it.
        configs: settings of each, by the folder in `plan.out` in which it is made.
    """
    policy, jobs = training(plan, "policy", env).path, []
    for path, config in configs.items():
        if not trained(path, config):
            work = partial(train_to_end, plan, env, path, config, policy=policy)
            name, need = (str(run.relative_to(plan.out)) for run in (path, policy))
            jobs.append(_job(name, plan, path, work, [need], _memory(plan, env)))
    return jobs


def _job(
    name: str,
    plan: Plan,
    path: Path,
    work: Callable[[], object],
    needs: Sequence[str],
    memory: int,
) -> Job:
    return Job(name, work, plan.config.steps, partial(last_step, path), needs, memory)


def _memory(plan: Plan, env: str) -> int:
    """Return about how many bytes a training takes: JAX, and its data, twice while they are cut."""
    data = plan.task(env).open(plan.data[plan.task(env).domain], plan.fields, trust=True)
    rows = sum(shard.rows for split in ("train", "val") for shard in data.split(split))
    held = min(4 * rows * (sum(data.widths) + 4), plan.config.resident_gb * 1e9)
    return int(BASE_MEMORY + 2 * held)


def trained(path: Path, config: Config) -> bool:
    """Whether a run has all its gradient steps.

    Args:
        path: folder of the run.
        config: its settings, of which the number of steps is asked for.
    """
    return max(list_checkpoints(path), default=0) >= config.steps


def train_to_end(
    plan: Plan, env: str, path: Path, config: Config, *, method: str = GUIDED, **options: object
) -> None:
    """Train a run, or what is left of it; `options` are those of `qgf.run.trainer.train`.

    Of `config`, which is that of all runs, it gets the hyperparameters of its own learners.

    Args:
        plan: what is compared, and where its runs and results lie.
        env: the task, as `qgf.tasks.find_task` takes it.
        path: folder of the run.
        config: the settings of all runs.
        method: the name of METHODS that it is trained for.
        options: further arguments of `qgf.train`.
    """
    if trained(path, config):
        return
    task, resume = plan.task(env), (path / "config.json").exists()
    config = only(config, learners_of(task, task.rewarded, method, None).values())
    print(f"training {path}", flush=True)
    begin = time.monotonic()
    shared = {"seeds": plan.seeds, "fields": plan.fields, "method": method, "resume": resume}
    train(env, plan.data[task.domain], path, config, **shared, **options)
    if not resume:
        write_value(path / "seconds.json", time.monotonic() - begin)


def spec(plan: Plan, env: str) -> Spec:
    """Return the sizes of observations and actions, and of goals where the task is one.

    Args:
        plan: what is compared, and where its runs and results lie.
        env: the task, as `qgf.tasks.find_task` takes it.
    """
    what = "critic" if plan.task(env).goal_conditioned else "policy"
    return Spec(**load_record(run_folder(plan, what, env))["spec"])
