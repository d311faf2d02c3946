"""Guidance in one and two dimensions, where the flow is known exactly.

The paper's example (arXiv 2606.11087): a flow from N(0, I) to a few narrow modes, and the
critic Q(a) = −‖a − a*‖ with a* at a mode. The modes are equally likely and a* = 0 is the
corner of them, so that it is a place from which noise flows to another mode (in 1-D only the
lowest third of the noise, below −0.43, flows to a*): the gradient at a noisy action points
to where the paths to a* do not lead. What depends on this choice is measured on three-mode
densities in 1-D with random places, shares and a*.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qgf.core import ESTIMATORS
from qgf.executor import Executor
from studies._mixture import Mixture, guided_path, train_network
from studies._slider import write_slider

STEPS, STD = 10, 0.05
MEANS = {1: [[0.0], [0.4], [0.8]], 2: [[0.0, 0.0], [0.8, 0.0], [0.0, 0.8], [0.8, 0.8]]}
METHODS = {"OOD": "qfql", "BPTT": "bptt", "QGF": "qgf"}
SHOWN = (0.5, 1.0, 2.0)  # at 2, a unit gradient moves an action by half a mode's distance
WEIGHTS = (0.0, 0.25, *SHOWN, 4.0, 8.0)
SIZES = {  # particles, random settings, gradient steps of a network, where there is one
    "smoke": (200, 10, 200, (1,)),
    "laptop": (2_000, 100, 3_000, (1, 2)),
    "paper": (10_000, 1_000, 20_000, (1, 2)),
}
PATHS = 40

# Share in the mode of a* from which on a method reaches it, and below which it goes to a
# wrong one; share of particles thrown across modes from which on it is unstable.
REACHED, WRONG, THROWN = 0.9, 0.5, 0.01

COLORS = {"BC": "#000000", "OOD": "#d55e00", "BPTT": "#0072b2", "QGF": "#009e73"}
MARKERS = {"OOD": "s", "BPTT": "^", "QGF": "o"}


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return paths, ends and gradients of all methods; write OUT/toy.html, the slider's page.

    No run is trained, so the executor has nothing to do.
    """
    particles, settings, train_steps, trained = SIZES[preset]
    problems, slider = [], {}
    for dim, means in MEANS.items():
        key = jax.random.fold_in(jax.random.key(0), dim)
        mixture = Mixture(jnp.asarray(means), jnp.asarray([1 / len(means)] * len(means)), STD)
        noise = jax.random.normal(key, (particles, dim))
        velocities = {"exact": mixture}
        if dim in trained:
            velocities["network"] = train_network(mixture, train_steps, key)
        for kind, velocity in velocities.items():
            results = [row for name in METHODS for row in _rows(name, velocity, mixture, noise)]
            problems.append({"dim": dim, "velocity": kind, "means": means, "results": results})
        slider[dim] = {"means": means, "peak": means[0], "noise": noise[:PATHS].tolist()}
    write_slider(out / "toy.html", {"steps": STEPS, "std": STD, "problems": slider})
    sizes = {"particles": particles, "train_steps": train_steps}
    return {**sizes, "problems": problems, "random": _random(settings)}


def _rows(name: str, velocity: Any, mixture: Mixture, noise: Array) -> list[dict[str, Any]]:
    """Return one method's numbers for every weight; weight 0 is BC whatever the method."""
    actions, g = _follow(name, velocity, mixture.means[0], noise)
    size = np.linalg.norm(g, axis=-1)
    means = np.asarray(mixture.means)
    return [
        _row(name, w, actions[:, i], size[:, i], means)
        for i, w in enumerate(WEIGHTS)
        if w > 0 or name == "QGF"
    ]


_compiled = eqx.filter_jit(guided_path)


