"""One protocol for comparisons and studies: a folder of runs and of episodes, each made once.

    OUT/runs/DOMAIN/policy                  one flow policy for all tasks of a domain
    OUT/runs/DOMAIN/taskN/critic            one IQL critic for all test-time methods of a task
    OUT/runs/DOMAIN/goals/critic            one DQC critic for all of them and all goals
    OUT/runs/DOMAIN/taskN/METHOD            what a method trains beside them
    OUT/episodes/ENV/NAME/SPLIT W of N.json outcomes at weight W, the best of N samples
    OUT/opinions/ENV/NAME/W of N.json       what the critic thinks of such actions

Every finished piece is a file: work that was cut off goes on with the next.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qgf.act.policy import noise_size, sample_actions
from qgf.act.rollout import SPLITS, Arm, make_jobs, roll_out
from qgf.config import Config, Spec, check_seeds
from qgf.core.flow import refuse_failed
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch
from qgf.data.normalization import Normalization
from qgf.data.readers import Fields
from qgf.errors import UserError
from qgf.evaluation._evaluate import table
from qgf.executor import Executor, Job, execute
from qgf.files import read_record, read_value, write_record, write_value
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
from qgf.run._validation import validation_batch
from qgf.run.checkpoint import (
    config_record,
    list_checkpoints,
    load_learner,
    load_record,
    of_seed,
    read_config,
)
from qgf.run.trainer import train
from qgf.tasks import Task, find_task
from qgf.tasks._workers import Workers

BASE = ("policy", "critic")
BASE_MEMORY = 1.5e9  # of a training without its data: compiled programs and networks
STATES = 512  # of the validation data, at which the critic is asked

Setting = tuple[float, int]  # weight, and of how many samples the critic chooses


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


class Variant(NamedTuple):
    """A way to act, what it acts with (read when it is needed), and settings to evaluate."""

    method: Method
    learners: Callable[[], Learners]
    settings: Sequence[Setting]


def check_facts(plan: Plan) -> None:
    """Note the settings of all results in `plan.out`. UserError if it holds those of others.

    Settings under which nothing was made yet bind nobody.
    """
    check_seeds(plan.seeds)
    path = plan.out / "compare.json"
    made = itertools.chain(plan.out.glob("runs/**/state.json"), plan.out.glob("episodes/**/*.json"))
    if path.exists() and any(made):
        old, new = read_record(path), plan.facts()
        differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if "config" in differ and read_config(old["config"]) == plan.config:  # of an older format
            differ.remove("config")
        if differ:
            raise UserError(
                f"{plan.out} holds a comparison with other settings ({', '.join(differ)}); "
                "use them, or another --out"
            )
    write_record(path, plan.facts())


def check_task(task: Task) -> None:
    """Raise a UserError if an environment has neither a task nor goals."""
    if not (task.rewarded or task.goal_conditioned):
        raise UserError(
            f"{task.name} names no task; use …-singletask-taskN-v0 or …-oraclerep-v0, "
            "gymnasium:ID or module:factory"
        )


def kinds_compared(methods: Sequence[str], envs: Sequence[str]) -> list[str]:
    """Return the kinds of all learners that a comparison of methods on tasks needs."""
    found: set[str] = set()
    tasks = [find_task(env) for env in envs]
    for name in (CLONED, *methods):
        needed = [learners_of(task, task.rewarded, name, None) for task in tasks]
        for kinds in needed or [kinds_of(find_method(name))]:
            found |= {*kinds.values()}
    return [kind for kind in LEARNERS if kind in found]


def variant(plan: Plan, name: str, env: str, settings: Sequence[Setting]) -> Variant:
    """Return a method of METHODS with what it needs on a task, trained if it is not there."""
    return Variant(find_method(name), partial(learners, plan, name, env), settings)


def run_episodes(plan: Plan, env: str, split: str, variants: dict[str, Variant]) -> None:
    """Run the episodes of all variants, named as they are filed, that are not there yet."""
    with contextlib.ExitStack() as stack:
        pool = None
        for name, (method, load, settings) in variants.items():
            missing = [s for s in settings if not _file(plan, name, env, split, s).exists()]
            if not missing:
                continue
            record = load_record(run_folder(plan, "policy", env))
            task = plan.task(env, record["data"].get("parts", ()))
            # One pool for all variants: making its environments takes longer than a variant.
            pool = pool or stack.enter_context(Workers(task, plan.slots, plan.workers))
            arms = {setting: Arm(method, *setting) for setting in missing}
            sizes = spec(plan, env)
            count = plan.counts[split] * (task.goals if sizes.goal else 1)
            jobs = make_jobs([*arms.values()], len(plan.seeds), {split: count})
            print(f"evaluating {name} on {env}, {split} episodes", flush=True)
            sizing = plan.workers, plan.slots, plan.seed
            scale = Normalization.of(record)
            outcomes = roll_out(task, sizes, load(), jobs, *sizing, pool, scale)
            for setting, arm in arms.items():
                found = table(outcomes, arm, split)
                found = np.where(np.isnan(found), None, found)  # JSON has no NaN
                write_value(_file(plan, name, env, split, setting), found.tolist())


def read_episodes(
    plan: Plan, name: str, env: str, split: str, setting: Setting
) -> Float[np.ndarray, "seed episode 4"]:
    """Return the outcomes of `run_episodes`, as `qgf.evaluation._evaluate.table` gives them."""
    return np.array(read_value(_file(plan, name, env, split, setting)), float)


def _file(plan: Plan, name: str, env: str, split: str, setting: Setting) -> Path:
    return plan.out / "episodes" / env / name / f"{split} {_label(setting)}.json"


def _label(setting: Setting) -> str:
    return f"{setting[0]:g} of {setting[1]}"


def opinions(
    plan: Plan, name: str, env: str, settings: Sequence[Setting]
) -> Float[np.ndarray, "setting 2"]:
    """Return, for every setting, how the critic values a method's actions, and how far they go.

    At states of the validation data, with the noise that the cloned policy gets: by how much
    the mean IQL critic's Q exceeds that of cloned actions, and the root mean square distance
    from them, an action dimension; means over training seeds.
    """
    folder = plan.out / "opinions" / env / name
    missing = [s for s in settings if not (folder / f"{_label(s)}.json").exists()]
    if missing:
        method = find_method(name)
        base = {role: load_learner(run_folder(plan, role, env), role) for role in BASE}
        pair = (base, learners(plan, name, env))
        batch = validation_batch(load_record(run_folder(plan, "critic", env)), STATES)
        size, most = noise_size(method, pair[1], spec(plan, env)), max(n for _, n in missing)
        noise = jax.random.normal(jax.random.key(0), (most, len(batch.obs), size))
        for weight, samples in missing:
            each = []
            for i in range(len(plan.seeds)):
                inputs = (*of_seed(pair, i), batch, noise[:samples], jnp.asarray(weight))
                opinion, counts = _opinion(method, *inputs)
                refuse_failed(counts)
                each.append(opinion)
            write_value(
                folder / f"{_label((weight, samples))}.json", np.mean(each, axis=0).tolist()
            )
    return np.array([read_value(folder / f"{_label(s)}.json") for s in settings])


@eqx.filter_jit
def _opinion(
    method: Method,
    base: Learners,
    learners: Learners,
    batch: Batch | GoalBatch,
    noise: Array,
    weight: Array,
) -> tuple[Float[Array, "2"], Int[Array, "2 row"]]:
    obs, goal = batch.obs, batch.goal
    weights = jnp.full(len(obs), weight)
    actions, counts = sample_actions(method, learners, obs, noise, weights, goal=goal)
    first = noise[:1, :, : actions.shape[1]]  # more noise is that of later steps
    plain, failed = sample_actions(METHODS[CLONED], base, obs, first, 0 * weights, goal=goal)
    q = base["critic"].bind(obs, goal)
    gain = (q(actions) - q(plain)).mean()
    opinion = jnp.stack([gain, jnp.sqrt(jnp.square(actions - plain).mean())])
    return opinion, jnp.stack([counts, failed])


def learners(plan: Plan, name: str, env: str) -> Learners:
    """Return the learners a method acts with, each trained if it is not there yet."""
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
    """Return one of the runs of a domain or task: "policy", "critic", or a method's own."""
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
    """Train one of the runs of a domain or task, if need be, and return its folder."""
    path, domain, method, bases = training(plan, what, env)
    others = {name: run_folder(plan, base, env) for name, base in bases.items()}
    train_to_end(plan, domain, path, plan.config, method=method, **others)
    return path


