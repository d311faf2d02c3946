"""How cheap a guided action can be: fewer denoising steps, better spaced or of second order."""

from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from qgf.act import Arm, actor
from qgf.comparison import (
    Plan,
    Variant,
    learners,
    milliseconds,
    read_episodes,
    run_episodes,
    run_folder,
    spec,
    variant,
)
from qgf.core import Action, Critic, Sampled, Velocity, bounded, euler_counting, qgf
from qgf.evaluation import figures
from qgf.executor import Executor
from qgf.methods import METHODS, Bound, Learners, Method, bind, settings
from qgf.run import load_record, of_seed, validation_batch
from studies._runs import CUBE, study_plan
from studies._scale import rate
from studies.compute import (
    LEGEND,
    choose_weight,
    chosen_on,
    difference,
    draw_success,
    success_panels,
)

ENV = CUBE.format(2)
EVALUATIONS = (2, 4, 6, 10, 20)  # velocities and gradients an action: T of Euler, 2T of Heun
STATES = {"smoke": 4, "laptop": 256, "paper": 256}  # at which errors are measured
REFERENCE = 100  # Heun steps that stand for the exact flow
STYLES = {  # by solver and grid
    ("euler", "uniform"): ("#0072b2", "-", "o"),
    ("euler", "quadratic"): ("#56b4e9", "--", "v"),
    ("heun", "uniform"): ("#d55e00", "-", "s"),
    ("heun", "quadratic"): ("#e69f00", "-.", "D"),
    ("bc", "uniform"): ("#999999", ":", "X"),
}

Solver = Literal["euler", "heun"]
Grid = Literal["uniform", "quadratic"]


def _guided(solver: str) -> bool:
    return solver in get_args(Solver)


class Sampler(NamedTuple):
    """How actions are denoised; "bc" is uniform Euler without guidance."""

    solver: Literal["euler", "heun", "bc"]
    grid: Grid
    steps: int

    @property
    def guided(self) -> bool:
        return _guided(self.solver)

    @property
    def evaluations(self) -> int:
        return self.steps * (2 if self.solver == "heun" else 1)


def flow_times(grid: Grid, steps: int) -> Float[np.ndarray, " time"]:
    """Return T + 1 flow times from 0 to 1: k/T, or 1 − (1 − k/T)², finest at the action.

    Trained flows bend most near t = 1: over [0.95, 1] an Euler step of a policy cloned on
    cube-single was off by 0.011 an action dimension, over [0.5, 0.55] by 0.001 (guided with
    w = 0.1 by 0.012 and 0.002). The quadratic grid is that of Karras et al. (arXiv 2206.00364,
    equation 5) with ρ = 2 and 1 − t as the noise level, which falls from 1 to 0.
    """
    even = np.arange(steps + 1) / steps
    return even if grid == "uniform" else 1 - (1 - even) ** 2


def guided_path_sample(
    velocity: Velocity,
    critic: Critic,
    noise: Action,
    weight: float | Float[Array, ""] | Float[Array, " batch"],
    times: Float[np.ndarray, " time"],
    solver: Solver = "euler",
) -> Sampled:
    """Carry noise to actions along any grid of flow times, guided as QGF guides.

    The guided velocity is u(a, t) = v + w·g, g = ∇Q at the one-step clean action. Euler steps
    by h·u(a, t); Heun by the mean of u here and where that step leads (arXiv 2206.00364,
    algorithm 1). Its last evaluation is at t = 1, where the one-step clean action is the action
    itself, clipped. Uniform times and Euler make it `guidance.guided_sample`.

    Args:
        weight: as in `guided_sample`.
        times: rising from 0 to 1.

    Returns:
        Actions in [-1, 1], and how many evaluations of a row were left unguided because w·g
        was not finite; 0 and FAILED where a velocity was not.
    """
    weight = jnp.broadcast_to(jnp.asarray(weight, noise.dtype), noise.shape[:1])
    grid = jnp.asarray(times, noise.dtype)
    step = partial(path_step, velocity, critic, weight, solver)
    action, unguided = jax.lax.scan(step, noise, jnp.stack([grid[:-1], grid[1:]], axis=1))
    return bounded(action, unguided.sum(0))


