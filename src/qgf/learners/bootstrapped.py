"""A critic bootstrapped from the run's own actor instead of a state value."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import Ensemble
from qgf.core.flow import euler
from qgf.data.dataset import Batch
from qgf.learners._learner import EnsembleCritic


class Bootstrapped(EnsembleCritic):
    """An ensemble Q that evaluates the policy QAM is training (arXiv 2601.14234).

    Q regresses onto R + γ^h m Q̄(s', a') at actions a' that the fine-tuned flow samples; Q̄
    is the aggregated target Q, a slow average of Q (by default the min; the authors' is the mean).
    """

    q: Ensemble
    target_q: Ensemble
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("qam",)

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "Bootstrapped":
        q = Ensemble(
            spec.obs,
            spec.chunk_action,
            members=config.of(cls.Hyper).ensemble,
            width=config.width,
            depth=config.depth,
            key=key,
        )
        return cls(q, q, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        config = self.config
        noise = jax.random.normal(key, batch.action.shape)
        velocity = others["qam"].bind(batch.next_obs)
        next_action = euler(velocity, noise, steps=config.denoise_steps)
        next_q = jax.lax.stop_gradient(self.bind(batch.next_obs)(next_action))
        backup = batch.reward + config.discount**config.chunk * batch.mask * next_q
        q = self.q(batch.obs, batch.action)
        loss = jnp.square(q - backup).mean()
        return loss, {"critic_loss": loss, "q": q.mean(), "next_q": next_q.mean()}
