"""What every layer must satisfy, as functions that raise AssertionError: the tests and the mutants share them.

Each row is compiled once, forward and backward in float64; NumPy evaluates the rest operation by operation, without
compiling. With JAXNN_OPTIMISED=1 (`make test-all`) everything is compiled, as users' programs are.

Tolerances: each leaf's worst element, normalised by the leaf's own maximum; never scaled by an array's size.
"""

import os
import re
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import by_numpy

from jaxnn import Sequences, as_custom_vjp, autodiff_twin, dense, serial, tanh
from jaxnn.arrays import is_floating
from jaxnn.trees import named_leaves

FLOAT64 = 1e-12  # rounding of a few hundred operations
FLOAT32 = 1e-5
DIFFERENCES = 1e-6  # central differences in float64 at a step of 1e-5: truncation 1e-10, rounding 1e-11 of the value
STEP = 1e-5
BFLOAT16_FACTOR = 2.0  # the hand rule may be this much further from float32 than jax.grad is,
BFLOAT16_ROUNDING = 2.0**-8  # beside one rounding of the result
BFLOAT16_SEEDS = range(8)
N = 4
evaluated = jax.jit if os.environ.get("JAXNN_OPTIMISED") else by_numpy


class Run(NamedTuple):
    """What one program says of a layer on a batch, in float64, as NumPy.

    Attributes:
        y: the output.
        tape: what forward keeps.
        back: (delta_in, grads) by hand.
        twin: the same by jax.vjp.
        custom: the same by jax.grad through as_custom_vjp.
        pairing: ⟨δ, Jv⟩ and ⟨Jᵀδ, v⟩.
        nested: the outputs and gradients of (layer, tanh), dense and of layer, (tanh, dense).
    """

    y: Any
    tape: Any
    back: Any
    twin: Any
    custom: Any
    pairing: Any
    nested: Any


class Ensemble(NamedTuple):
    """Forward and backward under vmap over an ensemble axis, in float64, as NumPy.

    Attributes:
        y: of all members.
        back: (delta_in, grads) of all members.
        slopes: central differences of ⟨δ, y⟩, like the floats of x and the parameters.
    """

    y: Any
    back: Any
    slopes: Any


# The first members of an ensemble; those that follow are moved along one coordinate each.
BASE, OTHER, OTHER_DELTA, MIXED_DELTA, FIRST_HALF, SECOND_HALF = range(6)
OTHER_SEED = 7


@cache
def made(case):
    """One layer per row, so that its laws and its mutants share what they evaluate."""
    return case.make()


def forward(case, layer, params, state, x):
    """The layer's forward in the row's mode."""
    return layer.forward(params, state, x, train=case.train, rng=case.rng)


@lru_cache(maxsize=256)
def _shapes(case, layer, dtype, n):
    """Those of parameters, state and y, which no seed changes."""
    params, state = jax.eval_shape(lambda: layer.init(jax.random.key(0), case.in_shape, dtype))
    x = case.inputs(0, n, dtype)
    return params, state, jax.eval_shape(lambda p, s, x: forward(case, layer, p, s, x)[0], params, state, x)


@lru_cache(maxsize=256)
def variables(case, layer, dtype, n=N, seed=0):
    """Parameters, state, x and two δs in NumPy: jax.random would compile for every shape."""
    draw = np.random.default_rng(seed).normal
    x = case.inputs(seed + 1, n, dtype)
    params, state, y = _shapes(case, layer, dtype, n)
    # zero biases are special: a gradient that forgets them would pass
    params = jax.tree.map(lambda p: np.asarray(0.5 * draw(size=p.shape), p.dtype), params)
    # a mean of 0 and a variance of 1 are special too; a variance stays positive
    state = jax.tree.map(lambda s: np.asarray(0.7 + 0.3 * np.arange(1, s.size + 1).reshape(s.shape), s.dtype), state)
    deltas = [np.asarray(draw(size=y.shape), dtype) for _ in range(2)]
    return params, state, x, *deltas


