"""The exact flow from N(0, I) to a Gaussian mixture."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Mixture(eqx.Module):
    """Actions a_1 ~ Σ_j weights_j N(means_j, std² I), the weights adding up to 1."""

    means: Float[Array, "mode action"]
    weights: Float[Array, " mode"]
    std: float

    def velocity(
        self,
        obs: Float[Array, "batch obs"],
        action: Float[Array, "batch action"],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch action"]:
        """Return E[a_1 − a_0 | a_t] of the path a_t = (1 − t) a_0 + t a_1; obs is not used.

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

    def sample(self, count: int, key: PRNGKeyArray) -> Float[Array, "{count} action"]:
        """Return `count` independent actions."""
        which, around = jax.random.split(key)
        mode = jax.random.choice(which, len(self.means), (count,), p=self.weights)
        noise = jax.random.normal(around, (count, self.means.shape[1]))
        return self.means[mode] + self.std * noise
