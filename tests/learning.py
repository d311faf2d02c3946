"""What tests of learners share: a Gaussian whose flow is known, stand-ins, and training."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from qgf.config import Config
from qgf.data.dataset import Batch

MEAN, STD = np.array([0.1, -0.2]), np.array([0.2, 0.1])


def configured(kind, **settings):
    """The settings of a training and of a learner of this kind, by their names."""
    own = {field.name for field in dataclasses.fields(kind.Hyper)} & settings.keys()
    hyper = kind.Hyper(**{name: settings.pop(name) for name in own})
    return Config(**settings, hyper=(hyper,))


def gaussian_velocity(obs, action, t):
    """The exact velocity whose flow carries N(0, I) to N(MEAN + obs, STD²)."""
    t = t[:, None]
    slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
    return MEAN + obs + slope * (action - t * (MEAN + obs))


def gaussian_flow(obs, action, start, steps):
    """Its Euler steps from t = start/steps in float64, row by row, not clipped."""
    rows = []
    for o, a, first in zip(np.asarray(obs, float), np.asarray(action, float), start, strict=True):
        for k in range(int(first), steps):
            a = a + gaussian_velocity(o, a, np.full((1,), k / steps))[0] / steps
        rows.append(a)
    return np.array(rows)


def batch_of(obs, action):
    """A batch of which only observations and actions matter."""
    return Batch(obs, action, jnp.zeros(len(obs)), jnp.ones(len(obs)), obs)


def draw_gaussian(key, size=256):
    """Observations of U[-0.2, 0.2] and actions of N(MEAN + obs, STD²)."""
    keys = jax.random.split(key)
    obs = jax.random.uniform(keys[0], (size, 2), minval=-0.2, maxval=0.2)
    return batch_of(obs, MEAN + obs + STD * jax.random.normal(keys[1], (size, 2)))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Spy:
    """A network that returns a formula of its inputs and remembers them."""

    def __init__(self, formula):
        self.formula = formula

    def __call__(self, *inputs):
        self.inputs = [np.asarray(x, np.float64) for x in inputs]
        return self.formula(*inputs)


def bound(function):
    """How a learner binds a function of observations first."""
    return lambda obs: partial(function, obs)


def others(**roles):
    """Stand-ins for other learners: others(critic={"bind": bound(function)}) and so on."""
    return {role: SimpleNamespace(**functions) for role, functions in roles.items()}


def fit(learner, others, draw, *, steps, rate=3e-3):
    """Return the learner after Adam on fresh batches, its rate falling to 0."""
    arrays, static = eqx.partition(learner, eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def update(carry, key):
        arrays, state = carry
        keys = jax.random.split(key)
        loss = lambda x: eqx.combine(x, static).loss(draw(keys[0]), keys[1], others)[0]  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(arrays), state)
        return (eqx.apply_updates(arrays, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    train = jax.jit(lambda carry: jax.lax.scan(update, carry, keys)[0][0])
    return eqx.combine(train((arrays, optimizer.init(arrays))), static)
