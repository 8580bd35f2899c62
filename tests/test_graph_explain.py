"""explain_nonfinite on whole networks, several origins at once, branches, cotangents and what it refuses.

The table of known causes and of what looks like them is in `test_nonfinite`.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import dense, graph, losses, relu, serial
from jaxnn.graph.nonfinite import causes

F = np.float32
explain = functools.partial(graph.explain_nonfinite, whole=False)  # no case here hangs on how it is compiled


def where_log(p):  # an entropy with its zeros left out, after the fact
    logs = jnp.log(p)  # HERE
    return -jnp.where(p > 0, p * logs, 0.0).sum()


def naive_softmax(x):  # exp of large logits
    e = jnp.exp(x)  # HERE
    return (e / e.sum())[0]


def marked(f):
    """The line of f that ends in # HERE."""
    lines, start = inspect.getsourcelines(f)
    (offset,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# HERE"))
    return start + offset


def test_a_network_whose_input_is_not_finite():
    net = serial(dense(4), relu, dense(2))
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), (3,)))
    params = jax.tree.map(lambda p: jax.device_put(np.random.default_rng(0).normal(size=p.shape).astype(F)), params)
    x = np.ones((5, 3), F)
    x[2, 1] = np.nan

    def cost(params, x):
        return losses.softmax_cross_entropy.value(net.forward(params, state, x)[0], np.zeros(5, np.int32)).mean()

    why = explain(cost)(params, x)
    assert (why.cause, why.element, why.operation) == (causes.GIVEN, (2, 1), "")
    assert "x contains 1 of 15 entries, first NaN" in why.detail
    assert why.group[0] == "dense_0"


def test_what_infinity_became_and_other_origins():
    why = explain(naive_softmax)(jnp.array([100.0, 1.0]))
    assert why.then.startswith("∞/∞ in div at ")
    assert why.cause == causes.SOFTMAX
    assert "exp of 100" in why.detail
    assert "the largest float32 is 3.403e+38" in why.detail

    def two(x):
        return jnp.log(x).sum() + jnp.sqrt(x - 1.0).sum()

    both = explain(two)(jnp.zeros(2))
    assert (both.operation, both.reached, both.then) == ("log", ("the value",), "")
    assert [other.split(" at ")[0] for other in both.others] == ["sqrt"]
    pair = explain(lambda x, y: (jnp.sqrt(x) + jnp.sqrt(y)).sum())(jnp.zeros(2), jnp.zeros(2))
    assert pair.reached == ("the gradient of x", "the gradient of y")
    assert len(pair.others) == 1


def test_a_factor_that_is_infinite_is_traced_to_what_made_it():
    why = explain(where_log)(jnp.array([0.0, 0.5]))
    assert (why.operation, why.cause) == ("log", causes.WHERE)
    assert f"{__file__}:{marked(where_log)} " in why.source
    assert why.then.startswith(f"mul at {__file__}:{marked(where_log) + 1} ")
    assert why.hidden.startswith(f"where at {__file__}:{marked(where_log) + 1} ")


def test_a_mask_by_a_product_is_named_in_the_fix():
    why = explain(lambda x: ((x > 0).astype(x.dtype) * jnp.log(x)).sum())(jnp.zeros(2))
    assert why.cause == causes.LOG
    assert why.then.startswith(causes.ZERO_TIMES_INFINITY)
    assert causes.REWRITES[causes.MASKED] in why.rewrite


def test_a_mask_by_log_is_no_origin():
    def masked(scores, mask, x):  # log(0) = −∞ on purpose, and NaN from elsewhere
        return jax.nn.softmax(scores + jnp.log(jax.lax.stop_gradient(mask))).sum() + jnp.sqrt(x)

    assert explain(masked)(jnp.ones(3), jnp.array([1.0, 0, 1]), 4.0).finite
    why = explain(masked)(jnp.ones(3), jnp.array([1.0, 0, 1]), -4.0)
    assert (why.operation, why.cause, why.others) == ("sqrt", causes.ROOT_NEGATIVE, ())
    padding = explain(masked)(jnp.ones(3), jnp.zeros(3), 4.0)
    assert padding.cause == causes.LOG
    assert padding.then.startswith(causes.ALL_MASKED)


def test_a_carry_that_begins_at_infinity_is_no_origin():
    def greatest_root(x):
        return jax.lax.scan(lambda m, t: (jnp.maximum(m, jnp.sqrt(t)), m), -jnp.inf, x)[0]

    why = explain(greatest_root)(jnp.array([1.0, 4.0, -1.0, 9.0]))
    assert (why.cause, why.steps, why.numbers) == (causes.ROOT_NEGATIVE, ("scan step 2",), "x = -1, z = nan")


def test_a_bad_cotangent_and_a_sum_that_overflows():
    why = explain(jnp.sin, cotangent=jnp.array([1.0, jnp.nan]))(jnp.ones(2))
    assert (why.cause, why.direction) == (causes.COTANGENT, "backward")
    half = jnp.float16(4e4)
    why = explain(lambda x: x * half + x * half)(jnp.float16(0.0))
    assert (why.cause, why.direction) == (causes.HALF, "backward")


def test_arrays_and_branches():
    def branch(x):
        return jax.lax.cond(x > 0, jnp.log, lambda x: jnp.log(x * 0.0), x)

    why = explain(branch)(jnp.float32(-1.0))
    assert (why.cause, why.steps) == (causes.LOG, ("branch 0",))
    assert why.group == ()
    several = explain(lambda x: {"a": x, "b": jnp.log(x)})(jnp.zeros((2, 2)))
    assert (several.cause, several.element) == (causes.LOG, (0, 0))


def test_it_refuses_what_is_no_array():
    with pytest.raises(TypeError, match="name is not an array"):
        explain(lambda x, name: x)(1.0, "w")
