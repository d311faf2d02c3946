"""Q-learning with adjoint matching: a flow fine-tuned toward the KL-regularized optimum.

Sources: Adjoint Matching (arXiv 2409.08861), QAM (arXiv 2601.14234). The flow's optimum
samples π ∝ π_BC · exp(τQ); its loss needs no derivative through the sampling of the flow
that is trained, only through that of the BC flow.
"""

from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import aggregate
from qgf.core.flow import FlowPolicy, Velocity
from qgf.core.guidance import q_gradient
from qgf.data.dataset import Batch
from qgf.learners._learner import Learner, Temperature


class QAM(Learner):
    """A flow v_fine, regressed onto the BC flow less σ²/2 times the lean adjoint of −τQ.

    Q is the mean of the target ensemble, as in the authors' implementation; its gradient is
    zero in dimensions where the action lies outside [-1, 1]. Unlike there, the BC flow is taken
    as it is, not as a slow average, and gradients are not clipped (docs/methods.md says why).
    """

    v_fine: FlowPolicy
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("policy", "critic")
    Hyper = Temperature

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "QAM":
        """Start from random weights, not from the BC flow, which trains beside it."""
        v_fine = FlowPolicy(
            spec.obs, spec.chunk_action, width=config.width, depth=config.depth, key=key
        )
        return cls(v_fine, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        fine, base = self.bind(batch.obs), others["policy"].bind(batch.obs)
        steps = self.config.denoise_steps
        noise = jax.random.normal(key, (steps, *batch.action.shape))
        path, v_fine = rollout(fine, base, noise)
        end = self._end_adjoint(others["critic"], batch.obs, path[-1])
        v_base, adjoint = lean_adjoint(base, path, end)
        sigma = memoryless_sigma(steps)[:, None, None]
        residual = 2 / sigma * (v_fine - v_base) + sigma * adjoint
        loss = jnp.square(residual).sum((0, 2)).mean()
        return loss, {
            "adjoint_loss": loss,
            "end_adjoint": jnp.abs(end).mean(),
            "shift": jnp.abs(v_fine - v_base).mean(),
        }

    def at(self, encoded: Float[Array, "batch obs"]) -> Velocity:
        return partial(self.v_fine, encoded)

    def _end_adjoint(self, critic: Any, obs: Array, action: Array) -> Array:
        def mean_q(action: Array) -> Array:
            return aggregate(critic.target_q(obs, jnp.clip(action, -1, 1)), "mean")

        return -self.hyper.temperature * q_gradient(mean_q, action)


def memoryless_sigma(steps: int) -> Float[Array, "{steps}"]:
    """Return σ(t) = √(2(1 − t + h)/(t + h)) at t = 0, h, …, 1 − h for h = 1/steps.

    Without the h, σ(0) would be infinite.
    """
    k = jnp.arange(steps)
    return jnp.sqrt(2 * (steps - k + 1) / (k + 1))


def rollout(
    fine: Velocity,
    base: Velocity,
    noise: Float[Array, "step batch action"],
) -> tuple[Float[Array, "step+1 batch action"], Float[Array, "step batch action"]]:
    """Return a path of the memoryless SDE da = (2v − a/t) dt + σ dB at t = 0, h, …, 1, and v.

    The path is a constant to differentiation; v at its points, all but the end, is not.

    Args:
        fine: the flow v that is followed in all steps but the last.
        base: the flow of the last step, a plain Euler step without noise.
        noise: draws of N(0, I): the start, then one for each step but the last.
    """
    steps = len(noise)

    def step(
        action: Array, inputs: tuple[Array, Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        k, sigma, draw = inputs
        v = fine(action, jnp.full(len(action), k / steps))
        action += 2 * v / steps - action / (k + 1) + sigma * draw / jnp.sqrt(steps)
        return jax.lax.stop_gradient(action), (action, v)

    inputs = jnp.arange(steps - 1), memoryless_sigma(steps)[:-1], noise[1:]
    last, (path, v) = jax.lax.scan(step, noise[0], inputs)
    t = jnp.full(len(last), 1 - 1 / steps)
    end = last + base(last, t) / steps
    path = jax.lax.stop_gradient(jnp.concatenate([noise[:1], path, end[None]]))
    return path, jnp.concatenate([v, fine(last, t)[None]])


def lean_adjoint(
    base: Velocity,
    path: Float[Array, "point batch action"],
    end: Float[Array, "batch action"],
) -> tuple[Float[Array, "point-1 batch action"], Float[Array, "point-1 batch action"]]:
    """Return the base flow's velocity and the lean adjoint at every point but the path's end.

    The adjoint solves dg/dt = −(2 ∂v_base/∂a − I/t)ᵀ g backward from `end`, in Euler steps
    whose Jacobian is taken at the later point, as in Adjoint Matching. (QAM's own code takes
    the earlier action with the later time, a pair that the flow never meets.)
    """
    steps = len(path) - 1

    def step(adjoint: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        k, action = inputs
        t = jnp.full(len(action), k / steps)
        v, pull = jax.vjp(lambda action: base(action, t), action)
        adjoint += 2 * pull(adjoint)[0] / steps - adjoint / k
        return adjoint, (v, adjoint)

    inputs = jnp.arange(1, steps + 1), path[1:]
    _, (v, adjoint) = jax.lax.scan(step, end, inputs, reverse=True)
    first = base(path[0], jnp.zeros(len(end)))
    return jnp.concatenate([first[None], v[:-1]]), adjoint
