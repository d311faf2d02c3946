"""A recording of any format as a source of trajectories."""

import hashlib
from pathlib import Path

from qgf.data.inspection import check_outcomes, missing_for_critic
from qgf.data.manifest import Shard, Split
from qgf.data.readers import Fields, open_recording, split_episodes, split_format
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError
from qgf.files import reading, sha256


class Recorded:
    """Episodes in a file or folder of a format that `open_recording` knows.

    Their rewards and ends are those that the files, or the chosen fields, say. Without any,
    rewards are 0 and no task ends: enough for behaviour cloning. See `qgf.data.Source`.
    """

    origin = ()

    def __init__(self, path: Path, fields: Fields):
        """Raise UserError if the files cannot be used, or no episode can be held out."""
        recording = open_recording(path)
        chosen = split_episodes(recording)
        for split, numbers in chosen.items():
            if not len(numbers):
                raise UserError(
                    f"{path} has {len(recording.ends)} episode(s), so there are none for {split}; "
                    "at least two are needed, one of which validates"
                )
        episodes = recording.trajectories(fields)
        check_outcomes(recording, fields, episodes)
        self._parts = {split: episodes.take(numbers) for split, numbers in chosen.items()}
        self._files = (*recording.files, *fields.files)
        self.parts = recording.parts(fields)
        self.folder = Path(path)
        self.name = recording.format
        self.rewarded = episodes.reward is not None
        self.rewards = "none"
        if self.rewarded:
            used = fields.reward or recording.reward or "those of the data"
            self.rewards = "; ".join([used, *missing_for_critic(episodes)])
        self.widths = episodes.observation.shape[1], episodes.action.shape[1]
        digest, name = self._digest(), split_format(path)[1].name
        self._shards = {
            split: Shard(name, split, len(part.ends), len(part.last), digest)
            for split, part in self._parts.items()
        }

    def split(self, split: Split) -> list[Shard]:
        return [self._shards[split]]

    def read(self, shard: Shard) -> Trajectories:
        return self._parts[shard.split].labelled()

    def intact(self, shard: Shard) -> bool:
        return self._digest() == shard.sha256

    def _digest(self) -> str:
        with reading(self.folder):
            each = [sha256(file) for file in self._files]
        return hashlib.sha256("".join(each).encode()).hexdigest()
