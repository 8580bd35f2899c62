"""Neural networks as pure functions in JAX, with every gradient derived twice: by hand and by `jax.grad`.

The names here are the ones a script needs; the rest is reached by its module: `jaxnn.losses.mse`,
`jaxnn.initializers`, `jaxnn.schedules`, `jaxnn.metrics`, `jaxnn.data`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxnn import (
    augment,
    data,
    diagnostics,
    factors,
    initializers,
    losses,
    metrics,
    networks,
    passes,
    penalties,
    plots,
    schedules,
    stopping,
)
from jaxnn.activations import elu, gelu, identity, leaky_relu, relu, sigmoid, silu, softplus, tanh
from jaxnn.backprop import as_custom_vjp, autodiff, backprop
from jaxnn.combinators import (
    bidirectional,
    leaf_layers,
    map_layers,
    mlp,
    named,
    ordered_leaves,
    parallel,
    repeat,
    residual,
    serial,
    share,
)
from jaxnn.descriptions import describe, from_description
from jaxnn.divergence import DivergenceError, Interrupted
from jaxnn.layers import (
    activation,
    avg_pool,
    batch_norm,
    conv,
    dense,
    dropout,
    embedding,
    flatten,
    global_avg_pool,
    global_max_pool,
    group_norm,
    layer_norm,
    max_pool,
    reshape,
    rms_norm,
    softmax,
    upsample,
)
from jaxnn.layers.recurrent import Sequences, gru, gru_step, lstm, lstm_step, rnn, rnn_step
from jaxnn.optimizers import (
    accumulate,
    adagrad,
    adam,
    adamw,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    ema,
    gradient_descent,
    rmsprop,
    sgd,
)
from jaxnn.steps import EpochResult, init_train_state, train_epoch, train_step
from jaxnn.summary import summary
from jaxnn.training import evaluate, fit, predict
from jaxnn.twins import autodiff_twin
from jaxnn.types import Activation, Fit, Layer, Loss, Optimizer, Pass, Penalty, Reading, TrainState
from jaxnn.wrapping import with_rules

if TYPE_CHECKING:
    from jaxnn import gradcheck, graph

__all__ = [
    # records
    "Layer", "Activation", "Loss", "Penalty", "Optimizer", "Reading", "Pass", "TrainState", "Fit", "EpochResult",
    # layers
    "dense", "activation", "flatten", "reshape", "softmax", "batch_norm", "layer_norm", "group_norm", "rms_norm",
    "dropout", "conv", "max_pool", "avg_pool", "global_max_pool", "global_avg_pool", "upsample", "embedding",
    "rnn", "gru", "lstm", "rnn_step", "gru_step", "lstm_step", "Sequences", "bidirectional",
    # activations
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "silu", "gelu", "identity",
    # combinators
    "serial", "mlp", "named", "residual", "parallel", "repeat", "share", "map_layers", "leaf_layers", "ordered_leaves",
    "with_rules",
    # gradients
    "backprop", "autodiff", "autodiff_twin", "as_custom_vjp",
    # optimizers
    "gradient_descent", "sgd", "adagrad", "rmsprop", "adam", "adamw", "clip_by_global_norm", "clip_by_value", "chain",
    "accumulate", "ema", "apply_updates",
    # training
    "train_step", "train_epoch", "init_train_state", "fit", "evaluate", "predict", "DivergenceError", "Interrupted",
    # seeing
    "summary", "describe", "from_description",
    # modules
    "augment", "data", "diagnostics", "factors", "gradcheck", "graph", "initializers", "losses", "metrics", "networks",
    "passes", "penalties", "plots", "schedules", "stopping",
]  # fmt: skip

_WHEN_USED = {"gradcheck", "graph"}  # they read jaxprs with jax.extend, whose import alone takes 60 ms


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    if name in _WHEN_USED:
        return importlib.import_module(f"jaxnn.{name}")
    raise AttributeError(f"module 'jaxnn' has no attribute {name!r}")
