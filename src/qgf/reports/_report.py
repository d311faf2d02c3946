"""One page that shows a run: RUN/report.html, which needs nothing beside itself."""

import itertools
import math
import shlex
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from qgf.act.policy import learner_hashes, load_learners, sample_actions
from qgf.act.rollout import Arm
from qgf.config import PRESETS
from qgf.core.flow import refuse_failed
from qgf.data import Source
from qgf.errors import UserError
from qgf.methods.table import BEST_OF, CLONED, GUIDED, METHODS, Learners
from qgf.reports._page import Page, data_url
from qgf.reports.video import film
from qgf.run._validation import fields_of, intact_source, validation_batch
from qgf.run.checkpoint import config_record, load_record
from qgf.run.evaluation import (
    SUCCESS,
    Evaluation,
    MethodResult,
    SettingResult,
    choose,
    read_evaluation,
)
from qgf.run.run import Run

STATES = 1000
BASE = ("policy", "critic")  # what qgf acts with

# Okabe and Ito's palette, told apart with any kind of colour vision.
BLACK, ORANGE, SKY, BLUE = "#000000", "#e69f00", "#56b4e9", "#0072b2"


class _Shown(NamedTuple):
    """The guidance weight that Q values and the film show, and how to name it."""

    weight: float
    name: str


def report(run: Path, *, video: bool = True) -> Path:
    """Write RUN/report.html, its pictures in RUN/report/, and return the page's path.

    The page embeds its pictures and its film, so it can be sent and read offline. What cannot
    be shown (no data folder, no metrics, no rendering) is said in its place.

    Args:
        run: folder of a run, trained and evaluated.
        video: film a rollout, where rendering works; it takes about half a minute.

    Raises:
        UserError: no such run, it was not evaluated, or it cannot be written.
    """
    run = Path(run)
    record = load_record(run)
    if not (run / "eval.json").exists():
        raise UserError(f"{run} was not evaluated; run `qgf eval {run}` first")
    result = read_evaluation(run)
    if not {CLONED, GUIDED} <= result.methods.keys():
        raise UserError(f"{run} was evaluated without qgf; run `qgf eval {run}` first")
    shown = _shown(result.methods[GUIDED])
    page = Page(run / "report")
    _headline(page, result)
    _weights(page, result)
    _film(page, run, result, shown, video)
    _q_values(page, run, result, shown)
    _curves(page, run)
    _facts(page, run, record, result)
    page.write(run / "report.html", f"QGF on {record['env']}")
    return run / "report.html"


def _headline(page: Page, result: Evaluation) -> None:
    seeds = len(result.training_seeds)
    page.add(
        f'<p class="lead">Checkpoint of step {result.checkpoint:,}, {seeds} training '
        f"seed{'s' * (seeds > 1)}. BC is the cloned policy alone; QGF is the same policy, guided "
        f"at test time by the critic's gradient with weight w.</p>"
    )
    page.add(f'<p class="result">{_verdict(result)}</p>')
    bc, qgf = result.methods[CLONED], result.methods[GUIDED]
    rows = [("BC (w = 0)", bc.test, "")]
    rows += [(f"best of {row.samples}", row.test, "") for row in _best_of(result)]
    rows += [(f"QGF (w = {qgf.weight:g})", qgf.test, ' class="chosen"')]
    measure = result.measure
    names = (measure.label.capitalize(), "95% interval", "Minus BC", "95% interval", "Episodes")
    heads = "".join(f'<th class="n">{name}</th>' for name in names)
    page.add(f"<table><thead><tr><th>Policy</th>{heads}</tr></thead><tbody>")
    for name, figures, kind in rows:
        value, interval = measure.of(figures)
        cells = [measure.text(value), measure.between(interval), "", ""]
        if figures.difference is not None:
            cells[2:] = [
                measure.text(figures.difference, "+"),
                measure.between(figures.difference_ci95, "+"),
            ]
        cells.append(str(figures.episodes))
        cells = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        page.add(f"<tr{kind}><td>{name}</td>{cells}</tr>")
    page.add("</tbody></table>")


def _verdict(result: Evaluation) -> str:
    """Return one sentence that claims no more than the interval of the difference allows."""
    methods, measure = result.methods, result.measure
    weight, qgf, bc = methods[GUIDED].weight, methods[GUIDED].test, methods[CLONED].test
    if weight == 0:
        return "The tune episodes chose w = 0: no guidance weight tried did better than BC."
    low, high = qgf.difference_ci95
    doubt = " The interval includes 0: these episodes cannot tell it from no change."
    return (
        f"With guidance (w = {weight:g}) the {measure.label} on test episodes is "
        f"{measure.text(measure.of(qgf)[0])}, without it {measure.text(measure.of(bc)[0])}: "
        f"{measure.text(qgf.difference, '+')} (95% interval "
        f"{measure.between(qgf.difference_ci95, '+')}, {qgf.episodes} paired episodes)."
        + doubt
        * (low <= 0 <= high)
    )


