"""A ring of states whose shortest paths are known, walked by the data and learned from.

An action moves 1 or 2 states to the left or right, so that most goals take several chunks. A
walk keeps its direction and ends before it has been round: it meets no state twice, and a
goal's distance along it is that of its first visit. Distances along it are mostly longer than
the shortest ones: walks dawdle, and go the long way round.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from learning import configured
from sources import Episodes

from qgf.config import Spec
from qgf.data.dataset import Chunks, Dataset, trajectory_ends
from qgf.data.goals import GoalChunks
from qgf.data.trajectories import Trajectories
from qgf.run._update import _average_targets, _split

STATES, WALK, CHUNK, LONG = 20, 9, 2, 4
DISCOUNT = 0.9
SPEC = Spec(obs=1, action=1, chunk=CHUNK, goal=1)


def config(kind, **settings):
    settings = {"chunk": CHUNK, "discount": DISCOUNT, "target_rate": 0.05} | settings
    return configured(kind, **settings)


class Table(eqx.Module):
    """A value of every state, goal and chunk of so many steps; it takes what networks take."""

    values: jax.Array
    steps: int = eqx.field(static=True)

    def __init__(self, steps, seed):
        shape = (2,) if steps else ()
        shape += (STATES, STATES, 2 ** (1 + steps))
        self.values, self.steps = jax.random.normal(jax.random.key(seed), shape), steps

    def __call__(self, obs, action=None):
        state, goal = obs.astype(jnp.int32).T
        if action is None:
            return self.values[state, goal, 0]
        # A walk's direction is one bit, the size of each of its steps another.
        bits = jnp.hstack([action[:, :1] > 0, abs(action) > 0.75]).astype(jnp.int32)
        return self.values[:, state, goal, bits @ 2 ** jnp.arange(1 + self.steps)]


def tabular(kind, config):
    """A learner of this kind with tables for networks."""
    learner = eqx.filter_eval_shape(kind.create, SPEC, config, jax.random.key(0))
    for i, (name, steps) in enumerate({"q": CHUNK, "chunk_q": LONG, "v": 0}.items()):
        if hasattr(learner, name):
            learner = eqx.tree_at(lambda x, n=name: getattr(x, n), learner, Table(steps, i))
    return eqx.tree_at(lambda x: x.target_q, learner, learner.q)


def distance(state, goal):
    """The fewest steps: 2 states each, in the shorter direction."""
    right = (goal - state) % STATES
    return -(-np.minimum(right, STATES - right) // 2)


def all_walks():
    """States and actions, [walk, row], of all walks from all states in both directions."""
    sizes = 1 + np.array(list(np.ndindex(*[2] * WALK)))
    moves = np.tile(np.concatenate([-sizes, sizes]), (STATES, 1))
    first = np.repeat(np.arange(STATES), 2 * len(sizes))[:, None]
    state = (first + np.pad(moves.cumsum(1), ((0, 0), (1, 0)))) % STATES
    return state, np.pad(moves, ((0, 0), (0, 1))) / 2


def walks():
    """All walks as chunks with goals."""
    state, action = all_walks()
    terminals = np.tile(np.arange(WALK + 1) == WALK, len(state)).astype(np.float32)
    inside = np.arange(WALK + 1) <= WALK - CHUNK
    start = np.flatnonzero(np.tile(inside, len(state))).astype(np.int32)
    obs = state.reshape(-1, 1).astype(np.float32)
    chunks = Chunks(
        obs=obs,
        action=action.reshape(-1, 1).astype(np.float32),
        start=start,
        reward=np.zeros(len(start), np.float32),
        mask=np.ones(len(start), np.float32),
        length=CHUNK,
    )
    # No goal is a random state: that may lie on the chunk's way without being known to.
    goals = GoalChunks(
        chunks,
        obs,
        trajectory_ends(terminals, start),
        long=LONG,
        discount=DISCOUNT,
        p_current=0.2,
        p_trajectory=0.8,
        sampling="uniform",
    )
    return jax.device_put(goals)


def walks_to_0():
    """All walks as chunks for one task, which is solved at state 0 and pays -1 per step before.

    Observations are [state, 0], as those of goals.
    """
    state, action = all_walks()
    last = np.tile(np.arange(WALK + 1) == WALK, len(state))
    arrives = np.pad(state[:, 1:] == 0, ((0, 0), (0, 1))).ravel()
    recorded = Trajectories(
        observation=np.stack([state.ravel(), 0 * state.ravel()], 1).astype(np.float32),
        action=action.reshape(-1, 1).astype(np.float32),
        last=last,
        reward=np.full(len(last), -1, np.float32),
        terminated=arrives,
    )
    data = Dataset(Episodes(recorded), chunk=CHUNK, discount=DISCOUNT, horizon=LONG)
    return jax.device_put(data.chunks(data.source.split("train")))


def learn(learner, *, steps, rate=0.05, batch_size=4096, data=None):
    """The learner after Adam on the walks, its step size falling to 0, and Polyak averaging.

    Args:
        data: by default with goals.
    """
    data = data or walks()
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    trained, _ = _split({"critic": learner})

    @eqx.filter_jit
    def train(learners, state, data):
        arrays, static = eqx.partition(learners, eqx.is_array)

        def update(carry, key):
            learners, state = eqx.combine(carry[0], static), carry[1]
            online, rest = _split(learners)
            batch = data.sample(key, batch_size)
            loss = lambda x: eqx.combine(x, rest)["critic"].loss(batch, key, {})[0]  # noqa: E731
            updates, state = optimizer.update(eqx.filter_grad(loss)(online), state)
            learners = eqx.combine(eqx.apply_updates(online, updates), rest)
            learners = _average_targets(learners, learner.config.target_rate)
            return (eqx.filter(learners, eqx.is_array), state), None

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(update, (arrays, state), keys)[0][0]

    arrays = train({"critic": learner}, optimizer.init(trained), data)
    return eqx.combine(arrays, {"critic": learner})["critic"]


def pairs():
    """[observation, goal] of all pairs of states, and their distances."""
    state, goal = (x.ravel() for x in np.indices((STATES, STATES)))
    return jnp.asarray(np.stack([state, goal], 1), jnp.float32), distance(state, goal)


def moves(steps):
    """All that the data can do in so many steps when they may reach a goal, and its truth.

    Returns [observation, goal], actions, the steps to the goal if what follows the actions is
    the best, and whether the actions are.
    """
    rows = []
    for sign in (-1, 1):
        for sizes in np.ndindex(*[2] * steps):
            travel = np.cumsum([0, *(np.array(sizes) + 1)])
            for state, ahead in np.ndindex(STATES, WALK + 1):
                goal = (state + sign * ahead) % STATES
                if ahead in travel:
                    cost = list(travel).index(ahead)
                elif ahead > travel[-1]:
                    cost = steps + distance((state + sign * travel[-1]) % STATES, goal)
                else:
                    continue  # the walk has jumped over it
                best = cost == distance(state, goal)
                rows.append(((state, goal), sign * np.diff(travel) / 2, cost, best))
    obs, action, cost, best = (np.array(column) for column in zip(*rows, strict=True))
    return jnp.asarray(obs, jnp.float32), jnp.asarray(action, jnp.float32), cost, best
