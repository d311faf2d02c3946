"""A trained run as a policy: `load(RUN).act(obs, key=…, weight=…)`."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qgf._numbers import real_numbers
from qgf.act.calibration import auto_weight
from qgf.config import Spec
from qgf.core.flow import FAILED, Sampled, checked_count, refuse_failed, repeat_rows
from qgf.core.realtime import Continued, left_and_mask
from qgf.core.search import best_of_n_counting
from qgf.data.normalization import Normalization
from qgf.errors import UserError
from qgf.learners import Learner
from qgf.methods.table import (
    CLONED,
    Learners,
    Method,
    bind,
    canonical,
    denoising_steps,
    find_method,
)
from qgf.run.checkpoint import (
    find_checkpoint,
    kinds_held,
    learner_hash,
    load_learner,
    load_record,
    of_seed,
)
from qgf.run.evaluation import SettingResult, choose, read_evaluation
from qgf.tasks import find_task


def sample_actions(
    method: Method,
    learners: Learners,
    obs: Float[Array, "batch obs"],
    noise: Float[Array, "n batch draws"],
    weight: Float[Array, " batch"],
    *,
    goal: Float[Array, "batch goal"] | None = None,
    steps: int | None = None,
    before: tuple[Float[Array, "batch action"], Float[Array, "batch action"]] | None = None,
) -> Sampled:
    """Return action chunks, and for each row how many steps a bad gradient left unguided.

    Of n > 1 samples for each row the one with the highest Q is returned. A row without any
    action has the action 0 and the count FAILED; see `qgf.core.flow.refuse_failed`.

    Args:
        method: what acts.
        learners: those it acts with, by role, of one training seed.
        obs: any tree of arrays that lead with the batch axis.
        noise: `noise_size` draws of N(0, I) for every sample and row.
        weight: what the method is tuned by, one per row.
        goal: one a row, for a critic of goals.
        steps: denoising steps T, by default those of training.
        before: `previous` and `mask` of `qgf.core.realtime.Continued`, for a policy that flows.
    """
    n, batch, size = noise.shape
    steps = denoising_steps(method, learners, steps)
    bound = bind(learners, obs, goal, n)
    if before is not None:
        follows = Continued(bound["policy"], *repeat_rows(before, n))
        bound = bound | {"policy": follows}
    noise, weight = noise.reshape(n * batch, size), repeat_rows(weight, n)
    actions, fallbacks = method.act(bound, noise, weight, steps)
    if n == 1:
        return actions, fallbacks
    actions, fallbacks = actions.reshape(n, batch, -1), fallbacks.reshape(n, batch)
    lost = fallbacks == FAILED
    actions = jnp.where(lost[..., None], jnp.nan, actions)  # so that none of them is chosen

    def values(actions: Array) -> Array:
        return bound["critic"](actions.reshape(n * batch, -1)).reshape(n, batch)

    best, failed = best_of_n_counting(values, actions)
    return best, jnp.where(lost, 0, fallbacks).sum(0) + failed


def noise_size(method: Method, learners: Learners, spec: Spec) -> int:
    """Return how many draws of N(0, 1) one action chunk of a method takes.

    Args:
        method: what acts.
        learners: those it acts with, by role.
        spec: sizes of the run's actions and chunks.
    """
    draws = 1 + denoising_steps(method, learners) if method.stochastic else 1
    return spec.chunk_action * draws


def load_learners(
    run: Path,
    methods: Sequence[str],
    *,
    which: str = "last",
    seeds: list[int] | None = None,
    critic: Path | None = None,
    critic_which: str = "last",
    choose: bool = False,
) -> Learners:
    """Return the learners of a run that the named methods act with, by role.

    Args:
        which: "last" or a step's number.
        critic: another run, whose critic takes the place of the run's own.
        critic_which: checkpoint of that other run.
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
            learners[role] = _other_critic(critic, critic_which, record, seeds)
        elif role in kinds_held(record):
            learners[role] = load_learner(run, role, which=which, seeds=seeds)
        else:
            raise UserError(f"{run} has no {role}, which {name} needs; {_how(run, record, name)}")
    return learners


