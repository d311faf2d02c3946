"""The one exception for mistakes a user can mend, and that of SIGTERM."""

import difflib
from collections.abc import Iterable


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
