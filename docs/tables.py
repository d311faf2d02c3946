"""Rewrite the tables in README.md and docs/ from results/*.json: python docs/tables.py

A table stands between `<!-- table NAME -->` and `<!-- end -->`; nothing else is touched.
"""

import json
import re
from functools import partial
from pathlib import Path

from qgf._checkout import import_studies
from qgf.comparison import markdown, sections
from qgf.config import PRESETS, Config
from qgf.evaluation import wilson_interval
from qgf.methods import GUIDANCE, METHODS

ROOT = Path(__file__).parent.parent
BENCHMARKS = ("training", "dqc", "latency", "aggregation", "collecting", "evaluating")
PARTS = dict.fromkeys(BENCHMARKS, "benchmarks")
PARTS |= dict.fromkeys(("streaming", "reading"), "streaming")  # in which file of results/
NAMES = ("results", "performance", "clusters")
NESTED_NOTE = (
    "Success on test episodes, which are not the tune episodes that chose a method's setting. In "
    "brackets 95% intervals: of a task Wilson's, which takes the episodes of all training seeds "
    "as independent; of mean and IQM (the mean of the middle half of all seed × task success "
    "rates) from 2000 bootstrap resamples, which in every task draw training seeds and, in each, "
    "episodes. With few training seeds they leave out part of how much training varies."
)
"""how the intervals of boards were made before training seeds and starts were taken as crossed"""
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def interval(pair: list[float]) -> str:
    return f"{100 * pair[0]:.0f} to {100 * pair[1]:.0f}"


def success(figures: dict) -> str:
    return f"{percent(figures['success'])} ({interval(figures['ci95'])})"


def points(figures: dict) -> str:
    return f"{100 * figures['difference']:+.0f} points ({interval(figures['difference_ci95'])})"


def quality() -> str:
    rows = []
    for entry in json.loads((ROOT / "results/quality.json").read_text())["runs"]:
        result = entry["result"]
        bc, best, ours = result["bc"], result["best_of"][0], result["qgf"]
        rows.append(
            [
                result["env"].removesuffix("-v0").replace("-play-singletask-", " "),
                success(bc),
                success(best["test"]),
                success(ours),
                f"{100 * ours['difference']:+.0f} ({interval(ours['difference_ci95'])})",
                f"{ours['weight']:g}",
                f"{result['episodes']['tune']} / {ours['episodes']}",
            ]
        )
    head = ["task", "BC", "best of 8", "QGF", "QGF − BC, points", "w", "episodes tune / test"]
    return markdown(head, rows)


def sweep() -> str:
    runs = json.loads((ROOT / "results/quality.json").read_text())["runs"]
    weights = sorted({row["weight"] for run in runs for row in run["result"]["weights"]})
    rows = []
    for entry in runs:
        found = {row["weight"]: row["test"]["success"] for row in entry["result"]["weights"]}
        cells = [percent(found[w]) if w in found else "" for w in weights]
        name = entry["result"]["env"].removesuffix("-v0").replace("-play-singletask-", " ")
        rows.append([name, *cells])
    return markdown(["task", *(f"w = {w:g}" for w in weights)], rows)


def speed(part: str) -> str:
    figures = json.loads((ROOT / f"results/{PARTS[part]}.json").read_text())[part]["figures"]
    keys = list(next(iter(figures.values())))
    rows = [
        [name, *(f"{value[key]:.3g}" if value[key] < 100 else f"{value[key]:.0f}" for key in keys)]
        for name, value in figures.items()
    ]
    return markdown(["", *(key.replace("_", " ") for key in keys)], rows)


def waiting() -> str:
    """Say how many gradient steps hide the reading of a part, at the default memory."""
    figures = json.loads((ROOT / "results/streaming.json").read_text())["reading"]["figures"]
    config, row = Config(), 4 * (37 + 5 + 4)  # bytes: cube-double's observation, action and labels
    rows = config.resident_gb / 3 * 1e9 / row
    seconds = rows * figures["everything"]["seconds_per_million"] / 1e6
    size = f"{config.depth}x{config.width} batch {config.batch_size}"
    kept = json.loads((ROOT / "results/benchmarks.json").read_text())["training"]["figures"]
    rate = kept[size]["steps_per_second"]
    return (
        f"With `--resident-gb {config.resident_gb:g}`, the default, a part of cube-double has "
        f"{rows / 1e6:.1f} million transitions and is read in {seconds:.0f} seconds of one core. "
        f"At the {rate:.3g} steps per second of {size} in the table above these are "
        f"{seconds * rate:,.0f} gradient steps; `--rotate-every` is {config.rotate_every:,} by "
        "default."
    )


