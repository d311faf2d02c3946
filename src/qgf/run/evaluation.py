"""What an evaluation found, RUN/eval.json that keeps it, and what is chosen from it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qgf.errors import UserError
from qgf.files import check_form, read_record, write_record
from qgf.methods.table import CLONED

Interval = tuple[float, float]


class _Written:
    """A dataclass that is also JSON: what is None or empty is left out, `return_` is "return"."""

    def json(self) -> dict[str, Any]:
        """Return it as JSON keeps it."""
        return dataclasses.asdict(self, dict_factory=_written)


def _written(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.rstrip("_"): value for name, value in items if value not in (None, ())}


@dataclass(frozen=True)
class Figures(_Written):
    """Episodes of one setting, those of all training seeds together.

    Attributes:
        return_: mean sum of rewards, with its bootstrap interval `return_ci95`.
        length: mean number of environment steps.
        episodes: how many there are.
        fallbacks: denoising steps that went unguided, as a gradient was not finite.
        success: share of episodes that succeeded, with its interval `ci95` (`success_interval`);
            None where the environment does not say it.
        success_per_seed: the same for each training seed.
        difference: to the unguided policy on the same episodes, in success if that is said, else
            in return, with its bootstrap interval; None for that policy itself.
        goals: the same for every goal, where there are several.
        difference_ci95: the bootstrap interval of `difference`.
    """

    return_: float
    return_ci95: Interval
    length: float
    episodes: int
    fallbacks: int
    success: float | None = None
    ci95: Interval | None = None
    success_per_seed: tuple[float, ...] = ()
    difference: float | None = None
    difference_ci95: Interval | None = None
    goals: "tuple[Figures, ...]" = ()


@dataclass(frozen=True)
class SettingResult(_Written):
    """A weight and a number of samples, with the episodes to choose by and those to report.

    Attributes:
        weight: guidance weight, or what else the method is tuned by.
        samples: of so many the critic chooses one.
        tune, test: figures of the two sets of episodes; None where none were run.
    """

    weight: float
    samples: int
    tune: Figures | None = None
    test: Figures | None = None


@dataclass(frozen=True)
class MethodResult(_Written):
    """A method at the setting that its tune episodes chose.

    Attributes:
        weight, samples: what was chosen.
        test: its figures on the test episodes.
        settings: all that were tried.
    """

    weight: float
    samples: int
    test: Figures
    settings: tuple[SettingResult, ...]


class Measure(NamedTuple):
    """One way to judge episodes.

    Attributes:
        name: what records call it.
        fields: the attributes of `Figures` that are its value and its 95% interval.
        column: of an array of outcomes.
        label: what axes and tables call it.
        method: what kind of interval it is.
        style: how a value is written.
    """

    name: str
    fields: tuple[str, str]
    column: int
    label: str
    method: str
    style: str

    def of(self, figures: Figures) -> tuple[float, Interval]:
        """Return the value and its interval."""
        value, interval = (getattr(figures, name) for name in self.fields)
        return value, interval

    def text(self, value: float, sign: str = "") -> str:
        """Return a value as people read it; `sign` "+" shows it."""
        return format(value, sign + self.style)

    def between(self, interval: Sequence[float], sign: str = "") -> str:
        """Return an interval as people read it."""
        return f"{self.text(interval[0], sign)} to {self.text(interval[1], sign)}"


SUCCESS = Measure("success", ("success", "ci95"), 0, "success rate", "Wilson", ".1%")
"""the share of episodes that succeeded, as a measure"""
RETURN = Measure("return", ("return_", "return_ci95"), 1, "return", "bootstrap", ".4g")
MEASURES = {measure.name: measure for measure in (SUCCESS, RETURN)}


@dataclass(frozen=True)
class Evaluation(_Written):
    """What `qgf.evaluate` found.

    Attributes:
        env, run: the task, and the folder of the run.
        critic: folder of the run whose critic took the place of the run's own, if any.
        checkpoint, critic_checkpoint: their gradient steps.
        learners: hashes of the networks by role.
        training_seeds: those of the run.
        seed: of environments and noise.
        episodes: by split ("tune", "test"), for every setting and training seed.
        denoise_steps: T, None for that of training.
        measure: what episodes are judged by: success where the environment says it, else return.
        methods: by name; "bc" is the policy as it was cloned.
    """

    env: str
    run: str
    critic: str | None
    checkpoint: int
    critic_checkpoint: int
    learners: dict[str, str]
    training_seeds: tuple[int, ...]
    seed: int
    episodes: dict[str, int]
    denoise_steps: int | None
    measure: Measure
    methods: dict[str, MethodResult]

    def json(self) -> dict[str, Any]:
        return super().json() | {
            "measure": self.measure.name,
            "critic": self.critic,
            "denoise_steps": self.denoise_steps,
        }


_INTERVAL = [float, float]
_FIGURES = {"return": float, "length": float, "episodes": int, "fallbacks": int}
_GAIN = {"difference": float, "difference_ci95": _INTERVAL}
_ROW = {"weight": float, "samples": int, "tune": _FIGURES, "test": _FIGURES}
_FORM = {
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
    "methods": {str: {"weight": float, "samples": int, "test": _FIGURES, "settings": [_ROW]}},
}


def write_evaluation(run: Path, result: Evaluation) -> None:
    """Write what `evaluate` returned to RUN/eval.json. UserError if it cannot be written.

    Args:
        run: folder of the run.
        result: what `evaluate` returned.
    """
    write_record(Path(run) / "eval.json", result.json())


def read_evaluation(run: Path) -> Evaluation:
    """Return RUN/eval.json.

    Args:
        run: folder of the run.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = Path(run) / "eval.json"
    found = {"denoise_steps": None, "measure": "success", "run": str(run)} | read_record(path)
    check_form(found, _FORM, str(path))
    if found["measure"] not in MEASURES:
        raise UserError(f"{path} is damaged: episodes cannot be judged by {found['measure']!r}")
    found["measure"] = MEASURES[found["measure"]]
    value, interval = found["measure"].fields
    judged = {value.rstrip("_"): float, interval: _INTERVAL}
    for name, method in found["methods"].items():
        place = f"{path}: methods: {name}"
        rows = [method["test"], *(row[s] for row in method["settings"] for s in ("tune", "test"))]
        for row in rows:
            check_form(row, judged, place)
        if name != CLONED and CLONED in found["methods"]:
            check_form(method["test"], _GAIN, f"{place}: test")
        chosen = [method["weight"], method["samples"]]
        if chosen not in [[row["weight"], row["samples"]] for row in method["settings"]]:
            raise UserError(f"{place}: what was chosen is not among its settings; it is damaged")
    found["training_seeds"] = tuple(found["training_seeds"])
    found["methods"] = {name: _method(method) for name, method in found["methods"].items()}
    return Evaluation(**{field.name: found[field.name] for field in dataclasses.fields(Evaluation)})


def _method(found: dict) -> MethodResult:
    settings = (
        SettingResult(row["weight"], row["samples"], _figures(row["tune"]), _figures(row["test"]))
        for row in found["settings"]
    )
    return MethodResult(found["weight"], found["samples"], _figures(found["test"]), tuple(settings))


def _figures(found: dict) -> Figures:
    names = {field.name.rstrip("_"): field.name for field in dataclasses.fields(Figures)}
    values = {
        names[name]: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in names
    }
    values["goals"] = tuple(map(_figures, found.get("goals", ())))
    # Version 0.1.0 had no interval of returns.
    return Figures(**{"return_ci95": (float("nan"), float("nan")), **values})


def choose(rows: Sequence[SettingResult]) -> SettingResult:
    """Return the setting with the best tune episodes, by success if that is said.

    Ties go to the higher return, then to the smaller weight, which stays nearer the data.

    Args:
        rows: the settings that were tried, with tune episodes.
    """

    def rank(row: SettingResult) -> tuple[float, float, float]:
        return row.tune.success or 0.0, row.tune.return_, -row.weight

    return max(rows, key=rank)
