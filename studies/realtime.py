"""Acting while the next chunk is computed: success, and jumps between chunks, by the delay."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from qgf.act import Policy
from qgf.comparison import Plan, check_facts, run_folder, train_all
from qgf.evaluation import success_interval
from qgf.executor import Executor
from qgf.methods import settings
from qgf.tasks import Workers, find_task
from studies._runs import CUBE, study_plan
from studies._scale import rate
from studies.compute import LEGEND, chosen_on, difference, draw_success

ENV = CUBE.format(2)
CHUNK, EXECUTED = 10, 5  # actions of a chunk, and how many of them are executed
DELAYS = {"smoke": (0, 2), "laptop": (0, 1, 2, 3, 4), "paper": (0, 1, 2, 3, 4)}
STYLES = {  # guided, real-time
    (False, False): ("#999999", ":", "X"),
    (False, True): ("#56b4e9", "--", "v"),
    (True, False): ("#d55e00", "-.", "s"),
    (True, True): ("#0072b2", "-", "o"),
}


class Way(NamedTuple):
    """How one acts: guided by a weight, so many steps late, going on from the chunk before."""

    weight: float
    delay: int
    realtime: bool


class Episodes(NamedTuple):
    """Which episodes succeeded, and squares of the changes of the actions, per step and dimension,
    where a new chunk takes over and elsewhere."""

    wins: Bool[np.ndarray, " episode"]
    jumps: Float[np.ndarray, " change"]
    others: Float[np.ndarray, " change"]


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return success on test episodes and the root mean square jumps of every way to act.

    A chunk has CHUNK actions, of which EXECUTED are executed. It is computed from what was seen
    `delay` steps before its first action is executed; in between go the first of what is left of
    the chunk before.
    """
    plan = study_plan(preset, out, (ENV,))
    config = dataclasses.replace(plan.config, chunk=CHUNK)
    plan = dataclasses.replace(plan, out=plan.out / "realtime", config=config)
    check_facts(plan)
    train_all(plan, ["qgf"], (ENV,), executor)
    runs = {role: run_folder(plan, role, ENV) for role in ("policy", "critic")}
    policies = [
        Policy(runs["policy"], method="qgf", critic=runs["critic"], seed=seed)
        for seed in plan.seeds
    ]
    task, count = find_task(ENV), max(plan.counts.values())
    with Workers(task, count, plan.workers) as pool:
        weights = settings("qgf")[2:3] if preset == "smoke" else settings("qgf")
        tuned = {
            w: np.mean(_wins(pool, policies, Way(w, 0, False), _starts(plan, "tune")))
            for w, _ in weights
        }
        weight = max(tuned, key=lambda w: tuned[w])
        rows = [
            _row(pool, policies, Way(w, delay, realtime), _starts(plan, "test"))
            for w in (0.0, weight)
            for realtime in (False, True)
            for delay in DELAYS[preset]
        ]
    tune = 0 if preset == "smoke" else plan.counts["tune"] * len(plan.seeds)
    facts = {"env": ENV, "seeds": len(plan.seeds), "weight": weight, "tune_episodes": tune}
    return facts | {"chunk": CHUNK, "executed": EXECUTED, "rows": rows}


def _starts(plan: Plan, split: str) -> list[int]:
    """Return the environment seeds of a split: even ones for tune episodes, odd ones for test."""
    return [2 * i + (split == "test") for i in range(plan.counts[split])]


def _wins(
    pool: Workers, policies: Sequence[Policy], way: Way, starts: Sequence[int]
) -> Bool[np.ndarray, "seed episode"]:
    return np.array([episodes(pool.request, policy.act, way, starts).wins for policy in policies])


def _row(
    pool: Workers, policies: Sequence[Policy], way: Way, starts: Sequence[int]
) -> dict[str, Any]:
    found = [episodes(pool.request, policy.act, way, starts) for policy in policies]
    wins = np.array([each.wins for each in found])
    size = lambda squares: float(np.sqrt(np.concatenate(squares).mean()))  # noqa: E731
    return {
        **way._asdict(),
        "success": float(wins.mean()),
        "ci95": success_interval(wins),
        "episodes": wins.size,
        "wins": wins.astype(int).tolist(),
        "jump": size([each.jumps for each in found]),
        "change": size([each.others for each in found]),
    }


