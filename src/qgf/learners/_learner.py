"""What a learner is, and a critic; hyperparameters that several learners have."""

import abc
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from qgf.config import Config, Hyper, Spec, from_zero
from qgf.core.critic import Aggregation, Critic, Ensemble, ensemble_critic
from qgf.core.flow import repeat_rows
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch, GoalDraws
from qgf.errors import UserError


@dataclass(frozen=True)
class FlowTimes(Hyper):
    times: Literal["uniform", "grid"] = "uniform"
    """flow times of the imitation loss: U[0, 1], or the grid that sampling visits"""


@dataclass(frozen=True)
class Imitation(Hyper):
    bc_weight: float = 100.0
    """weight of the imitation term in the loss (α of FQL, DAC and QSM, λ of EDP)"""


@dataclass(frozen=True)
class Temperature(Hyper):
    temperature: float = 0.1
    """scale τ of the critic's gradient"""


class Learner(eqx.Module):
    """Networks, the loss that trains them, and what acts of them.

    Attributes:
        Hyper: its hyperparameters, beside those of the training.
        targets: each slowly averaged copy, and the network it follows.
        needs: roles of other learners that the loss consults.
        goal_conditioned: it learns from goals, and is bound to one as well.
        imitates: it learns from actions alone, so that it needs no observation after them.
        fixed_steps: it acts in the T denoising steps it was trained for, and in no others.
        config: settings of the training.
    """

    config: eqx.AbstractVar[Config]
    Hyper: ClassVar[type[Hyper]] = Hyper
    targets: ClassVar[dict[str, str]] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    goal_conditioned: ClassVar[bool] = False
    imitates: ClassVar[bool] = False
    fixed_steps: ClassVar[bool] = False

    @property
    def hyper(self) -> Any:
        """The values of `Hyper` that it is trained with."""
        return self.config.of(self.Hyper)

    @classmethod
    @abc.abstractmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "Learner":
        """Return a learner at the start of its training.

        Args:
            spec: sizes of observations, actions, chunks and goals.
            config: settings of the training, with the learner's hyperparameters.
            key: a JAX key, which draws the weights.
        """

    @abc.abstractmethod
    def loss(
        self, batch: Batch | GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        """Return the loss and metrics.

        Args:
            batch: chunked transitions, with goals if it learns from goals.
            key: a JAX key for what the loss draws.
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
        """Return what `at` takes: all that is computed of an observation alone.

        Args:
            obs: any tree of arrays that lead with the batch axis.
            goal: one per row, which only critics of goals look at.
        """
        del goal
        return obs

    @abc.abstractmethod
    def at(self, encoded: PyTree) -> Any:
        """Return what acts, a function, at encoded observations.

        Args:
            encoded: what `encode` returned, repeated or not.
        """


class EnsembleCritic(Learner):
    """A critic whose Q is that of a slowly averaged ensemble."""

    q: eqx.AbstractVar[Ensemble]
    target_q: eqx.AbstractVar[Ensemble]
    targets: ClassVar[dict[str, str]] = {"target_q": "q"}

    @dataclass(frozen=True)
    class Hyper(Hyper):
        ensemble: int = 2
        """Q networks"""
        aggregation: Aggregation = "min"
        """how the ensemble's values become one"""
        kappa: float = from_zero(0.0)
        """deviations of the ensemble that are taken off its mean (κ), with --aggregation mean"""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.kappa and self.aggregation != "mean":
                raise UserError(
                    f"kappa ({self.kappa}) is taken off the mean of the ensemble; add "
                    "--aggregation mean, or leave --kappa out"
                )

    def at(self, encoded: Float[Array, "batch state"]) -> Critic:
        """Return the aggregated target Q."""
        hyper = self.hyper
        return partial(
            ensemble_critic, self.target_q, hyper.aggregation, encoded, kappa=hyper.kappa
        )


class GoalCritic(EnsembleCritic):
    """A critic of goals, whose networks take [observation, goal]."""

    goal_conditioned: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Hyper(GoalDraws, EnsembleCritic.Hyper):
        pass

    def encode(
        self, obs: Float[Array, "batch obs"], goal: Float[Array, "batch goal"]
    ) -> Float[Array, "batch state"]:
        return jnp.concatenate([obs, goal], -1)