def part_of(tree, rows):
    """Those rows of every leaf, in NumPy, which compiles nothing."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def floats(x):
    """Those leaves of x that have a slope, and what puts them back into x, beside `others(leaf)` for the others."""
    leaves, structure = jax.tree.flatten(x)

    def put(floats, others=lambda leaf: leaf):
        left = iter(floats)
        return jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else others(leaf) for leaf in leaves])

    return [leaf for leaf in leaves if is_floating(leaf)], put


def _evaluate(case, layer, params, state, x, delta):
    y, _, tape = forward(case, layer, params, state, x)
    back = layer.backward(params, tape, delta)
    twin = autodiff_twin(layer)
    twin_back = twin.backward(params, forward(case, twin, params, state, x)[2], delta)
    free, put = floats(x)
    v = jax.tree.map(jnp.cos, (free, params))  # any direction that depends on nothing else
    _, jv = jax.jvp(lambda free, p: forward(case, layer, p, state, put(free))[0], (free, params), v)
    forwards = jnp.sum(delta * jv)
    pairs = zip(jax.tree.leaves(back), jax.tree.leaves(v), strict=True)
    backwards = sum((jnp.sum(a * b) for a, b in pairs), jnp.zeros((), delta.dtype))
    apply = as_custom_vjp(layer)
    custom = jax.grad(
        lambda free, params: jnp.sum(delta * apply(params, state, put(free), train=case.train, rng=case.rng)[0]),
        argnums=(0, 1),
    )(free, params)
    nested = [_trained(case, *net, x) for net in _nestings(case, layer, params, state, delta)]
    return Run(y, tape, back, twin_back, custom, (forwards, backwards), nested)


def _nestings(case, layer, params, state, delta):
    """(net, params, state) of serial(serial(layer, tanh), dense) and serial(layer, serial(tanh, dense))."""
    # a layer's key is that of its path, which the nesting changes: here it is held
    of_one_key = lambda p, s, x, *, train=False, rng=None, layer=layer: forward(case, layer, p, s, x)
    layer = layer._replace(forward=of_one_key)
    out, features = dense(2), max(delta.shape[-1], 1) if delta.ndim > 1 else 1
    w = jnp.asarray(np.random.default_rng(5).normal(size=(features, 2)), delta.dtype)
    out_params = {"w": w, "b": jnp.ones(2, delta.dtype)}
    left, right = serial(serial(layer, tanh), out), serial(layer, serial(tanh, out))
    a, b = left.child_names[0], right.child_names[0]
    key = left.children[0].child_names[0]
    left_params = {a: {key: params}, left.child_names[1]: out_params}
    right_params = {b: params, right.child_names[1]: {right.children[1].child_names[1]: out_params}}
    left_state, right_state = ({a: {key: state}}, {b: state}) if jax.tree.leaves(state) else ((), ())
    return (left, left_params, left_state), (right, right_params, right_state)


def _trained(case, net, params, state, x):
    y, _, tape = forward(case, net, params, state, x)
    delta_in, grads = net.backward(params, tape, jnp.cos(y))
    return y, delta_in, jax.tree.leaves(grads)


class Runs(NamedTuple):
    """The same program on three batches: the row's own, another with other parameters, one spoiled by a NaN."""

    base: Run
    other: Run
    spoiled: Run


@lru_cache(maxsize=64)
def runs(case, layer):
    """The evaluation that most laws look at."""
    with jax.enable_x64(True):
        (params, state, x, delta), other = (
            variables(case, layer, jnp.dtype("float64"), seed=seed)[:4] for seed in (0, OTHER_SEED)
        )
        program = evaluated(lambda *args: _evaluate(case, layer, *args))
        batches = (params, state, x, delta), other, (params, state, jax.tree.map(spoiled, x), delta)
        return Runs(*(jax.tree.map(np.asarray, program(*batch)) for batch in batches))


def run(case, layer):
    """The evaluation of the row's own batch."""
    return runs(case, layer).base


