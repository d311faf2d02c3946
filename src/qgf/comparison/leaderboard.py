"""Tables of many methods on many tasks: success, aggregates, costs; as JSON, Markdown, HTML."""

import re
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure

from qgf.evaluation.statistics import (
    bootstrap_mean,
    improvement_probability,
    interquartile_mean,
    mean_over_tasks,
    paired_difference,
    percentile_interval,
    resample,
    success_interval,
)
from qgf.files import atomic_open, write_json
from qgf.methods.table import CLONED, GUIDED, find_method
from qgf.reports._page import Page
from qgf.run.evaluation import MEASURES, RETURN, SUCCESS, Measure
from qgf.tasks import find_task

RESAMPLES = 2000

# Two of Okabe and Ito's palette, told apart with any kind of colour vision.
BLUE, ORANGE = "#0072b2", "#e69f00"

SUCCESS_NOTE = (
    "Success on test episodes, which are not the tune episodes that chose a method's setting. In "
    "brackets 95% intervals: of a task Wilson's, of as many independent episodes as would be as "
    "uncertain; of mean and IQM (the mean of the middle half of all seed × task success rates) "
    f"from {RESAMPLES} bootstrap resamples, which in every task draw training seeds and the "
    "starts that they share as crossed. Of two training seeds they tell little about how much "
    "training varies."
)
RETURN_NOTE = (
    "Returns on test episodes, which are not the tune episodes that chose a method's setting. In "
    f"brackets 95% intervals from bootstrap resamples ({RESAMPLES} of mean and IQM, the mean of "
    "the middle half of all seed × task returns), which in every task draw training seeds and the "
    "starts that they share as crossed. Tasks that pay in other units should not be averaged: see "
    "P(QGF > it)."
)
DIFFERENCE_NOTE = (
    "Percentage points of success above BC with 95% bootstrap intervals, paired: the same "
    "training seeds and test episodes. Of many intervals a few exclude 0 by chance."
)
RETURN_DIFFERENCE_NOTE = DIFFERENCE_NOTE.replace("Percentage points of success", "Return")
OVERALL_NOTE = (
    "P(QGF > it): how often a training of QGF beats one of this method, ties counting half, "
    "averaged over the tasks that both have (arXiv 2108.13264); 50% is no difference. Intervals "
    "of the same bootstrap. Costs are means over the domains. MFLOPs: floating-point operations of "
    "one action, in millions, counted in the traced program. Training: seconds of one seed, with "
    "all that it needs; trainings that run side by side have one thread each."
)

# Many narrow columns, in which no word or number is broken.
STYLE = "table { font-size: .8rem; } th, td { overflow-wrap: normal; padding-right: .5rem; }"

Rates = dict[str, Float[np.ndarray, "resample seed"]]
Scores = dict[str, Shaped[np.ndarray, "seed episode"]]


