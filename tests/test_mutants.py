"""The checks must bite: wrong rules, planted one at a time, and every one caught by two independent routes."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from conv_mutants import MUTANTS as CONV_MUTANTS
from laws import DIFFERENCES, FLOAT64, as_slopes, close, ensemble, evaluated, made, run, variables
from loss_cases import LOSS_CASES
from recurrent_mutants import MUTANTS as RECURRENT_MUTANTS

from jaxnn import (
    Layer,
    autodiff,
    autodiff_twin,
    backprop,
    dense,
    leaf_layers,
    map_layers,
    mlp,
    residual,
    serial,
    tanh,
)
from jaxnn.arrays import with_rank
from jaxnn.losses import mse, softmax_cross_entropy

ROWS = {case.name: case for case in CASES}


class Mutant(NamedTuple):
    """A wrong rule.

    Attributes:
        name: what is wrong.
        row: the row of `cases` whose layer is made wrong.
        backward: (layer, params, tape, delta) -> delta_in, grads.
    """

    name: str
    row: str
    backward: Callable

    def make(self) -> Layer:
        layer = ROWS[self.row].make()
        return layer._replace(backward=lambda params, tape, delta: self.backward(layer, params, tape, delta))


def on_grads(change):
    """A rule whose gradients are changed."""

    def backward(layer, params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return delta_in, change(grads)

    return backward


def on_delta(change):
    """A rule whose δ_in is changed."""

    def backward(layer, params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return change(delta_in), grads

    return backward


def on_w(change):
    return on_grads(lambda grads: {**grads, "w": change(grads["w"])})


def on_b(change):
    return on_grads(lambda grads: {**grads, "b": change(grads["b"])})


def slope(wrong):
    """An activation with another slope, wrong(z, h)."""

    def backward(layer, params, tape, delta):
        return delta * wrong(*tape), {}

    return backward


def not_reversed(layer, params, tape, delta):
    """repeat: the passes walked through from the first to the last."""
    child = layer.children[0]
    return jax.lax.scan(lambda delta, args: child.backward(*args, delta), delta, (params, tape))


def last_use_only(layer, params, tape, delta):
    """share: the gradients of the other uses forgotten."""
    child = layer.children[0]
    delta_in, _ = layer.backward(params, tape, delta)
    return delta_in, child.backward(params, jax.tree.map(lambda leaf: leaf[-1], tape), delta)[1]


def untouched_by_first_layer(layer, params, tape, delta):
    """serial: δ handed on past the first layer."""
    first, *rest = zip(layer.child_names, layer.children, strict=True)
    grads = {}
    for name, child in reversed(rest):
        delta, grads[name] = child.backward(params.get(name, {}), tape[name], delta)
    delta_in, _ = first[1].backward(params[first[0]], tape[first[0]], delta)
    grads[first[0]] = first[1].backward(params[first[0]], tape[first[0]], jnp.cos(delta))[1]
    return delta_in, {name: grads[name] for name in params}


def branches_swapped(layer, params, tape, delta):
    """parallel: the branches' parts of δ cut off in the wrong order."""
    return layer.backward(params, tape, jnp.roll(delta, 1, axis=-1))


def first_branch_only(layer, params, tape, delta):
    """parallel: δ_in of the first branch alone."""
    name, child = layer.child_names[0], layer.children[0]
    _, grads = layer.backward(params, tape, delta)
    return child.backward(params[name], tape[0][name], delta)[0], grads


def fortran(layer, params, tape, delta):
    return delta.reshape(delta.shape[0], *tape.shape[:0:-1]).swapaxes(1, -1), {}


def batch_norm_rule(rule):
    """batch_norm with another δ_in, rule(g, x̂, r, over the batch's mean), g = γ δ; without r in it."""

    def backward(layer, params, tape, delta):
        x_hat, r = tape
        mean = lambda a: a.mean(tuple(range(a.ndim - 1)), keepdims=True)
        r, gamma = (with_rank(v, delta.ndim) for v in (r, params["scale"]))
        return r * rule(delta * gamma, x_hat, mean), layer.backward(params, tape, delta)[1]

    return backward