def _follow(name: str, velocity: Any, peak: Array, noise: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the states and gradients of one method: (step, weight, particle, action)."""
    weight = jnp.repeat(jnp.asarray(WEIGHTS), len(noise))  # the same noise for every weight
    repeated, estimator = jnp.tile(noise, (len(WEIGHTS), 1)), ESTIMATORS[METHODS[name]]
    both = _compiled(velocity, peak, repeated, weight, estimator=estimator, steps=STEPS)
    return tuple(np.asarray(x).reshape(-1, len(WEIGHTS), *noise.shape) for x in both)


def _row(
    name: str, weight: float, actions: np.ndarray, size: np.ndarray, means: np.ndarray
) -> dict[str, Any]:
    """Return what became of the particles of one method and weight.

    `gradient` is the median and the 99th percentile of ‖g‖ over the particles at every step;
    `thrown` the share of particles that one push, w‖g‖/T, carries farther than neighbouring
    modes lie apart; `outside` the share whose action lies outside [-1, 1] before the clip.
    """
    dim, ends = means.shape[1], np.clip(actions[-1], -1, 1)
    modes = (_nearest(ends, means)[:, None] == np.arange(len(means))).mean(0)
    apart = min(np.linalg.norm(means[0] - mean) for mean in means[1:])
    row = {
        "method": name if weight else "BC",
        "weight": weight,
        "share": float(modes[0]),
        "modes": modes.tolist(),
        "distance": float(np.linalg.norm(ends - means[0], axis=-1).mean()),
        "gradient": np.quantile(size, (0.5, 0.99), axis=1).tolist(),
        "thrown": float((weight * size / STEPS > apart).any(0).mean()),
        "outside": float((abs(actions[-1]) > 1).any(-1).mean()),
    }
    if weight == 0 or weight in SHOWN:
        density = np.histogramdd(ends, 80 if dim == 1 else 40, [(-1, 1)] * dim, density=True)[0]
        paths = actions[:, :PATHS].astype(float).round(5)
        row |= {"density": density.round(4).tolist(), "paths": paths.tolist()}
    return row


def _random(settings: int, particles: int = 200) -> dict[str, Any]:
    """Return every method's share in the mode of a*, in random settings and for every weight.

    Three modes are drawn uniformly from [-0.9, 0.9], no two nearer than 0.3, their shares
    uniformly from the simplex, a* as one of them.
    """
    random = np.random.default_rng(0)
    means = np.empty((0, 3))
    while len(means) < settings:
        more = random.uniform(-0.9, 0.9, (settings, 3))
        means = np.concatenate([means, more[np.diff(np.sort(more)).min(1) >= 0.3]])[:settings]
    weights = random.dirichlet(np.ones(3), settings)
    noise = jax.random.normal(jax.random.key(1), (particles, 1))
    shares = {name: [] for name in METHODS}
    for at, share in zip(means, weights, strict=True):
        mixture = Mixture(jnp.asarray(at[:, None], "f4"), jnp.asarray(share, "f4"), STD)
        for name in METHODS:
            actions, _ = _follow(name, mixture, mixture.means[0], noise)
            right = _nearest(np.clip(actions[-1], -1, 1).reshape(-1, 1), at[:, None]) == 0
            shares[name].append(right.reshape(len(WEIGHTS), -1).mean(1).tolist())
    drawn = {"means": means.tolist(), "weights": weights.tolist()}  # the first mean is a*
    return {"particles": particles, **drawn, "shares": shares}


def _nearest(action: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the index of every action's nearest mode."""
    return np.linalg.norm(action[:, None] - means, axis=-1).argmin(1)


def draw(data: dict[str, Any]) -> Figure:
    """Return the exact flow's paths and ends by method and weight, and shares by weight."""
    figure = Figure(figsize=(10, 13), layout="constrained")
    for part, dim in zip(figure.subfigures(2, 1), MEANS, strict=True):
        axes = part.subplots(3, 4)
        problems = [problem for problem in data["problems"] if problem["dim"] == dim]
        paths = _draw_line if dim == 1 else _draw_plane
        paths(axes[0, 0], problems[0], _select(problems[0], "BC")[0])
        axes[0, 0].set_title(f"{dim}-D, BC", fontsize="medium")
        _draw_shares(axes[1, 0], problems)
        _draw_gradients(axes[2, 0], problems[0])
        for row, name in zip(axes, METHODS, strict=True):
            for ax, weight in zip(row[1:], SHOWN, strict=True):
                paths(ax, problems[0], _select(problems[0], name, weight)[0])
                ax.set_title(f"{name}, w = {weight:g}", fontsize="medium")
        part.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _select(problem: dict, name: str, weight: float | None = None) -> list[dict]:
    return [
        row
        for row in problem["results"]
        if row["method"] == name and (weight is None or row["weight"] == weight)
    ]


def _draw_line(ax: Axes, problem: dict, row: dict) -> None:
    """Actions over flow time, and beyond t = 1 the density of the ends."""
    color, t = COLORS[row["method"]], np.arange(STEPS + 1) / STEPS
    for mean in problem["means"]:
        ax.axhspan(mean[0] - 2 * STD, mean[0] + 2 * STD, color="0.88", lw=0)
    ax.axhline(problem["means"][0][0], color="black", ls=":", lw=1)
    ax.text(1.4, problem["means"][0][0], "a*", va="center")
    ax.plot(t, np.asarray(row["paths"])[..., 0], color=color, lw=0.6, alpha=0.7)
    density = np.asarray(row["density"])
    places = (np.arange(len(density)) + 0.5) * 2 / len(density) - 1
    ax.fill_betweenx(places, 1.05, 1.05 + 0.3 * density / density.max(), color=color, lw=0)
    ax.set(xlim=(0, 1.37), ylim=(-2.2, 2.2), xticks=(0, 0.5, 1), yticks=(-2, -1, 0, 1, 2))
    ax.set(xlabel="flow time t", ylabel="action")


def _draw_plane(ax: Axes, problem: dict, row: dict) -> None:
    """Paths in the plane, and over them the density of the ends."""
    x, y = np.moveaxis(np.asarray(row["paths"]), -1, 0)
    ax.plot(x, y, color=COLORS[row["method"]], lw=0.6, alpha=0.5)
    density = np.asarray(row["density"]).T
    shade = np.ma.masked_equal(np.sqrt(density / density.max()), 0)
    box = {"extent": (-1, 1, -1, 1), "origin": "lower", "vmin": -0.3}
    ax.imshow(shade, cmap="Greys", zorder=3, **box)
    ax.plot(*np.transpose(problem["means"]), "o", ms=12, mfc="none", mec="black", mew=0.8)
    ax.plot(*problem["means"][0], "*", ms=6, color="#f0e442", mec="black", mew=0.6, zorder=4)
    ax.set(xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), aspect="equal", xlabel="$a_1$", ylabel="$a_2$")