class Section(NamedTuple):
    """A table with its title and the note under it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str


def leaderboard(entries: list[dict], costs: dict[str, dict[str, dict]], facts: dict) -> dict:
    """Return all figures of a comparison, ready for JSON.

    Aggregates of a method are over the tasks it has; two methods are compared on their common
    tasks. The bootstrap is that of `statistics.resample`: training seeds and the starts that they
    share as crossed, in every task for itself (rliable resamples training seeds only).

    Args:
        entries: one for each environment and method: "env", "method", "weight", "samples",
            "episodes" (success of [training seed][test episode]; all methods of an environment
            have the same seeds and episodes; None where nobody says it, and then all is judged by
            returns), "returns" (same shape), "fallbacks", "tune".
        costs: of each domain (by data set, or by environment where it has goals) and method "ms"
            per call by batch size, "flops" per action, "train_seconds".
        facts: what else a reader should know.
    """
    random = np.random.default_rng(0)
    judged = all(entry["episodes"] is not None for entry in entries)
    measure = SUCCESS if judged else RETURN
    tasks: dict[str, dict[str, dict]] = {}
    rates: dict[str, Rates] = {}
    scores: dict[str, Scores] = {}
    for env in sorted({entry["env"] for entry in entries}):
        found = {entry["method"]: entry for entry in entries if entry["env"] == env}
        scores[env] = {
            name: np.asarray(entry["episodes"]) > 0 if judged else np.asarray(entry["returns"])
            for name, entry in found.items()
        }
        mine, bc = scores[env], scores[env].get(CLONED)
        tasks[env] = {name: _task(measure, found[name], mine[name], bc) for name in found}
        stacked = np.stack([*mine.values()])
        drawn = resample(stacked, RESAMPLES, random).clip(stacked.min(), stacked.max())
        # The measured rates stand before the resampled ones, so that both are aggregated alike.
        both = np.concatenate([stacked.mean(-1)[:, None], drawn], axis=1)
        rates[env] = dict(zip(mine, both, strict=True))
    overall = _aggregate(rates, scores)
    domains: dict[str, dict] = {}
    for domain in sorted({find_task(env).domain for env in tasks}):
        inside = [env for env in tasks if find_task(env).domain == domain]
        of = ({env: by_task[env] for env in inside} for by_task in (rates, scores))
        domains[domain] = {"tasks": inside, "methods": _aggregate(*of)}
    methods = sorted(overall, key=lambda name: (name != CLONED, -overall[name]["mean"]))
    found = {
        "measure": measure.name,
        "note": SUCCESS_NOTE if judged else RETURN_NOTE,
        "methods": methods,
        "overall": overall,
        "domains": domains,
        "tasks": tasks,
    }
    return found | {"costs": costs, "facts": facts}


def _task(
    measure: Measure,
    entry: dict,
    scores: Shaped[np.ndarray, "seed episode"],
    bc: Shaped[np.ndarray, "seed episode"] | None,
) -> dict:
    """Return the figures of one method on one task."""
    name = measure.name
    if measure is SUCCESS:
        interval = success_interval(scores)
    else:
        interval = bootstrap_mean(scores, RESAMPLES)[1]
    figures = {
        name: float(scores.mean()),
        f"{name}_ci95": interval,
        "episodes": scores.size,
        f"seed_{name}": scores.mean(1).tolist(),
        "return": float(np.mean(entry["returns"])),
    }
    if bc is not None and entry["method"] != CLONED:
        difference, interval = paired_difference(scores, bc, RESAMPLES)
        figures |= {"difference": difference, "difference_ci95": interval}
    return figures | {key: entry[key] for key in ("weight", "samples", "fallbacks", "tune")}


def _aggregate(rates: dict[str, Rates], scores: dict[str, Scores]) -> dict[str, dict]:
    """Return mean, IQM and QGF's probability of improvement of every method over tasks."""
    figures = {}
    for name in dict.fromkeys(name for task in rates.values() for name in task):
        mine = [task[name] for task in rates.values() if name in task]
        every = [task[name] for task in scores.values() if name in task]
        mean, interval = mean_over_tasks(every, RESAMPLES)
        figures[name] = {"tasks": len(mine), "mean": mean, "mean_ci95": interval}
        figures[name] |= _with_interval("iqm", interquartile_mean(np.concatenate(mine, axis=1)))
        common = [task for task in rates.values() if {GUIDED, name} <= task.keys()]
        if common and name != GUIDED:
            better = [improvement_probability(task[GUIDED], task[name]) for task in common]
            figures[name] |= _with_interval("qgf_improves", np.mean(better, axis=0))
            figures[name]["qgf_improves_tasks"] = len(common)
    return figures


def _with_interval(name: str, values: Shaped[np.ndarray, " resample"]) -> dict:
    """Return a figure, which is the first value, and its interval from the others."""
    return {name: float(values[0]), f"{name}_ci95": percentile_interval(values[1:])}


