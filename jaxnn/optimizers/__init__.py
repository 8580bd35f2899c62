"""Rules for descending: gradients in, updates out.

An optimizer is a record of its settings with two pure methods that follow optax's protocol: either library's work in
the other.

    init(params) -> opt_state
    update(grads, opt_state, params=None) -> updates, opt_state
    apply_updates(params, updates) -> params

    gradient_descent  −ηg                        sgd      −ηv, v the sum of decaying gradients
    adagrad           −ηg/√(sum of g²)           rmsprop  −ηg/√(running mean of g²)
    adam              −ηŝ/√r̂, running means      adamw    the same, and weights decay beside it
    clip_by_global_norm, clip_by_value           gradients of bounded length
    chain             one rule after another     accumulate   one update for several batches' mean gradient
    ema               the running mean of the parameters themselves

The learning rate η is a number, or a schedule `step -> rate` that is first asked with step 0. The state of every
rule that has one shows `step`, the number of updates so far, and `learning_rate`. Where η is a number, the next
update uses what stands there: set it to another array, traced or under `vmap`, and nothing compiles anew. Where η
is a schedule, it shows the rate of the last update (after `init`: of the first). A negative η is refused where it is
given, and turns updates into NaN where it stands in the state or comes from a schedule.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnn import sgd
    >>> optimizer = sgd(0.1)
    >>> opt_state = optimizer.init(jnp.array([1.0, 2.0]))
    >>> opt_state = opt_state._replace(learning_rate=jnp.float32(0.5))
    >>> print(optimizer.update(jnp.array([1.0, -1.0]), opt_state)[0])
    [-0.5  0.5]

Arithmetic and memories are in at least float32, whatever the parameters are; updates have the parameters'
dtype. In float32, g² of |g| > 1e19 is infinite, and the rules that divide by its root stand still there: clip
where such gradients come.

Settings are numbers, constants of what is compiled, or JAX scalars, inputs of it: `jax.vmap` of a function that makes
an optimizer sweeps over any of them, and `jax.grad` differentiates by it.

    >>> print(jax.vmap(lambda rate: sgd(rate).update(1.0, sgd(rate).init(0.0))[0])(jnp.array([0.25, 0.5])))
    [-0.25 -0.5 ]

Letters: θ parameters, g gradient, η learning rate, t the number of updates with this one.
"""
