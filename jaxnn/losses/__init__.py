"""Losses: a cost per example and its hand-derived δ, each pair in one place.

`value(prediction, target) -> [N]` is Cₙ, in at least float32; `delta(prediction, target)`, shaped like the
prediction, is ∂Cₙ/∂(predictionₙ); `check(prediction, target)` checks the target's values on the host.
`help(losses.mse)` shows formulas, shapes and source.

    loss                          Cₙ                                     δₙ                         target
    mse                           mean (y−t)²                            2(y−t)/D                   numbers
    mae                           mean |y−t|                             sign(y−t)/D                numbers
    huber(d)                      mean q·(e−q/2), q = clip(e, −d, d)     q/D                        numbers
    half_squared_error            ½ Σ (y−t)²                             y−t                        numbers
    hinge                         Σ max(0, 1−t·y)                        −t where t·y < 1, else 0   ±1
    logistic                      Σ log(1+exp(−t·y))                     −t·σ(−t·y)                 ±1
    sigmoid_binary_cross_entropy  Σ max(z,0) − z·t + log1p(exp(−|z|))    σ(z) − t                   in [0, 1]
    binary_cross_entropy          −Σ t·log p + (1−t)·log(1−p)            (1−t)/(1−p) − t/p          in [0, 1]
    multiclass_hinge              Σ_{i≠t} max(0, yᵢ−y_t+1)               aᵢ − [i=t]·Σa              labels
    softmax_cross_entropy         Σ tᵢ·(log Σ exp z − zᵢ)                softmax(z)·Σt − t          classes
    label_smoothing(α)            Σ t′ᵢ·(log Σ exp z − zᵢ)               softmax(z)·Σt − t′         classes
    cross_entropy                 −Σ tᵢ·log pᵢ                           −tᵢ/pᵢ                     classes

Shapes: the first eight compare entry by entry, prediction and target [N], [N, D] or [N, …, D]; mean and Σ run
over D, an axis that [N] lacks. The last four take a prediction [N, K] or [N, …, K] with integer labels [N] or
[N, …] in 0…K−1; "classes" may also be distributions, floats of the prediction's shape. The axes between N and the
last are steps, [N, T, K], or pixels, [N, H, W, K]: over them the mean is taken, always. Images of one value per pixel
are therefore [N, H, W, 1]. A smoothed target is t′ = (1−α)t + α·Σt/K.

`entries(prediction, target) -> [N, …]` is the cost of each step or pixel. It allows weights and masks of steps and
pixels (`backprop`, `fit`); an entry of weight 0 is ignored and may have any label, −100 for instance.

Kinks: |e|′(0) = 0, a hinge at margin 1 has slope 0, and `jax.grad` of a value gives the same there. Probabilities
are clipped at the smallest normal number of their dtype, in value and δ alike: both are finite at p = 0.

A target that cannot be right (a label out of range, 0/1 where ±1 is meant, a negative entry in a distribution)
turns the cost and δ of its example into NaN, unless its weight is 0; so does a prediction outside [0, 1] (logits?)
where probabilities are meant. Shapes and dtypes that do not fit raise ValueError, under `jit` too.

>>> import jax.numpy as jnp
>>> logits, labels = jnp.array([[0.0, 200.0], [1.0, 1.0]]), jnp.array([0, 1])
>>> print(softmax_cross_entropy.value(logits, labels).round(4))
[200.       0.6931]
>>> print(softmax_cross_entropy.delta(logits, labels).round(4))
[[-1.   1. ]
 [ 0.5 -0.5]]

Letters: N batch, T time, D features, K classes; y prediction, p probability, z logit, t target, e = y − t.
"""

from jaxnn.losses.classwise import cross_entropy, label_smoothing, multiclass_hinge, softmax_cross_entropy
from jaxnn.losses.entrywise import (
    binary_cross_entropy,
    half_squared_error,
    hinge,
    huber,
    logistic,
    mae,
    mse,
    sigmoid_binary_cross_entropy,
)

__all__ = [
    "mse",
    "mae",
    "huber",
    "half_squared_error",
    "hinge",
    "logistic",
    "binary_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "multiclass_hinge",
    "cross_entropy",
    "softmax_cross_entropy",
    "label_smoothing",
]
__dir__ = __all__.copy
