"""A diffusion policy and what is common to the methods that train one (DAC, QSM).

Source: denoising diffusion (arXiv 2006.11239) with the variance-preserving schedule of
score-based SDEs (arXiv 2011.13456). Diffusion step 0 is the action, step T is noise:
a_k = √ᾱ_k a + √(1 − ᾱ_k) ε.
"""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.core.critic import aggregate
from qgf.core.flow import Sampled, bounded
from qgf.core.guidance import q_gradient
from qgf.core.networks import MLP, time_embedding
from qgf.data.dataset import Batch
from qgf.learners._learner import Imitation, Learner

BETA_MIN, BETA_MAX = 0.1, 10.0


def signal_levels(steps: int) -> Float[Array, "{steps}+1"]:
    """Return ᾱ_0 = 1, ᾱ_1, …, ᾱ_T: the share of the action in a noisy action's variance."""
    time = jnp.arange(steps + 1) / steps
    return jnp.exp(-BETA_MIN * time - 0.5 * (BETA_MAX - BETA_MIN) * time**2)


class DiffusionPolicy(eqx.Module):
    """A network ε(s, a_k, k) that tells the noise in a noisy action."""

    mlp: MLP
    steps: int = eqx.field(static=True)

    def __init__(
        self, obs: int, action: int, *, steps: int, width: int, depth: int, key: PRNGKeyArray
    ):
        self.mlp = MLP(
            obs + action + 16, action, width=width, depth=depth, norms=depth - 1, key=key
        )
        self.steps = steps

    def __call__(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        step: Int[Array, " batch"],
    ) -> Float[Array, "batch action"]:
        return self.mlp(obs, action, time_embedding(step / self.steps))


def ddpm_sample(
    policy: Callable[..., Float[Array, "batch action"]],
    noise: Float[Array, "draw batch action"],
) -> Sampled:
    """Carry noise to actions in [-1, 1] by ancestral sampling; for each row 0 too, or FAILED.

    Every step goes to the mean of a_{k-1} given a_k and the action that the predicted noise
    implies, clipped to [-1, 1], and adds noise of variance β_k; the last one adds none.

    Args:
        policy: any function ε(action, step) -> noise, at the rows' observations.
        noise: draws of N(0, I): the start, then one for each step; the last is not used.
    """
    steps = len(noise) - 1
    level = signal_levels(steps)

    def step(noisy: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        k, draw = inputs
        kept, before = level[k], level[k - 1]
        alpha = kept / before
        predicted = policy(noisy, jnp.full(len(noisy), k))
        clean = (noisy - jnp.sqrt(1 - kept) * predicted) / jnp.sqrt(kept)
        mean = jnp.sqrt(before) * (1 - alpha) * jnp.clip(clean, -1, 1)
        mean = (mean + jnp.sqrt(alpha) * (1 - before) * noisy) / (1 - kept)
        # The clip makes an infinite prediction an action like any other.
        finite = jnp.isfinite(predicted).all(-1)
        return mean + jnp.where(k > 1, jnp.sqrt(1 - alpha), 0) * draw, finite

    action, finite = jax.lax.scan(step, noise[0], (jnp.arange(steps, 0, -1), noise[1:]))
    return bounded(jnp.where(finite.all(0)[:, None], action, jnp.nan))


class DiffusionActor(Learner):
    """A diffusion policy trained to imitate and, by a term of the method's own, to raise Q.

    Q is the mean of the target ensemble, as in the authors' implementation, and its gradient
    is taken at the noisy action itself.
    """

    policy: DiffusionPolicy
    config: Config = eqx.field(static=True)
    needs: ClassVar[tuple[str, ...]] = ("critic",)
    fixed_steps: ClassVar[bool] = True
    Hyper = Imitation

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "DiffusionActor":
        policy = DiffusionPolicy(
            spec.obs,
            spec.chunk_action,
            steps=config.denoise_steps,
            width=config.width,
            depth=config.depth,
            key=key,
        )
        return cls(policy, config)

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        steps, obs = self.config.denoise_steps, batch.obs
        noise_key, step_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, batch.action.shape)
        step = jax.random.randint(step_key, batch.action.shape[:1], 1, steps + 1)
        kept = signal_levels(steps)[step][:, None]
        noise_level = jnp.sqrt(1 - kept)
        noisy = jnp.sqrt(kept) * batch.action + noise_level * noise
        target_q = others["critic"].target_q
        gradient = q_gradient(lambda a: aggregate(target_q(obs, a), "mean"), noisy)

        predicted = self.policy(obs, noisy, step)
        bc_loss = jnp.square(predicted - noise).mean()
        actor_loss = self.actor_loss(gradient, predicted, noise_level)
        loss = actor_loss + self.hyper.bc_weight * bc_loss
        return loss, {"actor_loss": actor_loss, "bc_loss": bc_loss}

    @abc.abstractmethod
    def actor_loss(
        self,
        gradient: Float[Array, "batch action"],
        predicted: Float[Array, "batch action"],
        noise_level: Float[Array, "batch 1"],
    ) -> Float[Array, ""]:
        """Return the term beside imitation.

        Args:
            gradient: ∇Q(s, a_k) at the noisy actions.
            predicted: ε(s, a_k, k).
            noise_level: √(1 − ᾱ_k).
        """

    def at(self, encoded: Float[Array, "batch obs"]) -> Callable[..., Float[Array, "batch action"]]:
        """Return ε(a_k, k), for `ddpm_sample`."""
        return partial(self.policy, encoded)