@lru_cache(maxsize=64)
def ensemble(case, layer):
    """Members with other parameters, inputs or δs side by side: one program for linearity, differences and vmap."""
    with jax.enable_x64(True):
        params, state, x, delta, other = variables(case, layer, jnp.dtype("float64"))
        others = variables(case, layer, jnp.dtype("float64"), seed=OTHER_SEED)[:4]
        first = np.arange(N).reshape(N, *[1] * (delta.ndim - 1)) < N // 2
        members = [(params, state, x, d) for d in (delta, other, 2 * delta - 3 * other)]
        members += [(params, state, x, np.where(rows, delta, 0)) for rows in (first, ~first)]
        members.insert(OTHER, others)
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *members)

        free, put = floats(x)
        leaves, structure = jax.tree.flatten((free, params))
        moved = jax.tree.unflatten(structure, _moved(leaves))
        count = 2 * sum(leaf.size for leaf in leaves)

        def repeated(leaf):
            return np.broadcast_to(leaf, (count, *leaf.shape))

        spread = (moved[1], jax.tree.map(repeated, state), put(moved[0], repeated), repeated(delta))
        everyone = jax.tree.map(lambda a, b: np.concatenate([a, b]), together, spread)
        everyone = jax.tree.map(np.asarray, evaluated(jax.vmap(_step(case, layer)))(*everyone))
        y, back = jax.tree.map(lambda leaf: leaf[: len(members)], everyone)
        costs = (everyone[0][len(members) :] * delta).reshape(2, count // 2, -1).sum(-1)
        slopes = _split((costs[0] - costs[1]) / (2 * STEP), leaves)
        return Ensemble(y, back, jax.tree.unflatten(structure, slopes))


def _step(case, layer):
    """`(params, state, x, delta) -> y, (delta_in, grads)`."""

    def step(params, state, x, delta):
        y, _, tape = forward(case, layer, params, state, x)
        return y, layer.backward(params, tape, delta)

    return step


def _moved(leaves):
    """Each leaf with a leading axis: one coordinate after another, of all leaves, up by STEP; then the same down."""
    total = sum(leaf.size for leaf in leaves)
    moved, start = [], 0
    for leaf in leaves:
        rows = np.tile(leaf.ravel(), (2 * total, 1))
        at = np.arange(leaf.size)
        rows[start + at, at] += STEP
        rows[total + start + at, at] -= STEP
        moved.append(rows.reshape(2 * total, *leaf.shape))
        start += leaf.size
    return moved


def _split(values, leaves):
    """The entries of a vector as arrays of the leaves' shapes."""
    ends = np.cumsum([leaf.size for leaf in leaves])
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(values, ends[:-1]), leaves, strict=True)]


def spoiled(leaf):
    """A NaN in one example; -1, which is no index, where there are whole numbers."""
    leaf = np.array(leaf)
    leaf[1] = np.nan if is_floating(leaf) else -1
    return leaf


@lru_cache(maxsize=64)
def singles(case, layer):
    """Each example as a batch of one: (y, back by hand, back by jax.vjp or None where nothing is compared with it)."""
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.dtype("float64"))
        rows = jax.tree.map(lambda leaf: leaf[:, None], (x, delta))
        step, twin_step = _step(case, layer), _step(case, autodiff_twin(layer))

        def both(params, state, x, delta):
            twin = twin_step(params, state, x, delta)[1] if coupled(case, layer) or case.rng is not None else None
            return *step(params, state, x, delta), twin

        return jax.tree.map(np.asarray, evaluated(jax.vmap(both, in_axes=(None, None, 0, 0)))(params, state, *rows))


