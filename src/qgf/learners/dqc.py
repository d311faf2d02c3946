"""Decoupled Q-chunking (arXiv 2512.10926) for goals: how soon each is reached."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from qgf.core.critic import Aggregation, deviation
from qgf.data.dataset import Ahead
from qgf.data.goals import GoalBatch
from qgf.learners._learner import GoalCritic
from qgf.learners.task_dqc import Outputs, TaskDQC


class DQC(GoalCritic, TaskDQC):
    """How likely, and how soon, a goal is reached: γ^(steps to it), in logits under a sigmoid.

    Errors are cross-entropies. Without a chunk critic and with critic_chunk = chunk this is
    Q-chunking.

    The critic that samplers get gives logits of Q: they order actions as Q does, but their
    gradient does not vanish where Q is close to 0, far from the goal.
    """

    @dataclass(frozen=True)
    class Hyper(TaskDQC.Hyper, GoalCritic.Hyper):
        pass

    def ahead(self, batch: GoalBatch) -> Ahead:
        """Return γ^distance where h_c steps reach the goal, else γ^h_c before V of what follows.

        A goal reached by the very last step needs no value: V of the goal itself is 1.
        """
        horizon = self.hyper.critic_chunk
        follows = self.config.discount ** jnp.minimum(batch.distance, horizon)
        reached = batch.distance <= horizon
        return Ahead(
            reward=follows * reached,
            discount=follows * ~reached,
            next_obs=batch.long_next_obs,
            action=batch.long_action,
            whole=batch.whole,
        )

    def value(self, output: Outputs) -> Outputs:
        return jax.nn.sigmoid(output)

    def error(self, output: Outputs, target: Float[Array, " batch"]) -> Outputs:
        return optax.sigmoid_binary_cross_entropy(output, target)

    def pool(self, outputs: Float[Array, "member batch"]) -> Float[Array, " batch"]:
        return pool(outputs, self.hyper.aggregation, self.hyper.kappa)


def pool(
    logits: Float[Array, "member batch"], how: Aggregation, kappa: float
) -> Float[Array, " batch"]:
    """Return the logit of the members' aggregated value, a value being sigmoid(logit).

    As with `aggregate`; where that is 0 or below it counts as the smallest positive number, whose
    logit is finite.
    """
    if how == "min":
        return logits.min(0)
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=0) for x in (logits, -logits))
    if not kappa:
        return yes - no
    less = kappa * deviation(jax.nn.sigmoid(logits))
    both = jnp.exp(yes) / len(logits) - less, jnp.exp(no) / len(logits) + less
    yes, no = (jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny)) for x in both)
    return yes - no
