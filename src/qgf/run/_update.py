"""The compiled training step: many gradient steps, of several seeds, in one device call."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from qgf.config import Config, Spec
from qgf.data.dataset import Chunks
from qgf.data.goals import GoalChunks
from qgf.errors import OUT_OF_MEMORY, UserError
from qgf.learners import LEARNERS, Learner

Learners = dict[str, Learner]
Metrics = dict[str, Float[Array, " seed"]]
"""Values by name, one per training seed."""


class Fixed(NamedTuple):
    """What training does not change.

    `frozen` are learners taken from another run: others consult them, nobody trains them.

    Attributes:
        data: the chunks to draw from.
        seeds: training seeds.
        config: settings of the training.
    """

    data: Chunks | GoalChunks
    seeds: Int[Array, " seed"]
    config: Config
    frozen: Learners = {}  # noqa: RUF012


class State(NamedTuple):
    """What training changes; every array leads with the seed axis.

    Attributes:
        learners: those that are trained, by role.
        optimizer: Adam's state.
    """

    learners: Learners
    optimizer: PyTree


@eqx.filter_jit
def create_state(
    kinds: dict[str, str], spec: Spec, config: Config, seeds: Int[Array, " seed"]
) -> State:
    """Return freshly initialized learners and optimizer; each seed's depend on it alone.

    Args:
        kinds: the learner's kind (a name of LEARNERS) for every role to train.
        spec: sizes of observations, actions, chunks and goals.
        config: settings of the training.
        seeds: training seeds.
    """

    def create(seed: Int[Array, ""]) -> State:
        key = jax.random.key(seed)
        learners = {
            # A learner's key depends on its kind, not on which others train beside it.
            role: LEARNERS[kind].create(
                spec, config, jax.random.fold_in(key, list(LEARNERS).index(kind))
            )
            for role, kind in kinds.items()
        }
        return State(learners, _adam(config).init(_split(learners)[0]))

    return eqx.filter_vmap(create)(seeds)


def check_memory(
    kinds: dict[str, str], spec: Spec, config: Config, seeds: Int[Array, " seed"]
) -> None:
    """Raise UserError if training surely needs more memory than there is.

    Counted are what `create_state` returns and the values of one network's hidden layers for a
    batch, which its gradient needs; a training takes more.
    """
    state = eqx.filter_eval_shape(create_state, kinds, spec, config, seeds)
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.ShapeDtypeStruct)]
    needed = sum(array.size * array.dtype.itemsize for array in arrays)
    needed += 4 * config.batch_size * config.width * config.depth
    stats = jax.devices()[0].memory_stats()  # None on a CPU
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = stats["bytes_limit"] if stats else there
    if needed > there:
        sizes = f"at least {needed / 1e9:,.0f} GB are needed, there are {there / 1e9:,.0f}"
        raise UserError(f"{OUT_OF_MEMORY} ({sizes})")


@eqx.filter_jit(donate="all-except-first")
def train_steps(
    fixed: Fixed,
    state: State,
    step: Int[Array, ""],
    count: int,
) -> tuple[State, Metrics]:
    """Take `count` gradient steps from `step`; return the state and the mean metrics.

    The randomness of a step depends on its seed and number alone, so that training in any
    division into calls gives the same numbers.

    Args:
        fixed: data, seeds, settings, and learners that stay as they are.
        state: learners and optimizer before.
        step: number of gradient steps taken before.
        count: how many to take.
    """

    def one(state: State, seed: Array, frozen: Learners) -> tuple[State, dict]:
        return _scan(fixed._replace(seeds=seed, frozen=frozen), state, step, count)

    return _each_seed(one, state, fixed.seeds, fixed.frozen)


@eqx.filter_jit
def validation_losses(
    data: Chunks | GoalChunks,
    learners: Learners,
    frozen: Learners,
    batch_size: int,
    batches: int = 16,
) -> Metrics:
    """Return every seed's metrics averaged over `batches` fixed batches of `data`."""

    def one(learners: Learners, frozen: Learners) -> dict[str, Float[Array, ""]]:
        def batch(key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
            return _loss(learners, learners | frozen, data, batch_size, key)[1]

        return jax.tree.map(
            jnp.mean, jax.lax.map(batch, jax.random.split(jax.random.key(0), batches))
        )

    return _each_seed(one, learners, frozen)


def _each_seed(function: Callable, *trees: PyTree) -> PyTree:
    """Apply `function` to every seed's part of `trees`, whose arrays lead with that axis.

    A GPU takes the seeds as one batch; a CPU is faster one after the other, since XLA's
    batched matrix products there lag far behind its plain ones.
    """
    arrays, static = eqx.partition(trees, eqx.is_array)

    def one(arrays: PyTree) -> PyTree:
        return eqx.partition(function(*eqx.combine(arrays, static)), eqx.is_array)

    kept = eqx.filter_eval_shape(one, jax.tree.map(lambda x: x[0], arrays))[1]
    each = jax.lax.map if jax.default_backend() == "cpu" else lambda f, xs: jax.vmap(f)(xs)
    return eqx.combine(each(lambda arrays: one(arrays)[0], arrays), kept)


def _scan(
    fixed: Fixed, state: State, step: Array, count: int
) -> tuple[State, dict[str, Float[Array, ""]]]:
    arrays, static = eqx.partition(state, eqx.is_array)
    key = jax.random.fold_in(jax.random.key(fixed.seeds), 1_000_000)

    def body(arrays: Any, number: Array) -> tuple[Any, dict]:
        state = eqx.combine(arrays, static)
        state, metrics = _step(fixed, state, jax.random.fold_in(key, number))
        return eqx.filter(state, eqx.is_array), metrics

    arrays, metrics = jax.lax.scan(body, arrays, step + jnp.arange(count))
    return eqx.combine(arrays, static), jax.tree.map(jnp.mean, metrics)


def _step(fixed: Fixed, state: State, key: PRNGKeyArray) -> tuple[State, dict]:
    config = fixed.config
    online, rest = _split(state.learners)
    others = state.learners | fixed.frozen  # not what is differentiated: no gradient crosses

    def loss(online: PyTree) -> tuple[Float[Array, ""], dict]:
        return _loss(eqx.combine(online, rest), others, fixed.data, config.batch_size, key)

    grads, metrics = eqx.filter_grad(loss, has_aux=True)(online)
    updates, optimizer = _adam(config).update(grads, state.optimizer, online)
    learners = eqx.combine(eqx.apply_updates(online, updates), rest)
    return State(_average_targets(learners, config.target_rate), optimizer), metrics


def _loss(
    learners: Learners,
    others: Learners,
    data: Chunks | GoalChunks,
    batch_size: int,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], dict]:
    batch_key, loss_key = jax.random.split(key)
    batch, every = data.sample(batch_key, batch_size), data.sample_all(batch_key, batch_size)
    total, metrics = jnp.zeros(()), {}
    for name, learner in learners.items():
        drawn = every if learner.imitates else batch
        value, more = learner.loss(drawn, loss_key, others)
        total += value
        metrics |= {f"{name}/{k}": v for k, v in more.items()}
    return total, metrics | {"loss": total}


def _adam(config: Config) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


def _split(learners: Learners) -> tuple[PyTree, PyTree]:
    """Split into what the optimizer trains and the rest (target networks, settings)."""
    trained = jax.tree.map(eqx.is_inexact_array, learners)
    for name, learner in learners.items():
        for target in learner.targets:
            trained = eqx.tree_at(
                lambda tree, n=name, t=target: getattr(tree[n], t), trained, replace=False
            )
    return eqx.partition(learners, trained)


def _average_targets(learners: Learners, rate: float) -> Learners:
    """Move every target network by `rate` toward the network it follows (Polyak)."""
    for name, learner in learners.items():
        for target, online in learner.targets.items():
            moved = jax.tree.map(
                lambda slow, fast: slow + rate * (fast - slow),
                getattr(learner, target),
                getattr(learner, online),
            )
            learner = eqx.tree_at(lambda tree, t=target: getattr(tree, t), learner, moved)
        learners = learners | {name: learner}
    return learners
