"""How JAX lays out a program: calls, loops and branches, and the interpreter that evaluates them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy

from jaxnn import jaxprs
from jaxnn.jaxprs import Cond, Interpreter, Scan, While

X = np.arange(3.0, dtype=np.float32)


def equation(f, primitive, *args):
    (found,) = (e for e in jaxprs.equations(jax.make_jaxpr(f)(*args).jaxpr) if e.primitive.name == primitive)
    return found


def scanned(x, w, start=1.0, reverse=False):
    def body(carry, row):
        total, count = carry
        return (total * w + row, count + 1), (total, row * w)

    return jax.lax.scan(body, (start, 0), x, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse):
    eqn = equation(lambda x, w: scanned(x, w, reverse=reverse), "scan", X, 2.0)
    scan = Scan.of(eqn.params)
    assert (scan.consts, scan.carry, scan.length, scan.reverse) == (1, 2, 3, reverse)
    consts, carry, xs = scan.parts(eqn.invars)
    assert [[v.aval.shape for v in part] for part in (consts, carry, xs)] == [[()], [(), ()], [(3,)]]
    carry, ys = scan.results(eqn.outvars)
    assert [[v.aval.shape for v in part] for part in (carry, ys)] == [[(), ()], [(3,), (3,)]]
    assert list(scan.order) == ([2, 1, 0] if reverse else [0, 1, 2])
    total, count, before, row = jaxprs.function_of(scan.body)(2.0, 1.0, 0, 5.0)
    assert (float(total), int(count), float(before), float(row)) == (7.0, 1, 1.0, 10.0)


def test_scans_that_jax_made_itself():
    """Of a gradient's scans the leaves are no longer in the order in which anybody wrote them."""
    f = jax.grad(lambda w: scanned(X, w)[0][0])
    closed = jax.make_jaxpr(f)(2.0)
    scans = [Scan.of(e.params) for e in jaxprs.equations(closed.jaxpr) if e.primitive.name == "scan"]
    assert len(scans) == 2
    for scan in scans:
        assert scan.consts + scan.carry <= len(scan.body.in_avals)
        _, before, _ = scan.parts(scan.body.in_avals)
        after, _ = scan.results(scan.body.out_avals)
        assert [a.shape for a in before] == [a.shape for a in after]
    assert by_numpy(f)(2.0) == pytest.approx(float(f(2.0)))


def test_while():
    eqn = equation(lambda x, n: jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * x), (0, x)), "while",
                   X, 4)  # fmt: skip
    loop = While.of(eqn.params)
    test_consts, body_consts, carry = loop.parts(eqn.invars)
    assert [len(part) for part in (test_consts, body_consts, carry)] == [1, 1, 2]
    assert bool(jaxprs.function_of(loop.test)(4, 3, X)[0])
    assert not bool(jaxprs.function_of(loop.test)(4, 4, X)[0])
    count, product = jaxprs.function_of(loop.body)(X, 1, X)
    assert int(count) == 2
    np.testing.assert_array_equal(product, X * X)


def test_cond_takes_the_nearest_branch():
    eqn = equation(lambda i, x: jax.lax.switch(i, [jnp.sin, jnp.cos, jnp.tanh], x), "cond", 1, X)
    cond = Cond.of(eqn.params)
    assert [cond.taken(i) for i in (-7, 0, 1, 2, 9)] == [0, 0, 1, 2, 2]
    np.testing.assert_array_equal(jaxprs.function_of(cond.branches[1])(X)[0], jnp.cos(X))


@jax.custom_vjp
def doubled(x):
    return 2 * x


@jax.custom_jvp
def twice(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, d: (2 * d,))
twice.defjvp(lambda x, v: (2 * x[0], 2 * v[0]))


@pytest.mark.parametrize("f", [jax.jit(lambda x: 2 * x), jax.checkpoint(lambda x: 2 * x), doubled, twice])
def test_what_a_call_runs(f):
    (eqn,) = jax.make_jaxpr(f)(X).jaxpr.eqns
    assert eqn.primitive.name in jaxprs.CALLS | jaxprs.RULED
    inner = jaxprs.called(eqn)
    assert inner.jaxpr.eqns
    np.testing.assert_array_equal(jaxprs.function_of(inner)(X)[0], 2 * X)