def close(got, expected, tolerance, what):
    """Asserts equal trees, each leaf to tolerance of its own maximum."""
    assert jax.tree.structure(got) == jax.tree.structure(expected), f"{what}: trees differ"
    for (path, a), b in zip(named_leaves(got).items(), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"{what}: {path} has shape {a.shape}, expected {b.shape}"
        scale = max(np.abs(b).max(initial=0), np.finfo(np.float64).tiny)
        worst = np.abs(a - b).max(initial=0) / scale
        assert worst <= tolerance, f"{what}: {path} is off by {worst:.1e} of its maximum (allowed {tolerance:.0e})"


# ---------------------------------------------------------------- the laws


def hand_is_twin_float64(case, layer):
    """backward = jax.vjp of forward."""
    result = run(case, layer)
    close(result.back, result.twin, FLOAT64, "hand vs twin")


def hand_is_twin_float32(case, layer):
    hand, twin = _hand_and_twin(case, layer)(*variables(case, layer, jnp.dtype("float32"))[:4])
    close(*jax.tree.map(np.asarray, (hand, twin)), FLOAT32, "hand vs twin")


def hand_is_twin_bfloat16(case, layer):
    """No further from float32 than jax.grad is, by a stated factor: the worst elements, on average over draws.

    In a single draw either may be lucky, by a factor of four.
    """
    off = []
    for args in (variables(case, layer, jnp.dtype("bfloat16"), seed=seed) for seed in BFLOAT16_SEEDS):
        widened = jax.tree.map(lambda a: np.asarray(a, np.float32) if is_floating(a) else a, args)
        results = (*_hand_and_twin(case, layer)(*args[:4]), _hand_and_twin(case, layer)(*widened[:4])[1])
        leaves = [[np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)] for tree in results]
        scales = [np.abs(exact).max(initial=1e-30) for exact in leaves[2]]
        off.append([
            [np.abs(a - exact).max(initial=0) / scale for a, exact, scale in zip(tree, leaves[2], scales, strict=True)]
            for tree in leaves[:2]
        ])  # fmt: skip
    for hand, auto in np.mean(off, 0).T:
        assert hand <= BFLOAT16_FACTOR * auto + BFLOAT16_ROUNDING, f"bfloat16: {hand:.1e} off, jax.grad {auto:.1e}"


@lru_cache(maxsize=2)
def _hand_and_twin(case, layer):
    def both(*args):
        return _step(case, layer)(*args)[1], _step(case, autodiff_twin(layer))(*args)[1]

    return evaluated(both)


def member(tree, i):
    """One of an ensemble."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def backward_is_linear(case, layer):
    """backward(2δ − 3δ′) = 2 backward(δ) − 3 backward(δ′)."""
    a, b, mixed = (member(ensemble(case, layer).back, i) for i in (BASE, OTHER_DELTA, MIXED_DELTA))
    close(mixed, jax.tree.map(lambda a, b: 2 * a - 3 * b, a, b), FLOAT64, "linearity")


def dot_product(case, layer):
    """⟨δ, Jv⟩ = ⟨Jᵀδ, v⟩, with J by jax.jvp."""
    forwards, backwards = run(case, layer).pairing
    scale = max(abs(forwards), abs(backwards), np.abs(run(case, layer).y).max(initial=0))
    assert abs(forwards - backwards) <= FLOAT64 * scale, f"⟨δ, Jv⟩ = {forwards}, ⟨Jᵀδ, v⟩ = {backwards}"


def central_differences(case, layer):
    """(C(θ+h) − C(θ−h)) / 2h for every coordinate of parameters and input, C = ⟨δ, y⟩."""
    close(as_slopes(run(case, layer).back), ensemble(case, layer).slopes, DIFFERENCES, "hand vs differences")


def as_slopes(back):
    """(delta_in, grads) without what has no slope: ([δ of each float of x], grads)."""
    return jax.tree.leaves(back[0]), back[1]


def serial_associates(case, layer):
    """(layer, tanh), dense = layer, (tanh, dense)."""
    # the same arrays in another nesting: compare them in one order
    (y1, d1, g1), (y2, d2, g2) = run(case, layer).nested
    close((y1, d1), (y2, d2), FLOAT64, "associativity")
    order = lambda grads: sorted(grads, key=lambda g: (g.shape, float(g.sum())))
    close(order(g1), order(g2), FLOAT64, "associativity, gradients")


def jit_is_eager(case, layer):
    """What XLA compiles = what operation by operation gives, by NumPy or by JAX."""
    with jax.enable_x64(True):
        args = variables(case, layer, jnp.dtype("float64"))[:4]
        compiled = jax.tree.map(np.asarray, jax.jit(_step(case, layer))(*args))
        result = run(case, layer)
        close(compiled, (result.y, result.back), FLOAT64, "jit vs operation by operation")
        if os.environ.get("JAXNN_OPTIMISED"):
            eager = jax.tree.map(np.asarray, _step(case, layer)(*args))
            close(eager, compiled, FLOAT64, "eager vs jit")


def vmap_is_loop(case, layer):
    """An ensemble under vmap is its members one after another."""
    result, together = runs(case, layer), ensemble(case, layer)
    for i, alone in ((BASE, result.base), (OTHER, result.other)):
        close(member((together.y, together.back), i), (alone.y, alone.back), FLOAT64, f"member {i}")


def coupled(case, layer):
    """Whether examples depend on each other: batch norm's do in training, and only there."""
    return layer.couples_batch and case.train


