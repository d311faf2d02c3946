"""The exact flow from N(0, I) to a Gaussian mixture, a network of it, and guidance's path."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.core import Critic, Estimator, FlowPolicy, Velocity, flow_matching_loss


class Mixture(eqx.Module):
    """Actions a_1 ~ Σ_j weights_j N(means_j, std² I), the weights adding up to 1."""

    means: Float[Array, "mode action"]
    weights: Float[Array, " mode"]
    std: float = eqx.field(static=True)

    def __call__(
        self, action: Float[Array, "batch action"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch action"]:
        """Return E[a_1 − a_0 | a_t], the velocity of a_t = (1 − t) a_0 + t a_1.

        Given its mode, a_t is N(t m, σ² I) with σ² = t² std² + (1 − t)², and a_1 − a_0 has the
        regression m + (t std² − (1 − t)) / σ² · (a_t − t m) on it; Bayes' rule gives the mode.
        """
        t = t[:, None, None]
        away = action[:, None] - t * self.means
        variance = (t * self.std) ** 2 + (1 - t) ** 2
        square = jnp.square(away).sum(-1, keepdims=True)
        mode = jax.nn.softmax(jnp.log(self.weights[:, None]) - square / (2 * variance), axis=1)
        slope = (t * self.std**2 - (1 - t)) / variance
        return (mode * (self.means + slope * away)).sum(1)

    def sample(self, count: int, key: PRNGKeyArray) -> Float[Array, "count action"]:
        """Return `count` independent actions."""
        which, around = jax.random.split(key)
        edges = jnp.cumsum(self.weights)[:-1]
        mode = (jax.random.uniform(which, (count, 1)) >= edges).sum(1)
        noise = jax.random.normal(around, (count, self.means.shape[1]))
        return self.means[mode] + self.std * noise


def critic(peak: Float[Array, " action"]) -> Critic:
    """Return Q(a) = −‖a − peak‖."""
    return lambda action: -jnp.linalg.norm(action - peak, axis=-1)


def guided_path(
    velocity: Velocity,
    peak: Float[Array, " action"],
    noise: Float[Array, "batch action"],
    weight: Float[Array, " batch"],
    *,
    estimator: Estimator,
    steps: int = 10,
) -> tuple[Float[Array, "states batch action"], Float[Array, "steps batch action"]]:
    """Return what `guided_sample` visits on its way with Q = −‖a − peak‖, and its gradients.

    Returns:
        The noise and the action after every step, the last one not clipped; the gradient g
        of every step, 0 where guided_sample goes unguided because w·g is not finite.
    """

    def step(action: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
        t = jnp.full(noise.shape[:1], k / steps, noise.dtype)
        v, g = estimator(velocity, critic(peak), action, t, steps)
        usable = jnp.isfinite(jnp.square(weight[:, None] * g).sum(-1, keepdims=True))
        g = jnp.where(usable, g, 0)
        action = action + (v + weight[:, None] * g) / steps
        return action, (action, g)

    _, (actions, g) = jax.lax.scan(step, noise, jnp.arange(steps, dtype=noise.dtype))
    return jnp.concatenate([noise[None], actions]), g


class Network(eqx.Module):
    """A flow policy of observations of no entries."""

    policy: FlowPolicy

    def __call__(
        self, action: Float[Array, "batch action"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch action"]:
        return self.policy(jnp.zeros((len(action), 0), action.dtype), action, t)


def train_network(mixture: Mixture, steps: int, key: PRNGKeyArray) -> Network:
    """Return a network that learned the mixture's flow from its samples (Adam 1e-3, batch 256)."""
    init, draws = jax.random.split(key)
    policy = Network(FlowPolicy(0, mixture.means.shape[1], width=64, depth=2, key=init))
    adam = optax.adam(1e-3)

    def loss(policy: Network, key: Array) -> Array:
        data, noise = jax.random.split(key)
        return flow_matching_loss(policy, mixture.sample(256, data), noise)

    def step(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], None]:
        policy, moments = carry
        updates, moments = adam.update(jax.grad(loss)(policy, key), moments)
        return (optax.apply_updates(policy, updates), moments), None

    keys = jax.random.split(draws, steps)
    return jax.jit(lambda start: jax.lax.scan(step, start, keys)[0][0])((policy, adam.init(policy)))
