"""Classifier-free guidance for RL: one flow for all actions and for the better ones.

Source: Frans et al., arXiv 2505.23458.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.flow import FlowPolicy, Sampled, draw_path, euler_counting
from qgf.data.dataset import Batch

NONE, POSITIVE = -1.0, 1.0  # the condition o, one more input of the network
NONE_WEIGHT = 0.1  # of the unconditional branch in the loss


class CFGRL(eqx.Module):
    """A flow conditioned on o in {none, positive}, extrapolated from one to the other.

    The positive branch learns from actions with an advantage Q − V > 0 (Q aggregated over
    the target networks), the unconditional branch from all.
    """

    policy: FlowPolicy
    config: Config = eqx.field(static=True)
    targets: ClassVar[dict[str, str]] = {}
    needs: ClassVar[tuple[str, ...]] = ("critic",)

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
        positive = critic.critic(batch.obs, batch.action) > critic.v(batch.obs)
        noisy, t, target = draw_path(
            batch.action, key, times=self.config.times, steps=self.config.denoise_steps
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
        """Return v(s, a_t, t | o) for o = NONE or POSITIVE."""
        condition = jnp.full((len(obs), 1), o, obs.dtype)
        return self.policy(jnp.concatenate([obs, condition], axis=-1), action, t)

    def velocity(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
        weight: Float[Array, " batch"],
    ) -> Float[Array, "batch action"]:
        """Return v_none + w (v_positive − v_none), each row with a weight of its own."""
        none, positive = (self.branch(obs, action, t, o) for o in (NONE, POSITIVE))
        w = weight[:, None]
        return (1 - w) * none + w * positive  # exact at w = 0 and w = 1

    def sample(
        self,
        obs: Float[Array, "batch obs"],
        noise: Float[Array, "batch action"],
        weight: Float[Array, " batch"],
    ) -> Sampled:
        """Carry noise to actions, as `euler_counting` does.

        Weight 0 imitates all actions, 1 the better ones.
        """

        def velocity(obs: Array, action: Array, t: Array) -> Array:
            return self.velocity(obs, action, t, weight)

        return euler_counting(velocity, obs, noise, steps=self.config.denoise_steps)
