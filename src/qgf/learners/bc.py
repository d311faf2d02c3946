"""Behaviour cloning of a flow policy: the reference policy that guidance improves."""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.flow import FlowPolicy, flow_matching_loss
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch


class BC(eqx.Module):
    """A flow policy trained by conditional flow matching on action chunks."""

    policy: FlowPolicy
    config: Config = eqx.field(static=True)
    targets: ClassVar[dict[str, str]] = {}
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "BC":
        policy = FlowPolicy(
            spec.obs, spec.chunk_action, width=config.width, depth=config.depth, key=key
        )
        return cls(policy, config)

    def loss(
        self, batch: Batch | GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        del others
        loss = flow_matching_loss(
            self.policy,
            batch.obs,
            batch.action,
            key,
            times=self.config.times,
            steps=self.config.denoise_steps,
        )
        return loss, {"bc_loss": loss}

    def velocity(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch action"]:
        """Return v(s, a_t, t), for samplers."""
        return self.policy(obs, action, t)
