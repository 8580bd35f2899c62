"""A function evaluated by NumPy, operation by operation as JAX traces it: nothing is compiled.

Most of a test's time is compiling, and each program here runs once, on a handful of numbers. NumPy is also a second
opinion on what XLA makes of an operation. What has no rule below is run by JAX itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401 - NumPy adds and multiplies bfloat16 by it
import numpy as np
import scipy.special
from jax.extend.core import JaxprEqn, Literal

from jaxnn.jaxprs import Cond, Interpreter, Scan, While


def by_numpy(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same f as a function of pytrees of arrays that returns NumPy arrays; traced once for each shape and dtype."""
    traced: dict[Any, Any] = {}

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = (structure, *((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))
        if key not in traced:
            traced[key] = jax.make_jaxpr(f, return_shape=True)(*args)
        closed, out = traced[key]
        with np.errstate(all="ignore"):
            return jax.tree.unflatten(jax.tree.structure(out), _ByNumPy().run(closed, list(map(_array, leaves))))

    return run


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.float64), jax.dtypes.extended)


def _array(x: Any) -> Any:
    """In NumPy, but for random keys, which NumPy does not know."""
    return x if _is_key(x) else np.asarray(x)


def _cast(x: Any, dtype: Any) -> np.ndarray:
    """An array in a dtype; the real part of a complex one that becomes real, as JAX has it."""
    x = np.asarray(x)
    return (x.real if np.iscomplexobj(x) and dtype.kind != "c" else x).astype(dtype, copy=False)


