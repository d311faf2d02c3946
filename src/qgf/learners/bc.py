"""Behaviour cloning of a flow policy: the reference policy that guidance improves."""

from functools import partial
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.flow import FlowPolicy, Velocity, flow_matching_loss
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch
from qgf.learners._learner import FlowTimes, Learner


class BC(Learner):
    """A flow policy trained by conditional flow matching on action chunks."""

    policy: FlowPolicy
    config: Config = eqx.field(static=True)
    imitates: ClassVar[bool] = True
    Hyper = FlowTimes

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
            self.bind(batch.obs),
            batch.action,
            key,
            times=self.hyper.times,
            steps=self.config.denoise_steps,
        )
        return loss, {"bc_loss": loss}

    def at(self, encoded: Float[Array, "batch obs"]) -> Velocity:
        return partial(self.policy, encoded)
