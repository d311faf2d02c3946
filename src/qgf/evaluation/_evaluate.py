"""Evaluation: methods, weights and training seeds of a run in one vectorized pass.

All meet the same environment seeds and the same initial noise (paired). What
a method is tuned by is chosen on one set of episodes and reported on another.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from qgf.act.calibration import auto_weight
from qgf.act.policy import learner_hashes, load_learners
from qgf.act.rollout import Arm, Job, Outcome, make_jobs, roll_out
from qgf.config import Spec
from qgf.data.normalization import Normalization
from qgf.errors import UserError, check_counts, check_seed
from qgf.evaluation.statistics import bootstrap_mean, paired_difference, success_interval
from qgf.methods.table import (
    BEST_OF,
    CLONED,
    GUIDED,
    Method,
    canonical,
    denoising_steps,
    find_method,
    settings,
)
from qgf.run import task_of
from qgf.run.checkpoint import find_checkpoint, load_record
from qgf.run.evaluation import (
    RETURN,
    SUCCESS,
    Evaluation,
    Figures,
    Measure,
    MethodResult,
    SettingResult,
    choose,
)


def evaluate(
    run: Path,
    weights: Sequence[float] | None = None,
    *,
    methods: Sequence[str] = (GUIDED,),
    critic: Path | None = None,
    episodes: int = 50,
    tune_episodes: int | None = None,
    best_of: Sequence[int] = (),
    workers: int = 2,
    slots: int = 32,
    seed: int = 0,
    checkpoint: str = "last",
    data: Path | None = None,
    success: str | None = None,
    denoise_steps: int | None = None,
) -> Evaluation:
    """Evaluate methods on a run and return the result, which `write_evaluation` keeps.

    Args:
        run: folder of the run.
        weights: for every method that has one; by default `qgf.act.calibration.auto_weight` for
            guided flows, and each other method's own. 0, the policy as it was cloned, is
            always among them.
        methods: names of METHODS.
        critic: another run, whose critic takes the place of this run's own.
        episodes: test episodes for every setting and training seed, and every goal if the
            run's critic takes goals.
        tune_episodes: episodes on which a setting is chosen; as many by default.
        best_of: sample counts N of the methods that choose among samples; given without such
            a method, best-of-N of the unguided policy is evaluated too.
        workers: environment processes.
        slots: episodes that run at a time.
        seed: of the environments and the noise.
        checkpoint: "last" or a step's number.
        data: folder of the data of the run whose critic guides, if it is no longer where it was
            in training; read only to measure a weight.
        success: how success is told where the task does not say it: a key of `info`, or
            return:NUMBER. By default `success` or `is_success`; without them returns are judged.
        denoise_steps: T, by default that of training.

    Raises:
        UserError: no such method, run or checkpoint, a run without task or without what a
            method needs, a bad weight, weights for methods that have none, or another T than
            a network is tied to.
    """
    tune_episodes = episodes if tune_episodes is None else tune_episodes
    counts = {"episodes": episodes, "tune_episodes": tune_episodes}
    check_counts(counts | {"workers": workers, "slots": slots})
    for number in best_of:
        check_counts({"best_of": number})
    check_seed("the evaluation's seed", seed)
    weights = None if weights is None else checked_weights(weights)
    named = _named(methods, best_of)
    if weights is not None and not any(method.weights for method in named.values()):
        raise UserError(f"{', '.join(named)}: not tuned by a weight; leave --weights out")
    record = load_record(run)
    judge = record if critic is None else load_record(critic)
    if data is not None:
        judge["data"]["folder"] = str(data)
    env, spec = judge["env"], Spec(**judge["spec"])
    task = task_of(judge)
    task = task if success is None else task.judged_by(success)
    if not (task.rewarded or spec.goal):
        raise UserError(f"{run}: {task.unjudged}")
    # As numbers, so that all is read from the same checkpoints while a training goes on.
    which = find_checkpoint(run, checkpoint).name
    critic_which = which if critic is None else find_checkpoint(critic).name
    goals = task.goals if spec.goal else 1
    counts = {"tune": tune_episodes * goals, "test": episodes * goals}
    sources = {"which": which, "critic": critic, "critic_which": critic_which}
    learners = load_learners(run, [*named], **sources)
    for method in named.values():
        denoising_steps(method, learners, denoise_steps)
    auto = cache(lambda: auto_weight(learners, judge, denoise_steps))
    arms = _arms(named, weights, best_of, auto, denoise_steps)
    every = list(dict.fromkeys(arm for group in arms.values() for arm in group))
    jobs = make_jobs(every, len(record["seeds"]), counts)
    scale = Normalization.of(record)
    outcomes = roll_out(task, spec, learners, jobs, workers, slots, seed, normalization=scale)
    return Evaluation(
        env=env,
        run=str(run),
        critic=None if critic is None else str(critic),
        checkpoint=int(which),
        critic_checkpoint=int(critic_which),
        learners=learner_hashes(run, learners, **sources),
        training_seeds=tuple(record["seeds"]),
        seed=seed,
        episodes=counts,
        denoise_steps=denoise_steps,
        measure=_measure(table(outcomes, jobs[0].arm, "test")),
        methods=_summary(outcomes, arms, goals),
    )


def _named(names: Sequence[str], best_of: Sequence[int]) -> dict[str, Method]:
    methods = {canonical(name): find_method(name) for name in names}
    if best_of and not any(method.samples != (1,) for method in methods.values()):
        methods[BEST_OF] = find_method(BEST_OF)
    return methods


def _arms(
    methods: dict[str, Method],
    weights: Sequence[float] | None,
    best_of: Sequence[int],
    auto: Callable[[], float],
    steps: int | None = None,
) -> dict[str, list[Arm]]:
    """Return every method's arms, the unguided policy's first.

    Args:
        auto: gives the weight of guided flows where none are given.
    """
    cloned = Arm(steps=steps)
    arms = {CLONED: [cloned]} if any("policy" in m.roles for m in methods.values()) else {}
    for name, method in methods.items():
        mine = [auto()] if weights is None and method.guided else weights
        arms[name] = [_arm(name, *setting, steps) for setting in settings(name, mine, best_of)]
        if _cloned(method):
            arms[name].append(cloned)
    return {name: list(dict.fromkeys(group)) for name, group in arms.items()}


def _arm(name: str, weight: float, samples: int, steps: int | None = None) -> Arm:
    """Return a way to act; unguided, that of the policy, whose episodes serve all methods."""
    plain = weight == 0 and samples == 1 and _cloned(find_method(name))
    return Arm(steps=steps) if plain else Arm(name, weight, samples, steps)


def _cloned(method: Method) -> bool:
    """Whether a method is at weight 0 the policy as it was cloned."""
    return bool(method.weights) and "policy" in method.roles


def chosen_arms(result: Evaluation) -> list[Arm]:
    """Return how an evaluation's methods act with the settings chosen for them, each once.

    Args:
        result: what `evaluate` returned.
    """
    methods, steps = result.methods.items(), result.denoise_steps
    arms = (_arm(name, found.weight, found.samples, steps) for name, found in methods)
    return list(dict.fromkeys(arms))


def checked_weights(weights: Sequence[float]) -> list[float]:
    """Return the weights in rising order, 0 among them. UserError if one is not a weight."""
    for weight in weights:
        if not 0 <= weight <= float(np.finfo(np.float32).max):  # actions are computed in float32
            raise UserError(
                f"a guidance weight must be a finite number of at least 0, got {weight}"
            )
    return sorted({0.0, *weights})


def table(
    outcomes: dict[Job, Outcome], arm: Arm, split: str
) -> Float[np.ndarray, "seed episode 4"]:
    """Return success (NaN: nobody says), return, length and fallbacks of an arm's episodes."""
    rows = sorted(
        (job.seed, job.episode, *map(_number, dataclasses.astuple(outcome)))
        for job, outcome in outcomes.items()
        if job.arm == arm and job.split == split
    )
    seeds = 1 + rows[-1][0]
    return np.array(rows, float)[:, 2:].reshape(seeds, -1, 4)


