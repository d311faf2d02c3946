"""Decoupled Q-chunking (arXiv 2512.10926): a critic of goals that backs up over long chunks."""

from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec, share
from qgf.core.critic import Aggregation, Ensemble, Value, deviation
from qgf.data.goals import GoalBatch
from qgf.errors import UserError
from qgf.learners._learner import GoalCritic


class DQC(GoalCritic):
    """How likely, and how soon, a goal is reached: γ^(steps to it), in logits under a sigmoid.

    The chunk critic values h_c actions at once, so it looks h_c steps ahead without the bias of
    an n-step return. The action critic values the policy's h actions: an expectile over how
    the data went on after them. V is a quantile (or expectile) over the data's actions, and
    closes the loop h_c steps later. No gradient crosses from one to another.

    Without a chunk critic (hyper.chunk_critic) the action critic regresses, without an expectile,
    onto the n-step return of h_c steps itself; with critic_chunk = chunk this is Q-chunking.

    The critic that samplers get gives logits of Q: they order actions as Q does, but their
    gradient does not vanish where Q is close to 0, far from the goal.
    """

    chunk_q: Ensemble | None
    q: Ensemble
    target_q: Ensemble
    v: Value
    config: Config = eqx.field(static=True)

    @dataclass(frozen=True)
    class Hyper(GoalCritic.Hyper):
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

        def long(self, chunk: int) -> int:
            return self.critic_chunk

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "DQC":
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
        self, batch: GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        """Return the sum of the losses, to which rows count whose long chunk is whole."""
        del key, others
        hyper = self.hyper
        state = jnp.concatenate([batch.obs, batch.goal], -1)
        losses, values = {}, {}
        target = backup = self._backup(batch)
        expectile = 0.5
        if self.chunk_q is not None:
            expectile = hyper.distill_expectile
            values["chunk_q"] = chunk_q = self.chunk_q(state, batch.long_action)
            losses["chunk_loss"] = optax.sigmoid_binary_cross_entropy(chunk_q, backup)
            pooled = pool(jax.lax.stop_gradient(chunk_q), hyper.aggregation, hyper.kappa)
            target = jax.nn.sigmoid(pooled)

        values["q"] = q = self.q(state, batch.action)
        losses["critic_loss"] = expectile_cross_entropy(q, target, expectile)

        target_q = jax.lax.stop_gradient(self.target_q(state, batch.action))
        target_q = pool(target_q, hyper.aggregation, hyper.kappa)
        values["v"] = v = self.v(state)
        if hyper.backup == "quantile":
            losses["value_loss"] = quantile_loss(target_q - v, hyper.backup_level)
        else:
            target_q = jax.nn.sigmoid(target_q)
            losses["value_loss"] = expectile_cross_entropy(v, target_q, hyper.backup_level)

        losses = {name: (batch.whole * loss).mean() for name, loss in losses.items()}
        metrics = losses | {name: jax.nn.sigmoid(x).mean() for name, x in values.items()}
        return sum(losses.values()), metrics

    def _backup(self, batch: GoalBatch) -> Float[Array, " batch"]:
        """Return γ^distance where h_c steps reach the goal, else γ^h_c V(s_{t+h_c}, goal).

        A goal reached by the very last step needs no value: V of the goal itself is 1.
        """
        horizon = self.hyper.critic_chunk
        state = jnp.concatenate([batch.long_next_obs, batch.goal], -1)
        next_v = jax.nn.sigmoid(jax.lax.stop_gradient(self.v(state)))
        steps = jnp.minimum(batch.distance, horizon)
        return self.config.discount**steps * jnp.where(batch.distance <= horizon, 1, next_v)


def pool(
    logits: Float[Array, "member batch"], how: Aggregation, kappa: float = 0.0
) -> Float[Array, " batch"]:
    """Return the logit of the members' aggregated value, a value being sigmoid(logit).

    As with `aggregate`; where that is 0 or below it counts as the smallest positive number, whose
    logit is finite.
    """
    if how == "min":
        return logits.min(0)
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=0) for x in (logits, -logits))
    if not kappa:
        return yes - no
    less = kappa * deviation(jax.nn.sigmoid(logits))
    both = jnp.exp(yes) / len(logits) - less, jnp.exp(no) / len(logits) + less
    yes, no = (jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny)) for x in both)
    return yes - no


def expectile_cross_entropy(
    logit: Float[Array, "*member batch"], target: Float[Array, " batch"], expectile: float
) -> Float[Array, "*member batch"]:
    """Return cross-entropy to targets in [0, 1] whose minimizer is sigmoid⁻¹ of their expectile.

    The weight is τ where the target is not below the prediction, else 1 − τ.
    """
    weight = jnp.where(target >= jax.nn.sigmoid(logit), expectile, 1 - expectile)
    return weight * optax.sigmoid_binary_cross_entropy(logit, target)


def quantile_loss(difference: Float[Array, " batch"], level: float) -> Float[Array, " batch"]:
    """Return |τ − 1(d < 0)| |d|, whose minimizer over V with d = Q − V is the τ-quantile."""
    return jnp.where(difference >= 0, level, 1 - level) * jnp.abs(difference)