def learner_hashes(
    run: Path, roles: Iterable[str], which: str, critic: Path | None, critic_which: str
) -> dict[str, str]:
    """Return the SHA-256 of the files that `load_learners` reads, by role."""
    theirs = {"critic": (critic, critic_which)} if critic is not None else {}
    sources = {role: theirs.get(role, (run, which)) for role in roles}
    return {role: learner_hash(folder, role, at) for role, (folder, at) in sources.items()}


def _how(run: Path, record: dict, name: str) -> str:
    if find_task(record["env"]).rewarded:
        return f"train it with `qgf train --method {name} --base {run} --out …`"
    return f"train it with `qgf train --env …-singletask-taskN-v0 --policy {run} --out …`"


def _other_critic(run: Path, which: str, record: dict, seeds: list[int]) -> Learner:
    other = load_record(run)
    # A run of the policy alone, or one for goals, takes any critic of its domain.
    free = not find_task(record["env"]).rewarded
    sizes = [{**r["spec"], "goal": 0} for r in (record, other)]
    if record.get("normalization", {}) != other.get("normalization", {}):
        raise UserError(
            f"the critic of {run} was trained on data that were normalized otherwise than those "
            "of the policy; train it with --policy, which takes over how the policy's were"
        )
    if sizes[0] != sizes[1] or not (free or other["env"] == record["env"]):
        raise UserError(
            f"the critic of {run} is of {other['env']} with {other['spec']}, "
            f"the run of {record['env']} with {record['spec']}"
        )
    return load_learner(run, "critic", which=which, seeds=seeds)


def _numbers(x: Any, what: str) -> Float[np.ndarray, "..."]:
    try:
        return real_numbers(x)
    except TypeError as error:
        raise UserError(f"{what} must be real numbers, {error}") from error


WHOLE = 256  # rows from which on a batch is padded to a multiple of it, not to a power of two


def compiled(method: Method, learners: Learners) -> Callable[..., Sampled]:
    """Return `sample_actions` of these learners, compiled with their weights as constants.

    The compiler lays constants out once; arguments it would transpose at every call.

    Returns:
        A function of obs (padded batch, obs), a key, (n, draws), the number of rows that are not
        padding, weight, goal, steps and before; the noise is normal(key, (n, rows, draws)).
    """

    def sample(
        obs: Array,
        key: PRNGKeyArray,
        shape: tuple[int, int],
        rows: Array,
        weight: Array,
        goal: Array | None,
        steps: int | None,
        before: tuple[Array, Array] | None = None,
    ) -> Sampled:
        n, size = shape
        noise = jax.random.normal(key, (n * len(obs), size))
        row = jnp.minimum(jnp.arange(len(obs)), rows - 1)
        noise = noise[jnp.arange(n)[:, None] * rows + row]
        return sample_actions(
            method, learners, obs, noise, weight, goal=goal, steps=steps, before=before
        )

    return jax.jit(sample, static_argnames=("shape", "steps"))


