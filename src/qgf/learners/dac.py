"""Diffusion actor-critic (arXiv 2405.20555): predicted noise moves against Q's gradient."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.learners.diffusion import DiffusionActor


class DAC(DiffusionActor):
    """Loss √(1 − ᾱ_k) ∇Q(s, a_k) · ε(s, a_k, k) + α ‖ε(s, a_k, k) − ε‖².

    Both are means over batch and action dimensions, so that the minimizer is
    E[ε | a_k] − √(1 − ᾱ_k) ∇Q(s, a_k) / (2α).
    """

    def actor_loss(
        self,
        gradient: Float[Array, "batch action"],
        predicted: Float[Array, "batch action"],
        noise_level: Float[Array, "batch 1"],
    ) -> Float[Array, ""]:
        return jnp.mean(noise_level * gradient * predicted)
