"""Goal-conditioned implicit Q-learning (arXiv 2110.06169): minus the steps to a goal."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import Ensemble, Value, aggregate, expectile_loss
from qgf.data.goals import GoalBatch
from qgf.learners._learner import GoalCritic


class GoalIQL(GoalCritic):
    """IQL of [observation, goal], with reward −1 a step until the goal is reached.

    Q regresses onto R + γ^h m V(s'), where R counts the steps before the goal and m is 0 if the
    chunk reaches it; V regresses by expectile onto the aggregated target Q. Its value is
    −(1 − γ^steps) / (1 − γ). No gradient crosses from one to the other.
    """

    q: Ensemble
    target_q: Ensemble
    v: Value
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "GoalIQL":
        q_key, v_key = jax.random.split(key)
        size = {"width": config.width, "depth": config.depth}
        inputs = spec.obs + spec.goal
        q = Ensemble(inputs, spec.chunk_action, members=config.ensemble, key=q_key, **size)
        return cls(q, q, Value(inputs, key=v_key, **size), config)

    def loss(
        self, batch: GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        del key, others
        config = self.config
        state = jnp.concatenate([batch.obs, batch.goal], -1)
        q = self.q(state, batch.action)
        critic_loss = jnp.square(q - self._backup(batch)).mean()

        target_q = jax.lax.stop_gradient(self.target_q(state, batch.action))
        v = self.v(state)
        advantage = aggregate(target_q, config.aggregation) - v
        value_loss = expectile_loss(advantage, config.expectile).mean()
        metrics = {
            "critic_loss": critic_loss,
            "value_loss": value_loss,
            "q": q.mean(),
            "v": v.mean(),
            "advantage": advantage.mean(),
        }
        return critic_loss + value_loss, metrics

    def _backup(self, batch: GoalBatch) -> Float[Array, " batch"]:
        discount, chunk = self.config.discount, self.config.chunk
        step = jnp.arange(chunk)
        reward = -(discount**step * (step < batch.distance[:, None])).sum(-1)
        next_v = self.v(jnp.concatenate([batch.next_obs, batch.goal], -1))
        alive = batch.distance > chunk
        return reward + discount**chunk * alive * jax.lax.stop_gradient(next_v)