def layer_norm_rule(rule):
    """layer_norm with another δ_in."""

    def backward(layer, params, tape, delta):
        x_hat, r = tape
        mean = lambda a: a.mean(-1, keepdims=True)
        gamma = with_rank(params["scale"], delta.ndim)
        return r * rule(delta * gamma, x_hat, mean), layer.backward(params, tape, delta)[1]

    return backward


def group_norm_rule(rule):
    """group_norm with another δ_in, rule(g, x̂, mean over the axes, mean of what the group alone has)."""

    def backward(layer, params, tape, delta):
        x_hat, r = tape
        mean = lambda a: a.mean((*range(1, a.ndim - 2), a.ndim - 1), keepdims=True)
        g = (with_rank(params["scale"], delta.ndim) * delta).reshape(x_hat.shape)
        return (r * rule(g, x_hat, mean)).reshape(delta.shape), layer.backward(params, tape, delta)[1]

    return backward


def rms_norm_rule(rule):
    """rms_norm with another δ_in."""

    def backward(layer, params, tape, delta):
        x_hat, r = tape
        g = with_rank(params["scale"], delta.ndim) * delta
        return rule(g, x_hat, r, lambda a: a.mean(-1, keepdims=True)), layer.backward(params, tape, delta)[1]

    return backward


def on(name, change):
    return on_grads(lambda grads: {**grads, name: change(grads[name])})


