"""Action chunks of recorded episodes, held on the device and sampled there."""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from qgf.config import Spec
from qgf.data.manifest import Shard
from qgf.data.source import Source
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError

Part = dict[str, np.ndarray]  # what is cut from one shard


class Ahead(NamedTuple):
    """What follows the first action of a chunk over n steps, or fewer where they were not recorded.

    reward is Σ_{i<k} γ^i r_{t+i}, counted up to the step that solves the task; discount is γ^k,
    or 0 where it was solved; next_obs is s_{t+k}, the last that was recorded of these. action is
    a_t … a_{t+n-1}, the last that was recorded again in the place of those that were not; whole is
    1 where all were, or the task was solved before.
    """

    reward: Float[Array, " batch"]
    discount: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs"]
    action: Float[Array, "batch n*action"] | None = None
    whole: Float[Array, " batch"] | None = None


class Batch(NamedTuple):
    """A batch of chunked transitions (s, a_t … a_{t+h-1}, R, m, s').

    reward is R = Σ_{i<h} γ^i r_{t+i}, counted up to the step that solves the task; mask is
    0 where the task was solved inside the chunk, else 1; return_to_go is that of
    `returns_to_go` at s.

    Attributes:
        obs: s, normalized.
        action: a_t … a_{t+h-1}, flattened, in [-1, 1].
        next_obs: s', the observation after the chunk.
        ahead: what follows over more steps, where a learner looks further than a chunk.
    """

    obs: Float[Array, "batch obs"]
    action: Float[Array, "batch chunk*action"]
    reward: Float[Array, " batch"]
    mask: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs"]
    return_to_go: Float[Array, " batch"] | None = None
    ahead: Ahead | None = None

    goal = None  # a task is part of the rewards


class Held(NamedTuple):
    """How many rows and chunks there are, from the first of each; arrays may be longer.

    critic counts the chunks that a critic can learn from; the observation after the others was
    not recorded, so they serve imitation alone.
    """

    rows: int | Int[Array, ""]
    chunks: int | Int[Array, ""]
    critic: int | Int[Array, ""]


class Chunks(eqx.Module):
    """Trajectories, and the chunks of h steps that lie whole inside one of them.

    `held` is None where arrays hold nothing else and a critic can learn from all chunks. It is
    no part of the compiled program: data of different sizes, lengthened alike, share one.

    Attributes:
        obs: the observation of every row.
        action: the action of every row.
        start: the row at which each chunk begins.
        reward: R of each chunk.
        mask: 0 where the task was solved inside the chunk, else 1.
        length: h, rows of a chunk.
        return_to_go: of each chunk; None where nobody asks.
        ahead: what follows each chunk, with rows in the place of observations.
        horizon: steps that `ahead` looks ahead.
    """

    obs: Float[Array | np.ndarray, "row obs"]
    action: Float[Array | np.ndarray, "row action"]
    start: Int[Array | np.ndarray, " chunk"]
    reward: Float[Array | np.ndarray, " chunk"]
    mask: Float[Array | np.ndarray, " chunk"]
    length: int = eqx.field(static=True)
    return_to_go: Float[Array | np.ndarray, " chunk"] | None = None
    held: Held | None = None
    ahead: Ahead | None = None  # with rows in the place of observations, and without actions
    horizon: int | None = eqx.field(static=True, default=None)

    @property
    def counts(self) -> Held:
        """How many rows and chunks there are."""
        chunks = len(self.start)
        return self.held or Held(len(self.obs), chunks, chunks)

    def take(self, index: Int[Array | np.ndarray, " batch"]) -> Batch:
        """Return the chunks at `index` (positions in `start`).

        Args:
            index: positions in `start`.
        """
        row = self.start[index]
        action = self.action[row[:, None] + jnp.arange(self.length)]
        return Batch(
            obs=self.obs[row],
            action=action.reshape(len(row), -1),
            reward=self.reward[index],
            mask=self.mask[index],
            next_obs=self.obs[row + self.length],
            return_to_go=None if self.return_to_go is None else self.return_to_go[index],
            ahead=None if self.ahead is None else self._ahead(index),
        )

    def _ahead(self, index: Int[Array | np.ndarray, " batch"]) -> Ahead:
        reward, discount, end = (values[index] for values in self.ahead[:3])
        start = self.start[index]
        row = jnp.minimum(start[:, None] + jnp.arange(self.horizon), end[:, None] - 1)
        return Ahead(
            reward,
            discount,
            next_obs=self.obs[end],
            action=self.action[row].reshape(len(start), -1),
            whole=jnp.asarray((end - start == self.horizon) | (discount == 0), jnp.float32),
        )

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Batch:
        """Return `batch_size` chunks that a critic can learn from, uniformly with replacement.

        Args:
            key: a JAX key.
            batch_size: how many chunks.
        """
        return self.take(jax.random.randint(key, (batch_size,), 0, self.counts.critic))

    def sample_all(self, key: PRNGKeyArray, batch_size: int) -> Batch:
        """Return `batch_size` of all chunks, uniformly with replacement.

        Args:
            key: a JAX key.
            batch_size: how many chunks.
        """
        return self.take(jax.random.randint(key, (batch_size,), 0, self.counts.chunks))


