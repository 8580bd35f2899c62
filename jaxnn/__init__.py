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
    placement,
    plots,
    schedules,
    stopping,
)
from jaxnn.activations import elu, gelu, identity, leaky_relu, relu, sigmoid, silu, softplus, tanh
from jaxnn.combinators.branches import parallel, residual
from jaxnn.combinators.directions import bidirectional
from jaxnn.combinators.naming import named
from jaxnn.combinators.precision import low_precision
from jaxnn.combinators.sequence import mlp, repeat, serial, share
from jaxnn.combinators.walk import leaf_layers, map_layers, ordered_leaves
from jaxnn.descriptions import describe, from_description
from jaxnn.layers.activation import activation
from jaxnn.layers.convolution.conv import conv
from jaxnn.layers.convolution.pooling import avg_pool, global_avg_pool, global_max_pool, max_pool, upsample
from jaxnn.layers.dense import dense
from jaxnn.layers.dropout import dropout
from jaxnn.layers.embedding import embedding
from jaxnn.layers.norm.batch import batch_norm
from jaxnn.layers.norm.features import group_norm, layer_norm, rms_norm
from jaxnn.layers.recurrent.elman import rnn, rnn_step
from jaxnn.layers.recurrent.gru import gru, gru_step
from jaxnn.layers.recurrent.lstm import lstm, lstm_step
from jaxnn.layers.reshape import flatten, reshape
from jaxnn.layers.softmax import softmax
from jaxnn.optimizers.adaptive import adagrad, adam, adamw, rmsprop
from jaxnn.optimizers.averages import ema
from jaxnn.optimizers.descent import gradient_descent, sgd
from jaxnn.optimizers.parts import apply_updates
from jaxnn.optimizers.scaling import loss_scaling
from jaxnn.optimizers.transforms import accumulate, chain, clip_by_global_norm, clip_by_value
from jaxnn.passes.backprop import as_custom_vjp, autodiff, backprop
from jaxnn.sequences import Sequences
from jaxnn.sources import Source
from jaxnn.summaries import summary
from jaxnn.training.divergence import DivergenceError, Interrupted
from jaxnn.training.epochs import train_epoch
from jaxnn.training.evaluation import evaluate, predict
from jaxnn.training.fit import fit
from jaxnn.training.moments import Moment
from jaxnn.training.results import EpochResult
from jaxnn.training.run import run
from jaxnn.training.steps import init_train_state, train_step
from jaxnn.twins import autodiff_twin
from jaxnn.types import Activation, Fit, Layer, Loss, Optimizer, Pass, Penalty, Reading, Run, TrainState
from jaxnn.wrapping import with_rules

if TYPE_CHECKING:
    from jaxnn import checkpoint, gradcheck, graph, processes
    from jaxnn.training.metagradients import Metagradient, metagradient
    from jaxnn.training.replaying import replay
    from jaxnn.training.sweep import sweep
    from jaxnn.training.sweep_results import Sweep

__all__ = [
    # records
    "Layer", "Activation", "Loss", "Penalty", "Optimizer", "Reading", "Pass", "TrainState", "Fit", "Run", "Sweep",
    "Moment", "Metagradient", "EpochResult",
    # layers
    "dense", "activation", "flatten", "reshape", "softmax", "batch_norm", "layer_norm", "group_norm", "rms_norm",
    "dropout", "conv", "max_pool", "avg_pool", "global_max_pool", "global_avg_pool", "upsample", "embedding",
    "rnn", "gru", "lstm", "rnn_step", "gru_step", "lstm_step", "Sequences", "bidirectional",
    # activations
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "silu", "gelu", "identity",
    # combinators
    "serial", "mlp", "named", "residual", "parallel", "repeat", "share", "map_layers", "leaf_layers", "ordered_leaves",
    "with_rules", "low_precision",
    # gradients
    "backprop", "autodiff", "autodiff_twin", "as_custom_vjp",
    # optimizers
    "gradient_descent", "sgd", "adagrad", "rmsprop", "adam", "adamw", "clip_by_global_norm", "clip_by_value", "chain",
    "accumulate", "loss_scaling", "ema", "apply_updates",
    # training
    "Source", "train_step", "train_epoch", "init_train_state", "fit", "run", "sweep", "metagradient", "replay",
    "evaluate", "predict", "DivergenceError", "Interrupted",
    # seeing
    "summary", "describe", "from_description",
    # modules
    "augment", "checkpoint", "data", "diagnostics", "factors", "gradcheck", "graph", "initializers", "losses",
    "metrics", "networks", "passes", "penalties", "placement", "plots", "processes", "schedules", "stopping",
]  # fmt: skip

# gradcheck and graph read jaxprs with jax.extend, whose import alone takes 60 ms; few programs need the others at once.
_WHEN_USED = dict.fromkeys(("checkpoint", "gradcheck", "graph", "processes"), "") | {
    "sweep": "training.sweep",
    "Sweep": "training.sweep_results",
    "replay": "training.replaying",
    "metagradient": "training.metagradients",
    "Metagradient": "training.metagradients",
}
__dir__ = __all__.copy


def __getattr__(name: str) -> Any:
    if name not in _WHEN_USED:
        raise AttributeError(f"module 'jaxnn' has no attribute {name!r}")
    home = _WHEN_USED[name]
    module = importlib.import_module(f"jaxnn.{home or name}")
    return getattr(module, name) if home else module
