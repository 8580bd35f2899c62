"""Every local reverse rule of jaxnn.graph against jax.vjp of the same operation at the same point, kinks included.

A case is a function of one operation, its arguments, and whether the point is one at which the rule has something to
note. The first case of each operation is also run under jit and vmap. Both sides are evaluated by NumPy, operation by
operation, but under jit; with JAXNN_OPTIMISED=1 (`make test-all`) both are compiled, as users' programs are.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from jax import lax
from jax.extend.core import Literal, primitives

from jaxnn.graph.rules import RULES, elementwise, indexing, products, reductions, shapes, windows
from jaxnn.jaxprs import is_float

TOLERANCE = {  # of the leaf's largest entry
    "float64": 1e-12,  # rounding of a few operations
    "float32": 1e-5,
    "bfloat16": 2.0**-6,  # four roundings: compiled, either side may keep more digits between two operations
}
QUICK = {"xla_backend_optimization_level": 0}  # small programs that run once: compiling them is all the time there is
NEWER = {"stack", "unstack"}  # than the oldest JAX
SYMMETRIC = {"cholesky"}  # of a symmetric matrix: before 0.12 JAX gave its gradient to both triangles alike
NOT_IN_BFLOAT16 = {"cholesky", "triangular_solve"}  # LAPACK has no half precision
COMPILED = partial(jax.jit, compiler_options=QUICK)
INF, NAN = np.inf, np.nan


class Case(NamedTuple):
    name: str
    f: Callable
    args: tuple
    noted: bool = False


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


A, B = normal(3, 4), normal(3, 4, seed=1)
P = np.abs(A) + 0.1  # positive
U = np.tanh(A) * 0.9  # between −1 and 1
EMPTY = np.zeros((0, 4))
INTS = np.array([5, -2, 0, 7])
BOOLS = np.array([True, False, True, False])


def array(*values, dtype=float):
    """The values over and over, six in all: with one shape for most cases, eager operations compile once."""
    return np.resize(np.array(values, dtype), 6)


def same(name, f, *points, noted=()):
    """Cases of one function of one argument: smooth points, then points with a note."""
    smooth = [Case(name, f, (x,)) for x in points]
    return smooth + [Case(name, f, (x,), True) for x in noted]


UNARY = [
    *same("neg", lax.neg, A, array(0.0, -0.0, INF, NAN), EMPTY, np.array(2.0)),
    *same("square", lax.square, A, array(0.0, INF), np.array(-3.0)),
    *same("exp", lax.exp, A, array(800.0, -800.0, -INF, NAN), EMPTY),
    *same("exp2", lax.exp2, A, array(2000.0, -INF)),
    *same("expm1", lax.expm1, A, array(1e-12, 800.0, -800.0)),
    *same("expm1", partial(lax.expm1, accuracy=lax.AccuracyMode.HIGHEST), A, array(-40.0)),
    *same("log", lax.log, P, array(-1.0, 1e-300), noted=[array(1.0, 0.0, -0.0), np.array(0.0)]),
    *same("log1p", lax.log1p, P, array(1e-12, -2.0), noted=[array(-1.0)]),
    *same("tanh", lax.tanh, A, array(20.0, -20.0, INF, NAN)),
    *same("tanh", partial(lax.tanh, accuracy=lax.AccuracyMode.HIGHEST), A, array(20.0)),
    *same("logistic", lax.logistic, A, array(40.0, -800.0, INF)),
    *same("logistic", partial(lax.logistic, accuracy=lax.AccuracyMode.HIGHEST), A, array(40.0)),
    *same("sqrt", lax.sqrt, P, array(-1.0, INF), np.array(4.0), noted=[array(0.0, 1.0)]),
    *same("rsqrt", lax.rsqrt, P, array(-1.0, INF), noted=[array(0.0, 1.0)]),
    *same("cbrt", lax.cbrt, A, array(-8.0), noted=[array(0.0, 1.0)]),
    *same("sin", lax.sin, A, array(1e5, INF)),
    *same("cos", lax.cos, A, array(1e5, INF)),
    *same("tan", lax.tan, A, array(1.5707)),
    *same("asin", lax.asin, U, array(2.0), noted=[array(1.0, -1.0)]),
    *same("acos", lax.acos, U, array(2.0), noted=[array(1.0, -1.0)]),
    *same("atan", lax.atan, A, array(0.0, INF)),
    *same("sinh", lax.sinh, A, array(800.0)),
    *same("cosh", lax.cosh, A, array(800.0)),
    *same("asinh", lax.asinh, A, array(0.0, 1e200)),
    *same("acosh", lax.acosh, 1 + P, array(0.5), noted=[array(1.0)]),
    *same("atanh", lax.atanh, U, array(2.0), noted=[array(1.0, -1.0)]),
    *same("erf", lax.erf, A, array(0.0, 30.0)),
    *same("erfc", lax.erfc, A, array(0.0, 30.0)),
    *same("erf_inv", lax.erf_inv, U, array(0.0), noted=[array(1.0, -1.0)]),
    *same("lgamma", lax.lgamma, P, array(-0.5, 30.0), noted=[array(0.0, -2.0)]),
    *same("digamma", lax.digamma, P, array(0.5, 30.0), noted=[array(0.0)]),
    *same("abs", lax.abs, A, array(NAN, -INF), INTS, noted=[array(0.0, -0.0, 1.0), np.array(0.0)]),
    *same("sign", lax.sign, A, INTS, noted=[array(0.0, -0.0)]),
    *same("floor", lax.floor, A, array(INF), noted=[array(2.0, 0.5)]),
    *same("ceil", lax.ceil, A, noted=[array(2.0, 0.5)]),
    *same("round", lax.round, A, noted=[array(0.5, 2.0)]),
    *same("integer_pow", lambda x: lax.integer_pow(x, 3), A, array(0.0), EMPTY, INTS),
    *same("integer_pow", lambda x: primitives.integer_pow_p.bind(x, y=0), A, array(0.0)),
    *same("integer_pow", lambda x: primitives.integer_pow_p.bind(x, y=1), A, array(0.0, INF)),
    *same("integer_pow", lambda x: primitives.integer_pow_p.bind(x, y=2), A, array(0.0)),
    *same("integer_pow", lambda x: lax.integer_pow(x, -2), A, noted=[array(0.0, 1.0)]),
    *same("convert_element_type", lambda x: lax.convert_element_type(x, jnp.float16), A, array(1e6)),
    *same("convert_element_type", lambda x: lax.convert_element_type(x, jnp.int32), A),
    *same("convert_element_type", lambda x: lax.convert_element_type(x, jnp.float32), INTS, BOOLS),
    *same("reduce_precision", lambda x: lax.reduce_precision(x, 8, 7), A),
    *same("copy", primitives.copy_p.bind, A, INTS),
    *same("stop_gradient", lax.stop_gradient, A),
    *same("is_finite", lax.is_finite, A),
    *same("not", lax.bitwise_not, BOOLS),
    *same("population_count", lax.population_count, INTS),
    *same("clz", lax.clz, INTS),
    *same("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, np.dtype(f"int{8 * x.dtype.itemsize}")), A),
]

BINARY = [
    *(Case(name, f, (A, B)) for name, f in (("add", lax.add), ("sub", lax.sub), ("mul", lax.mul))),
    *(Case(name, f, (EMPTY, EMPTY)) for name, f in (("add", lax.add), ("sub", lax.sub), ("mul", lax.mul))),
    *(Case(name, f, (A, np.array(2.0))) for name, f in (("add", lax.add), ("sub", lax.sub), ("mul", lax.mul))),
    *(Case(name, f, (np.array(2.0), A)) for name, f in (("add", lax.add), ("sub", lax.sub), ("mul", lax.mul))),
    Case("mul", lax.mul, (A, B[:, :1])),
    Case("mul", lambda x: lax.mul(x, 3.0), (A,)),
    Case("mul", lax.mul, (array(0.0, INF, NAN), array(INF, 0.0, 1.0))),
    Case("mul", lax.mul, (INTS, INTS)),
    Case("mul", partial(lax.mul, out_dtype=jnp.float64), (A.astype(np.float32), B.astype(np.float32))),
    Case("add_any", primitives.add_jaxvals_p.bind, (A, B)),
    Case("div", lax.div, (A, P)),
    Case("div", lax.div, (A, np.array(-2.0))),
    Case("div", lax.div, (np.array(2.0), P)),
    Case("div", lax.div, (array(0.0, 1.0), array(0.0, 0.0)), noted=True),
    Case("rem", lax.rem, (A, P.T.reshape(3, 4))),
    Case("rem", lax.rem, (array(5.5, -5.5, 0.0), array(2.0, 2.0, 2.0))),
    Case("rem", lax.rem, (array(6.0, -4.0), array(2.0, -2.0)), noted=True),
    Case("pow", lax.pow, (P, B)),
    Case("pow", lax.pow, (P, np.array(0.5))),
    Case("pow", lax.pow, (np.array(2.0), B)),
    Case("pow", lax.pow, (array(2.0, -2.0, 0.0, 0.0, 1.0), array(0.0, 2.0, 1.0, 2.5, INF))),
    Case("pow", lax.pow, (array(0.0, 0.0, 0.0), array(0.0, 0.5, -1.0)), noted=True),
    Case("pow", lax.pow, (array(2.0, -2.0, 0.0, 0.0, 3.0), array(2, 3, 0, 2, -1, dtype=int))),
    Case("pow", lax.pow, (A, np.array(2))),
    Case("pow", lax.pow, (array(0.0), array(-1, dtype=int)), noted=True),
    Case("atan2", lax.atan2, (A, B)),
    Case("atan2", lax.atan2, (array(0.0, 1.0), array(-1.0, 0.0))),
    Case("atan2", lax.atan2, (array(0.0, 1.0), array(0.0, 0.0)), noted=True),
    *(Case(name, f, (A, B)) for name, f in (("max", lax.max), ("min", lax.min))),
    *(Case(name, f, (A, np.array(0.0))) for name, f in (("max", lax.max), ("min", lax.min))),
    *(Case(name, f, (array(1, 2, NAN), array(1, 3, 0)), True) for name, f in (("max", lax.max), ("min", lax.min))),
    *(Case(name, f, (array(0.0, -0.0, INF), np.array(0.0)), True) for name, f in (("max", lax.max), ("min", lax.min))),
    Case("max", lax.max, (INTS, INTS)),
    Case("clamp", lax.clamp, (A - P, A, A + 1)),
    Case("clamp", lax.clamp, (array(0, 0, 0, 2), array(-1, 0.5, 2, 3), array(1, 1, 1, 1))),
    Case("clamp", lax.clamp, (array(0, 0, 1), array(0, 1, 1), array(1, 1, 1)), noted=True),
    Case("clamp", lambda x: lax.clamp(-0.5, x, 0.5), (A,)),
    Case("select_n", lax.select_n, (A > 0, A, B)),
    Case("select_n", lax.select_n, (np.array(True), A, B)),
    Case("select_n", lax.select_n, (array(0, 2, 1, dtype=np.int32), array(1, 2, 3), array(4, 5, 6), array(7, 8, 9))),
    Case("select_n", lax.select_n, (BOOLS, INTS, INTS)),
    *(
        Case(name, getattr(lax, name), (A, B if i % 2 else A))
        for i, name in enumerate(("eq", "ne", "lt", "le", "gt", "ge"))
    ),
    *(Case(name, getattr(primitives, f"{name}_p").bind, (A, B)) for name in ("eq_to", "le_to", "lt_to")),
    *(Case(name, getattr(lax, f"bitwise_{name}"), (BOOLS, ~BOOLS)) for name in ("and", "or", "xor")),
    *(
        Case(name, getattr(lax, name), (INTS, np.abs(INTS)))
        for name in ("shift_left", "shift_right_arithmetic", "shift_right_logical")
    ),
    Case("optimization_barrier", lambda x, n, y: lax.optimization_barrier((x, n, y)), (A, INTS, B)),
]


def dot(contract, batch=((), ()), **settings):
    return partial(lax.dot_general, dimension_numbers=(contract, batch), **settings)


def conv(window_strides, padding, *, numbers=None, **settings):
    numbers = None if numbers is None else lax.ConvDimensionNumbers(*numbers)

    def f(x, w):
        return lax.conv_general_dilated(x, w, window_strides, padding, dimension_numbers=numbers, **settings)

    return f


IMAGE, KERNEL = normal(2, 4, 6, 5), normal(6, 4, 3, 2, seed=1)
SPD = normal(4, 4) @ normal(4, 4).T + 4 * np.eye(4)
LOWER = np.tril(normal(2, 3, 3)) + 2 * np.eye(3)


def solve(**settings):
    return partial(lax.linalg.triangular_solve, **settings)


PRODUCTS = [
    Case("dot_general", dot(((1,), (0,))), (A, B.T)),
    Case("dot_general", dot(((0,), (0,))), (A, B)),
    Case("dot_general", dot(((), ())), (A, array(1, 2))),
    Case("dot_general", dot(((0,), (0,))), (array(1, 2), array(3, 4))),
    Case("dot_general", dot(((2, 0), (0, 2)), ((1,), (1,))), (normal(2, 3, 4), normal(4, 3, 2, 5))),
    Case("dot_general", dot(((0, 3), (3, 1)), ((2, 1), (0, 2))), (normal(2, 3, 4, 5), normal(4, 5, 3, 2, 2))),
    Case("dot_general", dot(((1,), (0,))), (EMPTY, B.T)),
    Case("dot_general", dot(((0,), (0,))), (EMPTY, EMPTY)),
    Case("dot_general", dot(((1,), (0,)), preferred_element_type=jnp.float64), (A.astype(np.float32), B.T.astype("f"))),
    Case("conv_general_dilated", conv((1, 1), "SAME"), (IMAGE, KERNEL)),
    Case("conv_general_dilated", conv((2, 3), ((1, 0), (2, 3))), (IMAGE, KERNEL)),
    Case("conv_general_dilated", conv((2, 1), ((-1, 1), (0, -1)), rhs_dilation=(1, 2)), (IMAGE, KERNEL)),
    Case(
        "conv_general_dilated",
        conv((3, 2), ((2, 1), (0, 3)), lhs_dilation=(2, 3), rhs_dilation=(2, 1)),
        (IMAGE, KERNEL),
    ),
    Case("conv_general_dilated", conv((2, 1), "VALID", feature_group_count=2), (IMAGE, KERNEL[:, :2])),
    Case("conv_general_dilated", conv((1, 2), "SAME", batch_group_count=2), (IMAGE, KERNEL)),
    Case(
        "conv_general_dilated",
        conv((1, 2), "VALID", feature_group_count=2, numbers=((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))),
        (IMAGE.transpose(0, 2, 3, 1), KERNEL[:, :2].transpose(2, 3, 1, 0)),
    ),
    Case("conv_general_dilated", conv((), ()), (A, normal(5, 4))),
    Case("conv_general_dilated", conv((1,), "SAME"), (normal(1, 2, 7), normal(3, 2, 4))),
    Case("conv_general_dilated", conv((1, 1), "SAME"), (IMAGE[:0], KERNEL)),
    Case("conv_general_dilated", conv((1, 1), "SAME"), (IMAGE.astype(int), KERNEL.astype(int))),
    Case("dot_general", dot(((0,), (0,))), (INTS, INTS)),
    *(
        Case("triangular_solve", solve(left_side=left, lower=lower, transpose_a=transpose, unit_diagonal=unit), (a, b))
        for left, b in ((True, normal(2, 3, 5)), (False, normal(2, 4, 3)))
        for lower, a in ((True, LOWER), (False, LOWER.swapaxes(1, 2)))
        for transpose, unit in ((False, False), (True, True), (True, False))
    ),
    Case("cholesky", primitives.cholesky_p.bind, (SPD,)),
    Case("cholesky", primitives.cholesky_p.bind, (np.stack([SPD, 2 * SPD]),)),
]

TIED = np.array([[1.0, 3.0, 3.0, -1.0], [2.0, 2.0, 2.0, 2.0]])
ZEROS = np.array([[2.0, 0.0, 3.0, 4.0], [0.0, 5.0, 0.0, 1.0]])


def cumulative(name, *points, noted=()):
    f = getattr(lax, name)
    return [
        Case(name, partial(f, axis=axis % x.ndim, reverse=reverse), (x,), is_noted)
        for is_noted, xs in ((False, points), (True, noted))
        for x in xs
        for axis, reverse in ((-1, False), (-1, True), (0, False))
        if not (is_noted and axis == 0)
    ]


def window(name, dims, strides, padding, base=None, apart=None):
    start, f = {"max": (-INF, lax.max), "min": (INF, lax.min), "sum": (0.0, lax.add)}[name]
    return lambda x: lax.reduce_window(
        x, np.array(start, x.dtype), f, dims, strides, padding, base_dilation=base, window_dilation=apart
    )


WINDOWS = [
    Case(f"reduce_window_{name}", window(name, *settings), (x,))
    for name in ("max", "min", "sum")
    for x, settings in (
        (A, ((2, 2), (1, 1), "SAME")),
        (normal(7), ((3,), (2,), ((2, 1),))),
        (normal(7), ((3,), (2,), "VALID")),
        (normal(5), ((3,), (2,), ((1, 2),), (2,), None)),
    )
]

REDUCTIONS = [
    *same("reduce_sum", lambda x: lax.reduce_sum(x, (0,)), A, EMPTY),
    *same("reduce_sum", lambda x: lax.reduce_sum(x, (1, 0)), A, INTS[None]),
    *same("reduce_max", lambda x: lax.reduce_max(x, (1,)), A, array(1, NAN, 2)[None], noted=[TIED, ZEROS[:, ::2] * 0]),
    *same("reduce_min", lambda x: lax.reduce_min(x, (1,)), A, array(1, NAN, 2)[None], noted=[TIED[1:]]),
    *same("reduce_max", lambda x: lax.reduce_max(x, (0, 1)), A, INTS[None], noted=[TIED]),
    *same("reduce_prod", lambda x: lax.reduce_prod(x, (1,)), A, ZEROS, EMPTY, normal(2, 7)),
    *same("reduce_prod", lambda x: lax.reduce_prod(x, (2, 0)), normal(2, 3, 4), np.ones((0, 2, 3))),
    *same("reduce_and", lambda x: lax.reduce_and(x, (0,)), BOOLS),
    *same("reduce_or", lambda x: lax.reduce_or(x, (0,)), BOOLS),
    *same("reduce_xor", lambda x: lax.reduce_xor(x, (0,)), BOOLS),
    *same("argmax", lambda x: lax.argmax(x, 0, jnp.int32), A, TIED),
    *same("argmin", lambda x: lax.argmin(x, 0, jnp.int32), A),
    Case("iota", lambda: lax.iota(jnp.float32, 3), ()),
    *cumulative("cumsum", A, np.ones(1), EMPTY),
    *cumulative("cumprod", ZEROS, normal(7), np.ones(1)),
    *cumulative("cumlogsumexp", A, array(-INF, 1.0, 2.0), array(1.0, INF, 2.0)),
    *cumulative("cummax", A, normal(5), noted=[TIED, np.ones(5)]),
    *cumulative("cummin", A, normal(6), noted=[TIED[1:], array(3, 1, 1, 0, 0, 1)]),
    *WINDOWS,
    Case("reduce_window_sum", window("sum", (), (), ()), (np.array(2.0),)),
    Case("reduce_window_max", window("max", (2,), (1,), "SAME"), (np.array([1, NAN, 3, 2]),)),
    Case("reduce_window_max", window("max", (2, 2), (2, 2), "VALID"), (np.zeros((4, 4)),), True),
    Case("reduce_window_min", window("min", (2,), (1,), "SAME"), (array(2, 2, 2, 3),), True),
    Case("reduce_window_sum", window("sum", (2, 2), (1, 2), ((1, 0), (0, 1)), (1, 2), (2, 1)), (A,)),
]


SHAPES = [
    *same("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (1, 2)), A, B[:, :1]),
    *same("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3), ()), np.array(1.0), np.array(1)),
    *same("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (0, 4), (0, 1)), A[:1]),
    *same("tile", lambda x: lax.tile(x, (2, 3)), A, INTS[None]),
    *same("reshape", lambda x: lax.reshape(x, (2, 6)), A),
    *same("reshape", lambda x: lax.reshape(x, (1,)), np.array(2.0)),
    *same("squeeze", lambda x: lax.squeeze(x, (0, 2)), A[None, :, None]),
    *same("transpose", lambda x: lax.transpose(x, (2, 0, 1)), normal(2, 3, 4)),
    *same("rev", lambda x: lax.rev(x, (1, 2)), normal(2, 3, 4)),
    Case("concatenate", lambda *xs: lax.concatenate(xs, 1), (A, B[:, :1], A[:, :0])),
    Case("concatenate", lambda *xs: lax.concatenate(xs, 0), (INTS, INTS)),
    Case("stack", lambda *xs: lax.stack(xs, axis=1), (A, B)),
    *same("unstack", lambda x: lax.unstack(x, axis=1), A, INTS[None]),
    *same("split", lambda x: lax.split(x, (1, 0, 3), axis=1), A, INTS[None]),
    *same("slice", lambda x: lax.slice(x, (1, 0), (3, 3)), A),
    *same("slice", lambda x: lax.slice(x, (0, 1), (3, 4), (2, 2)), A, INTS[None].repeat(3, 0)),
    *same("slice", lambda x: lax.slice(x, (1, 2), (1, 4), (2, 1)), A),
    Case("pad", lambda x, v: lax.pad(x, v, ((1, 2, 0), (0, 1, 2))), (A, np.array(0.5))),
    Case("pad", lambda x, v: lax.pad(x, v, ((-1, 2, 1), (3, -2, 0))), (A, np.array(0.5))),
    Case("pad", lambda x, v: lax.pad(x, v, ((1, 1, 0), (0, 0, 0))), (EMPTY, np.array(0.5))),
    Case("pad", lambda x, v: lax.pad(x, v, ()), (np.array(1.0), np.array(0.5))),
]

CUT = partial(primitives.dynamic_slice_p.bind, slice_sizes=(2, 2))
PASTE = primitives.dynamic_update_slice_p.bind
FIRST, OUTSIDE = np.array(1), np.array(9)


def gather(mode, sizes=(1, 4), **numbers):
    numbers = {"offset_dims": (1,), "collapsed_slice_dims": (0,), "start_index_map": (0,), **numbers}
    return lambda x, i: lax.gather(x, i, lax.GatherDimensionNumbers(**numbers), sizes, mode=mode)


def scatter(f, **settings):
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    return lambda x, i, u: f(x, i, u, numbers, **settings)


ROWS, TWICE = np.array([[2], [0]]), np.array([[1], [1], [0], [7]])
BATCHED = {"operand_batching_dims": (0,), "start_indices_batching_dims": (0,), "offset_dims": ()}

INDEXING = [
    *(Case("dynamic_slice", CUT, (A, i, FIRST)) for i in (FIRST, OUTSIDE)),
    Case("dynamic_slice", CUT, (INTS.reshape(2, 2), FIRST, FIRST)),
    *(Case("dynamic_update_slice", PASTE, (A, B[:2, :2], i, FIRST)) for i in (FIRST, OUTSIDE)),
    Case("dynamic_update_slice", PASTE, (INTS.reshape(2, 2), INTS[:2, None], FIRST, FIRST)),
    *(Case("gather", gather(mode), (A, i)) for mode in ("fill", "clip") for i in (ROWS, TWICE)),
    Case("gather", gather("promise_in_bounds"), (A, ROWS)),
    Case("gather", gather("fill", (2, 3), offset_dims=(1, 2), collapsed_slice_dims=()), (A, np.array([[0], [1], [0]]))),
    Case(
        "gather",
        gather("fill", (1, 1), collapsed_slice_dims=(1,), start_index_map=(1,), **BATCHED),
        (A, np.array([[[1], [1]], [[0], [3]], [[2], [9]]])),
    ),
    Case("gather", gather("fill"), (INTS[None].repeat(3, 0), ROWS)),
    *(
        Case(name, scatter(f, mode=mode), (A, i, normal(len(i), 4)))
        for name, f in (("scatter-add", lax.scatter_add), ("scatter-sub", lax.scatter_sub))
        for mode in ("drop", "clip")
        for i in (ROWS, TWICE)
    ),
    Case("scatter", scatter(lax.scatter), (A, ROWS, normal(2, 4))),
    Case("scatter", scatter(lax.scatter, unique_indices=True), (A, ROWS, normal(2, 4))),
    Case("scatter", scatter(lax.scatter), (A, TWICE, normal(4, 4)), noted=True),
    Case("scatter", scatter(lax.scatter, mode="clip"), (A, TWICE, normal(4, 4)), noted=True),
    Case("scatter", scatter(lax.scatter), (INTS[None].repeat(3, 0), ROWS, np.ones((2, 4), int))),
    *same("sort", lambda x: primitives.sort_p.bind(x, dimension=1, is_stable=True, num_keys=1), A, noted=[TIED]),
    *same("sort", lambda x: primitives.sort_p.bind(x, dimension=0, is_stable=True, num_keys=1), A, INTS),
    Case("sort", lambda k, x: lax.sort((k, x), dimension=0, num_keys=1), (INTS, normal(4))),
    Case("sort", lambda k, x: lax.sort((k, x), dimension=1, num_keys=2), (TIED, normal(2, 4))),
    Case("sort", lambda k, x: lax.sort((k, x), dimension=1, num_keys=1), (TIED, normal(2, 4)), noted=True),
    *same("top_k", lambda x: lax.top_k(x, 2), A, noted=[TIED]),
    *same("top_k", lambda x: lax.top_k(x, 2, axis=0), A, INTS),
]

CASES = [*UNARY, *BINARY, *PRODUCTS, *REDUCTIONS, *SHAPES, *INDEXING]
FIRST_CASES = list({case.name: case for case in reversed(CASES)}.values())[::-1]
IDS = [f"{case.name}-{i}" for i, case in enumerate(CASES)]


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


class Point(NamedTuple):
    """One operation at a point: what a pull and what jax.vjp make of it."""

    inputs: list
    passed: list  # by the pull, to each input
    expected: list  # by jax.vjp, to each input; None for integers, for constants, and where no output is real


def only_equation(case, args):
    if case.name in NEWER and not hasattr(lax, case.name):
        pytest.skip(f"this JAX has no lax.{case.name}")
    (eqn,) = jax.make_jaxpr(case.f)(*args).jaxpr.eqns
    assert eqn.primitive.name == case.name
    return eqn


def inputs_of(eqn, args, literal=lambda v: jax.device_put(np.asarray(v.val, v.aval.dtype))):
    """What stands at each input of an equation whose variables are args in order; literal(v) for a number in it."""
    given = iter(args)
    return [literal(v) if isinstance(v, Literal) else next(given) for v in eqn.invars]


def cast(args, dtype):
    """float64 arguments in another precision; integers, and those written in a precision of their own, as they are."""
    return [np.asarray(x, dtype if x.dtype == np.float64 else None) for x in args]


def some_deltas(eqn):
    """A gradient for each real output, None for others; of different sizes, so that a misplaced entry shows."""
    return [
        np.random.default_rng(seed).normal(size=y.aval.shape).astype(y.aval.dtype) if is_float(y.aval) else None
        for seed, y in enumerate(eqn.outvars)
    ]


def by_vjp(f, args, deltas):
    """The outputs, and what jax.vjp passes back to each argument for a gradient of each of them."""
    wrt = [i for i, x in enumerate(args) if is_float(x)]

    def of_real(*real):
        given = dict(zip(wrt, real, strict=True))
        return f(*(given.get(i, x) for i, x in enumerate(args)))

    with jax.numpy_dtype_promotion("standard"):  # JAX's own rule of float ** int promotes
        output, vjp = jax.vjp(of_real, *(args[i] for i in wrt))
    outputs, structure = jax.tree.flatten(output)
    expected = [None] * len(args)
    if any(delta is not None for delta in deltas):
        filled = [
            np.zeros(y.shape, jax.dtypes.float0) if delta is None else delta
            for y, delta in zip(outputs, deltas, strict=True)
        ]
        for i, gradient in zip(wrt, vjp(jax.tree.unflatten(structure, filled)), strict=True):
            expected[i] = gradient
    return outputs, expected


def evaluate(case, pull, args):
    """The inputs of a case's operation, and what they are passed."""
    eqn = only_equation(case, args)

    def run(args, deltas):
        outputs, expected = by_vjp(case.f, args, deltas)
        if not eqn.primitive.multiple_results:
            (outputs,), (deltas,) = outputs, deltas
        inputs = inputs_of(eqn, args)
        passed = pull(deltas, inputs, outputs, eqn.params)
        return Point(inputs, passed, inputs_of(eqn, expected, literal=lambda v: None))

    return (COMPILED if os.environ.get("JAXNN_OPTIMISED") else by_numpy)(run)(args, some_deltas(eqn))


