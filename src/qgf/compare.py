"""Many methods on many tasks under one protocol: train what is missing, evaluate, tabulate.

One policy serves all tasks of a domain, one critic all test-time methods of a task. What a
method is tuned by is chosen once per domain, on tune episodes of all its tasks together, and
reported on other episodes. Every finished piece is a file: a comparison that was cut off goes
on with the next.
"""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qgf._costs import flops, milliseconds
from qgf._files import read_json, write_json
from qgf._validation import validation_batch
from qgf._workers import Workers
from qgf.checkpoint import list_checkpoints, load_learner, load_record, of_seed
from qgf.config import Config, Spec
from qgf.data.manifest import load_manifest
from qgf.envs import EnvName
from qgf.errors import UserError
from qgf.evaluate import SPLITS, Arm, actor, choose, figures, make_jobs, roll_out, table
from qgf.leaderboard import leaderboard, write_leaderboard
from qgf.methods import METHODS, Learners, Method, canonical, find_method, kinds_of, settings
from qgf.policy import noise_size, sample_actions
from qgf.train import train

STATES = 512  # of the validation data, at which the critic is asked


@dataclass(frozen=True)
class Plan:
    """What is compared: environments, methods, training seeds, data folder by data set name."""

    out: Path
    envs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    data: dict[str, Path]
    config: Config
    counts: dict[str, int]
    workers: int
    slots: int
    seed: int


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
        methods: names of METHODS; "bc" is always among them.
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
    if min(episodes, tune_episodes, workers, slots) < 1:
        raise UserError("episodes, tune-episodes, workers and slots must be at least 1")
    plan = Plan(
        Path(out),
        tuple(dict.fromkeys(envs)),
        tuple(dict.fromkeys(canonical(name) for name in ("bc", *methods))),
        tuple(seeds),
        _folders(envs, data),
        config,
        {"tune": tune_episodes, "test": episodes},
        workers,
        slots,
        seed,
    )
    _check_facts(plan)
    entries, searched = [], {}
    for dataset in dict.fromkeys(_dataset(env) for env in plan.envs):
        tasks = [env for env in plan.envs if _dataset(env) == dataset]
        tunable = {name: settings(name) for name in plan.methods if len(settings(name)) > 1}
        _evaluate(plan, tasks, "tune", tunable)
        searched[dataset] = {name: _search(plan, name, tasks) for name in plan.methods}
        chosen = {name: _chosen(rows) for name, rows in searched[dataset].items()}
        tests = {name: [(row["weight"], row["samples"])] for name, row in chosen.items()}
        _evaluate(plan, tasks, "test", tests)
        for name, row in chosen.items():
            entries += [_entry(plan, name, env, row) for env in tasks]
    costs = {name: _cost(plan, name) for name in plan.methods}
    result = leaderboard(entries, costs, _facts(plan)) | {"settings": searched}
    write_leaderboard(plan.out, result)
    return result


def _search(plan: Plan, name: str, tasks: Sequence[str]) -> list[dict]:
    """Return what every setting of a method comes to on the tasks of one domain.

    That is success on tune episodes (where there is something to choose), and what the critic
    thinks of its actions.
    """
    opinions = np.mean([_opinions(plan, name, env) for env in tasks], axis=0)
    rows = []
    for (weight, samples), (gain, moved) in zip(settings(name), opinions, strict=True):
        row = {"weight": weight, "samples": samples, "q_gain": gain, "moved": moved}
        if len(opinions) > 1:
            tunes = [_read(plan, name, env, "tune", (weight, samples)) for env in tasks]
            row["tune"] = figures(np.concatenate(tunes, axis=1))
        rows.append(row)
    return rows


def _chosen(rows: Sequence[dict]) -> dict:
    return choose(rows) if len(rows) > 1 else rows[0]


