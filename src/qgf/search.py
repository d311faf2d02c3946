"""Test-time search: choosing among whole actions by the critic instead of guiding them."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.critic import Critic


def best_of_n(
    sample: Callable[
        [Float[Array, "rows obs"], Float[Array, "rows action"]], Float[Array, "rows action"]
    ],
    critic: Critic,
    obs: Float[Array, "batch obs"],
    noise: Float[Array, "n batch action"],
) -> Float[Array, "batch action"]:
    """Return, of n samples for each observation, the one with the highest Q (BFN).

    Args:
        sample: (obs, noise) -> actions; plain or guided.
        noise: n independent draws of N(0, I) for every row.
    """
    n, batch, size = noise.shape
    tiled = jnp.tile(obs, (n, 1))
    actions = sample(tiled, noise.reshape(n * batch, size))
    q = critic(tiled, actions).reshape(n, batch)
    best = jnp.where(jnp.isnan(q), -jnp.inf, q).argmax(0)
    return actions.reshape(n, batch, size)[best, jnp.arange(batch)]
