"""graph.grad is jax.grad: the values, and the places at which jax.grad itself is not finite.

Both sides are traced and evaluated by NumPy, operation by operation: nothing is compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy
from grad_cases import PLAIN, SEVERAL, STEEP, of_several
from jax import lax

import jaxnn.graph.pulls as pulls
from jaxnn import graph
from jaxnn.jaxprs import Scan, dependences, function_of

CAUGHT = {"scan, root last", "fori_loop", "cond", "custom_jvp", "eigh"}
FILLED = {"optimization_barrier"}  # before JAX 0.11 its outputs that are not used were given zeros
EXACT = 1e-12  # rounding of the same operations in another order


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def gradients(case):
    """By the graph, and by jax.grad."""
    both = lambda *args: (graph.grad(case.f, case.argnums)(*args), jax.grad(case.f, case.argnums)(*args))
    return tuple(map(jax.tree.leaves, by_numpy(both)(*case.args)))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        np.testing.assert_allclose(a[finite], b[finite], atol=EXACT * max(np.abs(b[finite]).max(initial=0), 1), rtol=0)


@pytest.mark.parametrize("case", STEEP, ids=lambda case: case.name)
def test_functions(case):
    assert_same(*gradients(case))


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_functions_of_single_operations(case):
    assert_same(*gradients(case))


@pytest.mark.parametrize("each", SEVERAL, ids=lambda each: each.name)
def test_every_output_unused_in_turn(each):
    """Alone, an output gives a finite gradient but where its slope is infinite; and all but one, and all of them."""
    for used, case in of_several(each):
        ours, theirs = gradients(case)
        if each.name in FILLED and np.isnan(theirs[0]).any() and 0 not in used:
            continue
        assert_same(ours, theirs)
        if len(used) == 1:
            assert all(np.isfinite(g).all() for g in theirs) == (used[0] not in each.steep), used


def test_zeros_in_the_place_of_no_gradient_are_caught(monkeypatch):
    """What the graph once did."""
    right = pulls.by_jax

    def filled(node, eqn, inputs, own, wanted):
        zeros = [
            jnp.zeros_like(v) if g is None and v.dtype == float else g for g, v in zip(own, node.values, strict=True)
        ]
        return right(node, eqn, inputs, zeros, wanted)

    monkeypatch.setattr("jaxnn.graph.reverse.by_jax", filled)
    cases = [case for each in SEVERAL if each.name in CAUGHT for used, case in of_several(each) if len(used) == 1]
    wrong = [case.name for case in cases if not np.array_equal(*(g[0] for g in gradients(case)), equal_nan=True)]
    assert len(wrong) >= len(CAUGHT)


def test_a_filled_gradient_of_an_unused_operand_is_caught(monkeypatch):
    """JAX's vjp gives zeros for an input that nothing is passed to: they are no gradient."""
    monkeypatch.setattr(pulls, "_watched", lambda reached, i: (reached.__setitem__(i, True), lambda x: x)[1])
    wrong = []
    for case in STEEP:
        ours, theirs = gradients(case)
        if any(np.isnan(a).any() and not np.isnan(b).any() for a, b in zip(ours, theirs, strict=True)):
            wrong.append(case.name)
    assert {"a rule that passes None", "an operand of an unused output"} <= set(wrong)


# ---------------------------------------------------------------- inside of loops


def slots_of(scan, inputs, own):
    """By jax.grad: what each iteration hands on has zeros added to it, and they are differentiated by."""
    body = function_of(scan.body)
    consts, start, xs = scan.parts(inputs)
    floats = [k for k, c in enumerate(start) if jnp.issubdtype(c.dtype, jnp.floating)]

    def cost(slots):
        def step(carry, x):
            carry, ys = scan.results(body(*consts, *carry, *x[0]))
            for k, slot in zip(floats, x[1], strict=True):
                carry[k] = carry[k] + slot
            return carry, ys

        last, ys = lax.scan(step, start, (xs, slots), length=scan.length, reverse=scan.reverse)
        return sum(((g * out).sum() for g, out in zip(own, [*last, *ys], strict=True) if g is not None), 0.0)

    zeros = [np.zeros((scan.length, *np.shape(start[k]))) for k in floats]
    return dict(zip(floats, by_numpy(jax.grad(cost))(zeros), strict=True))


@pytest.mark.parametrize(
    "name", ["scan, root last", "scan of two carries", "scan whose carries mix", "scan from the end"]
)
def test_what_an_iteration_hands_on(name):
    each = next(each for each in SEVERAL if each.name == name)
    for used, case in of_several(each):
        if len(used) > 1:
            continue
        traced = graph.trace(case.f)(*case.args)
        node = next(n for n in traced.nodes if n.operation == "scan")
        scan, inputs = Scan.of(node.params), [traced.at(ref)[0] for ref in node.inputs]
        expected = slots_of(scan, inputs, node.gradients)
        for t in scan.order:
            begun = node.inner(t).cotangents[: scan.carry]
            for k, g in enumerate(begun):
                if g is not None:
                    np.testing.assert_allclose(g, expected[k][t], atol=EXACT)
                else:
                    assert k not in expected or not expected[k].any() or not moves(traced, scan, k), used


def moves(traced, scan, k):
    """Whether a carry depends on what the scan is given to differentiate by."""
    inner = next(n for n in traced.nodes if n.operation == "scan").inner(scan.order[-1])
    return inner.leaves[scan.consts + k].gradient is not None


@pytest.mark.parametrize("name", ["scan, root last", "cond", "custom_jvp", "eigh"])
def test_no_false_alarm(name):
    """explain_nonfinite speaks where jax.grad is not finite, and nowhere else."""
    each = next(each for each in SEVERAL if each.name == name)
    for used, case in of_several(each):
        found = graph.explain_nonfinite(case.f)(*case.args)
        assert found.finite == (not set(used) & set(each.steep)), used
        assert found.finite or found.direction == "backward"


# ---------------------------------------------------------------- what the derivative depends on


def test_dependences():
    """Beside the matrix of derivatives at a point where none is 0 by chance."""

    def f(x, y, z):
        down, up = jax.lax.cond(x > 0, lambda: (x * y, y), lambda: (y, z))
        return down + jnp.floor(z), jax.lax.stop_gradient(x) * z, up, lax.fori_loop(0, 3, lambda i, c: c * x, 1.0)

    assert dependences(f, [1.0, 2.0, 3.0]) == [
        [True, True, False],
        [False, False, True],
        [False, True, True],
        [True, False, False],
    ]


def test_arguments_at_rest():
    """What is not differentiated by is left out, as it is in JAX: a while loop of it has nothing to reverse."""

    def f(x, y):
        return x * lax.while_loop(lambda c: c < 9.0, lambda c: 2 * c, y)

    assert graph.grad(f)(2.0, 1.0) == jax.grad(f)(2.0, 1.0) == 16
    with pytest.raises(ValueError, match=r"while .*cannot be differentiated"):
        graph.grad(f, 1)(2.0, 1.0)
    with pytest.raises(IndexError):
        graph.grad(f, 2)(2.0, 1.0)
    assert graph.grad(lambda x, y: x * y, (-1, 0))(2.0, 3.0) == (2.0, 3.0)