def side_by_side() -> str:
    """Say what trainings side by side save, and how long the program takes to start."""
    kept = json.loads((ROOT / "results/side-by-side.json").read_text())
    alone, beside = (kept["seconds"][f"--jobs {jobs}"] for jobs in (0, 2))
    start = kept["start"]
    apart, together = (sum(kept["trainings"][f"--jobs {jobs}"]) for jobs in (0, 2))
    return (
        f"`{kept['command']}` takes {alone:.0f} seconds with `--jobs 0`, in one process on all "
        f"threads, and {beside:.0f} with `--jobs 2`, side by side: {beside / alone:.2f} of it. "
        f"The trainings alone come to {apart:.0f} seconds one after the other, and side by side to "
        f"{together / 2:.0f} per core.\n\n"
        f"`import qgf` takes {start['import qgf']:.2f} s and `qgf --help` "
        f"{start['qgf --help']:.2f} s, of which Python itself {start['python']:.2f} s."
    )


def fewer_steps() -> str:
    rows = json.loads((ROOT / "results/denoise-steps.json").read_text())["rows"]
    counts = list(dict.fromkeys(row["denoise_steps"] for row in rows))
    by_task: dict[str, dict[int, dict]] = {}
    for row in rows:
        by_task.setdefault(row["env"], {})[row["denoise_steps"]] = row
    table = [
        [env, success(found[counts[0]]["bc"]), *(success(found[n]["qgf"]) for n in counts)]
        for env, found in by_task.items()
    ]
    pooled = ["all"]
    for name, n in [("bc", counts[0]), *(("qgf", n) for n in counts)]:
        tests = [row[name] for row in rows if row["denoise_steps"] == n]
        total = sum(test["episodes"] for test in tests)
        won = round(sum(test["success"] * test["episodes"] for test in tests))
        pooled.append(success({"success": won / total, "ci95": wilson_interval(won, total)}))
    head = ["task", f"BC, T = {counts[0]}", *(f"QGF, T = {n}" for n in counts)]
    return markdown(head, [*table, pooled])


def board(name: str) -> dict:
    kept = json.loads((ROOT / f"results/{name}.json").read_text())["result"]
    return {"measure": "success", "note": NESTED_NOTE} | kept  # which older ones do not note


def leaderboard(name: str) -> str:
    shown = sections(board(name))
    return "\n\n".join(
        part for s in shown for part in (f"**{s.title}**", markdown(s.head, s.rows), s.note) if part
    )


def overall() -> str:
    section = sections(board("leaderboard"))[0]
    return markdown(section.head, section.rows)


def rate(figures: dict, key: str = "mean") -> str:
    return f"{percent(figures[key])} ({interval(figures[f'{key}_ci95'])})"


def verdict(figures: dict) -> str:
    """Say on which side of a coin toss the interval of P(QGF > it) lies."""
    low, high = figures["qgf_improves_ci95"]
    return "below QGF" if low > 0.5 else "above QGF" if high < 0.5 else "level with QGF"


def against_qgf(result: dict, names: list[str]) -> str:
    found: dict[str, list[str]] = {}
    for name in names:
        figures = result["overall"][name]
        text = f"{name} {percent(figures['mean'])}, P {rate(figures, 'qgf_improves')}"
        found.setdefault(verdict(figures), []).append(text)
    return "; ".join(f"{side}: {', '.join(parts)}" for side, parts in found.items())


BOARDS = {"cube-single": "leaderboard", "scene": "leaderboard-scene"}  # of test-time methods


def beats() -> str:
    lines = []
    for domain, name, kinds in (
        *((domain, name, ("test-time",)) for domain, name in BOARDS.items()),
        ("cube-single", "leaderboard-trained", ("extra network", "train-time")),
    ):
        result = board(name)
        names = [
            n for n in result["methods"] if METHODS[n].kind in kinds and n not in ("qgf", "bc")
        ]
        tasks, found = len(result["tasks"]), result["overall"]
        lines.append(
            f"On {tasks} task{'s' * (tasks > 1)} of {domain}: QGF {rate(found['qgf'])}, BC "
            f"{rate(found['bc'])}; {against_qgf(result, names)}."
        )
    return "\n\n".join(lines)


def pooled(result: dict, name: str) -> dict[float, dict]:
    """Return, for every weight, a method's tune success, Q gain and distance over all domains."""
    found: dict[float, list[tuple[dict, int]]] = {}
    for dataset, methods in result["settings"].items():
        tasks = len(result["domains"][dataset]["tasks"])
        for row in methods[name]:
            found.setdefault(row["weight"], []).append((row, tasks))
    pool = {}
    for weight, rows in found.items():
        total = sum(n for _, n in rows)
        pool[weight] = {k: sum(r[k] * n for r, n in rows) / total for k in ("q_gain", "moved")}
        pool[weight]["success"] = sum(r["tune"]["success"] * n for r, n in rows) / total
        pool[weight]["episodes"] = sum(r["tune"]["episodes"] for r, _ in rows)
    return pool


