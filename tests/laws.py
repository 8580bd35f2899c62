"""What every layer must satisfy, as functions that raise AssertionError: the tests and the mutants share them.

Tolerances: each leaf's worst element, normalised by the leaf's own maximum; never scaled by an array's size.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxnn import as_custom_vjp, autodiff_twin, dense, serial, tanh
from jaxnn.checks import is_floating, named_leaves

FLOAT64 = 1e-12  # rounding of a few hundred operations
FLOAT32 = 1e-5
DIFFERENCES = 1e-6  # central differences in float64 at a step of 1e-5: truncation 1e-10, rounding 1e-11 of the value
STEP = 1e-5
BFLOAT16_FACTOR = 2.0  # the hand rule may be this much further from float32 than jax.grad is,
BFLOAT16_ROUNDING = 2.0**-8  # beside one rounding of the result
BFLOAT16_SEEDS = range(8)
N = 4


class Run(NamedTuple):
    """One compiled evaluation of a layer, everything in NumPy."""

    y: Any
    back: Any  # (delta_in, grads) for δ
    back_other: Any  # for δ′
    back_mixed: Any  # for 2δ − 3δ′
    twin: Any  # for δ, by jax.vjp
    pairing: Any  # ⟨δ, Jv⟩ and ⟨Jᵀδ, v⟩


def forward(case, layer, params, state, x):
    """The layer's forward in the row's mode."""
    return layer.forward(params, state, x, train=case.train, rng=case.rng)


@lru_cache(maxsize=256)
def variables(case, layer, dtype, n=N, seed=0):
    """Parameters, state, x and two δs; none by jax.random, which would compile for every shape."""
    draw = np.random.default_rng(seed).normal
    params, state = jax.eval_shape(lambda: layer.init(jax.random.key(seed), case.in_shape, dtype))
    # zero biases are special: a gradient that forgets them would pass
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * draw(size=p.shape), p.dtype), params)
    # a mean of 0 and a variance of 1 are special too; a variance stays positive
    state = jax.tree.map(lambda s: jnp.asarray(0.7 + 0.3 * np.arange(1, s.size + 1).reshape(s.shape), s.dtype), state)
    x = case.inputs(seed + 1, n, dtype)
    y = jax.eval_shape(lambda p, s, x: forward(case, layer, p, s, x)[0], params, state, x)
    deltas = [jnp.asarray(draw(size=y.shape), dtype) for _ in range(2)]
    return params, state, x, *deltas


def part_of(tree, rows):
    """Those rows of every leaf, in NumPy, which compiles nothing."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def floats(x):
    """Those leaves of x that have a slope, and what puts them back into x."""
    leaves, structure = jax.tree.flatten(x)

    def put(floats):
        left = iter(floats)
        return jax.tree.unflatten(structure, [next(left) if is_floating(leaf) else leaf for leaf in leaves])

    return [leaf for leaf in leaves if is_floating(leaf)], put


def _evaluate(case, layer, params, state, x, delta, other):
    y, _, tape = forward(case, layer, params, state, x)
    back = layer.backward(params, tape, delta)
    twin = autodiff_twin(layer)
    _, _, twin_tape = forward(case, twin, params, state, x)
    free, put = floats(x)
    v = jax.tree.map(jnp.cos, (free, params))  # any direction that depends on nothing else
    _, jv = jax.jvp(lambda free, p: forward(case, layer, p, state, put(free))[0], (free, params), v)
    forwards = jnp.sum(delta * jv)
    pairs = zip(jax.tree.leaves(back), jax.tree.leaves(v), strict=True)
    backwards = sum((jnp.sum(a * b) for a, b in pairs), jnp.zeros((), delta.dtype))
    return Run(
        y,
        back,
        layer.backward(params, tape, other),
        layer.backward(params, tape, 2 * delta - 3 * other),
        twin.backward(params, twin_tape, delta),
        (forwards, backwards),
    )


