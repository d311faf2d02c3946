"""Decoupled Q-chunking (arXiv 2512.10926) for one task: a critic that backs up over long chunks."""

from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec, share
from qgf.core.critic import Ensemble, Value, aggregate
from qgf.data.dataset import Ahead, Batch
from qgf.data.goals import GoalBatch
from qgf.errors import UserError
from qgf.learners._learner import EnsembleCritic

Outputs = Float[Array, "*member batch"]


class TaskDQC(EnsembleCritic):
    """The return of a task, from a critic over h_c steps distilled to the policy's h.

    The chunk critic values h_c actions at once, so it looks h_c steps ahead without the bias of
    an n-step return. The action critic values the policy's h actions: an expectile over how
    the data went on after them. V is a quantile (or expectile) over the data's actions, and
    closes the loop h_c steps later. No gradient crosses from one to another.

    Without a chunk critic (hyper.chunk_critic) the action critic regresses, without an expectile,
    onto the n-step return of h_c steps itself: n-step IQL, if V is an expectile.
    """

    chunk_q: Ensemble | None
    q: Ensemble
    target_q: Ensemble
    v: Value
    config: Config = eqx.field(static=True)

    @dataclass(frozen=True)
    class Hyper(EnsembleCritic.Hyper):
        critic_chunk: int = 25
        """environment steps that the chunk critic covers (h_c), and over which it backs up"""
        chunk_critic: bool = True
        """whether there is one; without, the action critic takes the backup itself"""
        backup: Literal["quantile", "expectile"] = "quantile"
        """regression of the value onto the action critic"""
        backup_level: float = share(0.93)
        """which quantile or expectile of it (κ_b)"""
        distill_expectile: float = share(0.8)
        """expectile of the action critic over the chunk critic (κ_d)"""

        def ahead(self) -> int:
            return self.critic_chunk

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "TaskDQC":
        """Raise UserError when the critic's chunk is shorter than the policy's."""
        hyper = config.of(cls.Hyper)
        if hyper.critic_chunk < spec.chunk:
            raise UserError(
                f"critic_chunk ({hyper.critic_chunk}) must be at least chunk ({spec.chunk})"
            )
        chunk_key, q_key, v_key = jax.random.split(key, 3)
        size = {"width": config.width, "depth": config.depth}
        inputs, members = spec.obs + spec.goal, hyper.ensemble
        chunk_q = None
        if hyper.chunk_critic:
            long_action = hyper.critic_chunk * spec.action
            chunk_q = Ensemble(inputs, long_action, members=members, key=chunk_key, **size)
        q = Ensemble(inputs, spec.chunk_action, members=members, key=q_key, **size)
        return cls(chunk_q, q, q, Value(inputs, key=v_key, **size), config)

    def loss(
        self, batch: Batch | GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        """Return the sum of the losses, to which rows count whose long chunk is whole."""
        del key, others
        hyper, ahead = self.hyper, self.ahead(batch)
        state = self.encode(batch.obs, batch.goal)
        next_state = self.encode(ahead.next_obs, batch.goal)
        next_v = self.value(jax.lax.stop_gradient(self.v(next_state)))
        losses, outputs = {}, {}
        target = backup = ahead.reward + ahead.discount * next_v
        expectile = 0.5
        if self.chunk_q is not None:
            expectile = hyper.distill_expectile
            outputs["chunk_q"] = chunk_q = self.chunk_q(state, ahead.action)
            losses["chunk_loss"] = self.error(chunk_q, backup)
            target = self.value(self.pool(jax.lax.stop_gradient(chunk_q)))

        outputs["q"] = q = self.q(state, batch.action)
        losses["critic_loss"] = self._expectile_error(q, target, expectile)

        target_q = self.pool(jax.lax.stop_gradient(self.target_q(state, batch.action)))
        outputs["v"] = v = self.v(state)
        if hyper.backup == "quantile":
            losses["value_loss"] = quantile_loss(target_q - v, hyper.backup_level)
        else:
            target_q = self.value(target_q)
            losses["value_loss"] = self._expectile_error(v, target_q, hyper.backup_level)

        losses = {name: (ahead.whole * loss).mean() for name, loss in losses.items()}
        metrics = losses | {name: self.value(x).mean() for name, x in outputs.items()}
        return sum(losses.values()), metrics

    def ahead(self, batch: Batch) -> Ahead:
        """Return the critic's long chunk, its rewards and what follows.

        Args:
            batch: chunked transitions.
        """
        return batch.ahead

    def value(self, output: Outputs) -> Outputs:
        """Return the values that networks mean by their outputs.

        Args:
            output: what networks gave.
        """
        return output

    def error(self, output: Outputs, target: Float[Array, " batch"]) -> Outputs:
        """Return the error of outputs, least where their values are the target's mean.

        Args:
            output: what networks gave.
            target: the value that each row should have.
        """
        return jnp.square(output - target)

    def pool(self, outputs: Float[Array, "member batch"]) -> Float[Array, " batch"]:
        """Return the output that means the aggregated value.

        Args:
            outputs: what the members of an ensemble gave.
        """
        return aggregate(outputs, self.hyper.aggregation, self.hyper.kappa)

    def _expectile_error(
        self, output: Outputs, target: Float[Array, " batch"], expectile: float
    ) -> Outputs:
        """Return the error with weight τ where the target is not below the value, else 1 − τ.

        It is least where the value is the targets' τ-expectile.
        """
        weight = jnp.where(target >= self.value(output), expectile, 1 - expectile)
        return weight * self.error(output, target)


def quantile_loss(difference: Float[Array, " batch"], level: float) -> Float[Array, " batch"]:
    """Return |τ − 1(d < 0)| |d|, whose minimizer over V with d = Q − V is the τ-quantile."""
    return jnp.where(difference >= 0, level, 1 - level) * jnp.abs(difference)
