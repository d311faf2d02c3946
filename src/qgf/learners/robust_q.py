"""A critic of noisy actions, whose gradient guides without a clean action.

Source: the RobustQ baseline of QGF (arXiv 2606.11087).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import Critic
from qgf.core.flow import Velocity, draw_path
from qgf.core.guidance import Action, Time, q_gradient
from qgf.core.networks import MLP, time_embedding
from qgf.data.dataset import Batch
from qgf.learners._learner import Learner

Value = Callable[[Action, Time], Float[Array, " batch"]]  # Q_r at given observations


class RobustQ(Learner):
    """Q_r(s, a_t, t), regressed along the flow path onto the target Q of the clean action.

    Its minimizer is E[Q(s, a_1) | s, a_t].
    """

    q: MLP
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("critic",)

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "RobustQ":
        q = MLP(
            spec.obs + spec.chunk_action + 16,
            1,
            width=config.width,
            depth=config.depth,
            norms=config.depth,
            key=key,
        )
        return cls(q, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        noisy, t, _ = draw_path(batch.action, key)
        target = others["critic"].bind(batch.obs)(batch.action)
        q = self.value(batch.obs, noisy, t)
        loss = jnp.mean(jnp.square(q - target))
        return loss, {"robust_q_loss": loss, "q": q.mean()}

    def value(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
    ) -> Float[Array, " batch"]:
        """Return Q_r(s, a_t, t).

        Args:
            obs: observations.
            action: noisy actions a_t.
            t: flow time of each row.
        """
        return self.q(obs, action, time_embedding(t))[:, 0]

    def at(self, encoded: Float[Array, "batch obs"]) -> Value:
        """Return Q_r(a, t), for the estimator below."""
        return partial(self.value, encoded)


def robust_q(
    value: Value, velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """RobustQ: ∇_a Q_r(a, t) at the noisy action itself."""
    return velocity(action, t), q_gradient(lambda action: value(action, t), action)