MUTANTS = (
    Mutant("dense: bias dropped", "dense", on_b(jnp.zeros_like)),
    Mutant("dense: bias averaged over the batch", "dense", on_b(lambda b: b / 4)),
    Mutant("dense: factor 2", "dense", on_w(lambda w: 2 * w)),
    Mutant("dense: missing sum over the batch", "dense", lambda layer, p, x, d: (
        d @ p["w"].T, {"w": jnp.outer(x[0], d[0]), "b": d.sum(0)})),
    Mutant("dense: sign", "dense", on_w(jnp.negative)),
    Mutant("dense: one coordinate zeroed", "dense", on_w(lambda w: w.at[1, 2].set(0))),
    Mutant("dense: off by one part in 100,000", "dense", on_w(lambda w: w * (1 + 1e-5))),
    Mutant("dense: gradient transposed", "dense, square", on_w(jnp.transpose)),
    Mutant("dense: weight not transposed", "dense, square", lambda layer, p, x, d: (
        d @ p["w"], {"w": x.T @ d, "b": d.sum(0)})),
    Mutant("dense: δ_in without the weights", "dense, square", lambda layer, p, x, d: (
        d, {"w": x.T @ d, "b": d.sum(0)})),
    Mutant("dense over time: only the last step", "dense over time", lambda layer, p, x, d: (
        d @ p["w"].T, {"w": x[:, -1].T @ d[:, -1], "b": d.sum((0, 1))})),
    Mutant("sigmoid: without 1 − h", "sigmoid", slope(lambda z, h: h)),
    Mutant("sigmoid: slope of z", "sigmoid", slope(lambda z, h: z * (1 - z))),
    Mutant("tanh: 1 − h", "tanh", slope(lambda z, h: 1 - h)),
    Mutant("relu: no slope", "relu", slope(lambda z, h: jnp.ones_like(z))),
    Mutant("leaky_relu: leak dropped", "leaky_relu", slope(lambda z, h: jnp.where(z > 0, 1, 0).astype(z.dtype))),
    Mutant("elu: h for h + 1", "elu", slope(lambda z, h: jnp.where(z > 0, jnp.ones_like(h), h))),
    Mutant("softplus: σ of h", "softplus", slope(lambda z, h: jax.nn.sigmoid(h))),
    Mutant("silu: without its second term", "silu", slope(lambda z, h: jax.nn.sigmoid(z))),
    Mutant("gelu: without the density", "gelu", slope(lambda z, h: jax.scipy.stats.norm.cdf(z))),
    Mutant("softmax: without its sum term", "softmax", lambda layer, p, y, d: (y * d, {})),
    Mutant("softmax: sum over the wrong axis", "softmax over time", lambda layer, p, y, d: (
        y * (d - (d * y).sum(1, keepdims=True)), {})),
    Mutant("batch_norm: without its mean term", "batch_norm", batch_norm_rule(lambda g, x, mean: g - x * mean(g * x))),
    Mutant("batch_norm: without its variance term", "batch_norm", batch_norm_rule(lambda g, x, mean: g - mean(g))),
    Mutant("batch_norm: evaluation's rule in training", "batch_norm", batch_norm_rule(lambda g, x, mean: g)),
    Mutant("batch_norm: means over N alone", "batch_norm over time", batch_norm_rule(lambda g, x, mean: (
        g - g.mean(0, keepdims=True) - x * (g * x).mean(0, keepdims=True)))),
    Mutant("batch_norm: training's rule in evaluation", "batch_norm, evaluated", batch_norm_rule(lambda g, x, mean: (
        g - mean(g) - x * mean(g * x)))),
    Mutant("batch_norm: γ forgotten in δ_in", "batch_norm", lambda layer, p, t, d: (
        layer.backward({**p, "scale": jnp.ones_like(p["scale"])}, t, d)[0], layer.backward(p, t, d)[1])),
    Mutant("batch_norm: 1/√v forgotten", "batch_norm, evaluated", lambda layer, p, t, d: (
        with_rank(p["scale"], d.ndim) * d, layer.backward(p, t, d)[1])),
    Mutant("batch_norm: another feature's statistics", "batch_norm, evaluated", lambda layer, p, t, d: (
        layer.backward(p, t._replace(r=t.r[::-1]), d)[0], layer.backward(p, t, d)[1])),
    Mutant("batch_norm: γ's gradient of δ alone", "batch_norm", lambda layer, p, t, d: (
        layer.backward(p, t, d)[0], {"scale": d.sum(0), "shift": d.sum(0)})),
    Mutant("batch_norm: β's gradient averaged", "batch_norm", on("shift", lambda g: g / 4)),
    Mutant("batch_norm: β's gradient of one time", "batch_norm over time", lambda layer, p, t, d: (
        layer.backward(p, t, d)[0], {**layer.backward(p, t, d)[1], "shift": d[:, 0].sum(0)})),
    Mutant("layer_norm: without its mean term", "layer_norm", layer_norm_rule(lambda g, x, mean: g - x * mean(g * x))),
    Mutant("layer_norm: without its variance term", "layer_norm", layer_norm_rule(lambda g, x, mean: g - mean(g))),
    Mutant("layer_norm: γ forgotten in δ_in", "layer_norm", lambda layer, p, t, d: (
        layer.backward({**p, "scale": jnp.ones_like(p["scale"])}, t, d)[0], layer.backward(p, t, d)[1])),
    Mutant("layer_norm: means over the batch", "layer_norm", lambda layer, p, t, d: (
        t[1] * p["scale"][None] * (d - d.mean(0, keepdims=True) - t[0] * (d * t[0]).mean(0, keepdims=True)),
        layer.backward(p, t, d)[1])),
    Mutant("layer_norm: γ's gradient without its sum", "layer_norm", lambda layer, p, t, d: (
        layer.backward(p, t, d)[0], {"scale": (d * t[0])[0], "shift": d.sum(0)})),
    Mutant("group_norm: without its mean term", "group_norm", group_norm_rule(lambda g, x, mean: g - x * mean(g * x))),
    Mutant("group_norm: without its variance term", "group_norm", group_norm_rule(lambda g, x, mean: g - mean(g))),
    Mutant("group_norm: means over the group of each time", "group_norm over time", group_norm_rule(lambda g, x, mean: (
        g - g.mean(-1, keepdims=True) - x * (g * x).mean(-1, keepdims=True)))),
    Mutant("group_norm: means over all features", "group_norm", group_norm_rule(lambda g, x, mean: (
        g - g.mean((-2, -1), keepdims=True) - x * (g * x).mean((-2, -1), keepdims=True)))),
    Mutant("group_norm: γ forgotten in δ_in", "group_norm over time", lambda layer, p, t, d: (
        layer.backward({**p, "scale": jnp.ones_like(p["scale"])}, t, d)[0], layer.backward(p, t, d)[1])),
    Mutant("group_norm: β's gradient of one time", "group_norm over time", lambda layer, p, t, d: (
        layer.backward(p, t, d)[0], {**layer.backward(p, t, d)[1], "shift": d[:, 0].sum(0)})),
    Mutant("rms_norm: layer norm's mean term", "rms_norm", rms_norm_rule(lambda g, x, r, mean: (
        r * (g - mean(g) - x * mean(g * x))))),
    Mutant("rms_norm: the root taken as fixed", "rms_norm", rms_norm_rule(lambda g, x, r, mean: r * g)),
    Mutant("rms_norm: r forgotten", "rms_norm", rms_norm_rule(lambda g, x, r, mean: g - x * mean(g * x))),
    Mutant("rms_norm: γ forgotten in δ_in", "rms_norm", lambda layer, p, t, d: (
        layer.backward({"scale": jnp.ones_like(p["scale"])}, t, d)[0], layer.backward(p, t, d)[1])),
    Mutant("rms_norm: γ's gradient of δ alone", "rms_norm over time", lambda layer, p, t, d: (
        layer.backward(p, t, d)[0], {"scale": d.sum((0, 1))})),
    Mutant("dropout: without its scale", "dropout", lambda layer, p, kept, d: (jnp.where(kept, d, 0), {})),
    Mutant("dropout: scaled by 1/p", "dropout", lambda layer, p, kept, d: (jnp.where(kept, d, 0) / 0.4, {})),
    Mutant("dropout: another mask", "dropout", lambda layer, p, kept, d: layer.backward(p, kept[::-1], d)),
    Mutant("dropout: the identity", "dropout", lambda layer, p, kept, d: (d, {})),
    Mutant("flatten: column-major", "flatten", fortran),
    Mutant("reshape: rows reversed", "reshape", on_delta(lambda d: d[..., ::-1])),
    Mutant("serial: a δ changed on its way", "serial", untouched_by_first_layer),
    Mutant("serial: gradients of the last layer twice", "serial", on_grads(
        lambda g: {**g, "dense_1": jax.tree.map(lambda leaf: 2 * leaf, g["dense_1"])})),
    Mutant("residual: without its skip", "residual", lambda layer, p, t, d: layer.children[0].backward(p, t, d)),
    Mutant("residual: skip twice", "residual", lambda layer, p, t, d: (lambda back: (back[0] + d, back[1]))(
        layer.backward(p, t, d))),
    Mutant("residual: projection forgotten", "residual, skip", lambda layer, p, t, d: (
        layer.children[0].backward(p["body"], t[0]["body"], d)[0], layer.backward(p, t, d)[1])),
    Mutant("parallel: parts of δ swapped", "parallel", branches_swapped),
    Mutant("parallel: one branch's δ only", "parallel, sum", first_branch_only),
    Mutant("parallel: averaged for summed", "parallel, sum", on_delta(lambda d: d / 3)),
    Mutant("repeat: not reversed", "repeat", not_reversed),
    Mutant("repeat: gradients in the wrong order", "repeat", on_grads(
        lambda g: jax.tree.map(lambda leaf: leaf[::-1], g))),
    Mutant("repeat: δ of the first pass only", "repeat", on_delta(lambda d: d * 0.5)),
    Mutant("share: the last use only", "share", last_use_only),
    Mutant("share: averaged for summed", "share", on_grads(lambda g: jax.tree.map(lambda leaf: leaf / 3, g))),
    *(Mutant(*mutant) for mutant in RECURRENT_MUTANTS),
    *(Mutant(*mutant) for mutant in CONV_MUTANTS),
    Mutant("a fault deep inside", "everything", on_grads(
        lambda g: {**g, "parallel_0": {**g["parallel_0"], "b": jax.tree.map(jnp.zeros_like, g["parallel_0"]["b"])}})),
)  # fmt: skip


