"""Critics: an ensemble of Q networks, a state value, and how an ensemble becomes one Q."""

from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qgf.core._smaller_q import smaller_q
from qgf.core.networks import MLP


@runtime_checkable
class Critic(Protocol):
    """Any function q(action) -> values of a critic at given observations, one a row."""

    def __call__(self, action: Float[Array, "batch *action"]) -> Float[Array, " batch"]: ...


class Ensemble(eqx.Module):
    """Independent Q networks.

    Attributes:
        members: the networks.
    """

    members: list[MLP]

    def __init__(
        self, obs: int, action: int, *, members: int, width: int, depth: int, key: PRNGKeyArray
    ):
        self.members = [
            MLP(obs + action, 1, width=width, depth=depth, norms=depth, key=k)
            for k in jax.random.split(key, members)
        ]

    def __call__(
        self, obs: Float[Array, "batch obs"], action: Float[Array, "batch action"]
    ) -> Float[Array, "member batch"]:
        return jnp.stack([mlp(obs, action)[:, 0] for mlp in self.members])


class Value(eqx.Module):
    """A state value V(s).

    Attributes:
        mlp: the network.
    """

    mlp: MLP

    def __init__(self, obs: int, *, width: int, depth: int, key: PRNGKeyArray):
        self.mlp = MLP(obs, 1, width=width, depth=depth, norms=depth, key=key)

    def __call__(self, obs: Float[Array, "batch obs"]) -> Float[Array, " batch"]:
        return self.mlp(obs)[:, 0]


Aggregation = Literal["min", "mean"]


def aggregate(
    values: Float[Array, "member batch"], how: Aggregation = "min", kappa: float = 0.0
) -> Float[Array, " batch"]:
    """Reduce an ensemble's values to one per row: the smallest, or mean − κ · deviation.

    Args:
        values: Q of every member.
        how: "min", or "mean", off which κ deviations are taken.
        kappa: κ, at least 0 and 0 with "min". Of two members, κ = 1 is the smaller one.
    """
    if how == "min":
        return values.min(0)
    mean = values.mean(0)
    return mean - kappa * deviation(values) if kappa else mean


def deviation(values: Float[Array, "member batch"]) -> Float[Array, " batch"]:
    """Return √(mean of (Q_i − mean)²), the population's: the members are all there are.

    Where all members agree its gradient is taken as 0, not as the NaN of √0.
    """
    variance = jnp.square(values - values.mean(0)).mean(0)
    differ = variance > 0
    return jnp.where(differ, jnp.sqrt(jnp.where(differ, variance, 1)), 0)


def ensemble_critic(
    ensemble: Ensemble,
    how: Aggregation,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
    *,
    kappa: float = 0.0,
) -> Float[Array, " batch"]:
    """Return an ensemble's aggregated Q(s, a), to be differentiated by the action alone.

    The smaller of two has a faster action gradient of its own, which cannot be vmapped. Means and
    deviations visit every member, forward and backward.
    """
    if how == "min" and len(ensemble.members) == 2:
        return smaller_q(*ensemble.members, obs, action)
    return aggregate(ensemble(obs, action), how, kappa)


def expectile_loss(difference: Float[Array, " batch"], expectile: float) -> Float[Array, " batch"]:
    """Return |τ − 1(d < 0)| d², whose minimizer over V with d = Q − V is the τ-expectile.

    Source: implicit Q-learning (arXiv 2110.06169), equation 5.
    """
    weight = jnp.where(difference > 0, expectile, 1 - expectile)
    return weight * jnp.square(difference)
