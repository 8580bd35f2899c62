"""Wrong rules of convolution, pooling and embedding, as (what is wrong, the row of `cases`, rule)."""

import jax.numpy as jnp

from jaxnn.layers.convolution.algorithms import input_gradient, kernel_gradient
from jaxnn.layers.convolution.windows import windows_on

STRIDED, DILATED = "conv, strides that leave inputs over", "conv, dilated, padded by hand"


def on_delta_in(change):
    """The right rule, another δ_in."""

    def backward(layer, params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return change(delta_in), grads

    return backward


def on(name, change):
    """The right rule, another gradient of one parameter."""

    def backward(layer, params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        return delta_in, {**grads, name: change(grads[name], tape, delta)}

    return backward


def delta_in_of(params=lambda w: w, delta=lambda d: d):
    """δ_in of another kernel, or of another δ; the right gradients."""

    def backward(layer, p, tape, d):
        wrong, _ = layer.backward({**p, "w": params(p["w"])}, tape, delta(d))
        return wrong, layer.backward(p, tape, d)[1]

    return backward


def misplaced(windows, part, **change):
    """A part of the rule with windows elsewhere."""

    def backward(layer, params, tape, delta):
        delta_in, grads = layer.backward(params, tape, delta)
        wrong = windows._replace(**change)
        if part == "x":
            return input_gradient(delta, params["w"], wrong), grads
        return delta_in, {**grads, "w": kernel_gradient(tape, delta, wrong)}

    return backward


SAME = windows_on("conv", (4, 5), (3, 3), (1, 1), (1, 1), "same")
STRIDES = windows_on("conv", (6, 7), (3, 2), (2, 3), (1, 1), "valid")
DILATION = windows_on("conv", (4, 5), (2, 3), (1, 1), (2, 2), ((1, 2), (0, 3)))
SHIFTED = ((2, 0), (1, 1))


def every_tap(layer, params, tape, delta):
    """max_pool: δ to all of the window."""
    return jnp.repeat(jnp.repeat(delta, 2, 1), 2, 2), {}


def next_tap(layer, params, tape, delta):
    """max_pool: δ to the tap behind the winner."""
    winner, x = tape
    return layer.backward(params, ((winner + 1) % 4, x), delta)


def overwriting(layer, params, tape, delta):
    """embedding: the last δ of an index, and not the sum."""
    return (), {"w": jnp.zeros_like(params["w"]).at[tape].set(delta)}


MUTANTS = (
    ("conv: kernel not flipped", "conv", delta_in_of(lambda w: jnp.flip(w, (0, 1)))),
    ("conv: kernel flipped on one axis", "conv", delta_in_of(lambda w: jnp.flip(w, 0))),
    ("conv: its gradient flipped", "conv", on("w", lambda w, x, d: jnp.flip(w, (0, 1)))),
    ("conv: padding shifted by one in δ_in", "conv", misplaced(SAME, "x", padding=SHIFTED)),
    ("conv: padding shifted by one in the kernel's gradient", "conv", misplaced(SAME, "w", padding=SHIFTED)),
    ("conv: bias not summed over space", "conv", on("b", lambda b, x, d: d[:, 0, 0].sum(0))),
    ("conv: bias averaged over space", "conv", on("b", lambda b, x, d: d.mean((1, 2)).sum(0))),
    ("conv: one tap forgotten", "conv", on("w", lambda w, x, d: w.at[2, 1].set(0))),
    ("conv: stride forgotten in δ_in", STRIDED, misplaced(STRIDES, "x", stride=(1, 1))),
    ("conv: stride forgotten in the kernel's gradient", STRIDED, misplaced(STRIDES, "w", stride=(1, 1))),
    ("conv: dilation dropped in δ_in", DILATED, misplaced(DILATION, "x", dilation=(1, 1))),
    ("conv: dilation dropped in the kernel's gradient", DILATED, misplaced(DILATION, "w", dilation=(1, 1))),
    ("conv: groups mixed in δ_in", "conv, groups", delta_in_of(delta=lambda d: jnp.roll(d, 2, -1))),
    ("conv: groups mixed in the kernel's gradient", "conv, groups", on("w", lambda w, x, d: jnp.roll(w, 2, -1))),
    ("conv: depthwise, features of one channel swapped", "conv, depthwise over time", on(
        "w", lambda w, x, d: w[..., jnp.array([1, 0, 3, 2])])),
    ("conv: causal, δ of the future", "conv, causal", on_delta_in(lambda d: d[:, ::-1])),
    ("conv: axes of space changed about", "conv, three dimensions", on("w", lambda w, x, d: w.swapaxes(0, 2))),
    ("conv: without its bias, factor 2", "conv, one tap, no bias", on("w", lambda w, x, d: 2 * w)),
    ("max_pool: δ to all of the window", "max_pool", every_tap),
    ("max_pool: the tap behind the winner", "max_pool", next_tap),
    ("max_pool: δ of one window where they overlap", "max_pool, windows that overlap", on_delta_in(
        lambda d: jnp.where(jnp.arange(4)[:, None] % 2 == 0, d, 0))),
    ("max_pool: inputs left over have a share", "max_pool, inputs left over", on_delta_in(
        lambda d: d.at[:, -1].set(d[:, 0]))),
    ("max_pool: padding shifted by one", "max_pool, padded tiles", on_delta_in(lambda d: jnp.roll(d, 1, 1))),
    ("avg_pool: without its 1/m", "avg_pool", on_delta_in(lambda d: 4 * d)),
    ("avg_pool: to the first of the window", "avg_pool", on_delta_in(lambda d: 4 * d.at[:, 1::2].set(0))),
    ("avg_pool: padding counted", "avg_pool, windows that overlap", lambda layer, p, t, d: (
        layer.backward(p, t, d.at[:, 0].multiply(2 / 3))[0], {})),
    ("avg_pool: padding left out", "avg_pool, padding counted", lambda layer, p, t, d: (
        layer.backward(p, t, d.at[:, 0].multiply(3 / 2))[0], {})),
    ("global_max_pool: δ to all", "global_max_pool", lambda layer, p, t, d: (
        jnp.broadcast_to(d[:, None, None], (d.shape[0], *t[1].shape[1:])), {})),
    ("global_avg_pool: without its 1/m", "global_avg_pool", on_delta_in(lambda d: 3 * d)),
    ("upsample: δ of one of its copies", "upsample", lambda layer, p, t, d: (d[:, ::2, ::3], {})),
    ("upsample: averaged for summed", "upsample", on_delta_in(lambda d: d / 6)),
    ("embedding: overwriting instead of adding", "embedding over time", overwriting),
    ("embedding: averaged over the batch", "embedding", on("w", lambda w, x, d: w / 4)),
    ("embedding: another row", "embedding over time", on("w", lambda w, x, d: jnp.roll(w, 1, 0))),
)  # fmt: skip
