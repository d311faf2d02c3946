"""Kill commands at system calls that write, run them again, and compare with no kill at all.

A command runs in a fork of a process that has imported everything but started no thread; an
audit hook counts its writing system calls and ends it before one of them, by SIGKILL, SIGTERM or
Ctrl-C. Then the same command runs to its end (a training with --resume, once it has a
checkpoint). What is left must be what an uninterrupted command leaves: the same names, nothing
hidden, the same bytes. Files of measured times are compared by name alone.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import qgf.commands
import qgf.comparison._compare
import qgf.evaluation._evaluate
import qgf.reports._report
import qgf.run.trainer
import qgf.tasks.ogbench.collect
from qgf.cli import run

NAME = "cube-single-play-v0"
TASK = "cube-single-play-singletask-task1-v0"
TRAINING = (
    "--steps 40 --batch-size 8 --width 16 --depth 2 --dispatch-steps 10 --log-every 10 "
    "--validate-every 20 --checkpoint-every 20 --rotate-every 10"
)
FEW = "--episodes 1 --tune-episodes 1 --slots 4 --workers 1"
MEASURED = ("costs", "leaderboard")
ALWAYS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink"}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


class Command(NamedTuple):
    """A command line that writes into ./out, and what ./out holds before it.

    share is how many of a hundred kills it gets.
    """

    line: str
    before: str | None
    share: int


COMMANDS = {
    "collect": Command(
        f"collect {NAME} --out out --episodes 4 --val-episodes 2 --shard-episodes 2 --workers 1",
        None,
        25,
    ),
    "train": Command(
        f"train --env {TASK} --data ../collect --out out --keep 1 {TRAINING}", None, 40
    ),
    "prolong": Command(
        f"train --env {TASK} --data ../collect --out out --keep 1 {TRAINING} --steps 60 --resume",
        "train",
        10,
    ),
    "eval": Command(f"eval out --weights 0.1 {FEW}", "train", 10),
    "report": Command("report out --no-video", "eval", 5),
    "compare": Command(
        f"compare --envs {TASK} --data ../collect --out out --methods gradstep --seeds 0 {FEW} "
        f"{TRAINING}",
        None,
        10,
    ),
}


class Ended(NamedTuple):
    """How a command ended: exit code (-9 for SIGKILL), standard error, writing calls."""

    code: int
    error: str
    calls: int


def fork(line: str, folder: Path, at: int = 0, number: int = signal.SIGKILL) -> Ended:
    """Run a command in `folder`, in a fork of this process.

    Args:
        at: the writing call before which the command gets a signal; 0 for never.
    """
    count_read, count_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            for stream, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.argv = ["qgf", *line.split()]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _count(folder, at, number, count_write)
            run()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        os._exit(code)
    os.close(count_write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(count_read, "rb") as pipe:
        calls = len(pipe.read())
    error = Path(f"{folder}.stderr").read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), error, calls)


def _count(folder: Path, at: int, number: int, pipe: int) -> None:
    """Note every writing call of this process in a pipe; send it a signal before one of them."""
    calls, this, inside = 0, os.getpid(), f"{folder}{os.sep}"

    def count() -> None:
        nonlocal calls
        calls += 1
        os.write(pipe, b".")
        if calls == at:
            os.kill(this, number)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ALWAYS and os.getpid() == this and _writes(event, arguments):
            path = os.path.join(os.getcwd(), os.fsdecode(arguments[0]))
            if path.startswith(inside):
                count()

    sync = os.fsync

    def fsync(handle: int) -> None:
        count()
        sync(handle)

    os.fsync = fsync
    sys.addaudithook(hook)


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if not isinstance(arguments[0], str | bytes | os.PathLike):
        return False
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return all files, folders and their bytes; None for folders and for measured times."""
    names = {path: str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {
        name: None if path.is_dir() or name.startswith(MEASURED) else path.read_bytes()
        for path, name in names.items()
        if path.name != "seconds.json"  # of trainings that were not cut off
    }


class Attack:
    """Finished commands, and kills of them."""

    def __init__(self, folder: Path) -> None:
        # Episodes of a hundred steps.
        qgf.tasks.ogbench.collect.collect.__defaults__ = (101,)
        self.folder = folder
        self.place = folder / "place"  # the same for all: runs note where others lie
        self.calls: dict[str, int] = {}
        self.whole: dict[str, dict[str, bytes | None]] = {}
        self.finish("collect")  # whose data all others read

    def finish(self, name: str) -> None:
        """Run a command once to its end, unless it was, after the one before it."""
        command = COMMANDS[name]
        if name in self.whole:
            return
        if command.before is not None:
            self.finish(command.before)
        self._prepare(command)
        ended = fork(command.line, self.place)
        assert ended.code == 0, f"{name}: {ended}"
        self.calls[name] = ended.calls
        self.whole[name] = contents(self.place / "out")
        shutil.copytree(self.place / "out", self.folder / name)

    def _prepare(self, command: Command) -> None:
        """Let ./out be as it is before a command."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        if command.before is not None:
            shutil.copytree(self.folder / command.before, self.place / "out")

    def kill(self, name: str, at: int, number: int, twice: int | None = None) -> str | None:
        """Interrupt a command at its call `at`, run it again, and return what is wrong, if any.

        Args:
            twice: the call at which the second try is killed too.
        """
        command = COMMANDS[name]
        self._prepare(command)
        ended = fork(command.line, self.place, at, number)
        if ended.code not in (CODES[number], 0):
            return f"ended with {ended.code}: {ended.error[-300:]}"
        if number != signal.SIGKILL and ended.code and ended.error.count("\n") != 1:
            return f"said {ended.error!r}"
        if twice is not None:
            fork(self._again(command.line), self.place, twice)
        ended = fork(self._again(command.line), self.place)
        if ended.code or ended.error:
            return f"the same command ended with {ended.code}: {ended.error[-300:]}"
        ours, theirs = contents(self.place / "out"), self.whole[name]
        if ours.keys() != theirs.keys():
            return f"left other files: {sorted(ours.keys() ^ theirs.keys())}"
        differ = [path for path in ours if ours[path] != theirs[path]]
        return f"left other bytes in {differ}" if differ else None

    def _again(self, line: str) -> str:
        checkpoint = any((self.place / "out").glob("checkpoints/*/state.json"))
        return f"{line} --resume" if line.startswith("train") and checkpoint else line

    def plan(self, count: int, rng: random.Random) -> Iterator[tuple[str, int, int, int | None]]:
        """Yield the arguments of `count` random kills."""
        names, shares = list(COMMANDS), [command.share for command in COMMANDS.values()]
        for _ in range(count):
            (name,) = rng.choices(names, shares)
            self.finish(name)
            at = rng.randint(1, self.calls[name])
            twice = rng.randint(1, self.calls[name]) if rng.random() < 0.2 else None
            yield name, at, rng.choice(SIGNALS), twice


def attack(folder: Path, count: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill `count` times and return how many, of which commands, and what went wrong."""
    target, kills, wrong = Attack(folder), dict.fromkeys(COMMANDS, 0), []
    for name, at, number, twice in target.plan(count, random.Random(seed)):
        kills[name] += 1
        fault = target.kill(name, at, number, twice)
        if fault:
            again = "" if twice is None else f", then at {twice}"
            wrong.append(f"{name} at call {at}, signal {int(number)}{again}: {fault}")
            say(wrong[-1])
    say(f"kills: seed {seed}; writing calls: {target.calls}")
    return {"seed": seed, "count": count, "kills": kills, "wrong": wrong}