PLANTED = [pytest.param(mutant, id=mutant.name, marks=pytest.mark.xdist_group(mutant.row)) for mutant in MUTANTS]


@pytest.mark.parametrize("mutant", PLANTED)
def test_wrong_rule_is_caught(mutant):
    """Its forward pass is that of the row, so that what the laws found of the row serves here too."""
    case = ROWS[mutant.row]
    right = run(case, made(case))
    with jax.enable_x64(True):
        params, _, _, delta, _ = variables(case, made(case), jnp.dtype("float64"))
        back = jax.tree.map(np.asarray, evaluated(mutant.make().backward)(params, right.tape, delta))
    close(right.back, right.twin, FLOAT64, "right")
    with pytest.raises(AssertionError, match="hand vs twin"):
        close(back, right.twin, FLOAT64, "hand vs twin")
    with pytest.raises(AssertionError, match="hand vs differences"):
        close(as_slopes(back), ensemble(case, made(case)).slopes, DIFFERENCES, "hand vs differences")


# ---------------------------------------------------------------- losses

WRONG_DELTAS = {
    "mse": {"missing 1/D": lambda y, t, d: d * y.shape[-1], "factor 2": lambda y, t, d: d / 2},
    "mae": {"sign": lambda y, t, d: -d, "size for sign": lambda y, t, d: (y - t) / y.shape[-1]},
    "huber": {"not clipped": lambda y, t, d: (y - t) / y.shape[-1], "missing 1/D": lambda y, t, d: d * y.shape[-1]},
    "half_squared_error": {"factor 2": lambda y, t, d: 2 * d, "reversed": lambda y, t, d: t - y},
    "hinge": {"active everywhere": lambda y, t, d: -t.astype(y.dtype), "sign": lambda y, t, d: -d},
    "logistic": {"label forgotten": lambda y, t, d: jnp.abs(d)},
    "binary_cross_entropy": {"p − t": lambda y, t, d: y - t.astype(y.dtype)},
    "sigmoid_binary_cross_entropy": {"z − t": lambda y, t, d: y - t.astype(y.dtype)},
    "multiclass_hinge": {"right class forgotten": lambda y, t, d: jnp.maximum(d, 0)},
    "cross_entropy": {"one coordinate zeroed": lambda y, t, d: d.at[..., 0].set(0)},
    "softmax_cross_entropy": {
        "softmax for softmax − t": lambda y, t, d: jax.nn.softmax(y),
        "averaged over the batch twice": lambda y, t, d: d / y.shape[0],
    },
    "label_smoothing": {
        "labels as they are": lambda y, t, d: softmax_cross_entropy.delta(y, t),
        "share of the others forgotten": lambda y, t, d: d + 0.25 / y.shape[-1],
        "α for α/K": lambda y, t, d: d - 0.25 + 0.25 / y.shape[-1],
    },
}


