"""Give the program senseless command lines and watch how it refuses them.

A line is one that makes sense, with words swapped, dropped, doubled and replaced by nonsense. It
runs in this process, up to where its arguments are accepted: the heavy work behind that is left
out. The program must accept it, or refuse it with exit code 2 and one line on standard error,
nothing on standard output, and nothing left on disk.
"""

import contextlib
import dataclasses
import io
import os
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kills import FEW, NAME, TASK, TRAINING

import qgf.cli
from qgf._checkout import import_studies
from qgf.commands import COMMANDS
from qgf.config import Config
from qgf.learners import LEARNERS
from qgf.tasks.ogbench.collect import collect

SECONDS = 20
"""that a line may take; most take milliseconds"""
NUMBERS = (
    *("-1", "0", "1", "2.5", "1000", "1e9", "1e400", "-1e-400", "nan", "inf", "-inf", "0x10"),
    *("1_0", "1000000", "1000000000", str(2**31), str(2**70), str(10**20), "9" * 5000, "٣", "+7"),
)
WORDS = (
    *("", " ", "-", "--", "---", "None", "True", "a,b", "0,0.1", "0 0.1", "0..3", "3..0", "*", "~"),
    *("∇…│", "\udcff\udcfe", "\n", "\r\nqgf: ok", "\x1b[31m", "a\0b", "%s%n", "{}", "x" * 300),
    *("x/" * 3000, "--help", "--unknown", "--seed", "--out", "-h", "=", "--seed=", "--=", "qgf"),
    *("none", "file", "folder", "loop", "full", "secret", "file/x", "/dev/null", "/dev/full/x"),
    *(NAME, TASK, "cube-single-v0", "scene-play-singletask-task9-v0", "-singletask-task1-v0"),
    *("cube-single-play-oraclerep-v0", "bfn", "fql", "iql", "dqc", "wandb", "paper", "last", "40"),
)

TRAINED = {
    field.name: field
    for form in (Config, *(learner.Hyper for learner in LEARNERS.values()))
    for field in dataclasses.fields(form)
}.values()
OPTIONS = {
    name: [
        "--" + field.name.replace("_", "-")
        for field in (*dataclasses.fields(kind), *TRAINED)
        if hasattr(kind, "config") or field.name in kind.__dataclass_fields__
    ]
    for name, kind in COMMANDS.items()
}


class Accepted(BaseException):
    """Raised where the heavy work of a command would begin."""


class TooLong(BaseException):
    """Raised when a line takes more than SECONDS."""


def accept(*arguments: Any, **options: Any) -> None:
    raise Accepted


def sensible(run: Path, data: Path) -> list[list[str]]:
    """Return a line of every command, to be worked on."""
    lines = (
        f"collect {NAME} --out out --episodes 2 --val-episodes 1 --shard-episodes 2 --workers 1",
        f"train --env {TASK} --data {data} --out out {TRAINING} --seeds 0..1 --method qgf",
        f"train --out out --base {run} {TRAINING} --method fql --seed 0",
        f"train --env {NAME} --data {data} --out out {TRAINING} --preset paper --logger none",
        f"train --env {TASK} --data {data} --out out {TRAINING} --policy {run} --critic iql",
        f"train --env {TASK} --data {data} --out {run} {TRAINING} --resume --steps 50",
        f"eval {run} --method qgf bfn --weights 0 0.1 --best-of 2 {FEW} --seed 0 --json out",
        f"eval {run} --critic {run} {FEW} --checkpoint last --video out",
        f"compare --out out --envs {TASK} --data {data} --methods qgf bfn --seeds 0 {FEW} "
        f"{TRAINING}",
        "study weight --preset smoke --out out",
        f"report {run} --no-video",
        "demo --out out --workers 1",
        "study toy --out out",
        "methods",
    )
    return [line.split() for line in lines]


