"""Q-score matching (arXiv 2312.11752) beside imitation: predicted noise follows −τ∇Q."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.learners._learner import Temperature
from qgf.learners.diffusion import DiffusionActor


class QSM(DiffusionActor):
    """Loss ‖−τ∇Q(s, a_k) − ε(s, a_k, k)‖² + α ‖ε(s, a_k, k) − ε‖².

    Both are means over batch and action dimensions, so that the minimizer is
    (α E[ε | a_k] − τ∇Q(s, a_k)) / (1 + α).
    """

    @dataclass(frozen=True)
    class Hyper(Temperature, DiffusionActor.Hyper):
        bc_weight: float = 10.0

    def actor_loss(
        self,
        gradient: Float[Array, "batch action"],
        predicted: Float[Array, "batch action"],
        noise_level: Float[Array, "batch 1"],
    ) -> Float[Array, ""]:
        del noise_level
        return jnp.mean(jnp.square(-self.hyper.temperature * gradient - predicted))
