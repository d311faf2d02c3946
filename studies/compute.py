"""Success against what an action costs: guidance, search, and both together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from qgf.act import Arm, actor
from qgf.comparison import (
    Plan,
    Setting,
    count,
    learners,
    milliseconds,
    read_episodes,
    run_episodes,
    spec,
    variant,
)
from qgf.evaluation import figures, paired_difference
from qgf.executor import Executor
from qgf.methods import find_method, settings
from qgf.run import of_seed
from studies._runs import CUBE, study_plan
from studies._scale import rate, tuned
from studies.sensitivity import STYLES as ESTIMATOR_STYLES

ENV = CUBE.format(2)
SAMPLES = (1, 2, 4, 8, 16, 32)  # N of BFN(N); of one sample it is the cloned policy
COUNTS = {"qgf+bfn": (2, 4, 8)}  # N of methods that are tried with several
FAMILY = {"bc": "bfn", "bfn-4": "bfn"}  # drawn as one line with
LEGEND = {"frameon": False, "fontsize": 8, "loc": "outside upper left", "ncols": 3}
FAR = 2.0  # times as costly is "far more"
LABELS = {"bfn": "BFN(N), BC at N = 1", "qgf+bfn": "QGF+BFN(N)"}
STYLES = {
    "qgf": ESTIMATOR_STYLES["qgf"],
    "bptt": ESTIMATOR_STYLES["bptt"],
    "bfn": ("#d55e00", "-", "s"),
    "qgf+bfn": ("#009e73", "--", "D"),
    "gradstep": ("#cc79a7", "", "v"),
}


def measure(preset: str, out: Path, executor: Executor | None) -> dict[str, Any]:
    """Return success on test episodes, operations and milliseconds of every method and N.

    A row's "flops" are all operations of one action as `_costs.count` counts them: matrix
    products ("products") and elementwise work. "ms" is the time of one call on this machine by
    its number of observations.
    """
    names = ["qgf", "gradstep"] if preset == "smoke" else ["qgf", "gradstep", "bptt", "qgf+bfn"]
    plan = study_plan(preset, out, (ENV,), executor, names)
    tests: dict[str, list[Setting]] = {}
    for n in SAMPLES[:2] if preset == "smoke" else SAMPLES:
        tests.setdefault({1: "bc", 4: "bfn-4"}.get(n, "bfn"), []).append((0.0, n))
    for name in names:
        searched = settings(name)[2:3] if preset == "smoke" else settings(name)
        weight = choose_weight(plan, name, searched)
        tests[name] = [(weight, n) for n in COUNTS.get(name, (1,))]
    variants = {name: variant(plan, name, ENV, every) for name, every in tests.items()}
    run_episodes(plan, ENV, "test", variants)
    rows = [_row(plan, name, setting) for name, every in tests.items() for setting in every]
    tune = 0 if preset == "smoke" else plan.counts["tune"] * len(plan.seeds)
    return {"env": ENV, "seeds": len(plan.seeds), "tune_episodes": tune, "rows": rows}


def choose_weight(plan: Plan, name: str, searched: Sequence[Setting]) -> float:
    """Return the weight of the setting with the best tune episodes, by `qgf.run.choose`."""
    if len(searched) > 1:
        run_episodes(plan, ENV, "tune", {name: variant(plan, name, ENV, searched)})
    return tuned(plan, name, ENV, searched)


def _row(plan: Plan, name: str, setting: Setting) -> dict[str, Any]:
    """Return what one method's action comes to, and what it costs."""
    (weight, samples), method = setting, find_method(name)
    outcomes = read_episodes(plan, name, ENV, "test", setting)
    one = of_seed(learners(plan, name, ENV), slice(1))
    sizes = spec(plan, ENV)
    counted = count(method, of_seed(one, 0), sizes, weight, samples)
    act = actor(Arm(method, samples=samples), one, sizes, 0)
    family, found = FAMILY.get(name, name), figures(outcomes)
    several = f"{family.upper()}({samples})" if family in LABELS else name
    return {
        "family": family,
        "label": several if samples > 1 or family == name else name.upper(),
        "weight": weight,
        "samples": samples,
        "wins": outcomes[..., 0].astype(int).tolist(),
        **{key: getattr(found, key) for key in ("success", "ci95", "episodes")},
        "flops": sum(counted),
        "products": counted.products,
        "ms": {str(batch): milliseconds(act, sizes, weight, batch) for batch in (1, 50)},
    }


