"""A dataset is a folder of OGBench-layout npz shards and a manifest that vouches for them.

One training shard has OGBench's own names, NAME.npz and NAME-val.npz, so OGBench loads the
folder too; several are NAME-000.npz, NAME-000-val.npz, NAME-001.npz and so on.
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qgf._files import read_json, sha256, write_json
from qgf.errors import UserError

FILE = "manifest.json"
FORMAT = 1
KEYS = ("observations", "actions", "terminals")

Split = Literal["train", "val"]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One npz file: its name in the folder, content and SHA-256."""

    file: str
    split: Split
    episodes: int
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a dataset folder holds.

    Attributes:
        folder: where the shards lie.
        name: OGBench's name of the dataset, e.g. "cube-single-play-v0".
        seed: seed of the collection; None for downloaded files.
        versions: version of each package that shaped the data; empty for downloaded files.
        plan: what `collect` was asked for; empty for downloaded files.
        shards: each training shard is followed by its validation shard.
    """

    folder: Path
    name: str
    seed: int | None
    versions: dict[str, str]
    plan: dict[str, int]
    shards: tuple[Shard, ...]

    def split(self, split: Split) -> list[Shard]:
        """Return the shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def episodes(self, split: Split) -> int:
        """Return the number of episodes in one split."""
        return sum(shard.episodes for shard in self.split(split))

    @property
    def complete(self) -> bool:
        """Whether everything that was planned has been collected."""
        return not self.plan or (
            self.episodes("train") == self.plan["episodes"]
            and self.episodes("val") == self.plan["val_episodes"]
        )

    def intact(self, shard: Shard) -> bool:
        """Whether the shard's file exists and has the content it was written with."""
        path = self.folder / shard.file
        return path.is_file() and sha256(path) == shard.sha256

    def write(self) -> None:
        """Write manifest.json, atomically. UserError if the folder cannot be written."""
        content = dataclasses.asdict(self)
        del content["folder"]
        write_json(self.folder / FILE, {"format": FORMAT, **content})


def load_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of a dataset after comparing every shard with its SHA-256.

    A folder of files from OGBench's servers, which has no manifest, gets one.

    Raises:
        UserError: the folder is missing, holds no or half a dataset, or a file is missing,
            damaged or lacks its validation counterpart.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file; name its folder instead: {folder.parent}")
    if not folder.is_dir():
        raise UserError(f"no dataset folder {folder}; make one with 'qgf collect'")
    if not (folder / FILE).exists():
        manifest = _survey(folder)
        # Without write permission the survey is simply repeated next time.
        with contextlib.suppress(UserError):
            manifest.write()
        return manifest
    manifest = read_manifest(folder)
    if not manifest.complete:
        done = manifest.episodes("train")
        raise UserError(
            f"the collection in {folder} is half finished ({done} of "
            f"{manifest.plan['episodes']} episodes); the same 'qgf collect' command "
            "continues it"
        )
    for split in ("train", "val"):
        if not manifest.split(split):
            raise UserError(f"{folder / FILE} lists no {split} shards; collect them again")
    for shard in manifest.shards:
        if not manifest.intact(shard):
            _complain(manifest, shard)
    return manifest


def _complain(manifest: Manifest, shard: Shard) -> None:
    path = manifest.folder / shard.file
    changed = f"differs from what {FILE} recorded (SHA-256)"
    state = changed if path.is_file() else "is missing"
    mend = (
        "run the same 'qgf collect' command to make it again"
        if manifest.plan
        else f"download it again, or delete {FILE} if the change was meant"
    )
    raise UserError(f"{path} {state}; {mend}")


def read_manifest(folder: str | Path) -> Manifest:
    """Read manifest.json and believe it. UserError if it cannot be understood."""
    path = Path(folder) / FILE
    content: Any = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}; this is {FORMAT}")
        shards = tuple(Shard(**shard) for shard in content["shards"])
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise UserError(f"{path} lists a file outside its folder")
        return Manifest(
            folder=Path(folder),
            name=content["name"],
            seed=content["seed"],
            versions=dict(content["versions"]),
            plan=dict(content["plan"]),
            shards=shards,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a dataset's manifest ({error!r})") from None


def _survey(folder: Path) -> Manifest:
    """Make the manifest of a folder of OGBench files."""
    train = sorted(p for p in folder.glob("*.npz") if not p.stem.endswith("-val"))
    if not train:
        raise UserError(f"{folder} holds no dataset (no .npz files)")
    names = sorted({re.sub(r"-\d+$", "", path.stem) for path in train})
    if len(names) > 1:
        raise UserError(f"{folder} holds several datasets, {', '.join(names)}: separate them")
    shards = []
    for path in train:
        val = path.with_name(f"{path.stem}-val.npz")
        if not val.exists():
            raise UserError(f"{val} is missing; it belongs beside {path.name}")
        shards += [_describe(path, "train"), _describe(val, "val")]
    return Manifest(folder, names[0].replace("-100m", ""), None, {}, {}, tuple(shards))


def _describe(path: Path, split: Split) -> Shard:
    try:
        with np.load(path, allow_pickle=False) as file:
            absent = [key for key in KEYS if key not in file]
            terminals = np.zeros(0) if absent else file["terminals"]
    # A damaged zip shows itself as BadZipFile, zlib.error, EOFError, ValueError, ...
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from None
    if absent:
        raise UserError(f"{path} is not a dataset file: it has no {absent[0]!r}")
    episodes = int(np.count_nonzero(terminals))
    return Shard(path.name, split, episodes, len(terminals), sha256(path))