def _draw_shares(ax: Axes, problems: list[dict]) -> None:
    for name in METHODS:
        for problem in problems:
            rows = _select(problem, "BC") + _select(problem, name)
            x, y = [row["weight"] for row in rows], [row["share"] for row in rows]
            exact = problem["velocity"] == "exact"
            look = {"color": COLORS[name], "marker": MARKERS[name], "ms": 4}
            ax.plot(x, y, "-" if exact else "--", label=name if exact else None, **look)
    ax.set_xscale("symlog", linthresh=0.25)
    ax.set(ylim=(-0.03, 1.03), xlabel="guidance weight w", ylabel="share in a*'s mode")
    ax.set_xticks((0, 0.5, 2, 8), ("0", "0.5", "2", "8"), minor=False)
    if len(problems) > 1:
        ax.set_title("solid exact, dashed network", fontsize="small")


def _draw_gradients(ax: Axes, problem: dict) -> None:
    t = np.arange(STEPS) / STEPS
    for name in METHODS:
        sizes = _select(problem, name, SHOWN[1])[0]["gradient"]
        for size, style in zip(sizes, ("-", "--"), strict=True):
            ax.semilogy(t, size, style, color=COLORS[name], marker=MARKERS[name], ms=4)
    ax.set(xlabel="flow time t", ylabel=f"‖g‖, w = {SHOWN[1]:g}", ylim=(0.02, 20))
    ax.set_title("solid median, dashed 99 %", fontsize="small")