def _weights(page: Page, result: Evaluation) -> None:
    rows, chosen = result.methods[GUIDED].settings, result.methods[GUIDED].weight
    measure = result.measure
    figure = Figure((7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for split, color, marker, shift in (("tune", ORANGE, "s", -0.06), ("test", BLUE, "o", 0.06)):
        found = [measure.of(getattr(row, split)) for row in rows]
        mean = np.array([value for value, _ in found])
        low, high = np.array([interval for _, interval in found]).T
        axes.errorbar(
            places + shift,
            mean,
            (np.maximum(mean - low, 0), np.maximum(high - mean, 0)),
            color=color,
            marker=marker,
            linestyle="--" if split == "tune" else "-",
            capsize=3,
            label=f"{split} ({getattr(rows[0], split).episodes} episodes)",
        )
    at = [row.weight for row in rows].index(chosen)
    axes.axvspan(at - 0.3, at + 0.3, color=SKY, alpha=0.25, lw=0, label=f"chosen: w = {chosen:g}")
    axes.set_xticks(places, [f"{row.weight:g}" for row in rows])
    axes.set(xlabel="guidance weight w", ylabel=measure.label)
    if measure is SUCCESS:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _tidy(axes)
    axes.legend(frameon=False)
    page.add(f"<h2>{measure.label.capitalize()} against guidance weight</h2>")
    page.figure(
        "weights",
        figure,
        f"{measure.label.capitalize()} against guidance weight. "
        + "; ".join(
            f"w = {row.weight:g}: {measure.text(measure.of(row.test)[0])} on test" for row in rows
        ),
        "The weight is chosen on the tune episodes alone and reported on the test episodes. Bars "
        f"are 95% {measure.method} intervals. All weights meet the same starts and the same noise.",
    )


def _film(page: Page, run: Path, result: Evaluation, shown: _Shown, video: bool) -> None:
    page.add("<h2>A rollout</h2>")
    if not video:
        page.note("No rollout was filmed, as asked for.")
        return
    path = page.folder / "rollout.mp4"
    try:
        steps = result.denoise_steps
        arms = [Arm(steps=steps)]
        arms += [Arm(GUIDED, shown.weight, steps=steps)] if shown.weight else []
        film(run, path, arms, seed=result.seed, **_evaluated(run, result))
    except UserError as error:
        page.note(f"No rollout was filmed: {error}.")
        return
    source = data_url("video/mp4", path.read_bytes())
    page.add(
        f'<figure><video controls loop muted playsinline src="{source}" '
        f'aria-label="Film of the same test episode under w = 0 and w = {shown.weight:g}">'
        f"</video><figcaption>The first test episode under w = 0 (BC) and under w = "
        f"{shown.weight:g} ({shown.name}), from the same start and the same noise, in real "
        f"time. One episode is an illustration, not evidence.</figcaption></figure>"
    )


def _evaluated(run: Path, result: Evaluation) -> dict[str, Any]:
    """Return where the evaluated networks are, as `film` takes it. UserError if they are gone."""
    critic = None if result.critic is None else Path(result.critic)
    steps = {name: str(getattr(result, name)) for name in ("checkpoint", "critic_checkpoint")}
    found = learner_hashes(run, BASE, steps["checkpoint"], critic, steps["critic_checkpoint"])
    if any(result.learners.get(role) != digest for role, digest in found.items()):
        raise UserError(f"{run} no longer holds the networks that were evaluated")
    return {"critic": critic, **steps}


def _shown(qgf: MethodResult) -> _Shown:
    if qgf.weight > 0 or len(qgf.settings) == 1:
        return _Shown(qgf.weight, "chosen")
    best = choose(qgf.settings[1:])
    return _Shown(best.weight, "not chosen, the best weight above 0 on the tune episodes")


def _q_values(page: Page, run: Path, result: Evaluation, shown: _Shown) -> None:
    page.add("<h2>Q before and after guidance</h2>")
    try:
        q = _sample_q(run, result, shown.weight)
    except UserError as error:
        page.note(f"Not shown: {error}.")
        return
    names = ("data", "BC (w = 0)", f"guided (w = {shown.weight:g})")
    figure = Figure((7.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.linspace(*np.percentile(q, (0.2, 99.8)), 50)
    for values, name, color, line in zip(
        q, names, (BLACK, ORANGE, BLUE), (":", "--", "-"), strict=True
    ):
        style = {"color": color, "linestyle": line, "linewidth": 1.8, "histtype": "step"}
        left.hist(values, bins, density=True, label=name, **style)
    gain = q[2] - q[1]
    right.hist(gain, np.linspace(*np.percentile(gain, (0.2, 99.8)), 50), density=True, color=BLUE)
    right.axvline(0, color=BLACK, lw=1)
    left.set(xlabel="Q(s, a)", ylabel="density")
    right.set(xlabel="Q(s, guided) − Q(s, BC), same noise")
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=3)
    _tidy(left, right)
    means = ", ".join(f"{v.mean():.2f} for {n}" for v, n in zip(q, names, strict=True))
    page.figure(
        "q",
        figure,
        f"Distributions of Q. Means: {means}.",
        f"The critic's values of action chunks at {q.shape[1]:,} states of the validation data "
        f"(the outermost 0.2% are cut off). Means: {means}. Guidance ({shown.name}) raises Q in "
        f"{(gain > 0).mean():.0%} of the states, by {gain.mean():.3g} on average. This is the "
        "critic's own opinion of the actions; only the success rates above test it.",
    )


def _sample_q(run: Path, result: Evaluation, weight: float) -> Float[np.ndarray, "actions state"]:
    """Return Q at validation states, of all training seeds: the data's actions, BC's, guided."""
    where = _evaluated(run, result)
    batch = validation_batch(load_record(where["critic"] or run), STATES)
    noise = jax.random.normal(jax.random.key(0), (1, *batch.action.shape))

    @eqx.filter_jit
    @eqx.filter_vmap
    def q(learners: Learners) -> tuple[Float[Array, "actions state"], Int[Array, "weights state"]]:
        weights = [jnp.full(len(batch.obs), w) for w in (0.0, weight)]
        how = {"goal": batch.goal, "steps": result.denoise_steps}
        sample = partial(sample_actions, METHODS[GUIDED], learners, batch.obs, noise, **how)
        sampled, counts = zip(*map(sample, weights), strict=True)
        critic = learners["critic"].bind(batch.obs, batch.goal)
        values = [critic(a) for a in (batch.action, *sampled)]
        return jnp.stack(values), jnp.stack(counts)

    learners = load_learners(
        run,
        [GUIDED],
        which=where["checkpoint"],
        critic=where["critic"],
        critic_which=where["critic_checkpoint"],
    )
    values, counts = q(learners)
    refuse_failed(counts)
    return np.concatenate(np.asarray(values), axis=1)


def _curves(page: Page, run: Path) -> None:
    page.add("<h2>Learning curves</h2>")
    path = run / "metrics.jsonl"
    lines = Run(run).metrics() if path.exists() else []
    names = sorted({name for line in lines for name in line if "/" in name}, key=_losses_first)
    if not names:
        page.note("Not shown: the run has no metrics.jsonl.")
        return
    columns = min(3, len(names))
    figure = Figure((7.5, 2.3 * math.ceil(len(names) / columns)), layout="constrained")
    for name, axes in itertools.zip_longest(
        names, figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).flat
    ):
        if name is None:
            axes.set_axis_off()
        else:
            _curve(axes, lines, name)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("gradient step", fontsize=9)
    seeds = len({line["seed"] for line in lines})
    page.figure(
        "curves",
        figure,
        "Training and validation curves of " + ", ".join(names),
        "Training (mean since the last line) and validation (the same batches every time)"
        + ("; thin lines are training seeds, thick ones their mean." if seeds > 1 else "."),
    )


def _losses_first(name: str) -> tuple[bool, bool, str]:
    return not name.endswith("loss"), not name.startswith("policy/"), name


def _curve(axes: Axes, lines: Sequence[dict], name: str) -> None:
    """Draw one metric of all seeds, training and validation."""
    for split, color, line in (("train", BLUE, "-"), ("validation", ORANGE, "--")):
        curves: dict[int, dict[int, float]] = {}
        for entry in lines:
            if entry["split"] == split and name in entry:
                curves.setdefault(entry["seed"], {})[entry["step"]] = entry[name]
        if not curves:
            continue
        steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        values = np.array([[curve[step] for step in steps] for curve in curves.values()])
        marker = "o" if len(steps) < 12 else None
        if len(curves) > 1:
            axes.plot(steps, values.T, color=color, linestyle=line, lw=0.6, alpha=0.5)
        axes.plot(steps, values.mean(0), line, color=color, marker=marker, ms=3, label=split)
    drawn = [y for curve in axes.get_lines() for y in curve.get_ydata()]
    if name.endswith("loss") and min(drawn, default=0) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _tidy(axes)


def _facts(page: Page, run: Path, record: dict, result: Evaluation) -> None:
    data, counts = record["data"], result.episodes
    try:
        source = intact_source(record)
        rows = {s: sum(shard.rows for shard in source.split(s)) for s in ("train", "val")}
        size = f"{rows['train']:,} rows for training, {rows['val']:,} for validation"
    except UserError as error:
        source, size = None, str(error)
    hashes = [f"{file} {digest[:12]}" for file, digest in data["sha256"].items()]
    if len(hashes) > 6:
        hashes = [*hashes[:6], f"and {len(hashes) - 6} more in config.json"]
    facts = {
        "Environment": record["env"],
        "Data": f"{data['name']}: {size}",
        "Data, SHA-256": "; ".join(hashes),
        "Run": str(run),
        "Checkpoint": f"step {result.checkpoint:,}",
        **({} if result.critic is None else {"Critic": _critic(result)}),
        "Training seeds": ", ".join(map(str, result.training_seeds)),
        "Evaluation": f"seed {result.seed}; for every weight and training seed "
        f"{counts['tune']} tune and {counts['test']} test episodes",
        "Trained on": record["device"],
        "Versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    for role, source in record["borrowed"].items():
        facts.setdefault(role.capitalize(), f"taken from {source['run']}")
    page.add("<h2>What was run</h2>")
    page.add('<table class="facts">')
    for name, value in facts.items():
        page.add(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>")
    page.add("</table>")
    page.add("<h2>Configuration</h2>")
    cells = (
        f"<li>{escape(k)} <b>{escape(str(v))}</b></li>"
        for k, v in _settings(record["config"]).items()
    )
    page.add(f'<ul class="config">{"".join(cells)}</ul>')
    page.add("<h2>Commands that give this result</h2>")
    page.add(f"<pre>{escape(chr(10).join(_commands(run, record, result, source)))}</pre>")


def _settings(config: dict) -> dict:
    """Return the settings of a run and its learners by the names of their options."""
    rest = {name: value for name, value in config.items() if name != "hyper"}
    return rest | {k: v for hyper in config["hyper"].values() for k, v in hyper.items()}


def _critic(result: Evaluation) -> str:
    return f"of {result.critic}, step {result.critic_checkpoint:,}"


def _commands(run: Path, record: dict, result: Evaluation, source: Source | None) -> list[str]:
    """Return the command lines from nothing to this page."""
    folder = record["data"]["folder"]
    commands = []
    if source is not None and source.origin:
        commands.append(["qgf", *source.origin])
    settings, kinds = _settings(record["config"]), record["learners"].values()
    changes = {
        name: dict(settings.items() - _settings(config_record(preset, kinds)).items())
        for name, preset in PRESETS.items()
    }
    preset = min(changes, key=lambda name: len(changes[name]))
    options = {"env": record["env"], "data": folder, "out": run, "preset": preset}
    seeds = ",".join(map(str, record["seeds"]))
    options |= {"seeds": seeds} if len(record["seeds"]) > 1 else {"seed": seeds}
    sources = {role: source["run"] for role, source in record["borrowed"].items()}
    if record["method"] != GUIDED:
        options["method"] = record["method"]
        options |= {"base": next(iter(sources.values()))} if sources else {}
    elif sources:
        options["policy"] = sources["policy"]
    fields = fields_of(record)
    options |= {"action": fields.action} if fields.action else {}
    options |= {"reward": fields.reward} if fields.reward else {}
    obs = ["--obs", *fields.obs] if fields.obs else []
    commands.append(["qgf", "train", *_flags(options | changes[preset]), *obs])
    methods = [name for name in result.methods if name not in (CLONED, GUIDED, BEST_OF)]
    evaluation = ["qgf", "eval", str(run)]
    evaluation += ["--method", GUIDED, *methods] if methods else []
    evaluation.append("--weights")
    evaluation += [str(row.weight) for row in result.methods[GUIDED].settings]
    steps = result.denoise_steps
    evaluation += [] if steps is None else ["--denoise-steps", str(steps)]
    evaluation += [] if result.critic is None else ["--critic", result.critic]
    if _best_of(result):
        evaluation += ["--best-of", *(str(row.samples) for row in _best_of(result))]
    counts = result.episodes
    options = {"episodes": counts["test"], "tune_episodes": counts["tune"]}
    options |= {"seed": result.seed, "checkpoint": result.checkpoint}
    commands.append([*evaluation, *_flags(options)])
    commands.append(["qgf", "report", str(run)])
    return [shlex.join(command) for command in commands]


def _best_of(result: Evaluation) -> tuple[SettingResult, ...]:
    return result.methods[BEST_OF].settings if BEST_OF in result.methods else ()


def _flags(options: dict) -> list[str]:
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return list(itertools.chain.from_iterable(pairs))


def _tidy(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4", lw=0.8)
        axes.set_axisbelow(True)