def write_leaderboard(out: Path, result: dict) -> None:
    """Write OUT/leaderboard.json, .md, .html and .png, each atomically.

    The page embeds its picture, so it can be sent and read offline.

    Raises:
        UserError: OUT cannot be written.
    """
    out = Path(out)
    write_json(out / "leaderboard.json", result)
    counts = [(len(result["methods"]), "method"), (len(result["tasks"]), "task")]
    title = "Leaderboard: " + " on ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts)
    measure = MEASURES[result["measure"]]
    alt = f"Mean {measure.label.removesuffix(' rate')}. " + "; ".join(
        f"{name} {_score(measure, result['overall'][name], 'mean')}" for name in result["methods"]
    )
    page = Page(out)
    page.add(f"<style>{STYLE}</style>")
    page.figure("leaderboard", _figure(result), alt, "Over all tasks, with 95% intervals.")
    text = [f"# {title}", f"![{alt}](leaderboard.png)"]
    for section in sections(result):
        page.add(f"<h2>{escape(section.title)}</h2>{_html(section)}")
        text += [f"## {section.title}", markdown(section.head, section.rows)]
        if section.note:
            page.add(f'<p class="lead">{escape(section.note)}</p>')
            text.append(section.note)
    page.write(out / "leaderboard.html", title)
    with atomic_open(out / "leaderboard.md", "w") as file:
        file.write("\n\n".join(text) + "\n")


def sections(result: dict) -> list[Section]:
    """Return the tables of a leaderboard: all tasks, each domain, and what was run.

    Args:
        result: what `compare` returns.
    """
    tables, measure = [_overall(result)], MEASURES[result["measure"]]
    judged = measure is SUCCESS
    for domain, found in result["domains"].items():
        names = [name for name in result["methods"] if name in found["methods"]]
        tasks = [result["tasks"][env] for env in found["tasks"]]
        labels = [find_task(env).part for env in found["tasks"]]
        counts = [next(iter(task.values()))["episodes"] for task in tasks]
        head = [f"{label}, {n} episodes" for label, n in zip(labels, counts, strict=True)]
        rows = []
        for name in names:
            of = [task.get(name) for task in tasks]
            cells = [_score(measure, each, measure.name) if each else "–" for each in of]
            means = [_score(measure, found["methods"][name], key) for key in ("mean", "iqm")]
            setting = _setting(name, next(task[name] for task in tasks if name in task))
            rows.append([name, *cells, *means, setting])
        head = ["method", *head, "mean", "IQM", "setting"]
        tables.append(Section(domain, head, rows, result["note"] + _unguided(tasks)))
        rows = [[name, *(_points(measure, task.get(name, {})) for task in tasks)] for name in names]
        rows = [row for row in rows if {*row[1:]} != {"–"}]
        if rows:
            note = DIFFERENCE_NOTE if judged else RETURN_DIFFERENCE_NOTE
            title = f"{domain}: difference to BC"
            tables.append(Section(title, ["method", *labels], rows, note))
    facts = [[name.replace("_", " "), _plain(value)] for name, value in result["facts"].items()]
    return [*tables, Section("What was run", ["", ""], facts, "")]


def _overall(result: dict) -> Section:
    head = ["method", "tasks", "mean", "IQM", "P(QGF > it)", "ms, batch 1", "ms, batch 50"]
    rows, measure = [], MEASURES[result["measure"]]
    for name in result["methods"]:
        figures = result["overall"][name]
        costs = [found[name] for found in result["costs"].values() if name in found]
        better = _score(SUCCESS, figures, "qgf_improves") if "qgf_improves" in figures else "–"
        if figures.get("qgf_improves_tasks", figures["tasks"]) != figures["tasks"]:
            better += f", {figures['qgf_improves_tasks']} tasks"
        count = f"{figures['tasks']} of {len(result['tasks'])}"
        means = [_score(measure, figures, key) for key in ("mean", "iqm")]
        row = [name, count, *means, better]
        measured = [[cost["ms"].get(batch) for cost in costs] for batch in ("1", "50")]
        measured.append([cost["flops"] / 1e6 for cost in costs])
        measured.append([cost["train_seconds"] for cost in costs])
        rows.append([*row, *(_number(_mean(values)) for values in measured)])
    return Section("All tasks", [*head, "MFLOPs", "training, s"], rows, OVERALL_NOTE)


