"""A trained run as a policy: `load(RUN).act(obs, key=…, weight=…)`."""

from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from qgf._files import read_json
from qgf.checkpoint import load_learner, load_record
from qgf.config import Spec
from qgf.errors import UserError
from qgf.flow import euler
from qgf.guidance import guided_sample
from qgf.learners import Learner
from qgf.search import best_of_n


def sample_actions(
    policy: Learner,
    critic: Learner,
    obs: Float[Array, "batch obs"],
    noise: Float[Array, "n batch action"],
    weight: Float[Array, " batch"],
) -> Float[Array, "batch action"]:
    """Return guided action chunks; of n > 1 samples for each row, the one with the highest Q."""
    sample = partial(
        guided_sample,
        policy.velocity,
        critic.critic,
        steps=policy.config.denoise_steps,
    )
    if len(noise) == 1:
        return sample(obs, noise[0], weight)
    weights = jnp.tile(weight, len(noise))
    return best_of_n(lambda o, z: sample(o, z, weights), critic.critic, obs, noise)


_sample = eqx.filter_jit(sample_actions)
_unguided = eqx.filter_jit(
    lambda policy, obs, noise: euler(policy.velocity, obs, noise, steps=policy.config.denoise_steps)
)


class Policy:
    """A flow policy with the critic that guides it, for one training seed."""

    def __init__(
        self, run: str | Path, *, checkpoint: str = "last", seed: int | None = None
    ) -> None:
        """Read a run's policy and, when it has one, its critic.

        Args:
            checkpoint: "last", "best" or a step's number.
            seed: one of the run's training seeds; the first by default.

        Raises:
            UserError: no such run, checkpoint or seed.
        """
        self.run = Path(run)
        record = load_record(self.run)
        self.spec = Spec(**record["spec"])
        seeds = record["seeds"][:1] if seed is None else [seed]
        policy = load_learner(self.run, "policy", which=checkpoint, seeds=seeds)
        self._policy = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, policy)
        self._critic = None
        if "critic" in record["learners"]:
            critic = load_learner(self.run, "critic", which=checkpoint, seeds=seeds)
            self._critic = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, critic)

    def act(
        self,
        obs: Float[np.ndarray, "*batch obs"],
        *,
        key: PRNGKeyArray,
        weight: float | Float[np.ndarray, "*batch"] | None = None,
        samples: int = 1,
    ) -> Float[np.ndarray, "*batch chunk action"]:
        """Return the next `chunk` actions, in [-1, 1], for one observation or a batch.

        Args:
            key: a JAX key; the same key gives the same actions.
            weight: guidance weight, one or one per row; by default the weight that
                `qgf eval` chose for this run. 0 is the policy as it was cloned.
            samples: of so many samples the one with the highest Q is returned.

        Raises:
            UserError: an observation of another size or not finite, a weight below 0, no
                critic to guide with, or no weight given nor chosen.
        """
        obs = np.asarray(obs, np.float32)
        if obs.shape[-1:] != (self.spec.obs,) or not np.isfinite(obs).all():
            raise UserError(
                f"an observation must be {self.spec.obs} finite numbers, got shape {obs.shape}"
                + ("" if np.isfinite(obs).all() else " with NaN or infinity")
            )
        if samples < 1:
            raise UserError(f"samples must be at least 1, got {samples}")
        weights = self._weights(weight, obs.shape[:-1]).ravel()
        batch = obs.reshape(-1, self.spec.obs)
        noise = jax.random.normal(key, (samples, len(batch), self.spec.chunk_action))
        if self._critic is None:
            if weights.any() or samples > 1:
                raise UserError(f"{self.run} has no critic, so only weight 0 and one sample work")
            actions = _unguided(self._policy, batch, noise[0])
        else:
            actions = _sample(self._policy, self._critic, batch, noise, weights)
        shape = (*obs.shape[:-1], self.spec.chunk, self.spec.action)
        return np.asarray(actions).reshape(shape)

    def _weights(self, weight: float | np.ndarray | None, batch: tuple[int, ...]) -> np.ndarray:
        if weight is None:
            path = self.run / "eval.json"
            if not path.exists():
                raise UserError(
                    f"{self.run} has no chosen weight yet; give one or run `qgf eval {self.run}`"
                )
            weight = read_json(path)["chosen_weight"]
        weights = np.asarray(weight, np.float32)
        if weights.shape not in ((), batch):
            raise UserError(f"weight has shape {weights.shape} for observations of {batch}")
        weights = np.broadcast_to(weights, batch)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise UserError(
                f"a guidance weight must be a finite number of at least 0, got {weight}"
            )
        return weights


load = Policy
