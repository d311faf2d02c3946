"""A guidance weight without units: how strong the guidance is beside the policy's own velocity.

A weight w multiplies ∇Q, so the same w is much or little depending on how a task's rewards
scale Q. u = w · rms(g) / rms(v) does not depend on that: at u = 1 an Euler step is pushed as
far as it flows. (Not in the paper, arXiv 2606.11087, which searches w anew for every domain.)
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf.core.critic import Critic
from qgf.core.flow import Velocity
from qgf.core.guidance import qgf
from qgf.errors import UserError
from qgf.methods.table import Learners, bind
from qgf.run._validation import validation_batch
from qgf.run.checkpoint import of_seed

AUTO = 0.2
"""u that served the tasks it was not chosen on (see `qgf study calibration`)"""
STATES = 512  # of the validation data, at which a run's scale is measured


@eqx.filter_jit
def flow_sizes(
    velocity: Velocity,
    critic: Critic,
    action: Float[Array, "batch action"],
    steps: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return rms(v) of a policy's velocity and rms(g) of QGF's gradient along the flow.

    Both are root mean squares over rows, action dimensions and the times k/steps that the
    sampler visits, at a_t = (1 − t) a_0 + t a_1 between noise a_0, the same at all times and
    in all calls, and the data's actions a_1.

    Args:
        velocity: the policy's, at states of data that it was not trained on.
        critic: at the same states.
        action: the data's clean actions there.
        steps: Euler steps T of the sampler.
    """
    noise = jax.random.normal(jax.random.key(0), action.shape, action.dtype)

    def squares(t: Array) -> tuple[Array, Array]:
        noisy = (1 - t) * noise + t * action
        v, g = qgf(velocity, critic, noisy, jnp.full(len(noisy), t), steps)
        return jnp.square(v).mean(), jnp.square(g).mean()

    # Not vmap: it would turn the critic's choice of rows into doing all choices.
    v2, g2 = jax.lax.map(squares, jnp.arange(steps, dtype=action.dtype) / steps)
    return jnp.sqrt(v2.mean()), jnp.sqrt(g2.mean())


def guidance_scale(
    velocity: Velocity,
    critic: Critic,
    action: Float[Array, "batch action"],
    steps: int,
) -> Float[Array, ""]:
    """Return rms(v) / rms(g), in units of 1/Q: a unitless u is the guidance weight w = u · scale.

    Multiplying the critic by c divides the scale by c; adding a constant changes nothing. It is
    0 where the critic is constant: without a gradient there is nothing to guide by.

    Args:
        velocity: as in `flow_sizes`.
        critic: as in `flow_sizes`.
        action: as in `flow_sizes`.
        steps: as in `flow_sizes`.
    """
    v, g = flow_sizes(velocity, critic, action, steps)
    scale = v / g
    return jnp.where(jnp.isfinite(scale), scale, 0)


def auto_weight(learners: Learners, record: dict, steps: int | None = None) -> float:
    """Return a weight for a policy and a critic that needs no search: AUTO times their scale.

    The scale is the mean over training seeds, but for those whose critic has no gradient. If none
    has one, the weight is 0, which is said on standard error.

    Args:
        learners: "policy" and "critic"; their arrays lead with the training-seed axis.
        record: config.json of the critic's run, at whose validation data they are measured.
        steps: denoising steps T, by default the policy's own.

    Raises:
        UserError: the data are gone or have changed.
    """
    try:
        batch = validation_batch(record, STATES)
    except UserError as error:
        raise UserError(f"{error}; name where they are (--data), or a weight") from None
    pair = {role: learners[role] for role in ("policy", "critic")}
    seeds = len(jax.tree.leaves(eqx.filter(pair["policy"], eqx.is_array))[0])
    steps = steps or pair["policy"].config.denoise_steps
    scales = []
    for i in range(seeds):
        bound = bind(of_seed(pair, i), batch.obs, batch.goal)
        scales.append(guidance_scale(bound["policy"], bound["critic"], batch.action, steps).item())
    usable = [scale for scale in scales if scale > 0]
    if not usable:
        print("the critic has no gradient, so it does not guide (weight 0)", file=sys.stderr)
        return 0.0
    return AUTO * sum(usable) / len(usable)
