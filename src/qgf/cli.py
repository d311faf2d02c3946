"""The `qgf` program around its commands: standard streams, signals, exit codes.

Nothing heavy is imported before the signals are answered.
"""

import contextlib
import errno
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from qgf.errors import OUT_OF_MEMORY, Terminated, UserError

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
# What can befall any program on a machine, wherever it is just then.
EXHAUSTED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    Exit with one line and code 2 for what a user can mend (a mistake, a full disk or memory, a
    standard output that takes nothing), 130 for Ctrl-C, 143 for SIGTERM; with 141 and no line
    where the reader of a pipe is gone.
    """
    try:
        from qgf._parsing import parse

        parse(sys.argv[1:] if argv is None else argv)()
        _flush()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt as stop:
        _say(_interrupted(str(stop)))
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise SystemExit(128 + number) from None
    except BrokenPipeError:
        _discard("stdout")
        raise SystemExit(128 + signal.SIGPIPE) from None
    except ModuleNotFoundError as error:
        from qgf._extras import absent

        missing = absent(error)
        if missing is None:
            raise
        _fail(str(missing))
    except OSError as error:
        if error.filename is None and error.errno not in EXHAUSTED:
            raise
        _fail(_reason(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail(OUT_OF_MEMORY)


def run() -> None:
    """The `qgf` program: main(), which a signal ends at any moment."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and background jobs want it
            signal.signal(number, _answer)
    sys.unraisablehook = _unraisable
    _open_streams()
    # Python's own helper process clears away what Ctrl-C leaves behind; it need not say so.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        main()
    except SystemExit as stop:
        if stop.code not in [128 + number for number in SIGNALS]:
            raise
        # A compiled program may still run in its threads; taking Python down under it crashes.
        os._exit(stop.code)


def _open_streams() -> None:
    """Open what is closed of the standard streams, and let them take any text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would be taken for the stream
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
    sys.stdout.reconfigure(errors="replace")


def _answer(number: int, frame: FrameType | None) -> None:
    """Raise what a signal means. Inside an import, which may swallow that, end at once."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end(number)
        frame = frame.f_back
    raise SIGNALS[signal.Signals(number)]


def _unraisable(unraisable: Any) -> None:
    """End when a signal met code from which nothing can be raised, such as a destructor."""
    for number, kind in SIGNALS.items():
        if unraisable.exc_type is kind:
            _end(number)
    sys.__unraisablehook__(unraisable)


def _end(number: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{_interrupted()}\n".encode())
    os._exit(128 + number)


def _interrupted(text: str = "") -> str:
    return f"interrupted: {text}" if text else "interrupted; the same command starts again"


def _fail(message: str) -> NoReturn:
    _say(f"qgf: {' '.join(message.splitlines())}")
    raise SystemExit(2) from None


def _say(line: str) -> None:
    """Print a line on standard error, behind what standard output holds; if they take it."""
    try:
        _flush()
    except OSError:
        _discard("stdout")
    try:
        if sys.stderr is not None:  # which print() would take for standard output
            print(line, file=sys.stderr, flush=True)
    except OSError:
        _discard("stderr")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _reason(error: OSError) -> str:
    """Return what stands in the way, and where."""
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror or error}"
    where = " (of standard output, a folder that is written to, or that of temporary files)"
    return f"{error.strerror}{where if error.errno == errno.ENOSPC else ''}"


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception, of Python's, NumPy's or JAX's, says that memory is short."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _discard(name: str) -> None:
    """Send to nowhere what a stream still holds, so that the end of the program is quiet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


if __name__ == "__main__":
    run()
