"""How far points are from a data set, by its nearest neighbours."""

import numpy as np
from jaxtyping import Float

from qgf.data import Dataset
from qgf.run import intact_source


def training_points(record: dict) -> Float[np.ndarray, "row dim"]:
    """Return observation and action chunk, side by side, of every training chunk of a run.

    Args:
        record: the run's config.json.

    Raises:
        UserError: the data are gone or have changed.
    """
    source, config = intact_source(record), record["config"]
    data = Dataset(source, chunk=config["chunk"], discount=config["discount"])
    chunks = data.chunks(source.split("train"))
    batch = chunks.take(np.arange(len(chunks.start)))
    return np.concatenate([batch.obs, batch.action], axis=1)


class Neighbours:
    """How far points are from the nearest row of a data set, in standard deviations.

    Every dimension is divided by its standard deviation in the data; one that never varies
    there is left out.
    """

    def __init__(self, data: Float[np.ndarray, "row dim"]):
        self.mean, deviation = data.mean(0, dtype=float), data.std(0, dtype=float)
        self.varies = deviation > 1e-6
        self.deviation = deviation[self.varies]
        self.data = self._scale(data)

    def _scale(self, points: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row kept"]:
        # Centred, as x² − 2xy + y² is only as precise as the squares are small.
        centred = (points - self.mean)[:, self.varies]
        return (centred / self.deviation).astype(np.float32)

    def distance(
        self, points: Float[np.ndarray, "query dim"], block: int = 8192
    ) -> Float[np.ndarray, " query"]:
        """Return every point's Euclidean distance to the nearest row of the data.

        Args:
            block: rows compared at a time. (A k-d tree is no help in 50 dimensions.)
        """
        points = self._scale(points)
        nearest, row = np.full(len(points), np.inf), np.zeros(len(points), int)
        for start in range(0, len(self.data), block):
            part = self.data[start : start + block]
            squares = np.square(part).sum(1) - 2 * (points @ part.T)  # without the point's own
            at = squares.argmin(1)
            found = np.take_along_axis(squares, at[:, None], 1)[:, 0]
            row = np.where(found < nearest, start + at, row)
            nearest = np.minimum(found, nearest)
        return np.linalg.norm(points - self.data[row], axis=1)