def _entry(plan: Plan, name: str, env: str, chosen: dict) -> dict:
    """Return a method's test episodes of one task, at the setting chosen for the domain."""
    data = _read(plan, name, env, "test", (chosen["weight"], chosen["samples"]))
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
    """Run the episodes of every method's settings that are not there yet."""
    for env in tasks:
        with contextlib.ExitStack() as stack:
            pool = None
            for name, every in wanted.items():
                missing = [s for s in every if not _file(plan, name, env, split, s).exists()]
                if not missing:
                    continue
                learners = _learners(plan, name, env)
                # One pool for all methods: making its environments takes longer than a method.
                pool = pool or stack.enter_context(Workers(env, plan.slots, plan.workers))
                arms = {setting: Arm(name, *setting) for setting in missing}
                jobs = make_jobs([*arms.values()], len(plan.seeds), {split: plan.counts[split]})
                print(f"evaluating {name} on {env}, {split} episodes", flush=True)
                spec, seed = _spec(plan, env), plan.seed
                outcomes = roll_out(env, spec, learners, jobs, plan.workers, plan.slots, seed, pool)
                for setting, arm in arms.items():
                    path = _file(plan, name, env, split, setting)
                    write_json(path, table(outcomes, arm, split).tolist())


def _file(plan: Plan, name: str, env: str, split: str, setting: tuple[float, int]) -> Path:
    weight, samples = setting
    return plan.out / "episodes" / env / name / f"{split} {weight:g} of {samples}.json"


def _read(plan: Plan, name: str, env: str, split: str, setting: tuple[float, int]) -> np.ndarray:
    """Return [seed, episode] outcomes, as `qgf.evaluate.table` gives them."""
    return np.array(read_json(_file(plan, name, env, split, setting)))


def _opinions(plan: Plan, name: str, env: str) -> list[list[float]]:
    """Return, for every setting, how the critic values a method's actions, and how far they go.

    At states of the validation data, with the noise that the cloned policy gets: by how much
    the mean IQL critic's Q exceeds that of cloned actions, and the root mean square distance
    from them, an action dimension.
    """
    path = plan.out / "opinions" / env / f"{name}.json"
    if path.exists():
        return read_json(path)
    method = find_method(name)
    base = {role: load_learner(_run(plan, role, env), role) for role in ("policy", "critic")}
    pair = (base, _learners(plan, name, env))
    obs = validation_batch(load_record(_run(plan, "policy", env)), STATES).obs
    size = noise_size(method, pair[1], _spec(plan, env))
    noise = jax.random.normal(jax.random.key(0), (max(method.samples), len(obs), size))
    found = []
    for weight, samples in settings(name):
        each = [
            _opinion(method, *of_seed(pair, i), obs, noise[:samples], jnp.asarray(weight))
            for i in range(len(plan.seeds))
        ]
        found.append(np.mean(each, axis=0).tolist())
    write_json(path, found)
    return found


@eqx.filter_jit
def _opinion(
    method: Method, base: Learners, learners: Learners, obs: Array, noise: Array, weight: Array
) -> Float[Array, "2"]:
    actions, _ = sample_actions(method, learners, obs, noise, jnp.full(len(obs), weight))
    first = noise[:1, :, : actions.shape[1]]  # more noise is that of later steps
    plain, _ = sample_actions(METHODS["bc"], base, obs, first, jnp.zeros(len(obs)))
    q = base["critic"].critic
    gain = (q(obs, actions) - q(obs, plain)).mean()
    return jnp.stack([gain, jnp.sqrt(jnp.square(actions - plain).mean())])


def _learners(plan: Plan, name: str, env: str) -> Learners:
    """Return the learners a method acts with, each trained if it is not there yet."""
    method = find_method(name)
    return {
        role: load_learner(_run(plan, source(method, name, role), env), role)
        for role in method.roles
    }


