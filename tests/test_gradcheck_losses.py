"""The verdicts on the losses: every δ is right in three precisions, and wrong when it is off by little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import LOSS_CASES

from jaxnn.gradcheck.checking import verdicts
from jaxnn.gradcheck.programs import Problem

DTYPES = [  # each is a dozen programs of a loss
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.long),
    pytest.param("float64", marks=pytest.mark.long),
]


def verdict(loss, case, dtype):
    with jax.enable_x64(dtype == "float64"):
        y, target = case.make(jax.random.key(0), jnp.dtype(dtype))
        values = jax.eval_shape(loss.value, y, target)  # at least float32
        weights = jnp.asarray(np.random.default_rng(1).normal(size=values.shape), values.dtype)
        problem = Problem(
            place="loss",
            kind="loss",
            names=("prediction",),
            value=lambda leaves, target: [loss.value(leaves[0], target)],
            rule=lambda leaves, target, deltas: [loss.delta(leaves[0], target) * deltas[0][:, None].astype(dtype)],
            leaves=[y],
            fixed=target,
            deltas=[weights],
        )
        ((row,),) = verdicts([problem])
        return row.verdict


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.name)
def test_every_delta_is_right(case, dtype):
    assert verdict(case.loss, case, dtype) == "right"


def one_forgotten(delta):
    return delta.at[jnp.unravel_index(jnp.argmax(jnp.abs(delta)), delta.shape)].set(0)


FAULTS = {
    "a thousandth too large": lambda delta: delta * delta.dtype.type(1.001),
    "of the other sign": lambda delta: -delta,
    "one entry forgotten": one_forgotten,
    "divided by the features": lambda delta: delta / delta.shape[-1],
}


QUICK_FAULT = "a thousandth too large"  # the smallest one


@pytest.mark.parametrize("fault", [
    pytest.param(fault, marks=() if fault == QUICK_FAULT else pytest.mark.long) for fault in FAULTS
])  # fmt: skip
@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.name)
def test_every_wrong_delta_is_wrong(case, fault):
    wrong = case.loss._replace(delta=lambda y, t: FAULTS[fault](case.loss.delta(y, t)))
    assert verdict(wrong, case, "float32") == "wrong"
