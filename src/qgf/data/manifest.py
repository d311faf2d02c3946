"""A dataset is a folder of OGBench-layout npz shards and a manifest that vouches for them.

One training shard has OGBench's own names, NAME.npz and NAME-val.npz, so OGBench loads the
folder too; several are NAME-000.npz, NAME-000-val.npz, NAME-001.npz and so on.
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from qgf.data._npz import read_arrays
from qgf.errors import UserError
from qgf.files import check_form, read_record, reading, sha256, write_record
from qgf.tasks.ogbench.envs import make_env, state_widths

FILE = "manifest.json"
PLAN = ("episodes", "val_episodes", "shard_episodes", "steps")

Split = Literal["train", "val"]

_SHARD = {"file": str, "split": str, "episodes": int, "rows": int, "sha256": str}
_FORM = {
    "name": str,
    "seed": (int, type(None)),
    "versions": {str: str},
    "plan": {str: int},
    "shards": [_SHARD],
}


@dataclasses.dataclass(frozen=True)
class Shard:
    """One npz file: its name in the folder, content and SHA-256.

    Attributes:
        split: "train" or "val".
        episodes: how many it holds.
        rows: how many it holds, of all episodes.
        sha256: of the file.
    """

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
        """Return the shards of one split, in order.

        Args:
            split: "train" or "val".
        """
        return [shard for shard in self.shards if shard.split == split]

    def episodes(self, split: Split) -> int:
        """Return the number of episodes in one split.

        Args:
            split: "train" or "val".
        """
        return sum(shard.episodes for shard in self.split(split))

    @property
    def complete(self) -> bool:
        """Whether everything that was planned has been collected."""
        return not self.plan or (
            self.episodes("train") == self.plan["episodes"]
            and self.episodes("val") == self.plan["val_episodes"]
        )

    def intact(self, shard: Shard) -> bool:
        """Whether the shard's file exists and has the content it was written with.

        Args:
            shard: one of the shards of this manifest.

        Raises:
            UserError: it cannot be read.
        """
        path = self.folder / shard.file
        with reading(path):
            return path.is_file() and sha256(path) == shard.sha256

    def check_present(self) -> None:
        """Raise UserError if manifest.json, once written, or a file that it lists is gone."""
        for name in (FILE, *(shard.file for shard in self.shards)):
            if not (self.folder / name).is_file():
                raise UserError(
                    f"{self.folder / name} is gone: it was removed while data were collected; run "
                    "the same command again"
                )

    def write(self) -> None:
        """Write manifest.json, atomically. UserError if the folder cannot be written."""
        content = dataclasses.asdict(self)
        del content["folder"]
        write_record(self.folder / FILE, content)


def load_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of a dataset after comparing every shard with its SHA-256.

    A folder of files from OGBench's servers, which has no manifest, gets one, after every
    array that is used was read and checked.

    Args:
        folder: of the dataset.

    Raises:
        UserError: the folder is missing, holds no or half a dataset, or a file is missing,
            damaged, unfit or lacks its validation counterpart.
    """
    folder = Path(folder)
    with reading(folder):
        if folder.is_file():
            raise UserError(f"{folder} is a file; name its folder instead: {folder.parent}")
        if not folder.is_dir():
            raise UserError(f"no dataset folder {folder}; make one with 'qgf collect'")
        recorded = (folder / FILE).exists()
    manifest = read_manifest(folder)
    if not recorded:
        # Without write permission the survey is simply repeated next time.
        with contextlib.suppress(UserError):
            manifest.write()
        return manifest
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
    """Read manifest.json and believe it; without one, see what downloaded files there are.

    Args:
        folder: of the dataset.

    Returns:
        The manifest.

    Raises:
        UserError: the manifest cannot be understood, or the files are unfit.
    """
    path = Path(folder) / FILE
    with reading(path):
        if not path.exists():
            return _survey(Path(folder))
    content = read_record(path)
    check_form(content, _FORM, str(path))
    fault = _fault(content["plan"], content["shards"])
    if fault:
        raise UserError(f"{path} is damaged: {fault}; restore it, or make the data again")
    return Manifest(
        folder=Path(folder),
        name=content["name"],
        seed=content["seed"],
        versions=content["versions"],
        plan=content["plan"],
        shards=tuple(Shard(**{key: s[key] for key in _SHARD}) for s in content["shards"]),
    )


def _fault(plan: dict, shards: list[dict]) -> str:
    """Return what no manifest that was written here says, or ""."""
    if plan and (plan.keys() != {*PLAN} or min(plan.values()) < 1):
        return f"it has the plan {plan}"
    for shard in shards:
        if Path(shard["file"]).name != shard["file"] or not shard["file"].endswith(".npz"):
            return f"it lists {shard['file']!r}, which is no shard in its folder"
        if shard["split"] not in get_args(Split) or min(shard["episodes"], shard["rows"]) < 1:
            return f"it lists {shard}"
    if len({shard["file"] for shard in shards}) < len(shards):
        return "it lists a file twice"
    return ""


def _survey(folder: Path) -> Manifest:
    """Make the manifest of a folder of OGBench files, each of which is read whole."""
    names = sorted(path.name for path in folder.iterdir())
    # macOS keeps what other file systems cannot hold in files named ._NAME.
    train = [n for n in names if n.endswith(".npz") and not n.startswith(".")]
    train = [folder / name for name in train if not name.endswith("-val.npz")]
    if not train:
        raise UserError(f"{folder} holds no dataset (no .npz files)")
    stems = sorted({re.sub(r"-\d+$", "", path.stem) for path in train})
    if len(stems) > 1:
        raise UserError(f"{folder} holds several datasets, {', '.join(stems)}: separate them")
    name = stems[0].replace("-100m", "")
    try:
        env = make_env(name)
    except UserError as error:
        raise UserError(f"{train[0]} is not named after an environment: {error}") from None
    shards, widths = [], state_widths(env)
    for path in train:
        val = path.with_name(f"{path.stem}-val.npz")
        if val.name not in names:
            raise UserError(f"{val} is missing; it belongs beside {path.name}")
        shards += [_describe(path, "train", widths), _describe(val, "val", widths)]
    return Manifest(folder, name, None, {}, {}, tuple(shards))


def _describe(path: Path, split: Split, widths: dict[str, int]) -> Shard:
    terminals = read_arrays(path, widths)["terminals"]
    with reading(path):
        return Shard(
            path.name, split, int(np.count_nonzero(terminals)), len(terminals), sha256(path)
        )