def chunk_returns(
    rewards: Float[np.ndarray, " row"],
    masks: Float[np.ndarray, " row"],
    start: Int[np.ndarray, " chunk"],
    steps: int | Int[np.ndarray, " chunk"],
    discount: float,
) -> tuple[Float[np.ndarray, " chunk"], Float[np.ndarray, " chunk"]]:
    """Return the discounted reward of `steps` from each start, and its mask (0: solved in them).

    A solved state ends the episode: it pays its own reward, and later ones pay nothing.
    """
    total = np.zeros(len(start))
    alive = np.ones(len(start))
    for i in range(np.max(steps, initial=0)):
        inside = i < steps
        row = start + i * inside
        total += discount**i * alive * inside * rewards[row]
        alive *= np.where(inside, masks[row], 1)
    return total.astype(np.float32), alive.astype(np.float32)


def returns_to_go(
    rewards: Float[np.ndarray, " row"],
    masks: Float[np.ndarray, " row"],
    terminals: Shaped[np.ndarray, " row"],
    discount: float,
) -> Float[np.ndarray, " row"]:
    """Return Σ_i γ^i r_{t+i} from every row t, up to the row that solves the task (mask 0).

    A trajectory of play data ends at an arbitrary moment, not because its task does. Where it
    ends unsolved its last reward is taken to be paid forever (as Cal-QL does, arXiv 2303.05479):
    with rewards of −1 until success, as if the task were never solved, which n steps before the
    end is too low by at most γ^n of what solving it is worth. To pay nothing after the end would
    make all states near it look good; to drop the rows whose return is cut off would keep the
    solved ones. At γ = 1 nothing is paid after the end.

    Args:
        rewards: r_t of the rows of whole trajectories, one after the other.
        masks: 0 where the row's action solves the task, else 1.
        terminals: whether the row is the last of its trajectory.
        discount: γ per row.
    """
    ends = np.flatnonzero(terminals)
    firsts = np.concatenate([[0], ends[:-1] + 1])
    total = rewards.astype(np.float64)
    if discount < 1:
        total[ends] /= np.where(masks[ends] == 0, 1.0, 1 - discount)
    for back in range(1, 1 + (ends - firsts).max()):
        row = (ends - back)[ends - back >= firsts]
        total[row] += discount * masks[row] * total[row + 1]
    return total


