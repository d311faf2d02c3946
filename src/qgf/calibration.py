"""A guidance weight without units: how strong the guidance is beside the policy's own velocity.

A weight w multiplies ∇Q, so the same w is much or little depending on how a task's rewards
scale Q. u = w · rms(g) / rms(v) does not depend on that: at u = 1 an Euler step is pushed as
far as it flows. (Not in the paper, arXiv 2606.11087, which searches w anew for every domain.)
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qgf._files import read_json, write_json
from qgf._validation import validation_batch
from qgf.checkpoint import load_learner, load_record, of_seed
from qgf.critic import Critic
from qgf.errors import UserError
from qgf.flow import Velocity
from qgf.guidance import qgf
from qgf.methods import at_goal

AUTO = 0.2
"""u that served the tasks it was not chosen on (see `qgf study calibration`)"""
STATES = 512  # of the validation data, at which a run's scale is measured


@eqx.filter_jit
def flow_sizes(
    velocity: Velocity,
    critic: Critic,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
    steps: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return rms(v) of a policy's velocity and rms(g) of QGF's gradient along the flow.

    Both are root mean squares over rows, action dimensions and the times k/steps that the
    sampler visits, at a_t = (1 − t) a_0 + t a_1 between noise a_0, the same at all times and
    in all calls, and the data's actions a_1.

    Args:
        obs, action: states and clean actions of data that the policy was not trained on.
        steps: Euler steps T of the sampler.
    """
    noise = jax.random.normal(jax.random.key(0), action.shape, action.dtype)

    def squares(t: Array) -> tuple[Array, Array]:
        noisy = (1 - t) * noise + t * action
        v, g = qgf(velocity, critic, obs, noisy, jnp.full(len(obs), t), steps)
        return jnp.square(v).mean(), jnp.square(g).mean()

    # Not vmap: it would turn the critic's choice of rows into doing all choices.
    v2, g2 = jax.lax.map(squares, jnp.arange(steps, dtype=action.dtype) / steps)
    return jnp.sqrt(v2.mean()), jnp.sqrt(g2.mean())


def guidance_scale(
    velocity: Velocity,
    critic: Critic,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch action"],
    steps: int,
) -> Float[Array, ""]:
    """Return rms(v) / rms(g), in units of 1/Q: a unitless u is the guidance weight w = u · scale.

    Multiplying the critic by c divides the scale by c; adding a constant changes nothing. It is
    infinite where the critic is constant: there is nothing to guide by.

    Args:
        obs, action, steps: as in `flow_sizes`.
    """
    v, g = flow_sizes(velocity, critic, obs, action, steps)
    return v / g


def auto_weight(run: Path) -> float:
    """Return a weight for a run's policy and critic that needs no search: AUTO times its scale.

    The scale is measured once, on the run's validation data (mean over training seeds), and kept
    in RUN/guidance.json.

    Raises:
        UserError: it was not measured before, and the data are gone or have changed.
    """
    path = Path(run) / "guidance.json"
    if not path.exists():
        record = load_record(run)
        try:
            batch = validation_batch(record, STATES)
        except UserError as error:
            raise UserError(f"{error}; name a weight") from None
        every = {role: load_learner(run, role) for role in ("policy", "critic")}
        scales = []
        for i in range(len(record["seeds"])):
            learners = at_goal(of_seed(every, i), batch.goal)
            velocity, critic = learners["policy"].velocity, learners["critic"].critic
            steps = learners["policy"].config.denoise_steps
            scales.append(guidance_scale(velocity, critic, batch.obs, batch.action, steps).item())
        write_json(path, {"scale": sum(scales) / len(scales), "scales": scales})
    return AUTO * read_json(path)["scale"]