def episodes(request: Callable, act: Callable, way: Way, starts: Sequence[int]) -> Episodes:
    """Run episodes side by side, one per environment seed; noise is the same for all ways.

    Args:
        request: that of `Workers`.
        act: that of `Policy`.
    """
    replies = request({i: ("reset", {"seed": start}) for i, start in enumerate(starts)})
    obs = np.stack([replies[i].obs for i in range(len(starts))])
    wins, running = np.zeros((2, len(starts)), bool)
    running[:] = True
    left = last = None  # of the chunk before; nothing is late in the first
    jumps, others = [], []
    turn = 0
    while running.any():
        options = {"previous": left, "delay": way.delay} if way.realtime and turn else {}
        key = jax.random.fold_in(jax.random.key(0), turn)
        chunk = act(obs, key=key, weight=way.weight, **options)
        done = chunk[:, :EXECUTED].copy()
        late = way.delay if turn else 0
        if late:
            done[:, :late] = left[:, :late]
        path = done if last is None else np.concatenate([last, done], axis=1)
        changes = np.square(np.diff(path[running], axis=1)).mean(-1)
        if last is not None:
            jumps.append(changes[:, late])
            changes = np.delete(changes, late, axis=1)
        others.append(changes.ravel())
        left, last = chunk[:, EXECUTED:], done[:, -1:]
        asked = {i: ("act", done[i]) for i in np.flatnonzero(running)}
        for i, reply in request(asked).items():
            obs[i] = reply.obs
            wins[i] |= bool(reply.success)
            running[i] = not reply.done
        turn += 1
    return Episodes(wins, np.concatenate(jumps), np.concatenate(others))


def draw(data: dict[str, Any]) -> Figure:
    """Draw success and jumps against the delay."""
    figure = Figure((7.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for (guided, realtime), rows in _groups(data).items():
        style, label = STYLES[guided, realtime], _name(guided, realtime)
        delays = [row["delay"] for row in rows]
        draw_success(panels[0], delays, rows, style, label)
        color, line, marker = style
        jumps = [row["jump"] for row in rows]
        panels[1].plot(delays, jumps, color=color, ls=line, marker=marker, ms=5)
    panels[0].set(ylabel="success rate", ylim=(-0.02, 1.02))
    panels[1].set(ylabel="rms jump between chunks, per dimension")
    panels[1].set_ylim(bottom=0)
    for axes in panels:
        axes.set(xlabel="delay, control steps", xticks=sorted({r["delay"] for r in data["rows"]}))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    figure.legend(*panels[0].get_legend_handles_labels(), **LEGEND)
    return figure


def _groups(data: dict[str, Any]) -> dict[tuple[bool, bool], list[dict]]:
    groups: dict[tuple[bool, bool], list[dict]] = {}
    for row in data["rows"]:
        groups.setdefault((row["weight"] > 0, row["realtime"]), []).append(row)
    return groups


def _name(guided: bool, realtime: bool) -> str:
    return ("QGF" if guided else "BC") + (", real-time chunking" if realtime else ", late chunks")


def say(data: dict[str, Any]) -> str:
    """Compare with the authors of real-time chunking: late chunks jump and fail, theirs do not."""
    groups = _groups(data)
    listed = "; ".join(
        f"{_name(*kind)}: "
        + ", ".join(f"{rate(row)} at {row['delay']} (jump {row['jump']:.2f})" for row in rows)
        for kind, rows in groups.items()
    )
    inside = np.mean([row["change"] for row in data["rows"]])
    parts = [
        "Real-time chunking computes the next chunk while the robot moves and pulls it toward what "
        "is left of the one before; its authors find it smoother than late chunks and robust to "
        f"delays. On {data['env']}, chunks of {data['chunk']} actions of which {data['executed']} "
        f"are executed, QGF with w = {data['weight']:g} ({chosen_on(data)}, without delay), "
        f"{data['rows'][0]['episodes']} test episodes each over {data['seeds']} training seed(s), "
        "success by delay in control steps, with 95% intervals, and the root mean square jump per "
        f"dimension where a new chunk takes over (elsewhere actions change by {inside:.2f} per "
        f"step): {listed}."
    ]
    for guided in (False, True):
        late, live = (groups[guided, realtime] for realtime in (False, True))
        found = {b["delay"]: difference(b, a)[0] for a, b in zip(late, live, strict=True)}
        smaller = np.mean([1 - b["jump"] / a["jump"] for a, b in zip(late, live, strict=True)])
        parts.append(
            f"What real-time chunking changes for {'QGF' if guided else 'BC'}, in points of "
            "success: "
            + ", ".join(f"{text} at {delay}" for delay, text in found.items())
            + f"; its jumps are {smaller:.0%} smaller on average."
        )
    return " ".join(parts)
