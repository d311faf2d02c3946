"""Observations to mean 0 and deviation 1, actions to [-1, 1]: fitted on training data."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from qgf.data.dataset import unseen_rows
from qgf.data.manifest import Shard
from qgf.data.source import Source
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError

Observations = Literal["none", "standard"]
Actions = Literal["none", "range", "quantiles"]

QUANTILES = (0.01, 0.99)
TOLERANCE = 1e-6  # by which an action may leave [-1, 1]


@dataclass(frozen=True)
class Affine:
    """x -> (x − shift) / scale, per dimension."""

    shift: Sequence[float]
    scale: Sequence[float]

    def apply(self, x: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
        """Return x in normalized units, float32."""
        shift, scale = (np.asarray(v, np.float32) for v in (self.shift, self.scale))
        return ((np.asarray(x, np.float32) - shift) / scale).astype(np.float32)

    def undo(self, x: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
        """Return normalized x in its own units, float32."""
        shift, scale = (np.asarray(v, np.float32) for v in (self.shift, self.scale))
        return (np.asarray(x, np.float32) * scale + shift).astype(np.float32)


@dataclass(frozen=True)
class Normalization:
    """What training, acting and serving apply alike; None leaves as it is, bit for bit.

    Attributes:
        observation: to mean 0 and deviation 1.
        action: to [-1, 1], where noise and the sampler live; what lies beyond is clipped.
    """

    observation: Affine | None = None
    action: Affine | None = None

    def record(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Normalization":
        """Return the normalization of a config.json; runs of version 0.1.0 have none."""
        parts = record.get("normalization", {})
        return cls(**{name: part and Affine(**part) for name, part in parts.items()})

    def observed(self, x: Float[np.ndarray, "*batch obs"]) -> Float[np.ndarray, "*batch obs"]:
        """Return observations as the networks see them."""
        return x if self.observation is None else self.observation.apply(x)

    def acted(self, x: Float[np.ndarray, "*batch action"]) -> Float[np.ndarray, "*batch action"]:
        """Return the sampler's actions in the units of the data."""
        return x if self.action is None else self.action.undo(x)

    def learned(self, x: Float[np.ndarray, "*batch action"]) -> Float[np.ndarray, "*batch action"]:
        """Return the data's actions as the networks learn them, in [-1, 1]."""
        return x if self.action is None else np.clip(self.action.apply(x), -1, 1)


class Normalized:
    """A source whose observations and actions are normalized. See `qgf.data.Source`."""

    def __init__(self, source: Source, normalization: Normalization):
        self.folder, self.name = source.folder, source.name
        self.rewards, self.rewarded, self.widths = source.rewards, source.rewarded, source.widths
        self.parts = source.parts
        self.origin, self.split, self.intact = source.origin, source.split, source.intact
        self._source, self._normalization = source, normalization

    def read(self, shard: Shard) -> Trajectories:
        found = self._source.read(shard)
        if self._normalization.action is None:
            _check_range(found.action[~found.last])
        return dataclasses.replace(
            found,
            observation=self._normalization.observed(found.observation),
            action=self._normalization.learned(found.action),
        )


def fit(source: Source, observations: Observations, actions: Actions) -> Normalization:
    """Return the normalization that a source's training episodes ask for.

    A dimension that never varies keeps its scale: it is only shifted. Rows after the last action
    count for observations and not for actions.

    Args:
        observations: "none", or "standard": mean 0 and deviation 1.
        actions: "none"; "range": the least and greatest become -1 and 1; "quantiles": those of
            1 and 99 per cent do, so that outliers do not squeeze the rest.
    """
    if observations == actions == "none":
        return Normalization()
    every = [source.read(shard) for shard in source.split("train")]
    done = np.concatenate([e.action[~e.last] for e in every]).astype(float)
    action = None
    if actions != "none":
        ends = (0.0, 1.0) if actions == "range" else QUANTILES
        low, high = np.quantile(done, ends, axis=0)
        action = _affine((low + high) / 2, (high - low) / 2)
    seen = np.concatenate([e.observation[~unseen_rows(e)] for e in every])
    standard = _affine(seen.mean(0, dtype=float), seen.std(0, dtype=float))
    return Normalization(standard if observations == "standard" else None, action)


def _check_range(action: Float[np.ndarray, "row action"]) -> None:
    """Raise UserError if actions lie outside [-1, 1], where the sampler cannot follow."""
    outside = (np.abs(action) > 1 + TOLERANCE).any(0)
    if outside.any():
        raise UserError(
            f"actions leave [-1, 1] in dimension {np.flatnonzero(outside)[0]}; normalize them: "
            "--normalize-actions range, or quantiles"
        )


def _affine(shift: np.ndarray, scale: np.ndarray) -> Affine:
    constant = scale <= 1e-6 * np.maximum(1, np.abs(shift))
    return Affine(shift.tolist(), np.where(constant, 1.0, scale).tolist())
