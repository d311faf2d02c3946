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

    @property
    def draws(self) -> int:
        """How many samples of the actor there are of s', of which the best follows."""
        return 1

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
        config, n = self.config, self.draws
        rows, size = batch.action.shape
        noise = jax.random.normal(key, (n * rows, size))
        velocity = others[self.needs[0]].bind(batch.next_obs, repeats=n)
        next_action = euler(velocity, noise, steps=config.denoise_steps)
        next_q = self.bind(batch.next_obs, repeats=n)(next_action).reshape(n, rows).max(0)
        next_q = jax.lax.stop_gradient(next_q)
        backup = batch.reward + config.discount**config.chunk * batch.mask * next_q
        q = self.q(batch.obs, batch.action)
        loss = jnp.square(q - backup).mean()
        return loss, {"critic_loss": loss, "q": q.mean(), "next_q": next_q.mean()}