def batch_is_two_halves(case, layer):
    """The gradients of a batch are the sum of its halves', and δ stays in its half."""
    if coupled(case, layer):
        return
    (d1, g1), (d2, g2) = (member(ensemble(case, layer).back, i) for i in (FIRST_HALF, SECOND_HALF))
    delta_in = jax.tree.map(lambda a, b: np.concatenate([a[: N // 2], b[N // 2 :]]), d1, d2)
    close((delta_in, jax.tree.map(np.add, g1, g2)), run(case, layer).back, FLOAT64, "two halves")


def batch_is_its_examples(case, layer):
    """A batch's outputs and δ are those of its examples alone, its gradients their sum.

    Where the batch is drawn for as a whole, an example alone would draw other numbers; where examples are coupled, it
    is another function. There hand and twin agree on it.
    """
    y, back, twin = singles(case, layer)
    result = run(case, layer)
    assert y.shape[1:] == result.y[:1].shape
    assert np.isfinite(y).all()
    if twin is None:
        delta_in, grads = back
        got = (y[:, 0], jax.tree.map(lambda d: d[:, 0], delta_in), jax.tree.map(lambda g: g.sum(0), grads))
        close(got, (result.y, *result.back), FLOAT64, "examples alone")
    else:
        assert jax.tree.structure(back) == jax.tree.structure(twin)
        for a, b in zip(*map(jax.tree.leaves, (back, twin)), strict=True):
            np.testing.assert_allclose(a, b, rtol=FLOAT64, atol=FLOAT64)  # N = 1 may have no gradient but rounding


def nan_in_nan_out(case, layer):
    """A NaN in one example shows in that example's output, and elsewhere just if examples are coupled."""
    bad = np.isnan(runs(case, layer).spoiled.y).reshape(N, -1)
    assert bad[1].all(), "NaN in, but not NaN out"
    assert bad[[0, 2, 3]].any() == coupled(case, layer), "couples_batch is not what a NaN shows"


def shapes_and_dtypes(case, layer):
    """Gradients like parameters, δ_in like x, the tape arrays only; init makes what is asked for."""
    for dtype in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
        params, state, x, delta, _ = variables(case, layer, dtype)
        y, new_state, tape = jax.eval_shape(lambda p, s, x: forward(case, layer, p, s, x), params, state, x)
        delta_in, grads = jax.eval_shape(layer.backward, params, tape, delta)
        spec = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        assert spec(grads) == spec(params), "gradients are not like the parameters"
        like_x = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype) if is_floating(leaf) else (), x)
        assert spec(delta_in) == like_x, "δ_in is not like x"
        assert spec(new_state) == spec(state), "the state changed its form"
        assert y.dtype == dtype, f"{dtype} in, {y.dtype} out"
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tape))
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params)), "init ignored the dtype"


def custom_vjp_is_hand(case, layer):
    """jax.grad through as_custom_vjp gives the hand-derived gradient."""
    result = run(case, layer)
    close(result.custom, as_slopes(result.back), FLOAT64, "custom_vjp")


LAWS = (
    shapes_and_dtypes,
    hand_is_twin_float64,
    hand_is_twin_float32,
    hand_is_twin_bfloat16,
    backward_is_linear,
    dot_product,
    central_differences,
    serial_associates,
    jit_is_eager,
    vmap_is_loop,
    batch_is_two_halves,
    batch_is_its_examples,
    nan_in_nan_out,
    custom_vjp_is_hand,
)


# ---------------------------------------------------------------- masks

STEPS = 4
MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]], bool)
PASSES, CONSUMES, ASKED, REFUSES = "passes it on", "consumes time", "is asked for an array", "refuses it"


def in_steps(case):
    """`in_shape` of the row's examples as steps, [T, D] or tokens [T]; as it is where it has an axis for time."""
    if isinstance(case.in_shape, jax.ShapeDtypeStruct):
        return case.in_shape.update(shape=case.in_shape.shape or (STEPS,))
    return case.in_shape if len(case.in_shape) > 1 else (STEPS, *case.in_shape)


