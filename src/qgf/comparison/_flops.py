"""Operations of a program, counted as it is traced.

XLA's own cost analysis counts the body of a loop once, however often it turns. Here the trace
(its jaxpr) is walked instead: a loop's body as often as it turns, and of a branch the side
that is taken.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

# Primitives that move, copy or name numbers without computing any.
FREE = {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "gather"),
    *("iota", "pad", "reshape", "rev", "scatter", "slice", "sort", "split", "squeeze"),
    *("stop_gradient", "transpose"),
}


class Operations(NamedTuple):
    """Floating-point operations: of matrix products, and of all else."""

    products: int = 0
    others: int = 0

    def plus(self, more: "Operations") -> "Operations":
        return Operations(self.products + more.products, self.others + more.others)


def operations(function: Callable, *args: Any) -> Operations:
    """Return the operations of one call of a function, as traced.

    A matrix product of (m, k) and (k, n) has 2mkn; anything else but moving numbers has one for
    every element of its largest operand or result, be it an addition or a tanh. A singular
    value decomposition has 4m²n + 8mn² + 9n³ (Golub and Van Loan, Matrix Computations, § 8.6).

    Args:
        function: any JAX function; it is traced but not run.
        args: trees of arrays, or of jax.ShapeDtypeStruct where the value is not known. What
            follows from known values alone is computed, so that a branch they decide is the
            one taken. Of a branch that unknown values decide, the dearest side is counted, as
            XLA does.

    Raises:
        ValueError: the function has a while loop that unknown values end.
    """
    unknown = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(args)]
    values = [None if u else x for u, x in zip(unknown, jax.tree.leaves(args), strict=True)]
    program = jax.make_jaxpr(function)(*args)
    # What no result needs is never computed.
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
    return _program(program.replace(jaxpr=needed), values)[0]


Walked = tuple[Operations, list]  # with what is known of the results; None is unknown


def _program(program: ClosedJaxpr, inputs: Sequence) -> Walked:
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.constvars, program.consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atoms: Sequence) -> list:
        return [atom.val if isinstance(atom, Literal) else known[atom] for atom in atoms]

    total = Operations()
    for equation in jaxpr.eqns:
        count, results = _equation(equation, read(equation.invars))
        total = total.plus(count)
        known |= dict(zip(equation.outvars, results, strict=True))
    return total, read(jaxpr.outvars)


def _equation(equation: JaxprEqn, values: list) -> Walked:
    name, params = equation.primitive.name, equation.params
    if name == "while":
        return _while(params, values)
    if name == "scan":
        return _scan(params, values)
    if name == "cond":
        return _branch(params["branches"], *values)
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None:
        return _program(inner, values)
    results = [None] * len(equation.outvars)
    if all(value is not None for value in values):
        found = equation.primitive.bind(*values, **params)
        results = found if equation.primitive.multiple_results else [found]
    return _cost(equation), results


def _scan(params: dict[str, Any], values: list) -> Walked:
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, carry, rows = values[:first], values[first:last], values[last:]
    total = Operations()
    turns = range(params["length"])
    for i in reversed(turns) if params["reverse"] else turns:
        row = [None if x is None else x[i] for x in rows]
        count, results = _program(params["jaxpr"], [*constants, *carry, *row])
        carry = results[: params["num_carry"]]
        total = total.plus(count)
    stacked = len(params["jaxpr"].jaxpr.outvars) - params["num_carry"]
    return total, [*carry, *[None] * stacked]


def _while(params: dict[str, Any], values: list) -> Walked:
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    asked, constants, carry = values[:first], values[first:last], values[last:]
    total = Operations()
    while True:
        count, (more,) = _program(params["cond_jaxpr"], [*asked, *carry])
        total = total.plus(count)
        if more is None:
            raise ValueError("cannot count a while loop: how often it turns is not known")
        if not more:
            return total, carry
        count, carry = _program(params["body_jaxpr"], [*constants, *carry])
        total = total.plus(count)


def _branch(branches: Sequence[ClosedJaxpr], index: Any, *values: Any) -> Walked:
    if index is not None:
        return _program(branches[min(max(int(index), 0), len(branches) - 1)], values)
    dearest = max((_program(branch, values)[0] for branch in branches), key=sum)
    return dearest, [None] * len(branches[0].jaxpr.outvars)


def _cost(equation: JaxprEqn) -> Operations:
    if equation.primitive.name in FREE:
        return Operations()
    inputs, results = (
        [atom.aval for atom in atoms] for atoms in (equation.invars, equation.outvars)
    )
    if equation.primitive.name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        length = 1
        for axis in summed:
            length *= inputs[0].shape[axis]
        return Operations(products=2 * length * results[0].size)
    if equation.primitive.name == "svd":
        *batch, m, n = inputs[0].shape
        m, n = max(m, n), min(m, n)
        return Operations(others=math.prod(batch) * (4 * m**2 * n + 8 * m * n**2 + 9 * n**3))
    return Operations(others=max(aval.size for aval in [*inputs, *results]))
