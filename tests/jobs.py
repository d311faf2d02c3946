"""Work for jobs of tests/test_executor.py: functions that another process can import."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qgf.errors import UserError


def copy(source: Path | None, path: Path) -> None:
    """Write the text of another job's file and this one's name, and where they were written."""
    before = source.read_text() if source else ""
    path.write_text(f"{before}{path.name} ")


def meet(mine: Path, other: Path) -> None:
    """End when another job, which runs at the same time, has begun."""
    mine.touch()
    while not other.exists():
        time.sleep(0.01)


def environment(path: Path) -> None:
    path.write_text(f"{os.getpid()} {os.environ['NPROC']} {os.environ['OMP_NUM_THREADS']}")


def refuse() -> None:
    raise UserError("no such data; name others")


def fail() -> None:
    raise ZeroDivisionError("a fault of ours")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(started: Path, stopped: Path) -> None:
    """Run until SIGTERM, at which it saves something, as a training does."""

    def save(*_: object) -> None:
        stopped.touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, save)
    started.touch()
    time.sleep(60)


def refuse_after(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)
    refuse()


def die_once(path: Path) -> None:
    """Be killed at the first try, as on a machine that fails."""
    if not path.exists():
        path.touch()
        die()
    path.write_text("done")


def die_amid(work: Callable[[], object], seen: Path, tried: Path) -> None:
    """Do some work, but at the first try be killed as soon as it has made a file."""

    def watch() -> None:
        while not seen.exists():
            time.sleep(0.001)
        die()

    if not tried.exists():
        tried.touch()
        threading.Thread(target=watch, daemon=True).start()
    work()