def source(method: Method, name: str, role: str) -> str:
    """Return the run that holds a method's learner: "policy", "critic", or a method's own."""
    kind = kinds_of(method)[role]
    if kind in ("bc", "iql"):
        return role
    if method.critic == "bootstrapped":
        return "qam-bootstrapped"
    return "qgf-distill" if kind == "distill" else name


def _run(plan: Plan, what: str, env: str) -> Path:
    """Train one of the runs of a domain or task, if need be, and return its folder."""
    dataset = _dataset(env)
    folder = plan.out / "runs" / dataset.removesuffix("-v0")
    task = f"task{EnvName.parse(env).task or 'default'}"
    options: dict
    if what == "policy":
        env, path, options = dataset, folder / "policy", {"method": "bc"}
    elif what == "qgf-distill":
        base = _run(plan, "policy", env)
        env, path, options = dataset, folder / what, {"method": what, "base": base}
    elif what == "critic":
        path, options = folder / task / what, {"policy": _run(plan, "policy", env)}
    else:
        base = _run(plan, "critic", env)
        path, options = folder / task / what, {"method": what, "base": base}
    if max(list_checkpoints(path), default=0) < plan.config.steps:
        resume = (path / "config.json").exists()
        print(f"training {path}", flush=True)
        begin = time.monotonic()
        train(
            env, plan.data[dataset], path, plan.config, seeds=plan.seeds, resume=resume, **options
        )
        if not resume:
            write_json(path / "seconds.json", time.monotonic() - begin)
    return path


def _cost(plan: Plan, name: str) -> dict:
    """Return what an action and the training of a method cost, measured once and kept."""
    env, method = plan.envs[0], find_method(name)
    path = plan.out / "costs" / f"{name}.json"
    if path.exists():
        return read_json(path)
    one = of_seed(_learners(plan, name, env), slice(1))
    weight, samples = settings(name)[-1]
    spec = _spec(plan, env)
    act = actor(name, samples, one, spec, 0)
    runs = {_run(plan, source(method, name, role), env) for role in kinds_of(method)}
    seconds = [run / "seconds.json" for run in runs]
    known = all(file.exists() for file in seconds)
    cost = {
        "ms": {str(batch): milliseconds(act, spec, weight, batch) for batch in (1, 50)},
        "flops": samples * flops(method, one),
        "train_seconds": sum(map(read_json, seconds)) / len(plan.seeds) if known else None,
    }
    write_json(path, cost)
    return cost


def _spec(plan: Plan, env: str) -> Spec:
    return Spec(**load_record(_run(plan, "policy", env))["spec"])


def _dataset(env: str) -> str:
    return EnvName.parse(env).dataset


def _folders(envs: Sequence[str], data: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of every data set the environments need."""
    if not envs:
        raise UserError("name at least one environment with --envs")
    for env in envs:
        if not EnvName.parse(env).singletask:
            raise UserError(f"{env} names no task to compare on; use …-singletask-taskN-v0")
    found = {load_manifest(folder).name: Path(folder) for folder in data}
    for env in envs:
        if _dataset(env) not in found:
            raise UserError(
                f"{env} needs data of {_dataset(env)}; name its folder with --data "
                f"(there are {', '.join(found) or 'none'})"
            )
    return found


def _facts(plan: Plan) -> dict:
    return {
        "seeds": list(plan.seeds),
        "config": dataclasses.asdict(plan.config),
        "test_episodes": plan.counts[SPLITS[1]],
        "tune_episodes": plan.counts[SPLITS[0]],
        "seed": plan.seed,
    }


def _check_facts(plan: Plan) -> None:
    """Note the settings of all results in `out`; refuse to mix them with others."""
    path = plan.out / "compare.json"
    if path.exists():
        old, new = read_json(path), _facts(plan)
        differ = [name for name in new if old.get(name) != new[name]]
        if differ:
            raise UserError(
                f"{plan.out} holds a comparison with other settings ({', '.join(differ)}); "
                "use them, or another --out"
            )
    write_json(path, _facts(plan))
