"""The smaller of two Q networks against differentiating both and taking the minimum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qgf.core._smaller_q import smaller_q
from qgf.core.critic import Ensemble


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 13, 50])
def test_equals_the_masked_minimum_wherever_the_boundary_falls(batch):
    q = Ensemble(4, 3, members=2, width=16, depth=3, key=jax.random.key(0))
    random = np.random.default_rng(batch)
    obs = jnp.asarray(random.normal(size=(batch, 4)), jnp.float32)
    action = jnp.asarray(random.uniform(-1, 1, (batch, 3)), jnp.float32)

    @jax.jit
    def both(shift):
        # The second member moved by `shift`: from smaller nowhere to smaller everywhere.
        moved = eqx.tree_at(lambda q: q.members[1].biases[-1], q, replace_fn=lambda b: b + shift)
        fast = jax.value_and_grad(lambda a: smaller_q(*moved.members, obs, a).sum())(action)
        slow = jax.value_and_grad(lambda a: moved(obs, a).min(0).sum())(action)
        return fast, slow, moved(obs, action)

    gaps = np.diff(np.asarray(both(0.0)[2]), axis=0)[0]
    order = np.sort(-gaps)
    shifts = [order[0] - 1, *(order[:-1] + order[1:]) / 2, order[-1] + 1]
    counts = set()
    for shift in shifts:
        fast, slow, values = both(jnp.float32(shift))
        counts.add(int((values[0] <= values[1]).sum()))
        np.testing.assert_allclose(fast[0], slow[0], rtol=1e-5)
        np.testing.assert_allclose(fast[1], slow[1], rtol=1e-3, atol=1e-5)
    assert counts == set(range(batch + 1))  # every place of the boundary was met


def test_the_gradient_has_the_dtype_of_the_action():
    q = Ensemble(4, 3, members=2, width=16, depth=3, key=jax.random.key(0))
    random = np.random.default_rng(0)
    obs = jnp.asarray(random.normal(size=(5, 4)), jnp.float32)
    action = jnp.asarray(random.uniform(-1, 1, (5, 3)), jnp.bfloat16)
    actual = jax.grad(lambda a: smaller_q(*q.members, obs, a).sum())(action)
    expected = jax.grad(lambda a: q(obs, a).min(0).sum())(action.astype(jnp.float32))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=0.01, atol=1e-3)
