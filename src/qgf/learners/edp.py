"""Efficient diffusion policy: a flow trained to imitate and to maximize Q at once.

Source: Kang et al., arXiv 2305.20081; its flow form as in QGF (arXiv 2606.11087).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.flow import FlowPolicy, Velocity, draw_path
from qgf.core.guidance import one_step_clean
from qgf.data.dataset import Batch
from qgf.learners._learner import FlowTimes, Imitation, Learner


class EDP(Learner):
    """A flow policy with the loss λ · BC − Q(s, clip(a_t + (1 − t) v(s, a_t, t))).

    Both terms share the noisy action and the velocity; Q is the aggregated target Q.
    """

    policy: FlowPolicy
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("critic",)

    @dataclass(frozen=True)
    class Hyper(Imitation, FlowTimes):
        pass

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "EDP":
        policy = FlowPolicy(
            spec.obs, spec.chunk_action, width=config.width, depth=config.depth, key=key
        )
        return cls(policy, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        hyper = self.hyper
        noisy, t, target = draw_path(
            batch.action, key, times=hyper.times, steps=self.config.denoise_steps
        )
        v = self.policy(batch.obs, noisy, t)
        bc_loss = jnp.mean(jnp.square(v - target))
        q = others["critic"].bind(batch.obs)(one_step_clean(noisy, v, t)).mean()
        return hyper.bc_weight * bc_loss - q, {"bc_loss": bc_loss, "q": q}

    def at(self, encoded: Float[Array, "batch obs"]) -> Velocity:
        return partial(self.policy, encoded)