def _number(value: bool | float | int | None) -> float:
    return np.nan if value is None else float(value)


def figures(data: Float[np.ndarray, "seed episode 4"]) -> Figures:
    """Return the summary of a `table`; without success where nobody says it.

    Args:
        data: of each episode: success (NaN if nobody says it), return, length, unguided steps.
    """
    wins, returns = data[..., 0], data[..., 1]
    judged = {}
    if _measure(data) is SUCCESS:
        judged = {
            "success": float(wins.mean()),
            "ci95": success_interval(wins),
            "success_per_seed": tuple(wins.mean(1).tolist()),
        }
    return Figures(
        **judged,
        return_=float(returns.mean()),
        return_ci95=bootstrap_mean(returns)[1],
        length=float(data[..., 2].mean()),
        episodes=wins.size,
        fallbacks=int(data[..., 3].sum()),
    )


def _measure(data: Float[np.ndarray, "seed episode 4"]) -> Measure:
    return RETURN if np.isnan(data[..., 0]).any() else SUCCESS


def _summary(
    outcomes: dict[Job, Outcome], arms: dict[str, list[Arm]], goals: int = 1
) -> dict[str, MethodResult]:
    """Return the figures of every arm; what "tune" chooses for a method, and its gain on "test"."""

    def setting(arm: Arm) -> SettingResult:
        data = table(outcomes, arm, "test")
        test = dataclasses.replace(figures(data), **gain(arm))
        if goals > 1:
            each = (figures(data[:, i::goals]) for i in range(goals))
            test = dataclasses.replace(test, goals=tuple(each))
        return SettingResult(arm.weight, arm.samples, figures(table(outcomes, arm, "tune")), test)

    def gain(arm: Arm) -> dict:
        if CLONED not in arms or arm == arms[CLONED][0]:
            return {}
        ours, theirs = (table(outcomes, each, "test") for each in (arm, arms[CLONED][0]))
        column = _measure(theirs).column
        mean, interval = paired_difference(ours[..., column], theirs[..., column])
        return {"difference": mean, "difference_ci95": interval}

    methods = {}
    for name, group in arms.items():
        by_rank = sorted(group, key=lambda arm: (arm.samples, arm.weight))
        tried = tuple(setting(arm) for arm in by_rank)
        best = choose(tried)
        test = best.test
        if name != CLONED and CLONED in arms and test.difference is None:
            # Choosing to stay unguided is a gain of nothing.
            test = dataclasses.replace(test, difference=0.0, difference_ci95=(0.0, 0.0))
        methods[name] = MethodResult(best.weight, best.samples, test, tried)
    return methods