def loss_name(case):
    return case.loss.name.split("(")[0]


@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.name)
def test_wrong_loss_is_caught(case):
    """Each wrong δ differs from jax.grad of the value, where the right one does not."""
    with jax.enable_x64(True):
        prediction, target = case.make(jax.random.key(0), jnp.float64)
        auto = np.asarray(jax.grad(lambda y: case.loss.value(y, target).sum())(prediction))
        right = case.loss.delta(prediction, target)
        close(np.asarray(right), auto, FLOAT64, "δ")
        for wrong in WRONG_DELTAS[loss_name(case)].values():
            delta = np.asarray(wrong(prediction, target, right))
            with pytest.raises(AssertionError, match="δ"):
                close(delta, auto, FLOAT64, "δ")


def test_every_loss_has_a_wrong_one():
    assert {loss_name(case) for case in LOSS_CASES} == set(WRONG_DELTAS)


def test_mutants_are_many():
    assert len(MUTANTS) >= 25


def test_swapping_twins_finds_the_wrong_layer():
    """With its twin in the place of one leaf at a time, the gradient is right only where the wrong rule was."""
    wrong = dense(4)
    wrong = wrong._replace(backward=lambda p, x, d: (d @ p["w"].T, {"w": x.T @ d, "b": jnp.zeros_like(p["b"])}))
    net = serial(mlp([4, 4], tanh), tanh, residual(wrong), dense(2))
    paths = ["/".join(path) for path, _ in leaf_layers(net)]
    with jax.enable_x64(True):
        params, state = net.init(jax.random.key(0), (3,), jnp.float64)
        x, target = jnp.cos(jnp.arange(15.0)).reshape(5, 3), jnp.ones((5, 2))
        expected = autodiff(net, mse)(params, state, x, target).grads

        def mended(i):
            count = itertools.count()
            swapped = map_layers(lambda layer: autodiff_twin(layer) if next(count) == i else layer, net)
            grads = backprop(swapped, mse)(params, state, x, target).grads
            return all(jnp.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (grads, expected)), strict=True))

        assert [path for i, path in enumerate(paths) if mended(i)] == ["residual_0"]