def senseless(line: list[str], rng: random.Random) -> list[str]:
    """Return the line after one to three changes."""
    line = list(line)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(line) + 1)
        nonsense = rng.choice(rng.choice((NUMBERS, WORDS)))
        values = [i for i, word in enumerate(line) if i and not word.startswith("--")]
        match rng.randrange(9):
            case 0:
                del line[at : at + 1]
            case 1:
                line.insert(at, nonsense)
            case 2:
                line[at:at] = line[at : at + 2]
            case 3:
                other = rng.randrange(len(line) + 1)
                line[at : at + 1], line[other : other + 1] = (
                    line[other : other + 1],
                    line[at : at + 1],
                )
            case 4 if len(line) > at:
                letter = rng.randrange(len(line[at]) + 1)
                line[at] = line[at][:letter] + rng.choice("-=,.∇0") + line[at][letter + 1 :]
            case 5 | 6 if OPTIONS.get("".join(line[:1])):
                line += [rng.choice(OPTIONS[line[0]]), nonsense]
            case _ if values:
                line[rng.choice(values)] = nonsense
    return line


def prepare(folder: Path) -> None:
    """Make the folder that every line finds itself in: what wrong paths may meet."""
    (folder / "file").write_text("no more than a text")
    (folder / "folder").mkdir()
    (folder / "folder" / "thesis.tex").write_text("x")
    (folder / "loop").symlink_to("loop")
    (folder / "full").symlink_to("/dev/full")
    (folder / "secret").mkdir(mode=0)


def contents(*folders: Path) -> dict[Path, int]:
    """Return every path below the folders, with the time of its last change."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {path: path.lstat().st_mtime_ns for path in paths if not path.is_dir()} | {
        path: 0 for path in paths
    }


@contextlib.contextmanager
def light() -> Iterator[None]:
    """Leave out what takes long and comes after all arguments are accepted."""
    with contextlib.ExitStack() as undo:
        for name in (
            *(
                "qgf.comparison._trainings.execute",
                "qgf.run.trainer.create_state",
                "qgf.tasks.ogbench.collect._fill",
                "qgf.evaluation._evaluate.roll_out",
            ),
            *(
                "qgf.comparison._compare._evaluate",
                "qgf.reports._report._shown",
                "qgf.demo.collect",
            ),
        ):
            undo.enter_context(patch(name, accept))
        undo.enter_context(patch("qgf.evaluation._evaluate.auto_weight", lambda *a, **k: 0.1))
        undo.enter_context(patch.object(import_studies().STUDIES["toy"], "measure", accept))
        yield


def outcome(line: list[str], *watched: Path) -> str:
    """Run a line; return "accepted", "refused", or what is wrong with how it ended."""

    def late(number: int, frame: Any) -> None:
        raise TooLong

    out, err, before = io.StringIO(), io.StringIO(), contents(*watched)
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            qgf.cli.main(line)
        return "accepted"
    except Accepted:
        return "accepted"
    except SystemExit as stop:
        code = stop.code
    except TooLong:
        return f"takes more than {SECONDS} s"
    except BaseException:
        return traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    said = err.getvalue()
    if code != 2:
        return f"exit code {code}"
    if not said.startswith("qgf: ") or len(said.splitlines()) != 1:
        return f"not one line: {said!r}"
    if out.getvalue():
        return f"on standard output: {out.getvalue()!r}"
    changed = contents(*watched).items() ^ before.items()
    if changed:
        return f"left on disk: {sorted({str(path) for path, _ in changed})}"
    return "refused"


def attack(folder: Path, count: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Try `count` lines; return how many were refused, and what went wrong."""
    run, data, here = folder / "run", folder / "data", os.getcwd()
    collect(NAME, data, 2, 1, 2, None, 0, 101)
    qgf.cli.main(f"train --env {TASK} --data {data} --out {run} {TRAINING} --keep 1".split())
    lines, rng = sensible(run, data), random.Random(seed)
    say(f"commands: seed {seed}")
    counts, wrong = {"accepted": 0, "refused": 0}, []
    with light():
        for number in range(count):
            line = senseless(rng.choice(lines), rng)
            place = folder / str(number)
            place.mkdir()
            prepare(place)
            os.chdir(place)
            try:
                found = outcome(line, place, run, data)
            finally:
                os.chdir(here)
            if found in counts:
                counts[found] += 1
            else:
                wrong.append(f"{[word[:80] for word in line]}: {found[-600:]}")
                say(wrong[-1])
    return {"seed": seed, "count": count, **counts, "wrong": wrong}
