"""The one exception for mistakes a user can mend, and that of SIGTERM."""

import difflib
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

OUT_OF_MEMORY = "out of memory; use a smaller --batch-size, --width, --slots or --resident-gb"

# Beyond these, memory or processes run out before anything else can be found wrong.
MOST = {
    "workers": 1_000,
    "slots": 10_000,
    "episodes": 1_000_000,
    "tune_episodes": 1_000_000,
    "val_episodes": 1_000_000,
    "best_of": 10_000,
    "depth": 100,
    "ensemble": 500,
}

FAILED = -1
"""stands instead of a count of steps that went unguided: the row has no action"""
NAMED = 5  # failed rows that an error names
NOT_FINITE = (
    "the velocity became NaN or infinite; look at the row's observation and noise, and whether "
    "its weight is too large"
)


class UserError(Exception):
    """A mistake in what the user asked for or provided.

    The message is one line that says what is wrong and how to mend it. The command
    line prints it and exits with code 2; no traceback is shown.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, as sent by `kill` and by schedulers: all that answers Ctrl-C answers it too."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" for the known name closest to `name`, or ""."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def check_counts(counts: Mapping[str, int]) -> None:
    """Raise UserError unless every count is at least 1 and not beyond all use, by its name."""
    for name, value in counts.items():
        most = MOST.get(name, 2**31 - 1)
        if not 1 <= value <= most:
            raise UserError(f"{name} must lie between 1 and {most:,}, got {value}")


def check_seed(name: str, seed: int) -> None:
    """Raise UserError unless a seed is one that JAX takes."""
    if not 0 <= seed < 2**31:
        raise UserError(f"{name} must lie in [0, 2^31), got {seed}")


def checked_count(n: Any, what: str) -> int:
    """Return n. UserError if it is not a whole number of at least 1."""
    try:
        count = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = 0
    if count < 1:
        raise UserError(f"{what} must be at least 1 and a whole number, got {n}")
    return count


def check_actions(counts: np.ndarray, why: str = NOT_FINITE) -> None:
    """Raise a UserError that names the rows whose count is FAILED, if there are any."""
    found = np.argwhere(np.atleast_1d(counts) == FAILED).tolist()
    if found:
        rows = ", ".join(str(*at) if len(at) == 1 else str(tuple(at)) for at in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise UserError(f"no action for row {rows}{more}: {why}")