class _ByNumPy(Interpreter):
    """Enters calls, loops and branches, and evaluates their operations by NumPy."""

    def literal(self, literal: Literal) -> Any:
        return np.asarray(literal.val, literal.aval.dtype)

    def constant(self, const: Any) -> Any:
        return _array(const)

    def operation(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        name, params = eqn.primitive.name, eqn.params
        if not any(map(_is_key, inputs)) and name in ELEMENTWISE:
            return [np.asarray(ELEMENTWISE[name](*inputs)).astype(eqn.outvars[0].aval.dtype, copy=False)]
        if not any(map(_is_key, inputs)) and name in RULES:
            outs = RULES[name](params, *inputs)
            outs = outs if eqn.primitive.multiple_results else [outs]
            return [_cast(out, var.aval.dtype) for var, out in zip(eqn.outvars, outs, strict=True)]
        return list(map(_array, super().operation(eqn, inputs)))

    def ruled(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        return self.call(eqn, inputs)

    def scan(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        scan = Scan.of(eqn.params)
        consts, carry, xs = scan.parts(inputs)
        ys: dict[int, list[Any]] = {}
        for t in scan.order:
            carry, ys[t] = scan.results(self.run(scan.body, [*consts, *carry, *(x[t] for x in xs)]))
        if not ys:
            return [*carry, *(np.zeros((0, *aval.shape), aval.dtype) for aval in scan.results(scan.body.out_avals)[1])]
        rows = zip(*(ys[t] for t in sorted(ys)), strict=True)
        return [*carry, *((jnp if _is_key(row[0]) else np).stack(row) for row in rows)]

    def while_loop(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        loop = While.of(eqn.params)
        test_consts, body_consts, carry = loop.parts(inputs)
        while self.run(loop.test, [*test_consts, *carry])[0]:
            carry = self.run(loop.body, [*body_consts, *carry])
        return carry

    def cond(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        cond = Cond.of(eqn.params)
        return self.run(cond.branches[cond.taken(inputs[0])], inputs[1:])


# ---------------------------------------------------------------- operations


def _same(*x: Any) -> Any:
    return x[0]


def _select(which: Any, *cases: Any) -> Any:
    return np.select([which == k for k in range(len(cases))], cases)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "exp": np.exp,
    "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "cos": np.cos, "sin": np.sin,
    "sqrt": np.sqrt, "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "max": np.maximum,
    "min": np.minimum, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert, "xor": np.bitwise_xor,
    "is_finite": np.isfinite, "square": np.square, "erf": scipy.special.erf, "erfc": scipy.special.erfc,
    "stop_gradient": _same, "copy": _same, "copy_p": _same, "select_n": _select,
    "div": lambda x, y: x / y if np.issubdtype(x.dtype, np.inexact) or x.dtype.kind == "V" else np.trunc(x / y),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "one_minus_square": lambda x: 1 - x * x,
    "logistic": lambda x: np.exp(-np.logaddexp(0, -x.astype(np.promote_types(x.dtype, np.float32)))),
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}  # fmt: skip


def _broadcast(p: Any, x: Any, *sizes: Any) -> Any:
    shape = [1] * len(p["shape"])
    for axis, size in zip(p["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(x.reshape(shape), p["shape"])


def _dot(p: Any, x: Any, y: Any) -> Any:
    (x_sum, y_sum), (x_batch, y_batch) = p["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [[""] * x.ndim, [""] * y.ndim]
    for i, j in [*zip(x_batch, y_batch, strict=True), *zip(x_sum, y_sum, strict=True)]:
        names[0][i] = names[1][j] = next(letters)
    rest = [[k for k in range(a.ndim) if not own[k]] for a, own in zip((x, y), names, strict=True)]
    for own, free in zip(names, rest, strict=True):
        for k in free:
            own[k] = next(letters)
    out = [names[0][i] for i in x_batch] + [own[k] for own, free in zip(names, rest, strict=True) for k in free]
    wide = np.promote_types(np.promote_types(x.dtype, y.dtype), np.float32)  # as XLA sums products of bfloat16
    equation = f"{''.join(names[0])},{''.join(names[1])}->{''.join(out)}"
    return np.einsum(equation, x.astype(wide), y.astype(wide), optimize=True)


def _pad(p: Any, x: Any, value: Any) -> Any:
    low, high, between = zip(*p["padding_config"], strict=True) if x.ndim else ((), (), ())
    spread = [size + max(size - 1, 0) * b for size, b in zip(x.shape, between, strict=True)]
    out = np.full([max(a, 0) + s + max(b, 0) for a, s, b in zip(low, spread, high, strict=True)], value, x.dtype)
    inside = tuple(slice(max(a, 0), max(a, 0) + s, b + 1) for a, s, b in zip(low, spread, between, strict=True))
    out[inside] = x
    return out[tuple(slice(max(-a, 0), n - max(-b, 0)) for a, b, n in zip(low, high, out.shape, strict=True))]


def _convolution(p: Any, x: Any, w: Any) -> Any:
    """The sum over taps of products, in the letters N, C, H and the spatial axes behind them."""
    numbers, groups, batches = p["dimension_numbers"], p["feature_group_count"], p["batch_group_count"]
    x, w = np.transpose(x, numbers.lhs_spec), np.transpose(w, numbers.rhs_spec)  # [N, C, …], [H, C/G, …]
    around = [(0, 0, 0), (0, 0, 0)]
    x = _pad({"padding_config": [*around, *((a, b, d - 1) for (a, b), d in
        zip(p["padding"], p["lhs_dilation"], strict=True))]}, x, 0)  # fmt: skip
    taps, apart, stride = w.shape[2:], p["rhs_dilation"], p["window_strides"]
    size = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], taps, apart, stride, strict=True)]
    n, c = x.shape[:2]
    both = groups * batches  # one of them is 1
    x = x.reshape(batches, n // batches, groups, c // groups, *x.shape[2:]).swapaxes(1, 2)
    x = x.reshape(both, n // batches, c // groups, *x.shape[4:])
    w = w.reshape(both, w.shape[0] // both, *w.shape[1:])
    wide = np.promote_types(x.dtype, np.float32)
    total = np.zeros((both, n // batches, w.shape[1], *size), wide)
    for tap in np.ndindex(*taps):
        window = tuple(slice(t * d, t * d + (m - 1) * s + 1, s) for t, d, m, s in
            zip(tap, apart, size, stride, strict=True))  # fmt: skip
        here = x[(slice(None),) * 3 + window].astype(wide)
        total += np.einsum("gnc...,ghc->gnh...", here, w[(slice(None),) * 3 + tap].astype(wide), optimize=True)
    y = np.moveaxis(total, 0, 1).reshape(n // batches, both * w.shape[1], *size)
    return np.transpose(y, np.argsort(numbers.out_spec))


def _reduced(f: Callable[..., Any]) -> Callable[..., Any]:
    def rule(p: Any, x: Any) -> Any:
        wide = x.astype(np.promote_types(x.dtype, np.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x
        return f(wide, axis=tuple(p["axes"]))

    return rule


def _slice(p: Any, x: Any) -> Any:
    strides = p["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]


def _iota(p: Any) -> Any:
    shape, axis = p["shape"], p["dimension"]
    return np.broadcast_to(np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "dot_general": _dot,
    "pad": _pad,
    "conv_general_dilated": _convolution,
    "slice": _slice,
    "iota": _iota,
    "reduce_sum": _reduced(np.sum),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_and": _reduced(np.all),
    "reduce_or": _reduced(np.any),
    "argmax": lambda p, x: np.argmax(x, axis=p["axes"][0]),
    "reshape": lambda p, x: x.transpose(p["dimensions"] or range(x.ndim)).reshape(p["new_sizes"]),
    "squeeze": lambda p, x: np.squeeze(x, tuple(p["dimensions"])),
    "transpose": lambda p, x: np.transpose(x, p["permutation"]),
    "rev": lambda p, x: np.flip(x, tuple(p["dimensions"])),
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "stack": lambda p, *xs: np.stack(xs, p["axis"]),
    "split": lambda p, x: np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "convert_element_type": lambda p, x: x,
    "integer_pow": lambda p, x: x ** p["y"],
    "optimization_barrier": lambda p, *xs: xs,
}
