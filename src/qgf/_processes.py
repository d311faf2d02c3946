"""How worker processes start (apart from the user's script, of one thread each) and end."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from multiprocessing import resource_tracker

from qgf.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 2  # seconds
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NPROC": "1"}  # the second is what XLA goes by on a CPU
_starting = threading.RLock()  # what a block changes belongs to the whole process


def check_workers(count: int) -> None:
    """Raise UserError if `count` processes are far more than there are processors."""
    processors = os.cpu_count() or 1
    if count > 16 * processors:
        raise UserError(
            f"{count} worker processes are too many for {processors} processors; use at most "
            f"{16 * processors}, and better one per processor"
        )


@contextmanager
def worker_start(count: int) -> Iterator[None]:
    """Start `count` processes in the block, by the method "spawn"; they call `follow_parent` first.

    Raises:
        UserError: they are too many, or the system refuses to start them.
    """
    check_workers(count)
    try:
        with _starting, _apart_from_main(), _single_threaded(), _shielded():
            yield
    except OSError as error:
        raise UserError(
            f"cannot start worker processes ({error.strerror or error}); use fewer side by side"
        ) from None


@contextmanager
def _apart_from_main() -> Iterator[None]:
    """Keep processes started in the block from running the user's script once more.

    They would import it to find what is pickled by the name of __main__, of which nothing is
    sent; a script without a main guard, or read from standard input, would break them. A main
    module called "__main__", as that of a package is, is left alone by multiprocessing.spawn.
    """
    main = sys.modules["__main__"]
    before = main.__spec__
    main.__spec__ = ModuleSpec("__main__", None)
    try:
        yield
    finally:
        main.__spec__ = before


def follow_parent() -> None:
    """Let this process, just started within `worker_start`, end when its parent does."""
    # Schedulers send SIGTERM to all processes. The parent's end comes first, so that it does
    # not take this one for dead.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def _shielded() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from processes started in the block, from their first moment on.

    This process answers them at the end of the block, so that none is left half started. The
    processes call `follow_parent` first.
    """
    resource_tracker.ensure_running()  # its start would lift the mask
    noted: list[tuple] = []
    main = threading.current_thread() is threading.main_thread()
    note = lambda *at: noted.append(at)  # noqa: E731
    handlers = {number: signal.signal(number, note) for number in SIGNALS} if main else {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which they inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in noted[:1]:
            if callable(handlers[number]):
                handlers[number](number, frame)
            elif handlers[number] == signal.SIG_DFL:
                signal.raise_signal(number)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Keep the computations of processes started in the block to one thread each."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
