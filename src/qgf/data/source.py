"""Where trajectories come from: a dataset folder or file, read shard by shard."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from qgf.data.manifest import Shard, Split
from qgf.data.trajectories import Trajectories


@runtime_checkable
class Source(Protocol):
    """Recorded episodes of a task, with what it pays for them.

    Attributes:
        folder: where the shards lie.
        name: of the data set; runs are resumed and borrowed from only with the same.
        rewards: which rewards are used, in one line.
        rewarded: whether there are any, that is whether a critic of the task can be trained.
        origin: the words after `qgf` of the command that made them; empty where none did.
        parts: names of the recorded fields that are the observation, in their order; empty where
            the task says it.
        widths: how many numbers an observation and an action have.
    """

    folder: Path
    name: str
    rewards: str
    rewarded: bool
    origin: tuple[str, ...]
    parts: tuple[str, ...]
    widths: tuple[int, int]

    def split(self, split: Split) -> list[Shard]:
        """Return the shards of one split, in order.

        Args:
            split: "train" or "val".
        """
        ...

    def read(self, shard: Shard) -> Trajectories:
        """Return a shard's episodes, labelled. UserError if it is damaged or unfit.

        Args:
            shard: one of the shards that `split` returns.
        """
        ...

    def intact(self, shard: Shard) -> bool:
        """Whether the shard's file exists and has the content it was recorded with.

        Args:
            shard: one of the shards that `split` returns.
        """
        ...
