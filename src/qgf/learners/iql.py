"""Implicit Q-learning (arXiv 2110.06169) on action chunks: the critic that guides."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec, share
from qgf.core.critic import Ensemble, Value, aggregate, expectile_loss
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch
from qgf.learners._learner import EnsembleCritic


class IQL(EnsembleCritic):
    """An ensemble Q and a value V, learned from the data's own actions alone.

    Q regresses onto R + γ^h m V(s'); V regresses by expectile onto the aggregated target
    Q, a slow average of Q. No gradient crosses from one to the other.
    """

    q: Ensemble
    target_q: Ensemble
    v: Value
    config: Config = eqx.field(static=True)

    @dataclass(frozen=True)
    class Hyper(EnsembleCritic.Hyper):
        expectile: float = share(0.9)
        """expectile of the value regression"""

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "IQL":
        q_key, v_key = jax.random.split(key)
        size = {"width": config.width, "depth": config.depth}
        inputs, members = spec.obs + spec.goal, config.of(cls.Hyper).ensemble
        q = Ensemble(inputs, spec.chunk_action, members=members, key=q_key, **size)
        v = Value(inputs, key=v_key, **size)
        return cls(q, q, v, config)

    def loss(
        self, batch: Batch | GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        del key, others
        hyper = self.hyper
        state = self.encode(batch.obs, batch.goal)
        reward, discount, next_obs = self.following(batch)
        next_v = jax.lax.stop_gradient(self.v(self.encode(next_obs, batch.goal)))
        backup = reward + discount * next_v
        q = self.q(state, batch.action)
        critic_loss = jnp.square(q - backup).mean(1).sum(0) / hyper.ensemble

        target = jax.lax.stop_gradient(self.target_q(state, batch.action))
        v = self.v(state)
        advantage = aggregate(target, hyper.aggregation, hyper.kappa) - v
        value_loss = expectile_loss(advantage, hyper.expectile).mean()
        metrics = {
            "critic_loss": critic_loss,
            "value_loss": value_loss,
            "q": q.mean(),
            "v": v.mean(),
            "advantage": advantage.mean(),
        }
        return critic_loss + value_loss, metrics

    def following(
        self, batch: Batch
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"], Float[Array, "batch obs"]]:
        """Return R, γ^h or 0 where nothing follows, and the observation whose value does.

        Args:
            batch: chunked transitions.
        """
        return batch.reward, self.config.discount**self.config.chunk * batch.mask, batch.next_obs
