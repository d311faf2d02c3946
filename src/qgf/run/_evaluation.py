"""RUN/eval.json: what it holds, and what is chosen from it."""

from collections.abc import Sequence
from pathlib import Path

from qgf.errors import UserError
from qgf.files import check_form, read_record, write_record
from qgf.methods.table import CLONED

INTERVAL = [float, float]
FIGURES = {"return": float, "length": float, "episodes": int, "fallbacks": int}
JUDGED = {
    "success": {"success": float, "ci95": INTERVAL},
    "return": {"return_ci95": INTERVAL},
}
"""what figures hold besides, by what episodes are judged by"""
GAIN = {"difference": float, "difference_ci95": INTERVAL}
ROW = {"weight": float, "samples": int, "tune": FIGURES, "test": FIGURES}
FORM = {
    "env": str,
    "measure": str,
    "checkpoint": int,
    "critic": (str, type(None)),
    "critic_checkpoint": int,
    "denoise_steps": (int, type(None)),
    "learners": {str: str},
    "training_seeds": [int],
    "seed": int,
    "episodes": {"tune": int, "test": int},
    "methods": {str: {"weight": float, "samples": int, "test": FIGURES, "settings": [ROW]}},
}


def write_evaluation(run: Path, result: dict) -> None:
    """Write what `evaluate` returned to RUN/eval.json. UserError if it cannot be written."""
    write_record(Path(run) / "eval.json", result)


def read_evaluation(run: Path) -> dict:
    """Return RUN/eval.json.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = Path(run) / "eval.json"
    result = {"denoise_steps": None, "measure": "success"} | read_record(path)
    check_form(result, FORM, str(path))
    if result["measure"] not in JUDGED:
        raise UserError(f"{path} is damaged: episodes cannot be judged by {result['measure']!r}")
    for name, found in result["methods"].items():
        place = f"{path}: methods: {name}"
        rows = [found["test"], *(row[s] for row in found["settings"] for s in ("tune", "test"))]
        for row in rows:
            check_form(row, JUDGED[result["measure"]], place)
        if name != CLONED and CLONED in result["methods"]:
            check_form(found["test"], GAIN, f"{place}: test")
        chosen = [found["weight"], found["samples"]]
        if chosen not in [[row["weight"], row["samples"]] for row in found["settings"]]:
            raise UserError(f"{place}: what was chosen is not among its settings; it is damaged")
    return result


def choose(rows: Sequence[dict]) -> dict:
    """Return the row with the best tune episodes, by success if that is said.

    Ties go to the higher return, then to the smaller weight, which stays nearer the data.
    """

    def rank(row: dict) -> tuple[float, float, float]:
        tune = row["tune"]
        return tune.get("success", 0.0), tune["return"], -row["weight"]

    return max(rows, key=rank)
