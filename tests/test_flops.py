"""Counted operations, against counts by hand and XLA's own where there is no loop."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from qgf.comparison._flops import Operations, operations
from qgf.core.critic import Ensemble, ensemble_critic
from qgf.core.flow import FlowPolicy, euler
from qgf.core.guidance import q_gradient

OBS, ACTION, TIME = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 9), (1, 4), (1,)))
LEFT, RIGHT = jnp.ones((3, 4)), jnp.ones((4, 2))


def two_layers(x):
    return jnp.maximum(x @ LEFT + 1.0, 0.0) @ RIGHT


def test_two_layers_by_hand():
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    # Of 5 rows 3 × 4 and 4 × 2 multiplications and additions; 4 additions and 4 maxima a row.
    assert operations(two_layers, x) == Operations(2 * 5 * (12 + 8), 5 * (4 + 4))
    assert operations(jax.jit(two_layers), x) == operations(two_layers, x)
    assert operations(lambda x: x.sum(), x) == Operations(0, 15)


def test_what_no_result_needs_costs_nothing():
    def function(x):
        two_layers(x)
        return x + 1

    assert operations(function, jax.ShapeDtypeStruct((5, 3), jnp.float32)) == Operations(0, 15)


def test_a_loop_counts_as_often_as_it_turns():
    square = jax.ShapeDtypeStruct((6, 6), jnp.float32)

    def nested(x):
        inner = lambda c, _: (c @ c, None)  # noqa: E731
        outer = lambda c, _: (jax.lax.scan(inner, c, length=3)[0] + 1, None)  # noqa: E731
        return jax.lax.scan(outer, x, length=7)[0]

    assert operations(nested, square) == Operations(7 * 3 * 2 * 6**3, 7 * 36)
    # It is what XLA's analysis leaves out.
    assert jax.jit(nested).lower(square).cost_analysis()["flops"] < 2 * (2 * 6**3 + 36)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_known_number_decides_the_branch_inside_a_loop(reverse):
    square = jax.ShapeDtypeStruct((6, 6), jnp.float32)

    def function(x, first):
        def step(carry, k):
            x, count = carry
            both = (k >= 4) & (count < first)
            return (jax.lax.cond(both, lambda x: x @ x @ x, lambda x: x, x), count + 1), None

        return jax.lax.scan(step, (x, 0), jnp.arange(7), reverse=reverse)[0][0]

    # k is 4, 5, 6 as the turns 4, 5, 6 or, in reverse, as 2, 1, 0.
    taken = 3 if reverse else 1
    assert operations(function, square, jnp.asarray(5)).products == taken * 2 * 2 * 6**3
    unknown = jax.ShapeDtypeStruct((), jnp.int32)
    assert operations(function, square, unknown).products == 7 * 2 * 2 * 6**3


def test_a_while_loop_counts_as_often_as_known_numbers_let_it_turn():
    square = jax.ShapeDtypeStruct((6, 6), jnp.float32)

    def function(n, x):
        return jax.lax.fori_loop(0, n, lambda i, x: x @ x, x)

    assert operations(function, jnp.asarray(3), square).products == 3 * 2 * 6**3
    with pytest.raises(ValueError, match="cannot count a while loop"):
        operations(function, jax.ShapeDtypeStruct((), jnp.int32), square)


def test_a_decomposition_by_its_textbook_count():
    matrix = jax.ShapeDtypeStruct((2, 5, 3), jnp.float32)
    expected = 2 * (4 * 5**2 * 3 + 8 * 5 * 3**2 + 9 * 3**3)
    counted = operations(lambda x: jax.lax.linalg.svd(x, full_matrices=False), matrix)
    assert counted == Operations(0, expected)


def xla(function, *args):
    """XLA's count, of what is left of a function before it is optimized."""
    found = jax.jit(function).lower(*args).cost_analysis()
    return found["flops"] + found["transcendentals"]


def test_networks_cost_what_xla_says():
    size = {"width": 32, "depth": 2, "key": jax.random.key(0)}
    # Away from their start, whose biases of 0 and scales of 1 XLA leaves out.
    networks = FlowPolicy(9, 4, **size), Ensemble(9, 4, members=2, **size)
    moved = lambda x: x + jnp.linspace(0.1, 0.2, x.size).reshape(x.shape)  # noqa: E731
    velocity, ensemble = jax.tree.map(moved, networks)
    critic = lambda obs, action: ensemble_critic(ensemble, "min", obs, action)  # noqa: E731

    def gradient(obs, action):
        return q_gradient(partial(critic, obs), action)

    def unrolled(obs, action):
        for k in range(4):
            action = action + velocity(obs, action, jnp.full(1, k / 4)) / 4
        return action

    def sampled(obs, action):
        return euler(partial(velocity, obs), action, steps=4)

    one = operations(lambda o, a, t: velocity(o, a, t), OBS, ACTION, TIME)
    assert one.products == 2 * ((9 + 4 + 16) * 32 + 32 * 32 + 32 * 4)
    cases = [
        (lambda o, a, t: velocity(o, a, t), (OBS, ACTION, TIME)),
        (critic, (OBS, ACTION)),
        (gradient, (OBS, ACTION)),
        (unrolled, (OBS, ACTION)),
    ]
    for function, args in cases:
        assert sum(operations(function, *args)) == pytest.approx(xla(function, *args), rel=0.01)
    looped, expected = operations(sampled, OBS, ACTION), operations(unrolled, OBS, ACTION)
    assert looped.products == expected.products == 4 * one.products
    assert sum(looped) == pytest.approx(xla(unrolled, OBS, ACTION), rel=0.01)
