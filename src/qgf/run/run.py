"""A run as an object: what is in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgf.run._log import Log, read_metrics
from qgf.run.checkpoint import find_checkpoint, list_checkpoints, load_record


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        path: its folder, for `qgf.load`, `qgf.evaluate` and the command line.
    """

    path: Path

    @property
    def record(self) -> dict[str, Any]:
        """config.json: all settings, versions and what the data were. UserError if damaged."""
        return load_record(self.path)

    @property
    def checkpoints(self) -> list[int]:
        """The steps of which there are checkpoints, in rising order."""
        return list_checkpoints(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl: step, split, seed and losses.

        Raises:
            UserError: it is missing or damaged.
        """
        return read_metrics(self.path / "metrics.jsonl", Log.of(find_checkpoint(self.path)))