def format_result(result: Evaluation) -> str:
    """Return a small table of an evaluation: every setting, and what was chosen.

    Args:
        result: what `evaluate` returned.
    """
    measure = result.measure
    lines = [f"{'':>34} {'tune':>8} {'test':>8} {'95% interval':>17} {'return':>9} {'length':>7}"]
    lines.insert(0, f"{'':>34} {measure.label}")
    chosen = []
    for name, method in result.methods.items():
        for row in method.settings:
            what, test = label(name, row.weight, row.samples), row.test
            value, interval = measure.of(test)
            scores = [measure.text(v) for v in (measure.of(row.tune)[0], value)]
            lines.append(
                f"{what:>34} {scores[0]:>8} {scores[1]:>8} {measure.between(interval):>17} "
                f"{test.return_:9.1f} {test.length:7.1f}"
            )
        test = method.test
        if test.difference is not None:
            chosen.append(
                f"chosen {label(name, method.weight, method.samples)}: "
                f"{measure.text(test.difference, '+')} over BC on {test.episodes} paired test "
                f"episodes (95% interval {measure.between(test.difference_ci95, '+')})"
            )
        if test.fallbacks:
            chosen.append(
                f"{name}: {test.fallbacks} denoising steps went unguided because a gradient was "
                "not finite"
            )
    return "\n".join([*lines, *chosen])


def label(name: str, weight: float, samples: int) -> str:
    """Return what to call a method with a setting, e.g. "qgf+bfn w = 0.03 of 4"."""
    method = find_method(name)
    return (
        name
        + (f" {method.tuned} = {weight:g}" if method.weights else "")
        + (f" of {samples}" if samples > 1 else "")
    )