@lru_cache(maxsize=256)
def run(case, layer, dtype):
    """The compiled evaluation, in float64 or below, as NumPy."""
    with jax.enable_x64(dtype == "float64"):
        args = variables(case, layer, jnp.dtype(dtype))
        return jax.tree.map(np.asarray, jax.jit(lambda *args: _evaluate(case, layer, *args))(*args))


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
    result = run(case, layer, "float64")
    close(result.back, result.twin, FLOAT64, "hand vs twin")


def hand_is_twin_float32(case, layer):
    result = run(case, layer, "float32")
    close(result.back, result.twin, FLOAT32, "hand vs twin")


def hand_is_twin_bfloat16(case, layer):
    """No further from float32 than jax.grad is, by a stated factor: the worst elements, on average over draws.

    In a single draw either may be lucky, by a factor of four.
    """
    off = []
    for args in (variables(case, layer, jnp.bfloat16, seed=seed) for seed in BFLOAT16_SEEDS):
        widened = jax.tree.map(lambda a: a.astype(jnp.float32) if is_floating(a) else a, args)
        results = (*_hand_and_twin(case, layer)(*args[:4]), _hand_and_twin(case, layer)(*widened[:4])[1])
        leaves = [[np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)] for tree in results]
        scales = [np.abs(exact).max(initial=1e-30) for exact in leaves[2]]
        off.append([
            [np.abs(a - exact).max(initial=0) / scale for a, exact, scale in zip(tree, leaves[2], scales, strict=True)]
            for tree in leaves[:2]
        ])  # fmt: skip
    for hand, auto in np.mean(off, 0).T:
        assert hand <= BFLOAT16_FACTOR * auto + BFLOAT16_ROUNDING, f"bfloat16: {hand:.1e} off, jax.grad {auto:.1e}"


@lru_cache(maxsize=4)
def _hand_and_twin(case, layer):
    def both(params, state, x, delta):
        twin = autodiff_twin(layer)
        tape, twin_tape = (forward(case, of, params, state, x)[2] for of in (layer, twin))
        return layer.backward(params, tape, delta), twin.backward(params, twin_tape, delta)

    return jax.jit(both)


def backward_is_linear(case, layer):
    """backward(2δ − 3δ′) = 2 backward(δ) − 3 backward(δ′)."""
    result = run(case, layer, "float64")
    mixed = jax.tree.map(lambda a, b: 2 * a - 3 * b, result.back, result.back_other)
    close(result.back_mixed, mixed, FLOAT64, "linearity")


def dot_product(case, layer):
    """⟨δ, Jv⟩ = ⟨Jᵀδ, v⟩, with J by jax.jvp."""
    forwards, backwards = run(case, layer, "float64").pairing
    scale = max(abs(forwards), abs(backwards), np.abs(run(case, layer, "float64").y).max(initial=0))
    assert abs(forwards - backwards) <= FLOAT64 * scale, f"⟨δ, Jv⟩ = {forwards}, ⟨Jᵀδ, v⟩ = {backwards}"


def central_differences(case, layer):
    """(C(θ+h) − C(θ−h)) / 2h for every coordinate of parameters and input, C = ⟨δ, y⟩."""
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.float64)
        free, put = floats(x)
        flat, unravel = ravel_pytree((free, params))

        def cost(flat):
            free, params = unravel(flat)
            return jnp.sum(delta * forward(case, layer, params, state, put(free))[0])

        def difference(direction):
            return (cost(flat + STEP * direction) - cost(flat - STEP * direction)) / (2 * STEP)

        slopes = jax.jit(jax.vmap(difference))(jnp.eye(flat.size, dtype=flat.dtype))
        expected = jax.tree.map(np.asarray, unravel(slopes))
        delta_in, grads = run(case, layer, "float64").back
        close((jax.tree.leaves(delta_in), grads), expected, DIFFERENCES, "hand vs differences")


