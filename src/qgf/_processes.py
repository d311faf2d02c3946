"""How worker processes are started: of one thread each, and ended by their parent alone."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 2  # seconds


def follow_parent() -> None:
    """Let this process, just started within `shielded`, end when its parent does."""
    # Schedulers send SIGTERM to all processes. The parent's end comes first, so that it does
    # not take this one for dead.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def shielded() -> Iterator[None]:
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
def single_threaded() -> Iterator[None]:
    """Keep linear algebra of processes started in the block to one thread each."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