class Dataset:
    """Recorded episodes of a source, seen as chunks with returns.

    Attributes:
        chunk: h, environment steps of a chunk.
        discount: γ per environment step.
        horizon: environment steps of `Batch.ahead`, which is None without it.
    """

    def __init__(self, source: Source, *, chunk: int, discount: float, horizon: int | None = None):
        """Take chunks of so many steps, whose rewards are discounted per step.

        Args:
            source: recorded episodes of a task.
            chunk: h, environment steps of a chunk.
            discount: γ per environment step.
            horizon: steps of `Batch.ahead`, which is None without it.

        Raises:
            UserError: the horizon is shorter than a chunk.
        """
        if horizon is not None and horizon < chunk:
            raise UserError(
                f"--horizon and --critic-chunk must be at least the chunk of {chunk} steps, got "
                f"{horizon}"
            )
        self.source = source
        self.chunk = chunk
        self.discount = discount
        self.horizon = horizon

    def spec(self, chunks: Chunks) -> Spec:
        """Return the sizes of chunks of this data.

        Args:
            chunks: any chunks of this data.
        """
        return Spec(chunks.obs.shape[1], chunks.action.shape[1], self.chunk)

    def chunks(self, shards: list[Shard], rows: int | None = None) -> eqx.Module:
        """Read `shards` into one set of chunks (NumPy arrays; the device copy is the caller's).

        Args:
            shards: what is read.
            rows: to which every array is lengthened, at least the rows of the shards; by default
                none is.

        Returns:
            The chunks, of `Chunks` or `GoalChunks`.

        Raises:
            UserError: a shard is damaged or unfit (see `read_arrays`), lacks what rewards come
                from, has no trajectory as long as a chunk, or memory is too small.
        """
        try:
            parts = [self._read(shard) for shard in shards]
            counts = _counts(parts)
            if rows is not None:
                parts.append(_filler(parts, rows))
            blind = rows is not None or counts.critic < counts.chunks
            return self._join(parts, counts if blind else None)
        except MemoryError as error:
            raise UserError(
                f"{len(shards)} shards of {self.source.folder} do not fit into memory "
                f"({error}); use a smaller --resident-gb, or smaller shards"
            ) from None

    def _join(self, parts: list[Part], held: Held | None) -> eqx.Module:
        order = chunk_order(parts)
        if held is not None and not held.critic:
            raise UserError(
                "every chunk ends where the recording does, and the observation there was not "
                "recorded, so a critic has nothing to learn from; use a smaller --chunk"
            )
        return Chunks(
            obs=joined(parts, "observations"),
            action=joined(parts, "actions"),
            start=joined_rows(parts, "start")[order],
            reward=joined(parts, "reward")[order],
            mask=joined(parts, "mask")[order],
            length=self.chunk,
            return_to_go=joined(parts, "return_to_go")[order],
            held=held,
            ahead=None if self.horizon is None else self._join_ahead(parts, order),
            horizon=self.horizon,
        )

    def _join_ahead(self, parts: list[Part], order: np.ndarray | slice) -> Ahead:
        reward, discount = (joined(parts, name)[order] for name in ("ahead", "follows"))
        return Ahead(reward, discount, joined_rows(parts, "ahead_row")[order])

    def groups(self, gigabytes: float) -> list[list[Shard]]:
        """Split the training shards into runs of neighbours of at most `gigabytes` each.

        Args:
            gigabytes: that are held at once.

        Returns:
            The shards of each group, in order.
        """
        shards = self.source.split("train")
        row_bytes = 4 * (sum(self.source.widths) + 4)
        groups: list[list[Shard]] = [[]]
        for shard in shards:
            rows = shard.rows + sum(other.rows for other in groups[-1])
            if groups[-1] and rows * row_bytes > gigabytes * 1e9:
                groups.append([])
            groups[-1].append(shard)
        return groups

    def validation(self) -> eqx.Module:
        """Return all chunks of the -val shards."""
        return self.chunks(self.source.split("val"))

    def _read(self, shard: Shard) -> Part:
        trajectories = self.source.read(shard)
        try:
            return self._cut(trajectories, _chunk_starts(trajectories, self.chunk))
        except UserError as error:
            raise UserError(f"{self.source.folder / shard.file}: {error}") from None

    def _cut(self, episodes: Trajectories, start: Int[np.ndarray, " chunk"]) -> Part:
        rewards, masks = episodes.reward, 1.0 - episodes.terminated
        reward, mask = chunk_returns(rewards, masks, start, self.chunk, self.discount)
        to_go = returns_to_go(rewards, masks, episodes.last, self.discount)
        ahead = {} if self.horizon is None else self._cut_ahead(episodes, masks, start)
        return ahead | {
            "observations": episodes.observation,
            "actions": episodes.action,
            "start": start,
            "reward": reward,
            "mask": mask,
            "return_to_go": to_go[start].astype(np.float32),
            "blind": (mask != 0) & unseen_rows(episodes)[start + self.chunk],
        }

    def _cut_ahead(
        self,
        episodes: Trajectories,
        masks: Float[np.ndarray, " row"],
        start: Int[np.ndarray, " chunk"],
    ) -> Part:
        end = trajectory_ends(episodes.last, start)
        # The reward of an action counts where the task ends there, whatever was seen of it.
        unseen = unseen_rows(episodes)[end] & ~episodes.terminated[end - 1]
        steps = np.minimum(self.horizon, end - unseen - start)
        reward, mask = chunk_returns(episodes.reward, masks, start, steps, self.discount)
        follows = (mask * self.discount**steps).astype(np.float32)
        return {"ahead": reward, "follows": follows, "ahead_row": start + steps}


