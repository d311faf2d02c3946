"""What a learner is, and a critic."""

import abc
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from qgf.config import Config, Spec
from qgf.core.critic import Critic, Ensemble, ensemble_critic
from qgf.core.flow import repeat_rows
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch


class Learner(eqx.Module):
    """Networks, the loss that trains them, and what acts of them.

    Attributes:
        targets: each slowly averaged copy, and the network it follows.
        needs: roles of other learners that the loss consults.
        goal_conditioned: it learns from goals, and is bound to one as well.
        imitates: it learns from actions alone, so that it needs no observation after them.
        fixed_steps: it acts in the T denoising steps it was trained for, and in no others.
    """

    config: eqx.AbstractVar[Config]
    targets: ClassVar[dict[str, str]] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    goal_conditioned: ClassVar[bool] = False
    imitates: ClassVar[bool] = False
    fixed_steps: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "Learner":
        """Return a learner at the start of its training."""

    @abc.abstractmethod
    def loss(
        self, batch: Batch | GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        """Return the loss and metrics.

        Args:
            others: all learners of the run by role, as they are before this step.
        """

    def bind(
        self, obs: PyTree, goal: Float[Array, "batch goal"] | None = None, repeats: int = 1
    ) -> Any:
        """Return what acts at these observations, each `repeats` times over.

        That is a `Velocity` of a policy, a `Critic` of a critic, else what `at` of the learner
        says. Observations are encoded once, whatever is then asked and however often.

        Args:
            obs: any tree of arrays that lead with the batch axis.
            goal: one a row, which only critics of goals look at.
            repeats: rows come as (repeats, batch), flattened.
        """
        return self.at(repeat_rows(self.encode(obs, goal), repeats))

    def encode(self, obs: PyTree, goal: Float[Array, "batch goal"] | None) -> PyTree:
        """Return what `at` takes: all that is computed of an observation alone."""
        del goal
        return obs

    @abc.abstractmethod
    def at(self, encoded: PyTree) -> Any:
        """Return what acts, a function, at encoded observations."""


class EnsembleCritic(Learner):
    """A critic whose Q is that of a slowly averaged ensemble."""

    q: eqx.AbstractVar[Ensemble]
    target_q: eqx.AbstractVar[Ensemble]
    targets: ClassVar[dict[str, str]] = {"target_q": "q"}

    def at(self, encoded: Float[Array, "batch state"]) -> Critic:
        """Return the aggregated target Q."""
        return partial(ensemble_critic, self.target_q, self.config.aggregation, encoded)


class GoalCritic(EnsembleCritic):
    """A critic of goals, whose networks take [observation, goal]."""

    goal_conditioned: ClassVar[bool] = True

    def encode(
        self, obs: Float[Array, "batch obs"], goal: Float[Array, "batch goal"]
    ) -> Float[Array, "batch state"]:
        return jnp.concatenate([obs, goal], -1)