def say(data: dict[str, Any]) -> str:
    """Compare with the paper: QGF and BPTT reach a*, OOD never does, BPTT is unstable."""
    main = data["problems"][0]
    best = {name: max(row["share"] for row in _select(main, name)) for name in METHODS}
    held = {
        "QGF reaches a*": best["QGF"] >= REACHED,
        "BPTT reaches a*": best["BPTT"] >= REACHED,
        "OOD goes to a wrong mode whatever the weight": best["OOD"] < WRONG,
        "BPTT is unstable": _thrown(main, "BPTT") >= THROWN > _thrown(main, "QGF"),
    }
    agree = [claim for claim, true in held.items() if true]
    differ = [claim for claim, true in held.items() if not true]
    verdict = f"Of the paper's claims, {len(agree)} of {len(held)} are found here"
    verdict += f": {'; '.join(agree)}." if agree else "."
    if differ:
        verdict += f" Not found: {'; '.join(differ)}."
    parts = [
        "The paper's example of a flow to three modes and Q = −‖a − a*‖ claims that QGF and BPTT "
        "reach a*, that OOD ends in a wrong mode whatever the weight, and that BPTT is unstable.",
        f"With {data['particles']} particles, {STEPS} Euler steps and weights up to "
        f"{max(WEIGHTS):g}, the share that ends in the mode of a* was:",
        *(_shares(problem, data["train_steps"]) for problem in data["problems"]),
        _gradients(main),
        _settings(data["random"]),
        verdict,
        f"(A method reaches a* if at some weight {REACHED:.0%} of the particles end in its mode, "
        f"goes wrong if at no weight {WRONG:.0%} do, and is unstable if at a weight shown "
        f"{THROWN:.0%} of the particles, and fewer with QGF, are thrown: pushed in one step "
        "farther than neighbouring modes lie apart. All in 1-D with the exact velocity. This "
        "critic is as right at noisy actions as at clean ones; a learned one need not be.)",
    ]
    return " ".join(parts)


def _shares(problem: dict, train_steps: int) -> str:
    kind = "exact velocity"
    if problem["velocity"] == "network":
        kind = f"network after {train_steps} gradient steps"
    shown = ", ".join(f"{w:g}" for w in SHOWN)
    texts = [f"BC {_select(problem, 'BC')[0]['share']:.2f}"]
    for name in METHODS:
        at = " / ".join(f"{_select(problem, name, w)[0]['share']:.2f}" for w in SHOWN)
        best = max(_select(problem, name), key=lambda row: row["share"])
        texts.append(
            f"{name} {at}, at best {best['share']:.2f} (w = {best['weight']:g}, mean distance "
            f"to a* {best['distance']:.2f})"
        )
    return f"{problem['dim']}-D, {kind}, at w = {shown}: {'; '.join(texts)}."


def _thrown(problem: dict, name: str) -> float:
    return max(_select(problem, name, w)[0]["thrown"] for w in SHOWN)


def _gradients(problem: dict) -> str:
    texts = []
    for name in METHODS:
        rows = [_select(problem, name, w)[0] for w in SHOWN]
        median, tail = np.asarray(rows[1]["gradient"])[:, 0]
        thrown, outside = (max(row[what] for row in rows) for what in ("thrown", "outside"))
        texts.append(f"{name} {median:.2f}, {tail:.2f}, {thrown:.1%} and {outside:.1%}")
    return (
        f"Length of the 1-D gradient at t = 0 and w = {SHOWN[1]:g}, its median and 99th "
        "percentile, and the shares of particles thrown and ending outside [-1, 1], at the worst "
        f"of the weights above: {'; '.join(texts)}."
    )


def _settings(random: dict) -> str:
    best = {name: np.max(share, axis=1) for name, share in random["shares"].items()}
    one = {
        name: np.asarray(s)[:, WEIGHTS.index(1.0)].mean() for name, s in random["shares"].items()
    }
    texts = [
        f"{name} reached a* in {(best[name] >= REACHED).sum()} and went wrong at every weight in "
        f"{(best[name] < WRONG).sum()} (mean share at w = 1: {one[name]:.2f})"
        for name in METHODS
    ]
    count = len(best["QGF"])
    return (
        f"Of {count} random 1-D settings ({random['particles']} particles each), "
        f"{'; '.join(texts)}."
    )