def draw(data: dict[str, Any]) -> Figure:
    """Draw success against operations and against milliseconds of one action."""
    figure, panels = success_panels("MFLOPs an action", "ms an action, batch 1")
    for family in dict.fromkeys(row["family"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["family"] == family]
        costs = [[row["flops"] / 1e6 for row in rows], [row["ms"]["1"] for row in rows]]
        for axes, cost in zip(panels, costs, strict=True):
            draw_success(axes, cost, rows, STYLES[family], LABELS.get(family, family))
            for x, row in zip(cost, rows, strict=True):
                at = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
                if family in LABELS:
                    axes.annotate(str(row["samples"]), (x, row["success"]), **at)
    figure.legend(*panels[0].get_legend_handles_labels(), **LEGEND)
    return figure


def success_panels(*costs: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel of success rates against each of the costs."""
    figure = Figure((7.5, 3.6), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True)
    for axes, cost in zip(panels, costs, strict=True):
        axes.set(xscale="log", xlabel=cost, ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    panels[0].set_ylabel("success rate")
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return figure, [*panels]


def draw_success(
    axes: Axes, x: Sequence[float], rows: list[dict], style: tuple[str, str, str], label: str
) -> None:
    """Draw the success rates of some rows with their intervals; `style` is colour, line, marker."""
    success = np.array([row["success"] for row in rows])
    low, high = np.array([row["ci95"] for row in rows]).T
    # Wilson's interval holds the rate itself, but for rounding.
    spread = np.maximum([success - low, high - success], 0)
    color, line, marker = style
    looks = {"color": color, "ls": line, "marker": marker, "ms": 5, "capsize": 2, "lw": 1.2}
    axes.errorbar(x, success, yerr=spread, label=label, **looks)


def say(data: dict[str, Any]) -> str:
    """Compare with the paper: BFN(4) is dearer and worse than QGF; QGF+BFN(4) equals BFN(16)."""
    rows = {row["label"]: row for row in data["rows"]}
    parts = [
        "The paper finds that the best of 4 cloned actions, BFN(4), costs far more than QGF and "
        "does worse, and that QGF with the best of 4, QGF+BFN(4), does as well as BFN(16). On "
        f"{data['env']}, {data['rows'][0]['episodes']} test episodes each over {data['seeds']} "
        f"training seed(s), with 95% intervals (weights {chosen_on(data)}): "
        + "; ".join(_described(row) for row in data["rows"])
        + "."
    ]
    if {"qgf", "BFN(4)"} <= rows.keys():
        parts.append(_search(rows["qgf"], rows["BFN(4)"]))
    if {"QGF+BFN(4)", "BFN(16)"} <= rows.keys():
        found, side = difference(rows["QGF+BFN(4)"], rows["BFN(16)"])
        words = {
            "better": "it does better, more than the paper says",
            "worse": "it does worse, unlike the paper",
            "alike": "no difference shown, as the paper says",
        }
        parts.append(f"QGF+BFN(4) − BFN(16) is {found} points: {words[side]}.")
    if {"QGF+BFN(4)", "qgf"} <= rows.keys():
        found, side = difference(rows["QGF+BFN(4)"], rows["qgf"])
        words = {"better": "helps", "worse": "harms", "alike": "shows no effect"}
        parts.append(f"QGF+BFN(4) − qgf is {found} points: search on top {words[side]}.")
    if len(parts) == 1:
        parts.append("This preset leaves out BFN(4) and QGF+BFN, so the claim is not tested.")
    return " ".join(parts)


def _described(row: dict[str, Any]) -> str:
    what = "α" if row["family"] == "gradstep" else "w"
    weight = f", {what} = {row['weight']:g}" if row["weight"] else ""
    return (
        f"{row['label']}{weight}: {rate(row)}, {_number(row['flops'] / 1e6)} MFLOPs, "
        f"{_number(row['ms']['1'])} ms alone and {_number(row['ms']['50'])} ms for 50"
    )


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _search(qgf: dict[str, Any], bfn: dict[str, Any]) -> str:
    """Return how QGF and BFN(4) compare in success and in costs."""
    found, side = difference(qgf, bfn)
    words = {
        "better": "BFN(4) does worse, as the paper says",
        "worse": "BFN(4) does better, unlike the paper",
        "alike": "no difference shown, unlike the paper",
    }
    ratios = [bfn["flops"] / qgf["flops"], *(bfn["ms"][n] / qgf["ms"][n] for n in ("1", "50"))]
    if min(ratios) >= FAR:
        cost = "far more by every count, as the paper says"
    elif min(ratios) > 1:
        cost = f"more, but not {FAR:g} times as much by every count, as far more would be"
    else:
        cost = "not more by every count, unlike the paper"
    return (
        f"QGF − BFN(4) is {found} points: {words[side]}. BFN(4) takes {ratios[0]:.2f} times QGF's "
        f"FLOPs, {ratios[1]:.2f} times its milliseconds alone and {ratios[2]:.2f} times for 50: "
        f"{cost}."
    )


def chosen_on(data: dict[str, Any]) -> str:
    """Return how weights were set."""
    tune = data["tune_episodes"]
    return f"chosen on {tune} tune episodes each" if tune else "given, not chosen"


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, str]:
    """Return the paired difference in points, in words, and whether ours is better or worse.

    "alike" is neither: the 95% interval holds 0.
    """
    wins, others = (np.array(row["wins"]) > 0 for row in (ours, theirs))
    mean, (low, high) = paired_difference(wins, others)
    side = "better" if low > 0 else "worse" if high < 0 else "alike"
    return f"{100 * mean:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})", side