def _counts(parts: list[Part]) -> Held:
    blind = joined(parts, "blind")
    rows = sum(len(part["observations"]) for part in parts)
    return Held(rows, len(blind), len(blind) - int(blind.sum()))


def _filler(parts: list[Part], rows: int) -> Part:
    """Return the part that lengthens every array of these to so many rows, or chunks."""

    def zeros(name: str) -> np.ndarray:
        count = rows - sum(len(part[name]) for part in parts)
        return np.zeros((count, *parts[0][name].shape[1:]), parts[0][name].dtype)

    return {name: zeros(name) for name in parts[0]} | {"blind": zeros("blind") | True}


def unseen_rows(episodes: Trajectories) -> Bool[np.ndarray, " row"]:
    """Return which rows hold an observation that was not recorded."""
    return np.zeros_like(episodes.last) if episodes.unseen is None else episodes.unseen


def trajectory_ends(
    terminals: Shaped[np.ndarray, " row"], start: Int[np.ndarray, " chunk"]
) -> Int[np.ndarray, " chunk"]:
    """Return, for each chunk's first row, the terminal row that ends its trajectory.

    Args:
        terminals: not 0 at the last row of every trajectory, the last row's included.
    """
    ends = np.flatnonzero(terminals)
    return ends[np.searchsorted(ends, start)].astype(np.int32)


def joined(parts: list[Part], name: str) -> np.ndarray:
    """Return the parts' arrays of that name, one after the other."""
    return np.concatenate([part[name] for part in parts])


def chunk_order(parts: list[Part]) -> Int[np.ndarray, " chunk"] | slice:
    """Return the order of the parts' joined chunks: those that a critic can learn from come first.

    Without others nothing is moved.
    """
    blind = joined(parts, "blind")
    return np.argsort(blind, kind="stable") if blind.any() else slice(None)


def joined_rows(parts: list[Part], name: str) -> Int[np.ndarray, " chunk"]:
    """Return the parts' row numbers of that name as numbers of the joined rows."""
    offsets = [0, *itertools.accumulate(len(part["observations"]) for part in parts[:-1])]
    moved = [part[name] + offset for part, offset in zip(parts, offsets, strict=True)]
    return np.concatenate(moved).astype(np.int32)


def _chunk_starts(episodes: Trajectories, length: int) -> Int[np.ndarray, " chunk"]:
    """Return the rows at which a whole chunk and the observation after it begin."""
    starts = [
        np.arange(end - actions, end - length + 1)
        for end, actions in zip(episodes.ends, episodes.lengths, strict=True)
    ]
    if not any(len(s) for s in starts):
        raise UserError(
            f"no trajectory is as long as a chunk of {length} steps (the longest has "
            f"{episodes.lengths.max()}); use a smaller --chunk"
        )
    return np.concatenate(starts)
