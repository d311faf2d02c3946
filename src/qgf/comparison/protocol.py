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
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qgf.act.policy import noise_size, sample_actions
from qgf.act.rollout import Arm, make_jobs, roll_out
from qgf.comparison._trainings import Plan, learners, run_folder, spec
from qgf.config import check_seeds
from qgf.core.flow import refuse_failed
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch
from qgf.data.normalization import Normalization
from qgf.errors import UserError
from qgf.evaluation._evaluate import table
from qgf.files import read_record, read_value, write_record, write_value
from qgf.learners import LEARNERS
from qgf.methods.table import CLONED, METHODS, Learners, Method, find_method, kinds_of
from qgf.run._record import learners_of
from qgf.run._validation import validation_batch
from qgf.run.checkpoint import load_learner, load_record, of_seed, read_config
from qgf.tasks import Task, find_task
from qgf.tasks._workers import Workers

BASE = ("policy", "critic")
STATES = 512
"""states of the validation data at which the critic is asked"""

Setting = tuple[float, int]
"""A weight, and of how many samples the critic chooses one."""


class Variant(NamedTuple):
    """A way to act, what it acts with (read when it is needed), and settings to evaluate.

    Attributes:
        method: what acts.
        learners: a function that reads those it acts with.
        settings: the (weight, samples) to evaluate.
    """

    method: Method
    learners: Callable[[], Learners]
    settings: Sequence[Setting]


def check_facts(plan: Plan) -> None:
    """Note the settings of all results in `plan.out`. UserError if it holds those of others.

    Settings under which nothing was made yet bind nobody.

    Args:
        plan: what is compared, and where its runs and results lie.
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
    """Raise a UserError if an environment has neither a task nor goals.

    Args:
        task: an environment, as `qgf.tasks.find_task` returns it.
    """
    if not (task.rewarded or task.goal_conditioned):
        raise UserError(
            f"{task.name} names no task; use …-singletask-taskN-v0 or …-oraclerep-v0, "
            "gymnasium:ID or module:factory"
        )


def kinds_compared(methods: Sequence[str], envs: Sequence[str]) -> list[str]:
    """Return the kinds of all learners that a comparison of methods on tasks needs.

    Args:
        methods: names of METHODS.
        envs: the tasks, as `qgf.tasks.find_task` takes them.
    """
    found: set[str] = set()
    tasks = [find_task(env) for env in envs]
    for name in (CLONED, *methods):
        needed = [learners_of(task, task.rewarded, name, None) for task in tasks]
        for kinds in needed or [kinds_of(find_method(name))]:
            found |= {*kinds.values()}
    return [kind for kind in LEARNERS if kind in found]


def variant(plan: Plan, name: str, env: str, settings: Sequence[Setting]) -> Variant:
    """Return a method of METHODS with what it needs on a task, trained if it is not there.

    Args:
        plan: what is compared, and where its runs and results lie.
        name: a name of METHODS.
        env: the task, as `qgf.tasks.find_task` takes it.
        settings: the (weight, samples) to evaluate.
    """
    return Variant(find_method(name), partial(learners, plan, name, env), settings)


def run_episodes(plan: Plan, env: str, split: str, variants: dict[str, Variant]) -> None:
    """Run the episodes of all variants, named as they are filed, that are not there yet.

    Args:
        plan: what is compared, and where its runs and results lie.
        env: the task, as `qgf.tasks.find_task` takes it.
        split: "tune" or "test".
        variants: what acts, by the name under which its episodes are filed.
    """
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
    """Return the outcomes of `run_episodes`, as `qgf.evaluation._evaluate.table` gives them.

    Args:
        plan: what is compared, and where its runs and results lie.
        name: under which the episodes were filed.
        env: the task, as `qgf.tasks.find_task` takes it.
        split: "tune" or "test".
        setting: (weight, samples).
    """
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

    Args:
        plan: what is compared, and where its runs and results lie.
        name: a name of METHODS.
        env: the task, as `qgf.tasks.find_task` takes it.
        settings: the (weight, samples) to ask about.
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
