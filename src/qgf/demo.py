"""The whole path in minutes: collect, train, evaluate, report."""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from qgf.act.policy import Policy
from qgf.config import PRESETS
from qgf.errors import UserError
from qgf.evaluation._evaluate import evaluate
from qgf.executor import for_collecting
from qgf.methods.table import BEST_OF, CLONED, GUIDED
from qgf.reports._report import report
from qgf.run.checkpoint import list_checkpoints
from qgf.run.evaluation import Evaluation, read_evaluation, write_evaluation
from qgf.run.trainer import train
from qgf.tasks.ogbench.collect import collect

ENV = "cube-single-play-singletask-task2-v0"
DATASET = "cube-single-play-v0"
EPISODES = 120
VAL_EPISODES = 6
CONFIG = dataclasses.replace(PRESETS["laptop"], steps=8_000, checkpoint_every=4_000)
WEIGHTS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)
SAMPLES = 8
TUNE_EPISODES = 20
TEST_EPISODES = 50
SEED = 0
CALLS = 50


def demo(out: Path, *, workers: int = 2) -> None:
    """Collect, train, evaluate and report on one task of cube-single; print the result.

    Meant for two CPU cores and eight minutes. What `out` already holds of an earlier demo,
    finished or broken off, is reused.

    Args:
        out: folder for OUT/data and OUT/run; made if need be.
        workers: processes that play.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    out = Path(out)
    _check(out)
    begin = time.monotonic()
    data, run = out / "data", out / "run"
    _heading(1, f"collecting {EPISODES} episodes of {DATASET}")
    executor = for_collecting("processes", workers, None)
    collect(DATASET, data, EPISODES, VAL_EPISODES, EPISODES, executor, SEED)
    _heading(2, f"training a flow policy and a critic, {CONFIG.steps:,} steps")
    if max(list_checkpoints(run), default=0) < CONFIG.steps:
        resume = (run / "config.json").exists()
        train(ENV, data, run, CONFIG, seeds=[SEED], resume=resume)
    _heading(3, f"evaluating {len(WEIGHTS)} guidance weights and best of {SAMPLES}")
    result = _evaluate(run, workers)
    _heading(4, "writing the report")
    page = run / "report.html"
    if not page.exists() or page.stat().st_mtime < (run / "eval.json").stat().st_mtime:
        page = report(run)
    print(f"\n{_table(run, result)}\n\n{time.monotonic() - begin:.0f} s; report: {page}")


def _check(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder; name another")
    others = {path.name for path in out.iterdir()} - {"data", "run"} if out.exists() else set()
    if others:
        raise UserError(f"{out} holds something else ({min(others)}); name another folder")


def _heading(number: int, text: str) -> None:
    print(f"{number}/4 {text}", flush=True)


def _evaluate(run: Path, workers: int) -> Evaluation:
    """Return the evaluation, from RUN/eval.json when that is the one asked for."""
    wanted = {
        "checkpoint": CONFIG.steps,
        "seed": SEED,
        "episodes": {"tune": TUNE_EPISODES, "test": TEST_EPISODES},
    }
    if (run / "eval.json").exists():
        old = read_evaluation(run)
        same = all(getattr(old, name) == value for name, value in wanted.items())
        if same and _settings(old) == [(w, 1) for w in sorted(WEIGHTS)] + [(0.0, SAMPLES)]:
            return old
    result = evaluate(
        run,
        WEIGHTS,
        episodes=TEST_EPISODES,
        tune_episodes=TUNE_EPISODES,
        best_of=[SAMPLES],
        workers=workers,
        seed=SEED,
        checkpoint=str(CONFIG.steps),
    )
    write_evaluation(run, result)
    return result


def _settings(result: Evaluation) -> list[tuple[float, int]]:
    methods = [result.methods[name] for name in (GUIDED, BEST_OF) if name in result.methods]
    return [(row.weight, row.samples) for found in methods for row in found.settings]


def _table(run: Path, result: Evaluation) -> str:
    policy = Policy(run, checkpoint=str(result.checkpoint))
    bc, best, qgf = (result.methods[name] for name in (CLONED, BEST_OF, GUIDED))
    chosen = qgf.weight
    rows = [
        ("BC", bc.test, _latency(policy, 0.0)),
        (f"best of {SAMPLES}", best.test, _latency(policy, 0.0, SAMPLES)),
        (f"QGF, w = {chosen:g}", qgf.test, _latency(policy, chosen)),
    ]
    lines = [f"{'':16} {'success':>8} {'95% interval':>16} {'ms per call':>12}"]
    for name, figures, latency in rows:
        low, high = figures.ci95
        interval = f"{low:.1%} {high:.1%}"
        lines.append(f"{name:16} {figures.success:8.1%} {interval:>16} {latency:12.1f}")
    gain = qgf.test
    low, high = gain.difference_ci95
    lines.append(
        f"QGF - BC: {gain.difference:+.1%} (95% interval {low:+.1%} to {high:+.1%}, "
        f"{gain.episodes} paired episodes)"
    )
    return "\n".join(lines)


def _latency(policy: Policy, weight: float, samples: int = 1) -> float:
    """Return the median milliseconds of a call for one observation."""
    obs, key = np.zeros(policy.spec.obs, np.float32), jax.random.key(0)
    times = []
    for _ in range(1 + CALLS):
        start = time.perf_counter()
        policy.act(obs, key=key, weight=weight, samples=samples)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[1:]))  # the first call compiles