def masks_pass_or_are_refused(case, layer, choice, looks):
    """`Sequences(values, mask)`: the mask is handed on unchanged, or time is consumed, or an error names the layer.

    A recurrent layer may be asked for an array, returns="values": then whoever asks knows of the mask.
    What stands at masked steps does not reach what is computed where δ is 0 there. `looks` is False for a layer that
    promises not to look at them: NaN and tokens that are none do no harm either.
    """
    case = case._replace(in_shape=in_steps(case))
    with jax.enable_x64(True):
        values = case.inputs(1, N, np.float64)
        mask = MASK[:, np.arange(values.shape[1]) % STEPS]
        spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), Sequences(values, mask))
        if choice == REFUSES:
            _names_itself(case, layer, spec, Sequences(values, mask))
            return
        draw = np.random.default_rng(3).normal
        params, state = jax.eval_shape(lambda: layer.init(jax.random.key(0), spec, np.float64))
        params = jax.tree.map(lambda leaf: 0.5 * draw(size=leaf.shape), params)

        def run(values):
            y, _, tape = forward(case, layer, params, state, Sequences(values, mask))
            handed_on = y.mask if isinstance(y, Sequences) else ()
            y = y.values if isinstance(y, Sequences) else y
            delta = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            if choice == PASSES:
                delta = Sequences(jnp.where(_wider(mask, y), delta, 0), ())
            delta_in, grads = layer.backward(params, tape, delta)
            assert isinstance(delta_in, Sequences) or delta_in == (), "δ_in is not like x"
            return handed_on, y, getattr(delta_in, "values", ()), grads

        found = [jax.tree.map(np.asarray, evaluated(run)(v)) for v in _with_others(values, mask, looks)]
    handed_on, y, delta_in, _ = found[0]
    if choice == PASSES:
        assert np.shape(handed_on) == mask.shape, "the mask is lost"
        np.testing.assert_array_equal(handed_on, mask, err_msg="the mask is another")
        assert y.shape[:2] == mask.shape
    else:
        assert np.shape(handed_on) == (0,), "hands on a mask"
        assert (y.ndim == 3) == (choice == ASKED), "keeps time, and loses the mask"
    for other in found:
        if choice == PASSES:
            np.testing.assert_array_equal(other[1][mask], y[mask], err_msg="masked steps reach the output")
        else:
            np.testing.assert_array_equal(other[1], y, err_msg="masked steps reach the output")
        if jax.tree.leaves(delta_in):
            np.testing.assert_array_equal(other[2], np.where(_wider(mask, delta_in), delta_in, 0), err_msg="δ_in")
        close(other[3], found[0][3], FLOAT64, "gradients, whatever stands at masked steps")


def _names_itself(case, layer, spec, x):
    """Both init, where it has parameters, and forward raise an error that begins with a layer's name."""
    kinds = "|".join(re.escape(kind) for kind in _kinds(layer))
    params, state = jax.eval_shape(lambda: layer.init(jax.random.key(0), case.in_shape, np.float64))
    with pytest.raises((ValueError, TypeError), match=rf"^(layer '[^']*|{kinds})\b"):
        jax.eval_shape(lambda params, state: forward(case, layer, params, state, x), params, state)
    with pytest.raises((ValueError, TypeError), match=rf"^(layer '[^']*|{kinds})\b"):
        jax.eval_shape(lambda: serial(layer).init(jax.random.key(0), spec, np.float64))


def _kinds(layer):
    return {layer.kind}.union(*map(_kinds, layer.children))


def _wider(mask, like):
    return mask.reshape(*mask.shape, *[1] * (like.ndim - 2))


def _with_others(values, mask, looks):
    """The values, and the same with others at masked steps: large ones, and what must not be looked at."""
    whole = not is_floating(values)
    yield values
    unseen = [] if looks else [-7, 10**6] if whole else [np.nan, np.inf]
    for other in [*([0, 1] if whole else [37.5, -1e3]), *unseen]:
        yield np.where(_wider(mask, values), values, np.asarray(other, values.dtype))
