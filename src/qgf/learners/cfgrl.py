"""Classifier-free guidance for RL: one flow for all actions and for the better ones.

Source: Frans et al., arXiv 2505.23458.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.flow import FlowPolicy, Velocity, draw_path
from qgf.data.dataset import Batch
from qgf.learners._learner import FlowTimes, Learner

NONE, POSITIVE = -1.0, 1.0  # the condition o, one more input of the network
NONE_WEIGHT = 0.1  # of the unconditional branch in the loss


class CFGRL(Learner):
    """A flow conditioned on o in {none, positive}, extrapolated from one to the other.

    The positive branch learns from actions with an advantage Q − V > 0 (Q aggregated over
    the target networks), the unconditional branch from all.
    """

    policy: FlowPolicy
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("critic",)
    Hyper = FlowTimes

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "CFGRL":
        policy = FlowPolicy(
            spec.obs + 1, spec.chunk_action, width=config.width, depth=config.depth, key=key
        )
        return cls(policy, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        critic = others["critic"]
        positive = critic.bind(batch.obs)(batch.action) > critic.v(batch.obs)
        noisy, t, target = draw_path(
            batch.action, key, times=self.hyper.times, steps=self.config.denoise_steps
        )

        def error(o: float) -> Float[Array, " batch"]:
            return jnp.square(self.branch(batch.obs, noisy, t, o) - target).mean(-1)

        none_loss = error(NONE).mean()
        positive_loss = jnp.where(positive, error(POSITIVE), 0).mean()
        return positive_loss + NONE_WEIGHT * none_loss, {
            "positive_loss": positive_loss,
            "none_loss": none_loss,
            "positive_share": positive.mean(),
        }

    def branch(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
        o: float,
    ) -> Float[Array, "batch action"]:
        """Return v(s, a_t, t | o) for o = NONE or POSITIVE.

        Args:
            obs: observations.
            action: noisy actions a_t.
            t: flow time of each row.
            o: NONE or POSITIVE.
        """
        condition = jnp.full((len(obs), 1), o, obs.dtype)
        return self.policy(jnp.concatenate([obs, condition], axis=-1), action, t)

    def at(
        self, encoded: Float[Array, "batch obs"]
    ) -> Callable[[Float[Array, " batch"]], Velocity]:
        """Return, for a weight of every row, v_none + w (v_positive − v_none).

        Weight 0 imitates all actions, 1 the better ones.
        """

        def weighted(weight: Float[Array, " batch"]) -> Velocity:
            w = weight[:, None]

            def velocity(action: Array, t: Array) -> Array:
                none, positive = (self.branch(encoded, action, t, o) for o in (NONE, POSITIVE))
                return (1 - w) * none + w * positive  # exact at w = 0 and w = 1

            return velocity

        return weighted