def _padded(x: np.ndarray | None, rows: int) -> np.ndarray | None:
    """Return x with its last row repeated, so that few sizes are compiled."""
    if x is None:
        return None
    size = 1 << (rows - 1).bit_length() if rows <= WHOLE else -(-rows // WHOLE) * WHOLE
    return np.concatenate([x, np.repeat(x[-1:], size - rows, axis=0)])


class Policy:
    """A run's learners as something that acts, for one training seed.

    Attributes:
        name: of the method, in METHODS.
        run: folder of the run.
        env: the task that the critic is for.
        spec: sizes of observations, actions, chunks and goals.
    """

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
        other = None if critic is None else Path(critic)
        self._judge = record if other is None else load_record(other)  # whose critic guides
        self.env, self.spec = self._judge["env"], Spec(**self._judge["spec"])
        self._normalization = Normalization.of(record)
        has_critic = other is not None or "critic" in kinds_held(record)
        self.name = canonical(method or (record["method"] if has_critic else CLONED))
        self._method = find_method(self.name)
        # As numbers, so that all is read from the same checkpoints while a training goes on.
        which = find_checkpoint(self.run, checkpoint).name
        critic_which = which if other is None else find_checkpoint(other).name
        learners = load_learners(
            self.run,
            [self.name],
            which=which,
            seeds=record["seeds"][:1] if seed is None else [seed],
            critic=other,
            critic_which=critic_which,
            choose=has_critic,
        )
        self._hashes = learner_hashes(self.run, learners, which, other, critic_which)
        self._learners = of_seed(learners, 0)
        self._sample = compiled(self._method, self._learners)
        self._chosen = self._read_chosen()
        self._weights: dict[tuple[int, int], float] = {}  # by samples and steps

    def act(
        self,
        obs: Float[np.ndarray, "*batch obs"],
        *,
        key: PRNGKeyArray,
        goal: Float[np.ndarray, "*goals goal"] | None = None,
        weight: float | Float[np.ndarray, "*batch"] | None = None,
        samples: int | None = None,
        steps: int | None = None,
        previous: Float[np.ndarray, "*rows left action"] | None = None,
        delay: int | Int[np.ndarray, "*rows"] = 0,
    ) -> Float[np.ndarray, "*batch chunk action"]:
        """Return the next `chunk` actions, in the units of the data, for observations.

        Programs are compiled for batches of 1, 2, 4, … rows; others are padded to them. No file
        is read but by `default_weight`, at the first call without a weight.

        Args:
            obs: observations in the units of the data, with any batch axes, or none.
            key: a JAX key; the same key gives the same actions.
            goal: where the critic is to lead, one or one per row, if it was trained on goals:
                as `env.reset` gives it in info["goal"]. It may be another at every call.
            weight: guidance weight (or what else the method is tuned by), one or one per row.
                By default `default_weight`. For a guided flow 0 is the policy as it was cloned.
                A method that is not tuned takes none, or 0.
            samples: of so many samples the one with the highest Q is returned; by default as many
                as the method takes (16 for "bfn", 1 where it does not choose).
            steps: denoising steps T, by default those of training.
            previous: what is left of the chunk before, in the units of the data, from which this
                one is to go on while the robot moves: `qgf.core.realtime`.
            delay: how many actions of `previous` are executed until this chunk is there, in control
                steps; one number or one per row. Execute this chunk from there on.

        Raises:
            UserError: an observation or goal of another size or not finite, a goal missing or
                not asked for, a weight below 0 or one the method does not take, no critic to
                guide or choose with, no weight given nor chosen, or RUN/eval.json is damaged;
                another T than a network is tied to; a method whose policy does not flow, or a delay
            beyond what is left, with `previous`; an observation so far from those of training
                that the networks' numbers overflow, which is named.
        """
        obs = _numbers(obs, "an observation")
        if obs.shape[-1:] != (self.spec.obs,) or not np.isfinite(obs).all():
            raise UserError(
                f"an observation must be {self.spec.obs} finite numbers, got shape {obs.shape}"
                + ("" if np.isfinite(obs).all() else " with NaN or infinity")
            )
        samples = self._count(samples)
        steps = denoising_steps(self._method, self._learners, steps)
        if weight is None:
            weight = self.default_weight(samples, steps) if self._method.weights else 0.0
        weights = self._checked(weight, obs.shape[:-1]).ravel()
        if "critic" not in self._learners and (weights.any() or samples > 1):
            raise UserError(f"{self.run} has no critic, so only weight 0 and one sample work")
        if weights.any() and not self._method.weights:
            raise UserError(f"{self.name} is not tuned by a weight; leave it out")
        goals = self._goals(goal, obs.shape[:-1], bool(weights.any()) or samples > 1)
        _check_key(key)
        before = None if previous is None else self._before(previous, delay, obs.shape[:-1])
        batch, rows = self._normalization.observed(obs.reshape(-1, self.spec.obs)), weights.size
        shape = (*obs.shape[:-1], self.spec.chunk, self.spec.action)
        if not rows:
            return np.zeros(shape, np.float32)
        actions, counts = self._sample(
            _padded(batch, rows),
            key,
            (samples, noise_size(self._method, self._learners, self.spec)),
            np.asarray(rows, np.int32),
            _padded(weights, rows),
            _padded(goals, rows),
            steps,
            before and tuple(_padded(x, rows) for x in before),
        )
        refuse_failed(np.asarray(counts)[:rows].reshape(obs.shape[:-1]))
        return self._normalization.acted(np.asarray(actions)[:rows].reshape(shape))

    def _before(
        self, previous: Any, delay: Any, batch: tuple[int, ...]
    ) -> tuple[Float[np.ndarray, "row action"], Float[np.ndarray, "row action"]]:
        """Return the chunk before and its mask for every row, in the sampler's units."""
        if "policy" not in self._method.roles:
            raise UserError(f"{self.name} does not act by the policy's flow; leave previous out")
        previous, delay = _numbers(previous, "previous"), np.asarray(delay)
        size, rows = (self.spec.chunk, self.spec.action), math.prod(batch)
        if previous.shape[:-2] != batch or delay.shape not in ((), batch):
            raise UserError(
                f"previous must be the actions left for observations of {batch}, and delay one "
                f"number or one for each; got shapes {previous.shape} and {delay.shape}"
            )
        previous = self._normalization.learned(previous.reshape(rows, *previous.shape[-2:]))
        delay = delay if delay.ndim == 0 else delay.reshape(rows)
        left, mask = left_and_mask(previous, (rows, *size), delay)
        return np.asarray(left).reshape(rows, -1), np.asarray(mask).reshape(rows, -1)

    def _goals(
        self, goal: np.ndarray | None, batch: tuple[int, ...], used: bool
    ) -> Float[np.ndarray, "row goal"] | None:
        size = self.spec.goal
        if goal is None:
            if size and used:
                raise UserError(f"{self.run} leads to goals; name one with goal=, {size} numbers")
            return np.zeros((math.prod(batch), size), np.float32) if size else None
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

    def _checked(self, weight: float | np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
        """Return a weight for every row."""
        weights = _numbers(weight, "a weight")
        if weights.shape not in ((), batch):
            raise UserError(f"weight has shape {weights.shape} for observations of {batch}")
        weights = np.broadcast_to(weights, batch)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise UserError(
                f"a guidance weight must be a finite number of at least 0, got {weight}"
            )
        return weights

    def _count(self, samples: Any) -> int:
        return checked_count(self._method.samples[0] if samples is None else samples, "samples")

    def default_weight(self, samples: int | None = None, steps: int | None = None) -> float:
        """Return the weight that `act` takes by default.

        It is the one that `qgf eval` chose for these very networks, this method, as many samples
        and denoising steps; else, for a guided flow, `qgf.act.calibration.auto_weight`, which
        reads the run's validation data. It is found once: call this before a control loop.

        Args:
            samples: of so many samples the best is taken; by default as `act` does.
            steps: denoising steps T, by default those of training.

        Raises:
            UserError: there is none, RUN/eval.json is damaged, or the data are gone.
        """
        samples = self._count(samples)
        steps = denoising_steps(self._method, self._learners, steps)
        if (samples, steps) not in self._weights:
            if isinstance(self._chosen, UserError):
                raise self._chosen
            chosen = self._chosen.get((samples, steps))
            if chosen is None and self._method.guided:
                # None adds the training-seed axis.
                chosen = auto_weight(of_seed(self._learners, None), self._judge, steps)
            if chosen is None:
                raise UserError(
                    f"no weight was chosen for {self.name} on {self.run} as it is here; give one "
                    f"or run `qgf eval {self.run} --method {self.name}`"
                )
            self._weights[samples, steps] = chosen
        return self._weights[samples, steps]

    def _read_chosen(self) -> dict[tuple[int, int], float] | UserError:
        """Return the weights that RUN/eval.json chose for the same networks and method.

        They go by the numbers of samples and steps. An error is for those who ask for a weight.
        """
        if not (self.run / "eval.json").exists():
            return {}
        try:
            result = read_evaluation(self.run)
        except UserError as error:
            return error
        found = result.methods.get(self.name)
        theirs = result.learners
        if found is None or any(
            theirs.get(role) != self._hashes[role] for role in self._method.roles
        ):
            return {}
        steps = result.denoise_steps or denoising_steps(self._method, self._learners)
        by_samples: dict[int, list[SettingResult]] = {}
        for row in found.settings:
            by_samples.setdefault(row.samples, []).append(row)
        return {
            (samples, steps): choose(rows).weight
            for samples, rows in by_samples.items()
            if any(row.weight for row in rows)  # searched, not the unguided policy alone
        }


def _check_key(key: Any) -> None:
    """Raise a UserError if it is no JAX key, of new or old style."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (shape == () if new else dtype == np.uint32 and shape == (2,)):
        raise UserError(f"key must be one JAX key, as jax.random.key(0); got {key}")


load = Policy
"""`load(run)` is `Policy(run)`."""
