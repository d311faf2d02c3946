"""Goal-conditioned implicit Q-learning (arXiv 2110.06169): minus the steps to a goal."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.data.goals import GoalBatch
from qgf.learners._learner import GoalCritic
from qgf.learners.iql import IQL


class GoalIQL(GoalCritic, IQL):
    """IQL of [observation, goal], with reward −1 a step until the goal is reached.

    R counts the steps before the goal, and m is 0 if the chunk reaches it, so that the value is
    −(1 − γ^steps) / (1 − γ).
    """

    @dataclass(frozen=True)
    class Hyper(IQL.Hyper, GoalCritic.Hyper):
        pass

    def following(
        self, batch: GoalBatch
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"], Float[Array, "batch obs"]]:
        discount, chunk = self.config.discount, self.config.chunk
        step = jnp.arange(chunk)
        reward = -(discount**step * (step < batch.distance[:, None])).sum(-1)
        return reward, discount**chunk * (batch.distance > chunk), batch.next_obs
