"""Implicit Q-learning (arXiv 2110.06169) on action chunks: the critic that guides."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import Ensemble, Value, aggregate, expectile_loss
from qgf.data.dataset import Batch
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

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "IQL":
        q_key, v_key = jax.random.split(key)
        size = {"width": config.width, "depth": config.depth}
        q = Ensemble(spec.obs, spec.chunk_action, members=config.ensemble, key=q_key, **size)
        v = Value(spec.obs, key=v_key, **size)
        return cls(q, q, v, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        del key, others
        config = self.config
        discount = config.discount**config.chunk
        next_v = jax.lax.stop_gradient(self.v(batch.next_obs))
        backup = batch.reward + discount * batch.mask * next_v
        q = self.q(batch.obs, batch.action)
        critic_loss = jnp.square(q - backup).mean(1).sum(0) / config.ensemble

        target = jax.lax.stop_gradient(self.target_q(batch.obs, batch.action))
        v = self.v(batch.obs)
        advantage = aggregate(target, config.aggregation) - v
        value_loss = expectile_loss(advantage, config.expectile).mean()
        metrics = {
            "critic_loss": critic_loss,
            "value_loss": value_loss,
            "q": q.mean(),
            "v": v.mean(),
            "advantage": advantage.mean(),
        }
        return critic_loss + value_loss, metrics
