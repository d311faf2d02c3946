"""Best-of-N against trying them one by one."""

import jax.numpy as jnp
import numpy as np

from qgf.search import best_of_n


def sample(obs, noise):
    return jnp.tanh(noise + obs)


def critic(obs, action):
    return -jnp.square(action - 0.5 * obs).sum(-1)


def test_best_of_n_equals_brute_force():
    random = np.random.default_rng(0)
    obs = random.normal(size=(6, 3)).astype(np.float32)
    noise = random.normal(size=(5, 6, 3)).astype(np.float32)
    actual = best_of_n(sample, critic, jnp.asarray(obs), jnp.asarray(noise))
    picked = set()
    for row in range(6):
        tried = [np.tanh(noise[i, row] + obs[row]) for i in range(5)]
        best = max(range(5), key=lambda i: -((tried[i] - 0.5 * obs[row]) ** 2).sum())
        picked.add(best)
        np.testing.assert_allclose(actual[row], tried[best], rtol=1e-5)
    assert len(picked) > 2


def test_a_sample_of_unknown_value_is_not_the_best():
    noise = jnp.array([[[0.0]], [[-1.0]], [[1.0]]])
    actual = best_of_n(lambda o, z: z, lambda o, a: jnp.sqrt(a[:, 0]), jnp.zeros((1, 1)), noise)
    assert actual.tolist() == [[1.0]]
