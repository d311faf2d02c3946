"""Goals for action chunks, drawn from the data themselves while training (relabeling)."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qgf.config import Hyper, Spec, share
from qgf.data.dataset import (
    Batch,
    Chunks,
    Dataset,
    Held,
    Part,
    chunk_order,
    joined,
    joined_rows,
    trajectory_ends,
    unseen_rows,
)
from qgf.data.source import Source
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError

FAR = 2**30
"""distance to a goal that the chunk's own trajectory is not known to reach"""


@dataclass(frozen=True)
class GoalDraws(Hyper):
    """How goals are drawn for a critic."""

    goal_current: float = share(0.2, zero=True)
    """share of training goals that are the current state"""
    goal_trajectory: float = share(0.5, zero=True)
    """share of training goals ahead in the same trajectory; the rest are random states"""
    goal_sampling: Literal["uniform", "geometric"] = "uniform"
    """how goals ahead are drawn: all alike, or so many steps ahead with probability ~ γ^steps"""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = (self.goal_current, self.goal_trajectory)
        if sum(shares) > 1:
            raise UserError(
                "goal_current and goal_trajectory must be shares that sum to at most 1, got "
                f"{shares[0]} and {shares[1]}"
            )


class GoalBatch(NamedTuple):
    """A batch of chunks s_t, a_t … a_{t+h-1}, s_{t+h} and a goal for each.

    distance counts the environment steps from s_t to the goal along its own trajectory, or is
    FAR where the goal is a random state. long_action and long_next_obs are the critic's longer
    chunk a_t … a_{t+h_c-1} and s_{t+h_c}; whole is 1 where that lies inside the trajectory. Where
    it is 0, rows past the end are the last one again and must not count.

    Attributes:
        obs: s, normalized.
        action: the chunk's actions, flattened, in [-1, 1].
        next_obs: the observation after the chunk.
    """

    obs: Float[Array, "batch obs"]
    action: Float[Array, "batch chunk*action"]
    next_obs: Float[Array, "batch obs"]
    goal: Float[Array, "batch goal"]
    distance: Int[Array, " batch"]
    long_action: Float[Array, "batch critic_chunk*action"]
    long_next_obs: Float[Array, "batch obs"]
    whole: Float[Array, " batch"]


class GoalChunks(eqx.Module):
    """Chunks of h steps, and what goals for them are drawn from.

    A goal is the chunk's own first state with probability p_current, a later state of its
    trajectory with p_trajectory, else any state of the data. Later ones are drawn uniformly, or
    so many steps ahead with probability ~ discount^steps, cut at the trajectory's end.

    `goal` holds what a goal shows of each row's state; `end` the row of the last observation
    of each chunk's trajectory.

    Attributes:
        chunks: the chunks without goals.
        long: rows of a critic's long chunk.
        sampling: how future goals are drawn: uniformly, or the nearer the likelier.
    """

    chunks: Chunks
    goal: Float[Array | np.ndarray, "row goal"]
    end: Int[Array | np.ndarray, " chunk"]
    long: int = eqx.field(static=True)
    discount: float = eqx.field(static=True)
    p_current: float = eqx.field(static=True)
    p_trajectory: float = eqx.field(static=True)
    sampling: Literal["uniform", "geometric"] = eqx.field(static=True)

    def take(self, index: Int[Array | np.ndarray, " batch"], key: PRNGKeyArray) -> GoalBatch:
        """Return the chunks at `index` (positions in `chunks.start`), with goals drawn by `key`.

        Args:
            index: positions in `chunks.start`.
            key: a JAX key, which draws the goals.
        """
        batch = self.chunks.take(index)
        row, end = self.chunks.start[index], self.end[index]
        long_row = jnp.minimum(row[:, None] + jnp.arange(self.long + 1), end[:, None])
        long_action = self.chunks.action[long_row[:, :-1]]
        goal_row, distance = self._draw(row, end, key)
        return GoalBatch(
            obs=batch.obs,
            action=batch.action,
            next_obs=batch.next_obs,
            goal=self.goal[goal_row],
            distance=distance,
            long_action=long_action.reshape(len(row), -1),
            long_next_obs=self.chunks.obs[long_row[:, -1]],
            whole=jnp.asarray(row + self.long <= end, jnp.float32),
        )

    def sample(self, key: PRNGKeyArray, batch_size: int) -> GoalBatch:
        """Return `batch_size` chunks drawn uniformly, the same that Chunks.sample draws.

        Args:
            key: a JAX key.
            batch_size: how many chunks.
        """
        index = jax.random.randint(key, (batch_size,), 0, self.chunks.counts.critic)
        # Another number than 0 and 1: those keys randint itself has derived.
        return self.take(index, jax.random.fold_in(key, 2))

    def sample_all(self, key: PRNGKeyArray, batch_size: int) -> Batch:
        """Return the chunks that Chunks.sample_all draws, without goals.

        Args:
            key: a JAX key.
            batch_size: how many chunks.
        """
        return self.chunks.sample_all(key, batch_size)

    def _draw(self, row: Array, end: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Return every goal's row, and its distance."""
        kind_key, ahead_key, random_key = jax.random.split(key, 3)
        kind = jax.random.uniform(kind_key, row.shape)
        ahead = jnp.where(kind < self.p_current, 0, self._ahead(end - row, ahead_key))
        anywhere = jax.random.randint(random_key, row.shape, 0, self.chunks.counts.rows)
        is_random = kind >= self.p_current + self.p_trajectory
        return jnp.where(is_random, anywhere, row + ahead), jnp.where(is_random, FAR, ahead)

    def _ahead(self, left: Array, key: PRNGKeyArray) -> Array:
        """Return steps to a later state, of the `left` that are left of the trajectory."""
        if self.sampling == "uniform":
            return jax.random.randint(key, left.shape, 1, left + 1)
        # An exponential variable of rate -log γ, rounded up, is geometric.
        rate = max(-math.log(self.discount), 1e-9)
        steps = jnp.ceil(jax.random.exponential(key, left.shape) / rate)
        return jnp.clip(steps, 1, left).astype(jnp.int32)


class GoalDataset(Dataset):
    """Recorded episodes of a source, seen as chunks with goals."""

    def __init__(self, source: Source, draws: GoalDraws, *, chunk: int, discount: float):
        super().__init__(source, chunk=chunk, discount=discount)
        self._draws = draws

    def spec(self, chunks: GoalChunks) -> Spec:
        """Return the sizes of chunks of this data."""
        return super().spec(chunks.chunks)._replace(goal=chunks.goal.shape[1])

    def _cut(self, episodes: Trajectories, start: Int[np.ndarray, " chunk"]) -> Part:
        goal = episodes.observation if episodes.achieved is None else episodes.achieved
        return super()._cut(episodes, start) | {
            "goal": goal,
            "end": self._ends(episodes, start),
        }

    def _ends(
        self, episodes: Trajectories, start: Int[np.ndarray, " chunk"]
    ) -> Int[np.ndarray, " chunk"]:
        """Return the last row of each chunk's trajectory whose observation was recorded."""
        ends = trajectory_ends(episodes.last, start)
        return ends - unseen_rows(episodes)[ends]

    def _join(self, parts: list[Part], held: Held | None) -> GoalChunks:
        draws = self._draws
        return GoalChunks(
            super()._join(parts, held),
            joined(parts, "goal"),
            joined_rows(parts, "end")[chunk_order(parts)],
            long=draws.ahead() or self.chunk,
            discount=self.discount,
            p_current=draws.goal_current,
            p_trajectory=draws.goal_trajectory,
            sampling=draws.goal_sampling,
        )
