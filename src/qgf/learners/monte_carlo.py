"""A critic without bootstrapping: the returns that the data themselves went on to."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import Ensemble
from qgf.data.dataset import Batch
from qgf.learners._learner import EnsembleCritic


class MonteCarlo(EnsembleCritic):
    """An ensemble Q regressed onto the return that followed (s, a_t … a_{t+h-1}) in the data.

    Its minimizer E[Σ_i γ^i r_{t+i} | s, a] is the value of the policy that collected the data,
    after the chunk; `returns_to_go` says what counts where a trajectory ends unsolved. Like
    those of other critics, its target network is a slow average of Q.
    """

    q: Ensemble
    target_q: Ensemble
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "MonteCarlo":
        size = {"width": config.width, "depth": config.depth}
        members = config.of(cls.Hyper).ensemble
        q = Ensemble(spec.obs, spec.chunk_action, members=members, key=key, **size)
        return cls(q, q, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        del key, others
        q = self.q(batch.obs, batch.action)
        loss = jnp.square(q - batch.return_to_go).mean()
        return loss, {"critic_loss": loss, "q": q.mean(), "return": batch.return_to_go.mean()}
