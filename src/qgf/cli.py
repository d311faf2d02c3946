"""The `qgf` program around its commands: signals and exit codes.

Nothing heavy is imported before the signals are answered.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

from qgf.errors import Terminated, UserError

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    Exit with one line and code 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        from qgf.commands import parse

        parse(sys.argv[1:] if argv is None else argv)()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt as stop:
        print(_interrupted(str(stop)), file=sys.stderr)
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise SystemExit(128 + number) from None


def run() -> None:
    """The `qgf` program: main(), which a signal ends at any moment."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and background jobs want it
            signal.signal(number, _answer)
    sys.unraisablehook = _unraisable
    # Python's own helper process clears away what Ctrl-C leaves behind; it need not say so.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        main()
    except SystemExit as stop:
        if stop.code not in [128 + number for number in SIGNALS]:
            raise
        # A compiled program may still run in its threads; taking Python down under it crashes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code)


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
    os.write(2, f"{_interrupted()}\n".encode())
    os._exit(128 + number)


def _interrupted(text: str = "") -> str:
    return f"interrupted: {text}" if text else "interrupted; the same command starts again"


def _fail(message: str) -> None:
    print(f"qgf: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    run()
