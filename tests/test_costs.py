"""Operations of an action, counted by hand for networks of known size."""

import jax
import pytest

from qgf._costs import flops
from qgf.config import Config, Spec
from qgf.learners import LEARNERS
from qgf.methods import METHODS, kinds_of

SPEC = Spec(obs=28, action=5, chunk=5)
POLICY = (28 + 25 + 16) * 8 + 8 * 8 + 8 * 25  # weights of its kernels
Q = (28 + 25) * 8 + 8 * 8 + 8


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("bc", 10 * POLICY),
        ("qgf", 10 * POLICY + 30 * Q),
        ("bptt", 110 * POLICY + 30 * Q),
        ("bfn", 10 * POLICY + 2 * Q),  # one sample
        ("fql", (28 + 25) * 8 + 8 * 8 + 8 * 25),
        ("robust-q", 10 * POLICY + 20 * (Q + 16 * 8)),
    ],
)
def test_operations_are_two_for_every_weight_of_every_product(name, products):
    kinds = kinds_of(METHODS[name])
    learners = {
        role: LEARNERS[kinds[role]].create(SPEC, Config(width=8, depth=2), jax.random.key(0))
        for role in METHODS[name].roles
    }
    assert flops(METHODS[name], learners) == 2 * products
