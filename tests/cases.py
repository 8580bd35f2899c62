"""One row per layer and combinator: a new layer needs a row here and no test of its own."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from conv_cases import ROWS as CONV_ROWS
from recurrent_cases import COMBINED as COMBINED_RECURRENT
from recurrent_cases import LAYERS as RECURRENT

import jaxnn
from jaxnn import (
    Layer,
    batch_norm,
    dense,
    dropout,
    flatten,
    group_norm,
    layer_norm,
    low_precision,
    mlp,
    named,
    parallel,
    repeat,
    reshape,
    residual,
    rms_norm,
    serial,
    share,
    softmax,
)
from jaxnn import activations as act


class Case(NamedTuple):
    """A layer under test.

    Attributes:
        name: of the row.
        make: () -> Layer.
        in_shape: of one example; a jax.ShapeDtypeStruct where it is of whole numbers, which are drawn below 3.
        combinator: True for a combinator, whose own rule needs mutants of its own.
        train: whether it is held to the laws in training.
        seed: of the random key it is given; None for a layer that draws nothing.
    """

    name: str
    make: Callable[[], Layer]
    in_shape: tuple[int, ...] | jax.ShapeDtypeStruct
    combinator: bool = False
    train: bool = False
    seed: int | None = None

    @property
    def rng(self):
        return None if self.seed is None else jax.random.key(self.seed)

    def inputs(self, seed, n, dtype):
        """Signed inputs, a tenth away from the kinks at 0."""
        draw = np.random.default_rng(seed)  # not jax.random, which would compile for every shape
        if isinstance(self.in_shape, jax.ShapeDtypeStruct):
            return np.asarray(draw.integers(0, 3, (n, *self.in_shape.shape)), self.in_shape.dtype)
        x = draw.normal(size=(n, *self.in_shape))
        return np.asarray(x + 0.1 * np.sign(x), dtype)


ACTIVATIONS = {
    "sigmoid": act.sigmoid,
    "tanh": act.tanh,
    "relu": act.relu,
    "leaky_relu": act.leaky_relu(0.1),
    "elu": act.elu,
    "softplus": act.softplus,
    "silu": act.silu,
    "gelu": act.gelu,
    "identity": act.identity,
}


def _block():
    return serial(dense(4), act.tanh)


def _normed():
    # no bias: batch norm takes it out again, and its gradient is nothing but rounding
    return serial(dense(4, bias=False), batch_norm(), act.tanh)


def _mixed():
    return serial(residual(batch_norm()), parallel(layer_norm(), dropout(0.3)), act.tanh)


LEAVES = (
    Case("dense", lambda: dense(4), (3,)),
    Case("dense, narrow after wide", lambda: dense(2), (40,)),
    Case("dense, square", lambda: dense(3), (3,)),
    Case("dense, no bias", lambda: dense(4, bias=False), (3,)),
    Case("dense, one in, one out", lambda: dense(1), (1,)),
    Case("dense over time", lambda: dense(4), (2, 3)),
    Case("flatten", flatten, (2, 3)),
    Case("flatten, no features", flatten, ()),
    Case("reshape", lambda: reshape(3, 2), (2, 3)),
    Case("reshape, one size open", lambda: reshape(-1, 2), (6,)),
    Case("softmax", softmax, (4,)),
    Case("softmax over time", softmax, (2, 3)),
    Case("batch_norm", batch_norm, (3,), train=True),
    Case("batch_norm over time", batch_norm, (2, 3), train=True),
    Case("batch_norm, evaluated", batch_norm, (2, 3)),
    Case("layer_norm", layer_norm, (5,)),
    Case("layer_norm over time", layer_norm, (2, 3), train=True),
    Case("group_norm", lambda: group_norm(2), (6,)),
    Case("group_norm over time", lambda: group_norm(2), (3, 4), train=True),
    Case("group_norm of each feature", lambda: group_norm(2), (2, 2, 2)),
    Case("rms_norm", rms_norm, (5,)),
    Case("rms_norm over time", rms_norm, (2, 3), train=True),
    Case("dropout", lambda: dropout(0.4), (2, 5), train=True, seed=0),
    Case("dropout, evaluated", lambda: dropout(0.4), (5,)),
    *(Case(name, make, in_shape) for name, (make, in_shape) in CONV_ROWS.items()),
    *(Case(name, make, in_shape) for name, (make, in_shape) in RECURRENT.items()),
    *(Case(name, lambda record=record: jaxnn.activation(record), (5,)) for name, record in ACTIVATIONS.items()),
)


def _rounded():
    # In the laws' own precision, where nothing is rounded: bfloat16 is in test_precision.py.
    return low_precision(serial(dense(4), layer_norm(), residual(_block()), share(repeat(_block(), 2), 2)), "float64")


COMBINATORS = (
    Case("serial", lambda: serial(dense(4), act.tanh, dense(2)), (3,), True),
    Case("serial of nothing", serial, (3,), True),
    Case("mlp", lambda: mlp([4, 4, 2]), (3,), True),
    Case("mlp, sigmoid", lambda: mlp([4, 2], act.sigmoid), (3,), True),
    Case("mlp, one layer", lambda: mlp([2]), (3,), True),
    Case("named", lambda: serial(named("encoder", mlp([3])), named("out", dense(2))), (3,), True),
    Case("residual", lambda: residual(mlp([4, 3], act.tanh)), (3,), True),
    Case("residual, skip", lambda: residual(mlp([4, 2], act.tanh), skip=dense(2)), (3,), True),
    Case("residual, skip without parameters", lambda: residual(mlp([4, 3]), skip=act.tanh), (3,), True),
    Case("parallel", lambda: parallel(dense(2), act.tanh, mlp([3, 1])), (3,), True),
    Case("parallel, sum", lambda: parallel(dense(3), act.tanh, mlp([2, 3]), join="sum"), (3,), True),
    Case("low_precision", _rounded, (3,), True),
    Case("low_precision of a norm", lambda: repeat(low_precision(_normed(), "float64"), 2), (4,), True, True),
    Case("repeat", lambda: repeat(_block(), 3), (4,), True),
    Case("repeat, once", lambda: repeat(_block(), 1), (4,), True),
    Case("share", lambda: share(_block(), 3), (4,), True),
    Case("repeat of share", lambda: repeat(share(residual(_block()), 2), 2), (4,), True),
    Case("share of repeat", lambda: share(repeat(_block(), 2), 2), (4,), True),
    Case("repeat of batch_norm", lambda: repeat(_normed(), 2), (4,), True, True),
    Case("share of batch_norm", lambda: share(_normed(), 2), (4,), True, True),
    *(Case(name, make, in_shape, True) for name, (make, in_shape) in COMBINED_RECURRENT.items()),
    Case("norms and dropout", _mixed, (3,), True, True, 3),
    Case("norms and dropout, evaluated", _mixed, (3,), True),
    Case(
        "everything",
        lambda: serial(
            flatten(),
            parallel(dense(2), named("b", mlp([3, 2], act.sigmoid))),
            residual(repeat(_block(), 2)),
            residual(dense(3), skip=dense(3)),
            share(act.silu, 2),
            softmax(),
        ),
        (2, 2),
        True,
    ),
)

CASES = LEAVES + COMBINATORS