def optimizers() -> str:
    """Q reached against success for the same weights: who exploits the critic?"""
    result = board("leaderboard")
    names = [n for n in result["methods"] if METHODS[n].guided and n != "qgf+bfn"]
    rows = []
    for weight in GUIDANCE[2:]:
        for name in names:
            p = pooled(result, name)[weight]
            cells = [f"{p['q_gain']:+.2f}", f"{p['moved']:.3f}", percent(p["success"])]
            rows.append([f"{weight:g}", name, *cells, str(p["episodes"])])
    head = ["w", "method", "Q above BC's", "distance from BC's action", "success", "episodes"]
    return markdown(head, rows)


CUBE = "cube-single-play-v0"


def costs() -> str:
    """Every method's cost of an action, relative to plain cloning in the same run."""
    rows = {}
    for result in (board("leaderboard"), board("leaderboard-trained")):
        found = result["costs"][CUBE]
        plain = found["bc"]["ms"]
        for name in METHODS:
            if name in found and name not in rows:
                ms = found[name]["ms"]
                times = [f"{ms[b]:.3g} ({ms[b] / plain[b]:.1f} × BC)" for b in ("1", "50")]
                rows[name] = [name, *times, f"{found[name]['flops'] / 1e6:.3g}"]
    return markdown(["method", "ms, batch 1", "ms, batch 50", "MFLOPs"], [*rows.values()])


def weights() -> str:
    pool = pooled(board("leaderboard"), "qgf")
    best, last = max(pool, key=lambda w: pool[w]["success"]), max(pool)
    curve = ", ".join(f"{percent(p['success'])} at w = {w:g}" for w, p in sorted(pool.items()))
    falls = pool[last]["success"] < pool[best]["success"] and best < last
    shape = "rises and then falls" if falls else "does not fall within the weights tried"
    episodes = pool[best]["episodes"]
    return f"Tune episodes of all tasks, {episodes} a weight: {curve}. Success {shape}."


def compute() -> str:
    boards, rows = [board(name) for name in BOARDS.values()], []
    for name in ("bc", "qgf", "bfn-4", "bfn", "qgf+bfn", "gradstep", "bptt"):
        rates = [rate(result["overall"][name]) for result in boards]
        each = [cost[name] for result in boards for cost in result["costs"].values()]
        ms = [f"{each[0]['ms'][batch]:.3g}" for batch in ("1", "50")]
        rows.append([name, *rates, *ms, *(f"{cost['flops'] / 1e6:.3g}" for cost in each)])
    head = [f"success, {domain}" for domain in BOARDS]
    head += [f"ms on {next(iter(BOARDS))}, batch {batch}" for batch in (1, 50)]
    head += [f"MFLOPs, {domain}" for domain in BOARDS]
    return markdown(["method", *head], rows)


def ablations() -> str:
    """Every domain's estimators in the order of their mean success."""
    lines = []
    for domain, name in BOARDS.items():
        found = board(name)["overall"]
        names = [n for n in found if n.startswith("qgf-") or n in ("qgf", "bptt", "qfql")]
        names.sort(key=lambda n: -found[n]["mean"])
        order = ", ".join(f"{n} {rate(found[n])}" for n in names)
        lines.append(f"By mean success on {domain}: {order}.")
    return "\n\n".join(lines)


def study(name: str) -> str:
    """A study's figure, and the paragraph it computes from its data."""
    data = json.loads((ROOT / f"results/studies/{name}.json").read_text())["data"]
    return f"![{name}](figures/{name}.png)\n\n{import_studies().STUDIES[name].say(data)}"


def goals(name: str) -> str:
    """Success on each of OGBench's goals, at weights chosen on other episodes."""
    kept = json.loads((ROOT / f"results/{name}.json").read_text())
    result, qfql = kept["result"], kept["result"]["methods"]["qfql"]
    qgf, rows = result["methods"]["qgf"], []
    ours = qgf["test"]
    for label, test in (
        ("BC", result["methods"]["bc"]["test"]),
        (f"QFQL, w = {qfql['weight']:.3g}", qfql["test"]),
        (f"QGF, w = {qgf['weight']:.3g}", ours),
    ):
        each = [success(g) for g in test["goals"]]
        rows.append([label, success(test), *each])
    head = ["", "all goals", *(f"goal {i}" for i in range(1, 1 + len(ours["goals"])))]
    episodes = result["episodes"]
    again = ""
    if "second" in kept:
        test, plain = (kept["second"]["methods"][name]["test"] for name in ("qgf", "bc"))
        again = (
            f" A second training seed, at the weight chosen with the first: QGF {success(test)}, "
            f"BC {success(plain)}, {points(test)}."
        )
    return (
        f"{markdown(head, rows)}\n\nQGF − BC: {points(ours)}; {episodes['test']} test episodes and "
        f"{episodes['tune']} tune episodes of all goals together, "
        f"{len(result['training_seeds'])} training seed.{again}"
    )


