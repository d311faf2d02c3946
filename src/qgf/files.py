"""Files that a reader finds whole or not at all, records that notice damage, and locks."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from qgf.errors import UserError

TEMPORARY = ".qgf-"
"""how the name of every temporary file or folder begins"""
LOCK = ".lock"
FORMAT = 3
"""of records: 1 has no checksum"""
EDITED = "edited"
"""what a person writes in place of a record's checksum after changing it on purpose"""


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Make a UserError of what the system says when `path` cannot be read in the block."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that replaces it when the block succeeds.

    The content is synced to disk before the rename. When the block raises, the temporary file
    is removed and `path` is as it was. What killed writers left in the folder is removed.

    Raises:
        UserError: the folder cannot be written (permission, no space).
    """
    path = Path(path)
    temporary = None
    # A file's name need not be text; where one is told, its bytes are told by their numbers.
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        with os.fdopen(handle, mode, **text) as file:
            _flock(handle)  # tells `sweep` that its writer lives
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            temporary = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def check_writable(path: str | Path) -> None:
    """Raise the UserError that `atomic_open` would raise now; what is at `path` stays."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    with contextlib.suppress(_Enough), atomic_open(path):
        raise _Enough


class _Enough(Exception):
    """Ends a write that was only tried."""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sweep(folder: str | Path, age: float = 1.0) -> None:
    """Remove temporary files and folders in `folder` whose writers were killed.

    Args:
        age: seconds that a file must be old. Between making a file and locking it a living writer
            is without a lock.
    """
    for path in Path(folder).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                # Folders are made by holders of the folder they lie in alone.
                if path.is_dir():
                    shutil.rmtree(path)
                elif time.time() - os.fstat(handle).st_mtime > age and _flock(handle):
                    path.unlink()
            finally:
                os.close(handle)


def retire(folder: Path) -> None:
    """Remove a folder that must never be seen half removed: it loses its name first."""
    grave = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    os.replace(folder, grave)
    shutil.rmtree(grave, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process alone while the block runs; make it if need be.

    The lock is the operating system's (flock), so that a killed process holds none. A file
    system without locks, as some network folders are, gets none. A folder made here that is
    still empty at the end is removed again.

    Raises:
        UserError: another process holds it, or it cannot be made or written.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as undo:
        try:
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder} is not a folder; name another")
            for part in reversed([folder, *folder.parents]):
                if not part.exists():
                    part.mkdir(exist_ok=True)
                    undo.callback(_remove, part.rmdir)
            handle = _hold(folder / LOCK)
            undo.callback(os.close, handle)
            undo.callback(_remove, (folder / LOCK).unlink)
            who = {"process": os.getpid(), "host": socket.gethostname(), "since": _now()}
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(who).encode(), 0)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
        sweep(folder, age=0.0)  # who writes here holds the folder
        yield


def _remove(remove: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # such as a folder that is not empty
        remove()


def _hold(path: Path) -> int:
    """Return a handle of the lock file, held. UserError if another process holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _flock(handle):
            holder = _holder(handle)
            os.close(handle)
            raise UserError(
                f"{path.parent} is already in use by {holder}; wait until it ends, or name another "
                "folder"
            )
        # The last holder removes the file; one that was removed meanwhile locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 1000, 0))
        return f"process {who['process']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _flock(handle: int) -> bool:
    """Lock an open file; return whether no other process holds it, as far as can be known."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)
    return True


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises UserError as `atomic_open`.

    NaN and infinities are not JSON: a ValueError.
    """
    with atomic_open(path, "w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        with reading(path):
            return parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None


def parse_json(text: bytes) -> Any:
    """Return what JSON text says. ValueError, of one line, if it is not JSON."""
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Write a dictionary as JSON with a format number and a checksum of itself."""
    write_json(path, seal({"format": FORMAT, **record}))


def read_record(path: str | Path) -> dict[str, Any]:
    """Read what `write_record` wrote; records of format 1 have no checksum.

    Raises:
        UserError: the file is missing, not JSON, of a later format, or differs from what was
            written.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: it is no JSON object")
    form = record.get("format", 1)
    if type(form) is not int or not 1 <= form <= FORMAT:
        raise UserError(f"{path} has format {form!r:.40}; this qgf reads 1 to {FORMAT}: upgrade it")
    if form > 1 and record.get("checksum") != EDITED and not sealed(record):
        raise UserError(
            f"{path} is not what was written (its checksum differs): restore it; or, if it was "
            f'changed on purpose, say so by "checksum": "{EDITED}" in it'
        )
    if form == 1 and "checksum" in record:
        raise UserError(f"{path} is damaged: it has a checksum, but not its format")
    return {key: value for key, value in record.items() if key not in ("format", "checksum")}


def write_value(path: str | Path, value: Any) -> None:
    """Write a value of any kind, one that JSON has, as a record."""
    write_record(path, {"value": value})


def read_value(path: str | Path) -> Any:
    """Read what `write_value` wrote, or a value of format 1, which is not wrapped.

    Raises:
        UserError: as `read_record`.
    """
    value = read_json(path)
    if isinstance(value, dict) and value.keys() & {"value", "format"}:
        record = read_record(path)
        check_form(record, {"value": type(record.get("value"))}, str(path))
        return record["value"]
    return value


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with a checksum of all its other entries, as they will be read."""
    return {**record, "checksum": _checksum(json.loads(json.dumps(record)))}


def sealed(record: dict[str, Any]) -> bool:
    """Whether a record's checksum is that of its other entries."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return record.get("checksum") == _checksum(rest)


def _checksum(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_form(value: Any, form: Any, place: str) -> None:
    """Raise a UserError if a record's value has not the given form.

    Args:
        form: a type or tuple of types; [form] for a list of such values, [form, form] for one
            of two; {key: form} for a dictionary that has these keys at least; {str: form} for
            one of such values.
        place: how the value is named in the message.
    """
    if isinstance(form, list):
        check_form(value, list, place)
        if len(form) > 1 and len(value) != len(form):
            raise UserError(f"{place} has {len(value)} items instead of {len(form)}; it is damaged")
        for i, item in enumerate(value):
            check_form(item, form[i % len(form)], f"{place}[{i}]")
    elif isinstance(form, dict):
        check_form(value, dict, place)
        every = {key: form[str] for key in value} if str in form else form
        for key, inner in every.items():
            if key not in value:
                raise UserError(f"{place} has no {key!r}; it is damaged or of another version")
            check_form(value[key], inner, f"{place}: {key}")
    else:
        kinds = form if isinstance(form, tuple) else (form,)
        # True is an int to Python, not to a reader.
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            raise UserError(
                f"{place} is {str(value)[:40]!r} where {' or '.join(k.__name__ for k in kinds)} "
                "belongs; it is damaged or of another version"
            )


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