def serial_associates(case, layer):
    """(layer, tanh), dense = layer, (tanh, dense)."""
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.float64)
        # a layer's key is that of its path, which the nesting changes: here it is held
        of_one_key = lambda p, s, x, *, train=False, rng=None, layer=layer: forward(case, layer, p, s, x)
        layer = layer._replace(forward=of_one_key)
        out = dense(2)
        out_params, _ = out.init(jax.random.key(5), (max(delta.shape[-1], 1),) if delta.ndim > 1 else (1,), jnp.float64)
        left = serial(serial(layer, tanh), out)
        right = serial(layer, serial(tanh, out))
        a, b = left.child_names[0], right.child_names[0]
        key = left.children[0].child_names[0]
        left_params = {a: {key: params}, left.child_names[1]: out_params}
        right_params = {b: params, right.child_names[1]: {right.children[1].child_names[1]: out_params}}
        left_state, right_state = ({a: {key: state}}, {b: state}) if jax.tree.leaves(state) else ((), ())

        def both(left_params, right_params, x):
            results = []
            for net, params, state in ((left, left_params, left_state), (right, right_params, right_state)):
                y, _, tape = forward(case, net, params, state, x)
                delta_in, grads = net.backward(params, tape, jnp.cos(y))
                results.append((y, delta_in, jax.tree.leaves(grads)))
            return results

        results = jax.tree.map(np.asarray, jax.jit(both)(left_params, right_params, x))
    # the same arrays in another nesting: compare them in one order
    (y1, d1, g1), (y2, d2, g2) = results
    close((y1, d1), (y2, d2), FLOAT64, "associativity")
    order = lambda grads: sorted(grads, key=lambda g: (g.shape, float(g.sum())))
    close(order(g1), order(g2), FLOAT64, "associativity, gradients")


def eager_is_jit(case, layer):
    with jax.enable_x64(True):
        args = variables(case, layer, jnp.float64)
        params, state, x, delta, _ = args
        y, _, tape = forward(case, layer, params, state, x)
        back = jax.tree.map(np.asarray, layer.backward(params, tape, delta))
        result = run(case, layer, "float64")
        close((np.asarray(y), back), (result.y, result.back), FLOAT64, "eager vs jit")


def vmap_is_loop(case, layer):
    """An ensemble under vmap is its members one after another."""
    with jax.enable_x64(True):
        members = [variables(case, layer, jnp.float64, seed=seed)[:4] for seed in (0, 7)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)

        def step(params, state, x, delta):
            y, _, tape = forward(case, layer, params, state, x)
            return y, layer.backward(params, tape, delta)

        together = jax.tree.map(np.asarray, jax.jit(jax.vmap(step))(*stacked))
        one = jax.jit(step)
        for i, member in enumerate(members):
            alone = jax.tree.map(np.asarray, one(*member))
            close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, FLOAT64, f"member {i}")


def coupled(case, layer):
    """Whether examples depend on each other: batch norm's do in training, and only there."""
    return layer.couples_batch and case.train


def batch_is_two_halves(case, layer):
    """A batch's outputs and δ are its halves' side by side, its gradients their sum.

    Where the batch is drawn for as a whole, its halves would draw other numbers: there each half's δ stays in it.
    """
    if coupled(case, layer):
        return
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.float64)
        half = N // 2
        result = run(case, layer, "float64")

        def step(x, delta):
            y, _, tape = forward(case, layer, params, state, x)
            return y, *layer.backward(params, tape, delta)

        step = jax.jit(step)
        if case.seed is None:
            halves = [step(*part_of((x, delta), rows)) for rows in (slice(half), slice(half, None))]
            (y1, d1, g1), (y2, d2, g2) = jax.tree.map(np.asarray, halves)
            y, delta_in = jax.tree.map(lambda a, b: np.concatenate([a, b]), (y1, d1), (y2, d2))
        else:
            first = np.arange(N).reshape(N, *[1] * (delta.ndim - 1)) < half
            halves = [step(x, np.where(rows, delta, 0)) for rows in (first, ~first)]
            (y, d1, g1), (_, d2, g2) = jax.tree.map(np.asarray, halves)
            delta_in = jax.tree.map(lambda a, b: np.concatenate([a[:half], b[half:]]), d1, d2)
        close((y, (delta_in, jax.tree.map(np.add, g1, g2))), (result.y, result.back), FLOAT64, "two halves")