def bootstrapped() -> str:
    """Success under the bootstrapped critic and under IQL's, at each weight."""
    kept = json.loads((ROOT / "results/bootstrapped.json").read_text())
    rows = []
    for label, result, name in (
        ("IQL", kept["iql"], "qgf"),
        ("bootstrapped", kept["bootstrapped"], "qgf-bootstrapped"),
    ):
        found = result["methods"][name]
        cells = [
            success(row["test"]) + (", chosen" if row["weight"] == found["weight"] else "")
            for row in found["settings"]
        ]
        rows.append([label, *cells])
    test = kept["bootstrapped"]["methods"]["qam-bootstrapped"]["test"]
    head = ["critic", *(f"w = {row['weight']:g}" for row in found["settings"])]
    return (
        f"{markdown(head, rows)}\n\n{test['episodes']} test episodes a weight; weights are chosen "
        f"on {found['settings'][0]['tune']['episodes']} others. QAM's own policy, at that step: "
        f"{success(test)}."
    )


def metaworld() -> str:
    """Success on Meta-World's tasks, at weights chosen on other episodes."""
    kept, rows = json.loads((ROOT / "results/metaworld.json").read_text()), []
    for task, result in kept["results"].items():
        bc, best, qgf = (result["methods"][name] for name in ("bc", "bfn", "qgf"))
        ours = qgf["test"]
        rows.append(
            [
                task,
                success(bc["test"]),
                success(best["test"]),
                success(ours),
                f"{100 * ours['difference']:+.0f} ({interval(ours['difference_ci95'])})",
                f"{qgf['weight']:g}",
            ]
        )
    head = ["task", "BC", f"best of {best['samples']}", "QGF", "QGF − BC, points", "w"]
    seeds, episodes = len(result["training_seeds"]), result["episodes"]
    tried = ", ".join(f"{row['weight']:g}" for row in qgf["settings"])
    return (
        f"{markdown(head, rows)}\n\n{seeds} training seeds; of each, {episodes['test']} test "
        f"episodes a setting, and {episodes['tune']} others on which w is chosen among {tried}."
    )


def paper_cost() -> str:
    """Say how long a training of the paper's size takes where the benchmark ran."""
    paper = PRESETS["paper"]
    size = f"{paper.depth}x{paper.width} batch {paper.batch_size}"
    figures = json.loads((ROOT / "results/benchmarks.json").read_text())["training"]["figures"]
    hours = paper.steps / figures[size]["steps_per_second"] / 3600
    return (
        f"At the rate measured on two CPU cores ({figures[size]['steps_per_second']:.3g} steps a "
        f"second), {paper.steps:,} steps of policy and critic take {hours:.0f} hours a training "
        "seed, and the preset has ten."
    )


def billion() -> str:
    """Say what collecting a billion transitions takes, from the rate of a core and from a shard."""
    figures = json.loads((ROOT / "results/benchmarks.json").read_text())["collecting"]["figures"]
    kept = json.loads((ROOT / "results/collection.json").read_text())
    rows = [
        [name, f"{found['steps_per_second']:.0f}", f"{1e9 / found['steps_per_second'] / 3600:.0f}"]
        for name, found in figures.items()
    ]
    each = kept["bytes"] / kept["transitions"]
    head = ["", "steps per second and core", "core hours per billion transitions"]
    return (
        f"{markdown(head, rows)}\n\nThe rates are those of [performance.md](performance.md). "
        f"{kept['transitions']:,} transitions of {kept['name']} take {kept['bytes'] / 1e6:,.0f} MB "
        f"of disk, {each:.0f} bytes each: a billion takes {each:.0f} GB."
    )


TABLES = {
    "billion": billion,
    "leaderboard": partial(leaderboard, "leaderboard"),
    "overall": overall,
    "trained": partial(leaderboard, "leaderboard-trained"),
    "scene": partial(leaderboard, "leaderboard-scene"),
    "beats": beats,
    "optimizers": optimizers,
    "weights": weights,
    "costs": costs,
    "compute": compute,
    "ablations": ablations,
    "quality": quality,
    "sweep": sweep,
    "paper-cost": paper_cost,
    "goals": partial(goals, "goals"),
    "goals-puzzle": partial(goals, "goals-puzzle"),
    "bootstrapped": bootstrapped,
    "metaworld": metaworld,
    "waiting": waiting,
    "fewer-steps": fewer_steps,
    "side-by-side": side_by_side,
    **{part: partial(speed, part) for part in PARTS},
    **{f"study-{name}": partial(study, name) for name in import_studies().STUDIES},
}


def filled(text: str) -> str:
    """Return a page's text with every table made anew."""
    return re.sub(
        r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))
