"""Optimizers: gradients in, updates out.

An optimizer is a record of its settings with two pure methods that follow optax's protocol: optax's optimizers work
here, and these work there.

    init(params) -> opt_state
    update(grads, opt_state, params=None) -> updates, opt_state
    apply_updates(params, updates) -> params

    gradient_descent  −ηg                        sgd      −ηv, v the sum of decaying gradients
    adagrad           −ηg/√(sum of g²)           rmsprop  −ηg/√(running mean of g²)
    adam              −ηŝ/√r̂, running means      adamw    the same, and weights decay beside it
    clip_by_global_norm, clip_by_value           gradients of bounded size
    chain             one rule after another     accumulate   one update for several batches' mean gradient
    loss_scaling      gradients in float16 of a scaled loss
    ema               the running mean of the parameters themselves

The learning rate η is a number, or a schedule `step -> rate` that is first called with step 0; everything behind it is
given by keyword. The state of every rule with a learning rate has the fields `step`, the number of updates so far, and
`learning_rate`. If η is a number, the next update uses this field: replace it by another array, traced or under
`vmap`, and nothing is compiled again. If η is a schedule, the field holds the rate of the last update (after `init`: of
the first). A negative η raises an error if it is an argument, and turns updates into NaN if it is in the state or comes
from a schedule.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnn import sgd
    >>> optimizer = sgd(0.1)
    >>> opt_state = optimizer.init(jnp.array([1.0, 2.0]))
    >>> opt_state = opt_state._replace(learning_rate=jnp.float32(0.5))
    >>> print(optimizer.update(jnp.array([1.0, -1.0]), opt_state)[0])
    [-0.5  0.5]

Arithmetic and running means are in at least float32, whatever the dtype of the parameters; updates have the parameters'
dtype. In float32, g² is infinite for |g| > 1e19, and rules that divide by its root do not move: clip such gradients.

A setting is a number, which is a constant of the compiled program, or a JAX scalar, which is an input of it: `jax.vmap`
of a function that makes an optimizer sweeps over any setting, and `jax.grad` differentiates with respect to it.

    >>> print(jax.vmap(lambda rate: sgd(rate).update(1.0, sgd(rate).init(0.0))[0])(jnp.array([0.25, 0.5])))
    [-0.25 -0.5 ]

Letters: θ parameters, g gradient, η learning rate, t the number of updates with this one.
"""
