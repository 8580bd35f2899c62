"""Rules for descending: gradients in, updates out.

An optimizer is a pair of pure functions that follow optax's protocol: either library's work in the other.

    init(params) -> opt_state
    update(grads, opt_state, params=None) -> updates, opt_state
    apply_updates(params, updates) -> params

The learning rate η is a number, or a schedule `step -> rate` that is first asked with step 0. Every state
shows `step`, the number of updates so far, and `learning_rate`. Where η is a number, the next update uses
what stands there: set it to another array, traced or under `vmap`, and nothing compiles anew. Where η is a
schedule, it shows the rate of the last update (after `init`: of the first). A negative η is refused where it is
given, and turns updates into NaN where it stands in the state or comes from a schedule.

    >>> import jax, jax.numpy as jnp
    >>> optimizer = sgd(0.1)
    >>> opt_state = optimizer.init(jnp.array([1.0, 2.0]))
    >>> opt_state = opt_state._replace(learning_rate=jnp.float32(0.5))
    >>> print(optimizer.update(jnp.array([1.0, -1.0]), opt_state)[0])
    [-0.5  0.5]

Arithmetic and memories are in at least float32, whatever the parameters are; updates have the parameters'
dtype. Equal calls give equal optimizers, and those that differ in a number η alone share their `update`
(compiled programs are cached by the identity of such functions).

Letters: θ parameters, g gradient, η learning rate, t the number of updates with this one.
"""

from jaxnn.optimizers.adaptive import AdamState, adam
from jaxnn.optimizers.descent import SgdState, gradient_descent, sgd
from jaxnn.optimizers.parts import apply_updates

__all__ = ["SgdState", "AdamState", "gradient_descent", "sgd", "adam", "apply_updates"]