def train_all(
    plan: Plan, names: Sequence[str], envs: Sequence[str], executor: Executor | None
) -> None:
    """Train every run that methods on tasks need and that is not there yet, side by side.

    Args:
        executor: None trains them one after the other in this process, when they are needed.
    """
    if executor is None:
        return
    jobs: dict[str, Job] = {}
    memory = functools.cache(partial(_memory, plan))

    def add(what: str, env: str) -> str:
        path, domain, _, bases = training(plan, what, env)
        name = str(path.relative_to(plan.out / "runs"))
        if name not in jobs and not _trained(path, plan.config):
            needs = [add(base, env) for base in bases.values()]
            work = partial(run_folder, plan, what, env)
            done = partial(last_step, path)
            jobs[name] = Job(name, work, plan.config.steps, done, needs, memory(domain))
        return name

    for env in envs:
        for name in names:
            method = find_method(name)
            for role in kinds_of(method):
                add(source(method, name, role), env)
    execute([*jobs.values()], executor, "steps")


def _memory(plan: Plan, env: str) -> int:
    """Return about how many bytes a training takes: JAX, and its data, twice while they are cut."""
    data = plan.task(env).open(plan.data[plan.task(env).domain], plan.fields, trust=True)
    rows = sum(shard.rows for split in ("train", "val") for shard in data.split(split))
    held = min(4 * rows * (sum(data.widths) + 4), plan.config.resident_gb * 1e9)
    return int(BASE_MEMORY + 2 * held)


def _trained(path: Path, config: Config) -> bool:
    return max(list_checkpoints(path), default=0) >= config.steps


def train_to_end(
    plan: Plan, env: str, path: Path, config: Config, *, method: str = GUIDED, **options: object
) -> None:
    """Train a run, or what is left of it; `options` are those of `qgf.run.trainer.train`.

    Of `config`, which is that of all runs, it gets the hyperparameters of its own learners.
    """
    if _trained(path, config):
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
    """Return the sizes of observations and actions, and of goals where the task is one."""
    what = "critic" if plan.task(env).goal_conditioned else "policy"
    return Spec(**load_record(run_folder(plan, what, env))["spec"])