def path_step(
    velocity: Velocity,
    critic: Critic,
    weight: Float[Array, " batch"],
    solver: Solver,
    action: Action,
    ends: Float[Array, "2"],
) -> Sampled:
    """Return where one step of `guided_path_sample` between two flow times leads."""
    length = ends[1] - ends[0]

    def evaluate(point: Array, t: Array) -> tuple[Array, tuple[Array, Array]]:
        v, g = qgf(velocity, critic, point, jnp.broadcast_to(t, len(point)), 0)
        push = weight[:, None] * g
        usable = jnp.isfinite(jnp.square(push).sum(-1, keepdims=True))
        u = v + jnp.where(usable, push, 0)
        return action + length * u, (u, ~usable[:, 0])

    times = ends if solver == "heun" else ends[:1]
    _, (u, unguided) = jax.lax.scan(evaluate, action, times)
    return action + length * u.mean(0), unguided.sum(0, dtype=jnp.int32)


def method_of(sampler: Sampler) -> Method:
    """Return a sampler as a method to act with."""

    def act(bound: Bound, noise: Array, weight: Array, steps: int) -> Sampled:
        if not sampler.guided:
            return euler_counting(bound["policy"], noise, steps=sampler.steps)
        functions, times = (
            (bound["policy"], bound["critic"]),
            flow_times(sampler.grid, sampler.steps),
        )
        return guided_path_sample(*functions, noise, weight, times, sampler.solver)

    roles = ("policy", "critic") if sampler.guided else ("policy",)
    return Method("test-time", roles, act, "QGF on a grid of its own", "arXiv 2606.11087")


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return success on test episodes, error and milliseconds of every sampler.

    All are guided with the weight that `qgf` (uniform Euler, T of the configuration) chooses on
    tune episodes. "error" is the root mean square distance, an action dimension, from the end
    of the same guided flow in REFERENCE Heun steps, at validation states. An evaluation is one
    of the policy, and, if guided, one of both critics and of one critic's gradient.
    """
    plan = study_plan(preset, out, (ENV,), executor, ["qgf"])
    searched = settings("qgf")[2:3] if preset == "smoke" else settings("qgf")
    weight = choose_weight(plan, "qgf", searched)
    weights = {s: weight if s.guided else 0.0 for s in _samplers(preset)}
    every = learners(plan, "qgf", ENV)
    variants = {}
    for sampler, w in weights.items():
        name = _file_name(sampler, plan)
        own = Variant(method_of(sampler), lambda: every, [(w, 1)])
        variants[name] = variant(plan, name, ENV, [(w, 1)]) if name in METHODS else own
    run_episodes(plan, ENV, "test", variants)
    one = of_seed(every, slice(1))
    errors = _errors(plan, of_seed(one, 0), weights, STATES[preset])
    rows = []
    for sampler, w in weights.items():
        outcomes = read_episodes(plan, _file_name(sampler, plan), ENV, "test", (w, 1))
        act = actor(Arm(method_of(sampler)), one, spec(plan, ENV), 0)
        row = {**sampler._asdict(), "evaluations": sampler.evaluations, "error": errors[sampler]}
        found = figures(outcomes)
        row |= {key: getattr(found, key) for key in ("success", "ci95", "episodes")}
        row["wins"] = outcomes[..., 0].astype(int).tolist()
        row["ms"] = milliseconds(act, spec(plan, ENV), w, 1)
        rows.append(row)
    tune = 0 if preset == "smoke" else plan.counts["tune"] * len(plan.seeds)
    facts = {"env": ENV, "seeds": len(plan.seeds), "weight": weight, "tune_episodes": tune}
    return facts | {"rows": rows}


def _samplers(preset: str) -> list[Sampler]:
    grids: tuple[Grid, ...] = ("uniform",) if preset == "smoke" else ("uniform", "quadratic")
    samplers = []
    for n in EVALUATIONS[:2] if preset == "smoke" else EVALUATIONS:
        samplers += [Sampler("bc", "uniform", n), *(Sampler("euler", grid, n) for grid in grids)]
        samplers += [Sampler("heun", grid, n // 2) for grid in grids]
    return samplers


def _file_name(sampler: Sampler, plan: Plan) -> str:
    """Return the name episodes are filed under: that of METHODS where it is the same sampler."""
    same = (sampler.grid, sampler.steps) == ("uniform", plan.config.denoise_steps)
    if same and sampler.solver != "heun":
        return "qgf" if sampler.guided else "bc"
    return f"steps-{sampler.solver}-{sampler.grid}-{sampler.steps}"


def _errors(
    plan: Plan, learners: Learners, weights: dict[Sampler, float], states: int
) -> dict[Sampler, float]:
    """Return how far, at validation states, samplers end from where the exact flow ends."""
    obs = validation_batch(load_record(run_folder(plan, "critic", ENV)), states).obs
    noise = jax.random.normal(jax.random.key(0), (len(obs), spec(plan, ENV).chunk_action))

    @eqx.filter_jit
    def step(learners: Learners, weight: Array, solver: Solver, a: Array, ends: Array) -> Array:
        bound = bind(learners, obs)
        return path_step(bound["policy"], bound["critic"], weight, solver, a, ends)[0]

    def sample(sampler: Sampler, weight: float) -> Array:
        # Step by step, so that one program serves any number of steps.
        solver: Solver = "heun" if sampler.solver == "heun" else "euler"
        times = jnp.asarray(flow_times(sampler.grid, sampler.steps), noise.dtype)
        action = noise
        for k in range(sampler.steps):
            w = jnp.full(len(obs), weight)
            action = step(learners, w, solver, action, times[k : k + 2])
        return jnp.clip(action, -1, 1)

    exact = {w: sample(Sampler("heun", "uniform", REFERENCE), w) for w in {*weights.values()}}
    return {
        sampler: float(jnp.sqrt(jnp.square(sample(sampler, w) - exact[w]).mean()))
        for sampler, w in weights.items()
    }


def draw(data: dict[str, Any]) -> Figure:
    """Draw success against network evaluations and against milliseconds of one action."""
    figure, panels = success_panels("evaluations an action (Euler T, Heun 2T)", "ms, batch 1")
    for i, (kind, rows) in enumerate(_groups(data).items()):
        aside = 1 + 0.025 * (i - 2)  # intervals beside one another
        places = [aside * row["evaluations"] for row in rows], [row["ms"] for row in rows]
        for axes, x in zip(panels, places, strict=True):
            draw_success(axes, x, rows, STYLES[kind], _name(*kind))
    ticks = sorted({row["evaluations"] for row in data["rows"]})
    panels[0].set_xticks(ticks, map(str, ticks))
    panels[0].minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), **LEGEND)
    return figure


def _groups(data: dict[str, Any]) -> dict[tuple[str, str], list[dict]]:
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in data["rows"]:
        groups.setdefault((row["solver"], row["grid"]), []).append(row)
    return groups


def _name(solver: str, grid: str) -> str:
    return f"QGF, {grid} {solver.capitalize()}" if _guided(solver) else "BC, uniform Euler"


def say(data: dict[str, Any]) -> str:
    """Say how few steps suffice, and what Heun and spacing buy at equal evaluations."""
    groups = _groups(data)
    plain = {row["evaluations"]: row for row in groups["euler", "uniform"]}
    usual = 10 if 10 in plain else max(plain)
    least = min(n for n in plain if difference(plain[n], plain[usual])[1] == "alike")
    change, _ = difference(plain[least], plain[usual])
    listed = "; ".join(
        f"{_name(*kind)}: " + ", ".join(f"{rate(row)} at {row['evaluations']}" for row in rows)
        for kind, rows in groups.items()
    )
    parts = [
        "The paper denoises in T = 10 uniform Euler steps. On "
        f"{data['env']}, with the weight of uniform Euler at T = 10 for all, w = "
        f"{data['weight']:g} ({chosen_on(data)}), and {plain[usual]['episodes']} test episodes "
        f"each over {data['seeds']} training seed(s), success by evaluations of the policy (T of "
        "Euler, 2T of Heun), with 95% intervals: "
        f"{listed}. The fewest uniform Euler steps whose success cannot be told from that of "
        f"T = {usual} (the paired interval holds 0) are T = {least}: {change} points, "
        f"{plain[least]['ms']:.2g} ms against {plain[usual]['ms']:.2g} ms."
    ]
    changes = {"Heun": ("heun", "uniform"), "The quadratic grid": ("euler", "quadratic")}
    parts += [
        _bought(what, groups[kind], plain) for what, kind in changes.items() if kind in groups
    ]
    return " ".join(parts)


def _bought(what: str, rows: list[dict], plain: dict[int, dict]) -> str:
    """Return what a change of sampler buys over uniform Euler at equal evaluations."""
    found = {row["evaluations"]: difference(row, plain[row["evaluations"]]) for row in rows}
    at = {s: [str(n) for n in found if found[n][1] == s] for s in ("better", "worse")}
    verdict = " and ".join(f"{side} at {', '.join(ns)}" for side, ns in at.items() if ns)
    nearer = sum(row["error"] < plain[row["evaluations"]]["error"] for row in rows)
    return (
        f"{what} against uniform Euler at equal evaluations, in points of success: "
        + ", ".join(f"{text} at {n}" for n, (text, _) in found.items())
        + f": {verdict or 'no difference shown'}; its actions are nearer those of the exact "
        f"guided flow at {nearer} of {len(rows)} counts."
    )