def test_programs_with_constants_and_without():
    closed = jax.make_jaxpr(lambda x: x + jnp.asarray(X))(X)
    assert jaxprs.is_program(closed)
    assert not jaxprs.is_program(X)
    assert not jaxprs.is_program("jaxpr")
    assert jaxprs.with_constants(closed) is closed
    plain = jax.make_jaxpr(jnp.sin)(X).jaxpr
    assert jaxprs.is_program(plain)
    np.testing.assert_array_equal(jaxprs.function_of(plain)(X)[0], jnp.sin(X))
    assert type(jaxprs.in_form_of(plain, jaxprs.with_constants(plain))) is type(plain)


# ---------------------------------------------------------------- the interpreter


@jax.jit
def everything(x, i):
    """Calls, functions with rules, a scan, a while loop, a branch, a callback, a scope and a captured constant."""
    with jax.named_scope("scope"):
        y = doubled(x) + twice(x) * jnp.asarray(X) + jax.checkpoint(jnp.sin)(x)
    y = scanned(y, 0.5)[1][1] + jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x))[1]
    y = jax.pure_callback(np.square, jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="sequential")
    return jax.lax.switch(i, [jnp.sin, lambda x: jax.lax.cond(x.sum() > 0, jnp.cos, jnp.tanh, x)], y), i + 1


def evaluated(f, interpreter, *args):
    return interpreter.run(jax.make_jaxpr(f)(*args), args)


@pytest.mark.parametrize("index", [0, 1, 7])
def test_the_interpreter_evaluates_as_jax_does(index):
    """Eagerly, and where its values are traced."""
    for found in (evaluated(everything, Interpreter(), X, index),
                  jax.jit(lambda x, i: evaluated(everything, Interpreter(), x, i))(X, index)):  # fmt: skip
        for ours, theirs in zip(found, everything(X, index), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


class Kinds(Interpreter):
    """Notes the kind of each equation."""

    def __init__(self):
        self.kinds = []

    def call(self, eqn, inputs):
        self.kinds.append("call")
        return super().call(eqn, inputs)

    def noted(self, kind, eqn, inputs):
        self.kinds.append(kind)
        return jaxprs.bind(eqn.primitive, inputs, eqn.params)

    ruled = functools.partialmethod(noted, "ruled")
    scan = functools.partialmethod(noted, "scan")
    while_loop = functools.partialmethod(noted, "while")
    cond = functools.partialmethod(noted, "cond")


def test_each_kind_of_equation_has_a_method():
    kinds = Kinds()
    evaluated(everything, kinds, X, 0)
    assert [kind for kind in kinds.kinds if kind != "call"] == ["ruled", "ruled", "scan", "while", "cond"]
    assert kinds.kinds.count("call") >= 2  # everything itself, and what is checkpointed


def test_a_derivative_goes_through_the_interpreter_by_custom_rules():
    @jax.custom_vjp
    def crooked(x):
        return x

    crooked.defvjp(lambda x: (x, None), lambda _, d: (3 * d,))
    f = jax.jit(lambda x: crooked(x).sum())
    np.testing.assert_allclose(jax.grad(lambda x: evaluated(f, Interpreter(), x)[0])(X), 3.0)


def test_constants():
    closed = jax.make_jaxpr(lambda x: jnp.sin(x) + jnp.asarray(X) * 2)(X)
    ((const, line),) = jaxprs.captured(closed)
    np.testing.assert_array_equal(const, X)
    assert "test_constants" in line
    first = jaxprs.constants_first(closed)
    assert not first.consts
    np.testing.assert_allclose(jaxprs.function_of(first)(X, X)[0], jnp.sin(X) + X * 2, rtol=1e-6)
    assert jaxprs.size(closed) == len(closed.jaxpr.eqns)
