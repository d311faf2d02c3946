"""Rewrite the tables in README.md and docs/ from results/*.json: python docs/tables.py

A table stands between `<!-- table NAME -->` and `<!-- end -->`; nothing else is touched.
"""

import json
import re
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = ("training", "latency", "methods", "collecting", "evaluating")
PAGES = ("README.md", "docs/results.md", "docs/performance.md")


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def interval(pair: list[float]) -> str:
    return f"{100 * pair[0]:.0f} to {100 * pair[1]:.0f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quality() -> str:
    rows = []
    for entry in json.loads((ROOT / "results/quality.json").read_text())["runs"]:
        result = entry["result"]
        bc, best, ours = result["bc"], result["best_of"][0], result["qgf"]
        rows.append(
            [
                result["env"].removesuffix("-v0").replace("-play-singletask-", " "),
                f"{percent(bc['success'])} ({interval(bc['ci95'])})",
                f"{percent(best['test']['success'])} ({interval(best['test']['ci95'])})",
                f"{percent(ours['success'])} ({interval(ours['ci95'])})",
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
    figures = json.loads((ROOT / "results/benchmarks.json").read_text())[part]["figures"]
    keys = list(next(iter(figures.values())))
    rows = [
        [name, *(f"{value[key]:.3g}" if value[key] < 100 else f"{value[key]:.0f}" for key in keys)]
        for name, value in figures.items()
    ]
    return markdown(["", *(key.replace("_", " ") for key in keys)], rows)


TABLES = {
    "quality": quality,
    "sweep": sweep,
    **{part: partial(speed, part) for part in PARTS},
}


def filled(text: str) -> str:
    """Return a page's text with every table made anew."""
    return re.sub(
        r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))
