"""Studies: one file a figure of the paper, run by `qgf study NAME`.

A study is a module of three functions: `measure(preset, out, executor)` returns its data, ready for
JSON (OUT is a folder for what it has to make on the way, and to reuse; the executor runs trainings
side by side before anything that needs them); `draw(data)` returns a figure; `say(data)` compares
the data with the paper's claim in one paragraph, whose words follow from the data. The studies of
ANYWHERE also take an environment: `measure(preset, out, executor, env)`.
"""

from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from matplotlib import rc_context
from matplotlib.figure import Figure

from qgf.errors import UserError, nearest
from qgf.executor import Executor
from qgf.files import atomic_open, locked, write_json
from studies import (
    calibration,
    compute,
    coverage,
    critics,
    q_optimizer,
    realtime,
    scaling,
    sensitivity,
    steps,
    toy,
    weight,
)

Preset = Literal["smoke", "laptop", "paper"]


@runtime_checkable
class Study(Protocol):
    """What a module of this package offers."""

    def measure(
        self, preset: Preset, out: Path, executor: Executor | None, **options: str
    ) -> dict[str, Any]: ...

    def draw(self, data: dict[str, Any]) -> Figure: ...

    def say(self, data: dict[str, Any]) -> str: ...


STUDIES: dict[str, Study] = {
    "sensitivity": sensitivity,
    "toy": toy,
    "weight": weight,
    "calibration": calibration,
    "q-optimizer": q_optimizer,
    "compute": compute,
    "steps": steps,
    "scaling": scaling,
    "critics": critics,
    "realtime": realtime,
    "coverage": coverage,
}
ANYWHERE = ("sensitivity", "weight", "q-optimizer")


def run_study(
    name: str,
    preset: Preset,
    out: Path,
    env: str | None = None,
    executor: Executor | None = None,
) -> str:
    """Run a study; write OUT/NAME.{json,png,svg,md} and return its paragraph.

    Args:
        env: task, or goals of an -oraclerep environment, to look at instead of the study's own;
            its files are then named NAME-ENV.
        executor: what runs trainings side by side, e.g. `qgf.executor.Processes()`; by default they
            are run one after the other in this process.

    Raises:
        UserError: no such study or preset, a study or an environment that do not go together,
            or OUT cannot be written.
    """
    if name not in STUDIES:
        known = ", ".join(["all", *STUDIES])
        raise UserError(f"no study {name!r}.{nearest(name, STUDIES)} There are: {known}")
    if preset not in get_args(Preset):
        raise UserError(f"no preset {preset!r}; there are: {', '.join(get_args(Preset))}")
    if env and name not in ANYWHERE:
        raise UserError(f"{name} has environments of its own; --env is for {', '.join(ANYWHERE)}")
    study, out, options = STUDIES[name], Path(out), {"env": env} if env else {}
    with locked(out):
        data = {"study": name, "preset": preset, **study.measure(preset, out, executor, **options)}
        name = f"{name}-{env}" if env else name
        write_json(out / f"{name}.json", data)
        figure = study.draw(data)
        # An SVG is the same bytes when its data are: no date, and names that are not random.
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            with rc_context({"svg.hashsalt": name}), atomic_open(out / f"{name}.{kind}") as file:
                figure.savefig(file, format=kind, dpi=200, metadata=metadata)
        paragraph = study.say(data)
        with atomic_open(out / f"{name}.md", "w") as file:
            file.write(paragraph + "\n")
    return paragraph
