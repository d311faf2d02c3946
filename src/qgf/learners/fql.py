"""Flow Q-learning: a one-step actor near the reference flow's actions that maximizes Q.

Source: Park et al., arXiv 2502.02538.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.flow import euler
from qgf.core.networks import MLP
from qgf.data.dataset import Batch
from qgf.learners._learner import Imitation, Learner


class FQL(Learner):
    """A network ω(s, z) with the loss α ‖ω(s, z) − ODE(z)‖² − mean_i Q_i(s, clip ω(s, z)).

    ODE is the flow of the run's policy, T Euler steps. The Q_i are the critic's online
    networks, as in the authors' implementation.
    """

    actor: MLP
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("policy", "critic")
    fixed_steps: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Hyper(Imitation):
        bc_weight: float = 1000.0

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "FQL":
        actor = MLP(
            spec.obs + spec.chunk_action,
            spec.chunk_action,
            width=config.width,
            depth=config.depth,
            norms=config.depth - 1,
            key=key,
        )
        return cls(actor, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        noise = jax.random.normal(key, batch.action.shape)
        policy = others["policy"].bind(batch.obs)
        flow = euler(policy, noise, steps=self.config.denoise_steps)
        action = self.actor(batch.obs, noise)
        distill_loss = jnp.mean(jnp.square(action - flow))
        q = others["critic"].q(batch.obs, jnp.clip(action, -1, 1)).mean()
        return self.hyper.bc_weight * distill_loss - q, {"distill_loss": distill_loss, "q": q}

    def at(self, encoded: Float[Array, "batch obs"]) -> Callable[[Array], Array]:
        """Return ω(z), not clipped."""
        return partial(self.actor, encoded)