def assert_same(got, expected):
    """Same shape and dtype; NaN and infinities at the same places; the rest within the dtype's tolerance."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite])
    if finite.any():
        assert np.max(np.abs(a[finite] - b[finite])) <= TOLERANCE[str(got.dtype)] * np.max(np.abs(b[finite]))


def check(case, pull, dtype):
    """A pull against jax.vjp at a case."""
    point = evaluate(case, pull, cast(case.args, dtype))
    for x, passed, expected in zip(*point, strict=True):
        if passed is not None:
            assert is_float(x)
            assert passed.shape == x.shape
            assert passed.dtype == x.dtype
        if expected is not None:
            passed = np.zeros_like(x) if passed is None else passed
            if case.name in SYMMETRIC:
                passed, expected = (np.asarray(g) + np.swapaxes(g, -1, -2) for g in (passed, expected))
            assert_same(passed, expected)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_equals_vjp_in_float64(case):
    check(case, RULES[case.name].pull, jnp.float64)


@pytest.mark.parametrize("case", FIRST_CASES, ids=lambda case: case.name)
def test_keeps_single_and_half_precision(case):
    check(case, RULES[case.name].pull, jnp.float32)
    if case.name not in NOT_IN_BFLOAT16:
        check(case, RULES[case.name].pull, jnp.bfloat16)


@pytest.mark.parametrize("case", FIRST_CASES, ids=lambda case: case.name)
def test_equals_jit_of_vmap(case):
    args = cast(case.args, jnp.float64)
    eqn = only_equation(case, args)
    output, deltas = by_numpy(case.f)(*args), some_deltas(eqn)
    given = (deltas if eqn.primitive.multiple_results else deltas[0], inputs_of(eqn, args), output)
    pull = partial(RULES[case.name].pull, params=eqn.params)
    alone = by_numpy(pull)(*given)
    if not jax.tree.leaves(alone):
        return
    pair = jax.tree.map(lambda a: np.stack([a, a]), given)
    batched = COMPILED(jax.vmap(pull))(*pair)
    for one, two in zip(alone, batched, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert_same(np.asarray(two)[0], one)
            assert_same(np.asarray(two)[1], one)


def test_cholesky_reads_the_lower_triangle():
    """Its gradient is that of what is read, entry by entry, and 0 above the diagonal."""
    delta, root, step = np.tril(np.random.default_rng(0).normal(size=SPD.shape)), np.linalg.cholesky(SPD), 1e-6
    (passed,) = by_numpy(lambda d, x, y: RULES["cholesky"].pull(d, [x], y, {}))(delta, SPD, root)
    for place in np.ndindex(*SPD.shape):
        up, down = (SPD + sign * step * (place == np.indices(SPD.shape).T).all(-1).T for sign in (1, -1))
        slope = (delta * (np.linalg.cholesky(up) - np.linalg.cholesky(down))).sum() / (2 * step)
        np.testing.assert_allclose(passed[place], slope, rtol=1e-6, atol=1e-8)


def test_every_rule_has_a_case_a_formula_and_one_table():
    tables = (elementwise, products, reductions, windows, shapes, indexing)
    assert sum(len(table.RULES) for table in tables) == len(RULES)
    assert {case.name for case in CASES} == set(RULES)
    assert all(rule.formula for rule in RULES.values())
    noted = {case.name for case in CASES if case.noted}
    assert noted == {name for name, rule in RULES.items() if rule.note}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_notes_are_at_ties_kinks_and_poles_only(case):
    note = RULES[case.name].note
    if not note:
        assert not case.noted
        return
    args = cast(case.args, jnp.float64)
    eqn = only_equation(case, args)
    text = note(inputs_of(eqn, args), by_numpy(case.f)(*args), eqn.params)
    assert isinstance(text, str)
    assert bool(text) == case.noted, text


def test_a_note_counts_its_places():
    text = RULES["abs"].note([np.array([0.0, 1.0, 0.0])], None, {})
    assert text == "x = 0, a kink: JAX takes the slope 1 (2 of 3 places)"
    assert RULES["abs"].note([np.array(0.0)], None, {}) == "x = 0, a kink: JAX takes the slope 1"


def test_an_output_without_gradient_passes_zeros():
    split, sort = RULES["split"], RULES["sort"]
    x = jnp.arange(3.0)
    (passed,) = split.pull([None, jnp.ones(1)], [x], [x[:2], x[2:]], {"sizes": (2, 1), "axis": 0})
    np.testing.assert_array_equal(passed, [0, 0, 1])
    params = {"dimension": 0, "is_stable": True, "num_keys": 1}
    keys, values = sort.pull([None, jnp.ones(3)], [x, x], [x, x], params)
    assert keys is None
    np.testing.assert_array_equal(values, [1, 1, 1])


def test_scatter_apply_has_no_rule():
    with pytest.raises(NotImplementedError, match="scatter_apply"):
        RULES["scatter"].pull(jnp.ones(2), [jnp.ones(2)] * 3, None, {"update_jaxpr": "any"})


def scaled(name, factor):
    pull = RULES[name].pull
    return lambda *a: [None if g is None else factor * g for g in pull(*a)]


WRONG = {
    "sqrt": scaled("sqrt", 2.0),
    "mul": lambda δ, xs, z, p: [δ * xs[0], δ * xs[1]],
    "sub": lambda δ, xs, z, p: [δ, δ],
    "abs": lambda δ, xs, y, p: [δ * jnp.sign(xs[0])],
    "max": lambda δ, xs, z, p: [jnp.where(xs[0] >= xs[1], δ, 0), jnp.where(xs[0] >= xs[1], 0, δ)],
    "clamp": lambda δ, xs, y, p: [None, jnp.where((xs[1] >= xs[0]) & (xs[1] <= xs[2]), δ, 0), None],
    "pow": lambda δ, xs, z, p: [δ * xs[1] * xs[0] ** (xs[1] - 1), δ * z * jnp.log(xs[0])],
    "tanh": lambda δ, xs, y, p: [δ * (1 - y)],
    "dot_general": lambda δ, xs, z, p: [δ * xs[0], δ * xs[1]],
    "conv_general_dilated": lambda δ, xs, z, p: [
        RULES["conv_general_dilated"].pull(δ, [xs[0], jnp.flip(xs[1], (2, 3))], z, p)[0],
        RULES["conv_general_dilated"].pull(δ, xs, z, p)[1],
    ],
    "reduce_max": lambda δ, xs, y, p: [jnp.where(xs[0] == jnp.expand_dims(y, p["axes"]), 1.0, 0.0)],
    "reduce_prod": lambda δ, xs, y, p: [jnp.expand_dims(δ * y, p["axes"]) / xs[0]],
    "cumsum": lambda δ, xs, y, p: [lax.cumsum(δ, axis=p["axis"], reverse=p["reverse"])],
    "transpose": lambda δ, xs, y, p: [jnp.transpose(δ, p["permutation"])],
    "gather": lambda δ, xs, y, p: [jnp.zeros_like(xs[0]).at[xs[1][:, 0]].set(δ), None],
    "scatter": lambda δ, xs, y, p: [δ, None, jnp.ones_like(xs[2])],
    "reduce_sum": lambda δ, xs, y, p: [jnp.mean(δ) * jnp.ones_like(xs[0])],
}


def is_caught(case, pull):
    try:
        check(case, pull, jnp.float64)
    except AssertionError:
        return True
    except (TypeError, ValueError, IndexError):
        return False  # the plant is written for plain shapes only
    return False


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_wrong_rule_is_caught(name):
    """A wrong rule may be right at some points; at one of the cases at least it is not."""
    for case in CASES:
        if case.name == name and is_caught(case, WRONG[name]):
            return
    pytest.fail(f"a wrong rule of {name} passed every case")
