"""A trained run as a policy: `load(RUN).act(obs, key=…, weight=…)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from qgf._files import read_json
from qgf.calibration import auto_weight
from qgf.checkpoint import kinds_held, load_learner, load_record, of_seed
from qgf.config import Spec
from qgf.envs import EnvName
from qgf.errors import UserError
from qgf.flow import FAILED, Sampled, checked_count, refuse_failed
from qgf.learners import Learner
from qgf.methods import GUIDANCE, Learners, Method, at_goal, find_method
from qgf.search import highest_q_counting


def sample_actions(
    method: Method,
    learners: Learners,
    obs: Float[Array, "batch obs"],
    noise: Float[Array, "n batch draws"],
    weight: Float[Array, " batch"],
) -> Sampled:
    """Return action chunks, and for each row how many steps a bad gradient left unguided.

    Of n > 1 samples for each row the one with the highest Q is returned. A row without any
    action has the action 0 and the count FAILED; see `qgf.flow.refuse_failed`.

    Args:
        noise: `noise_size` draws of N(0, I) for every sample and row.
    """
    n, batch, size = noise.shape
    if n == 1:
        return method.act(learners, obs, noise[0], weight)
    actions, fallbacks = method.act(
        learners, jnp.tile(obs, (n, 1)), noise.reshape(n * batch, size), jnp.tile(weight, n)
    )
    actions, fallbacks = actions.reshape(n, batch, -1), fallbacks.reshape(n, batch)
    lost = fallbacks == FAILED
    actions = jnp.where(lost[..., None], jnp.nan, actions)  # so that none of them is chosen
    best, failed = highest_q_counting(learners["critic"].critic, obs, actions)
    return best, jnp.where(lost, 0, fallbacks).sum(0) + failed


def noise_size(method: Method, learners: Learners, spec: Spec) -> int:
    """Return how many draws of N(0, 1) one action chunk of a method takes."""
    steps = learners[method.roles[0]].config.denoise_steps
    return spec.chunk_action * (1 + steps if method.stochastic else 1)


def load_learners(
    run: Path,
    methods: Sequence[str],
    *,
    which: str = "last",
    seeds: list[int] | None = None,
    critic: Path | None = None,
    choose: bool = False,
) -> Learners:
    """Return the learners of a run that the named methods act with, by role.

    Args:
        critic: another run, whose critic takes the place of the run's own.
        choose: the critic is needed too, to choose among samples.

    Raises:
        UserError: no such method, run, checkpoint or seed, or a learner is missing.
    """
    record = load_record(run)
    seeds = record["seeds"] if seeds is None else seeds
    wanted = {role: name for name in methods for role in find_method(name).roles}
    if choose:
        wanted.setdefault("critic", methods[0])
    learners = {}
    for role, name in wanted.items():
        if role == "critic" and critic is not None:
            learners[role] = _other_critic(critic, record, seeds)
        elif role in kinds_held(record):
            learners[role] = load_learner(run, role, which=which, seeds=seeds)
        else:
            raise UserError(f"{run} has no {role}, which {name} needs; {_how(run, record, name)}")
    return learners


def _how(run: Path, record: dict, name: str) -> str:
    if EnvName.parse(record["env"]).singletask:
        return f"train it with `qgf train --method {name} --base {run} --out …`"
    return f"train it with `qgf train --env …-singletask-taskN-v0 --policy {run} --out …`"


def _other_critic(run: Path, record: dict, seeds: list[int]) -> Learner:
    other = load_record(run)
    # A run of the policy alone, or one for goals, takes any critic of its domain.
    free = not EnvName.parse(record["env"]).singletask
    sizes = [{**r["spec"], "goal": 0} for r in (record, other)]
    if sizes[0] != sizes[1] or not (free or other["env"] == record["env"]):
        raise UserError(
            f"the critic of {run} is of {other['env']} with {other['spec']}, "
            f"the run of {record['env']} with {record['spec']}"
        )
    return load_learner(run, "critic", seeds=seeds)


def _numbers(x: Any, what: str) -> Float[np.ndarray, "..."]:
    """Return x in float32, beyond which numbers become infinite. UserError if it is not real."""
    try:
        given = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be an array of numbers") from error
    if not (jnp.issubdtype(given.dtype, np.floating) or jnp.issubdtype(given.dtype, np.integer)):
        raise UserError(f"{what} must be real numbers, got {given.dtype}")
    with np.errstate(over="ignore"):
        return given.astype(np.float32)


@eqx.filter_jit
def _sample(
    method: Method, learners: Learners, goal: Array, obs: Array, noise: Array, weight: Array
) -> Sampled:
    return sample_actions(method, at_goal(learners, goal), obs, noise, weight)


class Policy:
    """A run's learners as something that acts, for one training seed."""

    def __init__(
        self,
        run: str | Path,
        *,
        method: str | None = None,
        critic: str | Path | None = None,
        checkpoint: str = "last",
        seed: int | None = None,
    ) -> None:
        """Read what a method needs of a run.

        Args:
            method: a name of METHODS; by default the one the run was trained for, or "bc"
                when it has no critic.
            critic: another run, whose critic takes the place of this run's own.
            checkpoint: "last" or a step's number.
            seed: one of the run's training seeds; the first by default.

        Raises:
            UserError: no such method, run, checkpoint or seed, or a learner is missing.
        """
        self.run = Path(run)
        record = load_record(self.run)
        self._judge = self.run if critic is None else Path(critic)  # whose critic guides
        judge = load_record(self._judge)
        self.env, self.spec = judge["env"], Spec(**judge["spec"])
        has_critic = critic is not None or "critic" in kinds_held(record)
        self.name = method or (record["method"] if has_critic else "bc")
        self._method = find_method(self.name)
        learners = load_learners(
            self.run,
            [self.name],
            which=checkpoint,
            seeds=record["seeds"][:1] if seed is None else [seed],
            critic=None if critic is None else Path(critic),
            choose=has_critic,
        )
        self._learners = of_seed(learners, 0)

    def act(
        self,
        obs: Float[np.ndarray, "*batch obs"],
        *,
        key: PRNGKeyArray,
        goal: Float[np.ndarray, "*goals goal"] | None = None,
        weight: float | Float[np.ndarray, "*batch"] | None = None,
        samples: int = 1,
    ) -> Float[np.ndarray, "*batch chunk action"]:
        """Return the next `chunk` actions, in [-1, 1], for one observation or a batch.

        Args:
            key: a JAX key; the same key gives the same actions.
            goal: where the critic is to lead, one or one per row, if it was trained on goals:
                as `env.reset` gives it in info["goal"]. It may be another at every call.
            weight: guidance weight (or what else the method is tuned by), one or one per row;
                by default what `qgf eval` chose for this run, else for a guided flow
                `qgf.calibration.auto_weight`. For a guided flow 0 is the policy as it was
                cloned.
            samples: of so many samples the one with the highest Q is returned.

        Raises:
            UserError: an observation or goal of another size or not finite, a goal missing or
                not asked for, a weight below 0, no critic to guide or choose with, or no weight
                given nor chosen; an observation so far from those of training that the
                networks' numbers overflow, which is named.
        """
        obs = _numbers(obs, "an observation")
        if obs.shape[-1:] != (self.spec.obs,) or not np.isfinite(obs).all():
            raise UserError(
                f"an observation must be {self.spec.obs} finite numbers, got shape {obs.shape}"
                + ("" if np.isfinite(obs).all() else " with NaN or infinity")
            )
        checked_count(samples, "samples")
        weights = self._weights(weight, obs.shape[:-1]).ravel()
        if "critic" not in self._learners and (weights.any() or samples > 1):
            raise UserError(f"{self.run} has no critic, so only weight 0 and one sample work")
        goals = self._goals(goal, obs.shape[:-1], bool(weights.any()) or samples > 1)
        batch = obs.reshape(-1, self.spec.obs)
        size = noise_size(self._method, self._learners, self.spec)
        try:
            noise = jax.random.normal(key, (samples, len(batch), size))
        except (TypeError, ValueError) as error:
            raise UserError(f"key must be one JAX key, as jax.random.key(0); got {key}") from error
        actions, counts = _sample(self._method, self._learners, goals, batch, noise, weights)
        refuse_failed(counts.reshape(obs.shape[:-1]))
        shape = (*obs.shape[:-1], self.spec.chunk, self.spec.action)
        return np.asarray(actions).reshape(shape)

    def _goals(
        self, goal: np.ndarray | None, batch: tuple[int, ...], used: bool
    ) -> Float[np.ndarray, "row goal"]:
        size = self.spec.goal
        if goal is None:
            if size and used:
                raise UserError(f"{self.run} leads to goals; name one with goal=, {size} numbers")
            return np.zeros((int(np.prod(batch)), size), np.float32)
        if not size:
            raise UserError(f"{self.run} is of {self.env}, which takes no goal")
        goal = _numbers(goal, "a goal")
        if goal.shape not in ((size,), (*batch, size)) or not np.isfinite(goal).all():
            raise UserError(
                f"a goal of {self.env} must be {size} finite numbers, one or one for each "
                f"observation, got shape {goal.shape}"
                + ("" if np.isfinite(goal).all() else " with NaN or infinity")
            )
        return np.broadcast_to(goal, (*batch, size)).reshape(-1, size)

    def _weights(self, weight: float | np.ndarray | None, batch: tuple[int, ...]) -> np.ndarray:
        if weight is None:
            weight = self._chosen() if self._method.weights else 0.0
        weights = np.asarray(weight, np.float32)
        if weights.shape not in ((), batch):
            raise UserError(f"weight has shape {weights.shape} for observations of {batch}")
        weights = np.broadcast_to(weights, batch)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise UserError(
                f"a guidance weight must be a finite number of at least 0, got {weight}"
            )
        return weights

    def _chosen(self) -> float:
        path = self.run / "eval.json"
        chosen = read_json(path)["methods"].get(self.name) if path.exists() else None
        if chosen is None and self._method.weights == GUIDANCE:
            return auto_weight(self._judge)
        if chosen is None:
            raise UserError(
                f"{self.run} has no chosen weight yet; give one or run "
                f"`qgf eval {self.run} --method {self.name}`"
            )
        return chosen["weight"]


load = Policy
