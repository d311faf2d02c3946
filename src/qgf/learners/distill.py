"""A network distilled from the remaining flow, and the estimators that use it.

Source: the QGF-Distill and QGF-Jacobian-Distill ablations of QGF (arXiv 2606.11087).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import Critic
from qgf.core.flow import FlowPolicy, Velocity
from qgf.core.guidance import Action, Time, q_gradient
from qgf.data.dataset import Batch
from qgf.data.goals import GoalBatch
from qgf.learners._learner import Learner

Clean = Callable[[Action, Time], Action]  # D at given observations


class Distilled(Learner):
    """D(s, a_t, t) ≈ ODE_{t→1}(a_t), the action that the policy's Euler steps from t lead to.

    D = a + (1 − t) f(s, a, t), so that D(s, a, 1) = a holds exactly; f is the mean of the
    velocities still to come, in size like the policy's own. The ODE is not clipped, as its
    Jacobian would be lost where it leaves [-1, 1]; users of D clip.
    """

    mean_velocity: FlowPolicy
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("policy",)
    fixed_steps: ClassVar[bool] = True

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "Distilled":
        network = FlowPolicy(
            spec.obs, spec.chunk_action, width=config.width, depth=config.depth, key=key
        )
        return cls(network, config)

    def loss(
        self, batch: Batch | GoalBatch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        steps = self.config.denoise_steps
        noise_key, start_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, batch.action.shape)
        start = spread_starts(start_key, len(noise), steps)
        t = start / steps
        noisy = (1 - t[:, None]) * noise + t[:, None] * batch.action

        def first(rows: int) -> Velocity:
            return others["policy"].bind(batch.obs[:rows])

        target = remaining_flow(first, noisy, start, steps=steps)
        loss = jnp.mean(jnp.square(self.clean(batch.obs, noisy, t) - target))
        return loss, {"distill_loss": loss}

    def clean(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch action"]:
        """Return D(s, a, t), not clipped.

        Args:
            obs: observations.
            action: noisy actions a_t.
            t: flow time of each row.
        """
        return action + (1 - t[:, None]) * self.mean_velocity(obs, action, t)

    def at(self, encoded: Float[Array, "batch obs"]) -> Clean:
        """Return D(a, t), for the two estimators below."""
        return partial(self.clean, encoded)


def qgf_distill(
    clean: Clean, velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-Distill: ∇Q at clip D(a, t), its Jacobian taken as I."""
    return velocity(action, t), q_gradient(critic, jnp.clip(clean(action, t), -1, 1))


def qgf_jacobian_distill(
    clean: Clean, velocity: Velocity, critic: Critic, action: Action, t: Time, steps: int
) -> tuple[Action, Action]:
    """QGF-Jacobian-Distill: ∇_a Q(clip D(a, t)), through the clip and D."""
    g = q_gradient(lambda action: critic(jnp.clip(clean(action, t), -1, 1)), action)
    return velocity(action, t), g


def spread_starts(key: PRNGKeyArray, rows: int, steps: int) -> Int[Array, " batch"]:
    """Return a k for every row, uniform on {0, …, steps − 1}, ascending and evenly spread."""
    return (jnp.arange(rows) * steps + jax.random.randint(key, (), 0, steps)) // rows


def remaining_flow(
    first: Callable[[int], Velocity],
    action: Float[Array, "batch action"],
    start: Int[Array, " batch"],
    *,
    steps: int,
) -> Float[Array, "batch action"]:
    """Carry every row by Euler steps from t = start/steps to t = 1, not clipped.

    Args:
        first: gives the flow of the first so many rows.
        start: as `spread_starts` returns them: those that begin late come last, and the
            early steps leave them out.
    """
    for k in range(steps):
        rows = -(-(k + 1) * len(action) // steps)  # no later row has started yet
        head = action[:rows]
        t = jnp.full(rows, k / steps, action.dtype)
        moved = head + first(rows)(head, t) / steps
        action = action.at[:rows].set(jnp.where((start[:rows] <= k)[:, None], moved, head))
    return action
