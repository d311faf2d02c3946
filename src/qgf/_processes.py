"""How worker processes are started: deaf to Ctrl-C, and of one thread each."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def shielded() -> Iterator[None]:
    """Keep Ctrl-C from processes started in the block, from their first moment on.

    This process answers it at the end of the block, so that none is left half started.
    """
    resource_tracker.ensure_running()  # its start would lift the mask
    noted: list[tuple] = []
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda *at: noted.append(at)) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
        if noted and callable(handler):
            handler(*noted[0])


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
