"""Readers of recorded episodes, one file for each format; all give a `Recording`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from qgf.data.readers import d4rl, lerobot, minari, ogbench, own, robomimic
from qgf.data.readers._layout import file_kind
from qgf.data.readers._recording import (
    DEFAULTS as DEFAULTS,
    Column as Column,
    Fields as Fields,
    Recording as Recording,
    held_out as held_out,
    split_episodes as split_episodes,
)
from qgf.data.readers._rewards import HEAD as HEAD, JUDGED as JUDGED, read_labels as read_labels
from qgf.data.readers.d4rl import from_arrays as from_arrays
from qgf.data.readers.own import convert as convert
from qgf.errors import UserError
from qgf.files import reading


class Reader(NamedTuple):
    """How one format is told from others, and read.

    Attributes:
        what: by what a person knows the format.
        fits: whether a file or folder is of it, by content.
        read: opens a file or folder of it.
    """

    what: str
    fits: Callable[[Path], bool]
    read: Callable[[Path], Recording]


READERS: dict[str, Reader] = {
    "qgf": Reader("a folder with trajectories.json", own.fits, own.read),
    "ogbench": Reader("npz whose terminals mark last observations", ogbench.fits, ogbench.read),
    "d4rl": Reader("npz or HDF5 whose terminals mark the task's end", d4rl.fits, d4rl.read),
    "minari": Reader("a folder with data/metadata.json", minari.fits, minari.read),
    "lerobot": Reader("a folder with meta/info.json", lerobot.fits, lerobot.read),
    "robomimic": Reader("HDF5 with data/demo_0", robomimic.fits, robomimic.read),
}
"""every format by name, as FORMAT:PATH has it"""

ENDINGS = {
    ".npz": "npz",
    ".hdf5": "HDF5",
    ".h5": "HDF5",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
}


def open_recording(path: str | Path) -> Recording:
    """Open recorded episodes, whatever their format.

    Args:
        path: of a file or folder; FORMAT:PATH, with a name of `READERS`, where several would fit.

    Returns:
        The recording, whose fields are read when they are asked for.

    Raises:
        UserError: there is nothing, no format fits or several do, or the files are damaged.
    """
    named, path = split_format(path)
    readers = {named: READERS[named]} if named else READERS
    try:
        with reading(path):
            if not path.exists():
                raise UserError(f"{path} does not exist")
            _check_ending(path)
            found = [name for name, reader in readers.items() if reader.fits(path)]
            if len(found) == 1:
                return READERS[found[0]].read(path)
            content = [e.name for e in path.iterdir()] if path.is_dir() else d4rl.columns(path)
    except MemoryError as error:
        raise UserError(f"{path} does not fit into memory ({error}), or is damaged") from None
    what = "; ".join(f"{name}: {READERS[name].what}" for name in found or readers)
    if found:
        named = " or ".join(f"{name}:{path}" for name in found)
        raise UserError(f"{path} fits several formats ({what}); say which it is: {named}")
    held = ", ".join(sorted(content)[:20]) or "nothing that qgf knows"
    raise UserError(f"{path} is of no format that qgf reads ({what}); it holds {held}")


def split_format(path: str | Path) -> tuple[str, Path]:
    """Return the format that FORMAT:PATH names, or "", and the path alone."""
    named, _, rest = str(path).partition(":")
    return (named, Path(rest)) if rest and named in READERS else ("", Path(path))


def with_format(named: str, path: str | Path) -> Path:
    """Return what `split_format` takes apart."""
    return Path(f"{named}:{path}" if named else path)


def _check_ending(path: Path) -> None:
    """Raise UserError if a file is of another format than its name says."""
    expected, found = ENDINGS.get(path.suffix.lower()), file_kind(path)
    if path.is_file() and expected not in (None, found):
        what = f"it is {found}; rename it"
        if found is None:
            strange = "begins like no format of arrays" if path.stat().st_size else "is empty"
            what = f"it {strange}; get it again"
        raise UserError(f"{path} is not {expected}, as its name says: {what}")
