"""Operations of an action, counted by hand for networks of known size."""

import time

import jax
import pytest

from qgf.comparison._costs import count, milliseconds
from qgf.config import Config, Spec
from qgf.learners import LEARNERS
from qgf.methods.table import METHODS, kinds_of

SPEC = Spec(obs=7, action=3, chunk=2)  # 6 action dimensions
T = 4
POLICY = (7 + 6 + 16) * 8 + 8 * 8 + 8 * 6  # multiplications of one forward pass: 344
Q = (7 + 6) * 8 + 8 * 8 + 8  # 176
Q_BACKWARD = 8 * 8 + 8 * 6  # the last layer is no matrix, and the first only its action rows: 112
# Backward through the policy, the product with the first kernel gives all its inputs' parts.
GUIDANCE = T * (2 * Q + Q_BACKWARD)
CHAIN = T * (T + 1) // 2  # Euler steps that are left at every step


def learners(name, spec=SPEC, **kinds):
    kinds = kinds_of(METHODS[name]) | kinds
    config = Config(width=8, depth=2, denoise_steps=T)
    return {
        role: LEARNERS[kinds[role]].create(spec, config, jax.random.key(0))
        for role in METHODS[name].roles
    }


BY_HAND = [
    ("bc", 1, T * POLICY),
    ("bfn", 2, 2 * (T * POLICY + 2 * Q)),
    ("bfn-4", 4, 4 * (T * POLICY + 2 * Q)),
    ("qgf", 1, T * POLICY + GUIDANCE),
    ("qgf+bfn", 2, 2 * (T * POLICY + GUIDANCE + 2 * Q)),
    ("gradstep", 1, T * POLICY + 3 * (2 * Q + Q_BACKWARD)),
    ("bptt", 1, CHAIN * 2 * POLICY + GUIDANCE),
    ("qgf-chain", 1, CHAIN * POLICY + GUIDANCE),
    ("qgf-jacobian", 1, T * 2 * POLICY + GUIDANCE),
    # One backward pass per action dimension, and g U Vᵀ of 6 x 6 matrices.
    ("qgf-jacobian-ortho", 1, T * (7 * POLICY + 6**2 + 6**2) + GUIDANCE),
    ("fql", 1, (7 + 6) * 8 + 8 * 8 + 8 * 6),
    ("cfgrl", 1, T * 2 * (POLICY + 8)),  # told which branch by one more input
]


@pytest.mark.parametrize(("name", "samples", "products"), BY_HAND)
def test_matrix_products_of_an_action_by_hand(name, samples, products):
    counted = count(METHODS[name], learners(name), SPEC, 0.1, samples)
    assert counted.products == 2 * products
    assert counted.others > 0


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {name for name, *_ in BY_HAND}))
def test_every_other_method_can_be_counted(name):
    assert count(METHODS[name], learners(name), SPEC, 0.1, 1).products > 0


def test_milliseconds_are_those_of_the_middle_call_after_the_first():
    waits = iter([0.5, *[0.0] * 7, *[0.02] * 7, *[0.1] * 6])
    shapes = []

    def act(obs, goal, weight, start, turn):
        shapes.append([x.shape for x in (obs, goal, weight, start, turn)])
        assert (weight == 0.25).all()
        time.sleep(next(waits))
        return obs

    taken = milliseconds(act, SPEC._replace(goal=2), 0.25, 3)
    assert 20 <= taken < 60
    assert shapes == [[(1, 3, 7), (1, 3, 2), (1, 3), (1, 3), (1, 3)]] * 21


def test_unguided_the_critic_costs_nothing():
    assert count(METHODS["qgf"], learners("qgf"), SPEC, 0.0, 1).products == 2 * T * POLICY


def test_a_goal_costs_as_much_as_its_numbers():
    spec = SPEC._replace(goal=3)
    plain, aimed = (
        count(METHODS["qgf"], learners("qgf", s, critic="goal-iql"), s, 0.1, 1)
        for s in (spec, spec._replace(goal=5))
    )
    # Two more rows of the first kernel of two critics.
    assert aimed.products - plain.products == 2 * T * 2 * 2 * 8
