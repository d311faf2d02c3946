"""The MLP and the time embedding against their textbook formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qgf.core.networks import MLP, norm_gelu, time_embedding


def disturbed(network, key):
    """Every parameter drawn anew, so that none is at a value that hides a mistake."""
    leaves, tree = jax.tree.flatten(network)
    keys = jax.random.split(key, len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, leaves)


def example(norms, depth=3):
    network = MLP(7, 4, width=9, depth=depth, norms=norms, key=jax.random.key(0))
    x = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    return disturbed(network, jax.random.key(2)), x


@pytest.mark.parametrize("norms", [0, 2, 3])
@pytest.mark.parametrize("cuts", [[], [3], [2, 6]])
def test_mlp_equals_the_textbook(norms, cuts):
    network, x = example(norms)
    expected = reference.mlp(network, x)
    actual = network(*map(jnp.asarray, np.split(x, cuts, axis=1)))
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def test_gradient_by_the_inputs_equals_finite_differences():
    network, x = example(norms=2)
    expected = reference.finite_differences(lambda x: reference.mlp(network, x) ** 2, x)
    actual = jax.grad(lambda x: jnp.square(network(x[:, :3], x[:, 3:])).sum())(jnp.asarray(x))
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("norms", [2, 3])
def test_gradient_by_every_parameter_equals_finite_differences(norms):
    network, x = example(norms)
    loss = lambda network: jnp.square(network(jnp.asarray(x))).sum()  # noqa: E731
    gradients, tree = jax.tree.flatten(jax.grad(loss)(network))
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(network)]
    random = np.random.default_rng(0)
    for i, gradient in enumerate(gradients):
        direction = random.normal(size=leaves[i].shape)

        def moved(by, i=i, direction=direction):
            changed = [*leaves[:i], leaves[i] + by * direction, *leaves[i + 1 :]]
            return (reference.mlp(jax.tree.unflatten(tree, changed), x) ** 2).sum()

        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert (np.asarray(gradient) * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_initial_kernels_are_uniform_fan_avg():
    network = MLP(100, 50, width=200, depth=2, norms=1, key=jax.random.key(0))
    for kernel, bias in zip(network.kernels, network.biases, strict=True):
        bound = math.sqrt(6 / sum(kernel.shape))
        assert 0.98 * bound < abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not bias.any()
    assert [k.shape for k in network.kernels] == [(100, 200), (200, 200), (200, 50)]
    assert len(network.scales) == 1


def test_norm_gelu_of_a_row_by_hand():
    # Mean 2, variance 2; normalized -√2, 0, 0, √2.
    x = jnp.array([[0.0, 2.0, 2.0, 4.0]])
    actual = norm_gelu(x, jnp.full(4, 3.0), jnp.array([0.0, 0.0, 1.0, 0.0]))
    expected = reference.gelu(np.array([[-3 * 2**0.5, 0, 1, 3 * 2**0.5]]))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_norm_gelu_of_a_constant_row_is_gelu_of_its_shift():
    shift = np.array([1.0, 2.0, 3.0])
    actual = norm_gelu(jnp.full((1, 3), 1e4), jnp.ones(3), jnp.asarray(shift))
    np.testing.assert_allclose(actual, [reference.gelu(shift)], rtol=1e-6)


def test_norm_gelu_gradient_equals_automatic_differentiation():
    def obvious(x, scale, shift):
        centred = x - x.mean(-1, keepdims=True)
        normalized = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        return jax.nn.gelu(normalized * scale + shift)

    keys = jax.random.split(jax.random.key(0), 4)
    x, g = (3 * jax.random.normal(k, (5, 7)) + 1 for k in keys[:2])
    parameters = [jax.random.normal(k, (7,)) for k in keys[2:]]
    for argument in range(3):
        actual, expected = (
            jax.grad(lambda *a, f=f: (g * f(*a)).sum(), argnums=argument)(x, *parameters)
            for f in (norm_gelu, obvious)
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_time_embedding_is_its_formula():
    t = [0.0, 0.1, 0.5, 0.9, 1.0]
    angles = [[1e4 * x * 1e4 ** (-i / 8) for i in range(8)] for x in t]
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    # Angles up to 1e4 in float32 are known to 1e-3.
    np.testing.assert_allclose(time_embedding(jnp.array(t)), expected, atol=2e-3)
    assert time_embedding(jnp.array(t), size=6).shape == (5, 6)