def _setting(name: str, figures: dict) -> str:
    """Return what was chosen for a method in a domain, e.g. "w = 0.03, N = 4"."""
    method = find_method(name)
    parts = [f"{method.tuned} = {figures['weight']:g}"] if method.weights else []
    parts += [f"N = {figures['samples']}"] if figures["samples"] > 1 else []
    return ", ".join(parts) or "–"


def _unguided(tasks: list[dict[str, dict]]) -> str:
    """Say where gradients were not finite, if anywhere."""
    counts: Counter[str] = Counter()
    for task in tasks:
        counts.update({name: figures["fallbacks"] for name, figures in task.items()})
    said = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f" Steps left unguided, as the gradient was not finite: {said}." if said else ""


def _score(measure: Measure, figures: dict, name: str) -> str:
    low, high = figures[f"{name}_ci95"]
    if measure is RETURN:
        return f"{measure.text(figures[name])} ({measure.between((low, high))})"
    return f"{100 * figures[name]:.0f}% ({100 * low:.0f} to {100 * high:.0f})"


def _points(measure: Measure, figures: dict) -> str:
    if "difference" not in figures:
        return "–"
    if measure is RETURN:
        value, interval = figures["difference"], figures["difference_ci95"]
        return f"{measure.text(value, '+')} ({measure.between(interval, '+')})"
    # Rounded to integers, as -0.2 would be formatted as -0.
    values = (round(100 * v) for v in (figures["difference"], *figures["difference_ci95"]))
    return "{:+d} ({:+d} to {:+d})".format(*values)


def _mean(values: list[float | None]) -> float | None:
    """Return the mean, which is unknown where a value is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        items = ((key, item) for key, item in value.items() if item != {})
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in items)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table.

    Args:
        head: the names of the columns.
        rows: the cells of each row, as many as columns.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _html(section: Section) -> str:
    """Return a table; an interval may go to a second line but does not fall apart."""
    rows = []
    for row in section.rows:
        cells = [re.sub(" (to|of) ", "\u00a0\\1\u00a0", escape(cell)) for cell in row]
        kind = ' class="chosen"' if row[0] == GUIDED else ""
        rows.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in section.head)
    head = f"<thead><tr>{head}</tr></thead>" if any(section.head) else ""
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _figure(result: dict) -> Figure:
    """Draw mean and IQM of all methods over all tasks, the best on top."""
    overall, total, measure = result["overall"], len(result["tasks"]), MEASURES[result["measure"]]
    names = sorted(overall, key=lambda name: overall[name]["mean"])
    figure = Figure((7.5, 1.4 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    for what, label, color, marker, shift in (
        ("mean", "mean", BLUE, "o", 0.11),
        ("iqm", "interquartile mean", ORANGE, "s", -0.11),
    ):
        value = np.array([overall[name][what] for name in names])
        low, high = np.array([overall[name][f"{what}_ci95"] for name in names]).T
        # A percentile interval need not hold the figure itself.
        spread = np.maximum([value - low, high - value], 0)
        style = {"color": color, "marker": marker, "linestyle": "", "capsize": 3}
        axes.errorbar(value, places + shift, xerr=spread, label=label, **style)
    if CLONED in overall:
        axes.axvline(overall[CLONED]["mean"], color="#555555", lw=1, ls="--", label="BC's mean")
    tasks = (overall[name]["tasks"] for name in names)
    parts = ("" if n == total else f" ({n} of {total} tasks)" for n in tasks)
    axes.set_yticks(places, [name + part for name, part in zip(names, parts, strict=True)])
    axes.set(xlabel=measure.label)
    if measure is SUCCESS:
        axes.set(xlim=(-0.02, 1.02))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, fontsize=9, loc="outside upper left", ncols=3)
    return figure
