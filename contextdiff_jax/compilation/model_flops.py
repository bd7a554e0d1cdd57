"""Operations that a computation needs, from its jaxpr: matrix products and convolutions.

What the compiler adds (recomputation it chose, work done twice on several chips) is not in it, so
compiled operations over these is the overhead. Loops count as often as they run.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def model_flops(f: Callable, *args: Any) -> float:
    """Returns the multiplications and additions of f's products for arguments of these shapes.

    Convolutions count real input values only, padding and dilation holes do not count; what f
    computes and does not return counts. Raises ValueError for a loop of unknown length.
    """
    total = 0.0
    for equation, _, times in equations(jax.make_jaxpr(f)(*args).jaxpr):
        if equation.primitive.name == "while":
            raise ValueError("a while loop of unknown length: its operations cannot be counted")
        if equation.primitive.name in _PRODUCTS:
            total += times * _PRODUCTS[equation.primitive.name](equation)
    return total


def equations(jaxpr: core.Jaxpr, scope: str = "", times: int = 1) -> Iterator[tuple[Any, str, int]]:
    """Yields (equation, its scopes from the outermost on, how often it runs) of all within.

    A scope is what a Flax module, jax.named_scope or jitted function has for a name.
    """
    for equation in jaxpr.eqns:
        inner = f"{scope}/{equation.source_info.name_stack}"
        yield equation, inner, times
        if isinstance(equation.params.get("name"), str):
            inner = f"{inner}/{equation.params['name']}"
        scanned = equation.primitive.name == "scan"
        repeated = times * equation.params["length"] if scanned else times
        for value in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value), inner, repeated)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _dot(equation: Any) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracting)


def _convolution(equation: Any) -> float:
    params = equation.params
    numbers = params["dimension_numbers"]
    lhs, rhs = (var.aval.shape for var in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    taps = 1.0
    for place, (lhs_axis, rhs_axis, out_axis) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        taps *= valid_taps(
            lhs[lhs_axis],
            rhs[rhs_axis],
            out[out_axis],
            params["window_strides"][place],
            params["padding"][place][0],
            params["lhs_dilation"][place],
            params["rhs_dilation"][place],
        )
    batch = lhs[numbers.lhs_spec[0]] // params["batch_group_count"]
    features = rhs[numbers.rhs_spec[0]] * rhs[numbers.rhs_spec[1]]
    return 2.0 * batch * features * taps


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}


def valid_taps(
    size: int, kernel: int, out: int, stride: int, pad: int, lhs_dilation: int, rhs_dilation: int
) -> int:
    """Returns how many (output place, kernel place) pairs along one axis meet an input value.

    size, kernel, out: lengths along the axis. pad: zeros before the first value.
    """
    extent = (size - 1) * lhs_dilation + 1
    places = (
        place * stride + tap * rhs_dilation - pad for tap in range(kernel) for place in range(out)
    )
    return sum(0 <= place < extent and place % lhs_dilation == 0 for place in places)