def nan_in_nan_out(case, layer):
    """A NaN in one example shows in that example's output, and elsewhere just if examples are coupled."""
    params, state, x, *_ = variables(case, layer, jnp.float32)

    def spoil(leaf):
        leaf = np.array(leaf)
        leaf[1] = np.nan if is_floating(leaf) else -1  # -1 is no index
        return leaf

    y = jax.jit(lambda x: forward(case, layer, params, state, x)[0])(jax.tree.map(spoil, x))
    bad = np.isnan(np.asarray(y)).reshape(N, -1)
    assert bad[1].all(), "NaN in, but not NaN out"
    assert bad[[0, 2, 3]].any() == coupled(case, layer), "couples_batch is not what a NaN shows"


def shapes_and_dtypes(case, layer):
    """Gradients like parameters, δ_in like x, the tape arrays only; init makes what is asked for."""
    for dtype in (jnp.float32, jnp.bfloat16):
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


def one_example(case, layer):
    """N = 1 is the first example of the batch; where it is not, hand and twin agree on it."""
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.float64)
        result = run(case, layer, "float64")
        x, delta = part_of((x, delta), slice(1))

        def step(x, delta):
            y, _, tape = forward(case, layer, params, state, x)
            return y, layer.backward(params, tape, delta)

        y, (delta_in, grads) = jax.tree.map(np.asarray, jax.jit(step)(x, delta))
        assert y.shape == result.y[:1].shape
        if case.seed is None and not coupled(case, layer):
            close(y, result.y[:1], FLOAT64, "N = 1")
            close(delta_in, jax.tree.map(lambda d: d[:1], result.back[0]), FLOAT64, "N = 1, δ_in")
        else:
            twin = autodiff_twin(layer)
            twin_backward = lambda x, delta: twin.backward(params, forward(case, twin, params, state, x)[2], delta)
            auto = jax.jit(twin_backward)(x, delta)
            assert np.isfinite(y).all()
            for a, b in zip(*map(jax.tree.leaves, ((delta_in, grads), auto)), strict=True):
                np.testing.assert_allclose(a, b, rtol=FLOAT64, atol=FLOAT64)  # N = 1 may have no gradient but rounding


def custom_vjp_is_hand(case, layer):
    """jax.grad through as_custom_vjp gives the hand-derived gradient."""
    with jax.enable_x64(True):
        params, state, x, delta, _ = variables(case, layer, jnp.float64)
        apply = as_custom_vjp(layer)
        free, put = floats(x)
        grad = jax.grad(
            lambda free, params: jnp.sum(delta * apply(params, state, put(free), train=case.train, rng=case.rng)[0]),
            argnums=(0, 1),
        )
        got = jax.tree.map(np.asarray, jax.jit(grad)(free, params))
        delta_in, grads = run(case, layer, "float64").back
        close(got, (jax.tree.leaves(delta_in), grads), FLOAT64, "custom_vjp")


LAWS = (
    shapes_and_dtypes,
    hand_is_twin_float64,
    hand_is_twin_float32,
    hand_is_twin_bfloat16,
    backward_is_linear,
    dot_product,
    central_differences,
    serial_associates,
    eager_is_jit,
    vmap_is_loop,
    batch_is_two_halves,
    nan_in_nan_out,
    one_example,
    custom_vjp_is_hand,
)
