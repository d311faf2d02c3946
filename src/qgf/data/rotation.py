"""Data larger than memory: the next part is read while one is trained on."""

import bisect
import sys
import threading
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import numpy as np

from qgf.data.dataset import Dataset
from qgf.data.manifest import Shard


def rotation(
    dataset: Dataset, gigabytes: float, every: int, unit: int, step: int
) -> Iterator[tuple[eqx.Module, int]]:
    """Yield the chunks to train on from `step`, and the step up to which they are trained on.

    A set that fits is read once and never left. Of a larger one the next group of shards is read
    while one is trained on: a third of the memory holds that one, the rest what is read and joined.
    All have one shape, or every size would be compiled anew.
    A group is trained on the longer the more rows it has, so that over a pass all rows are as
    likely, up to rounding to the unit. Which group is due depends on the step alone.

    Args:
        dataset: what is trained on.
        gigabytes: how much of it is held in memory.
        every: gradient steps of a group, on average over a pass.
        unit: gradient steps of which each group takes a multiple, at least one.
        step: the first.
    """
    groups = dataset.groups(gigabytes)
    if len(groups) == 1:
        data = jax.device_put(dataset.chunks(groups[0]))
        while True:
            yield data, sys.maxsize
    groups = dataset.groups(gigabytes / 3)
    rows = np.array([sum(shard.rows for shard in group) for group in groups])
    lengths = np.maximum(1, np.round(every / unit * rows / rows.mean())).astype(int) * unit
    ends = np.cumsum(lengths).tolist()
    passes, within = divmod(step, ends[-1])
    turn = bisect.bisect_right(ends, within)
    read = _in_background(dataset, groups[turn], rows.max().item())
    while True:
        data = jax.device_put(read())
        following = (turn + 1) % len(groups)
        read = _in_background(dataset, groups[following], rows.max().item())
        yield data, passes * ends[-1] + ends[turn]
        del data
        passes, turn = passes + (following == 0), following


def _in_background(dataset: Dataset, shards: list[Shard], rows: int) -> Callable[[], eqx.Module]:
    """Begin to read shards, and return what waits for their chunks, of so many rows.

    The thread does not keep the program from ending, as those of concurrent.futures do.
    """
    found: list[eqx.Module | BaseException] = []

    def read() -> None:
        try:
            found.append(dataset.chunks(shards, rows))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def wait() -> eqx.Module:
        thread.join()
        if isinstance(found[0], BaseException):
            raise found[0]
        return found.pop()

    return wait
