"""Functions with custom rules somewhere inside, each right or with one fault: `CASES[name](wrong) -> Case`."""

import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CASES = {}


class Case(NamedTuple):
    """A function that runs a rule, its arguments, and the name of the rule that may be wrong."""

    f: Any
    args: tuple[Any, ...]
    rule: str
    x64: bool = False


def case(name):
    def add(make):
        CASES[name] = make
        return make

    return add


def numbers(*shape, dtype=np.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) + 0.1, dtype)


def square_rule(factor):
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, delta: (factor * x * delta,))
    return square


def cube_jvp(factor):
    @jax.custom_jvp
    def cube(x):
        return x**3

    @cube.defjvp
    def cube_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        return x**3, factor * x * x * t

    return cube


# ---------------------------------------------------------------- places


@case("in the body of a scan")
def _(wrong):
    square = square_rule(2.5 if wrong else 2.0)

    def f(w, xs):
        return jax.lax.scan(lambda c, x: (jnp.tanh(square(w * c + x)), c), jnp.float32(0.3), xs)[0]

    return Case(jax.jit(jax.grad(f)), (jnp.float32(0.7), numbers(5)), "square")


@case("behind jit and vmap, a dropped term")
def _(wrong):
    @jax.custom_vjp
    def product(x, y):
        return jnp.sum(x * y) * x[0]

    def backward(kept, delta):
        x, y = kept
        dx = y * x[0] * delta
        return (dx if wrong else dx.at[0].add(jnp.sum(x * y) * delta)), x * x[0] * delta

    product.defvjp(lambda x, y: (product(x, y), (x, y)), backward)
    return Case(jax.jit(jax.vmap(jax.jit(product))), (numbers(4, 3), numbers(4, 3, seed=1)), "product")


@case("in float16")
def _(wrong):
    square = square_rule(2.125 if wrong else 2.0)
    return Case(lambda x: square(x).sum(), (numbers(6, dtype=np.float16),), "square")


@case("in bfloat16, in a gradient")
def _(wrong):
    square = square_rule(2.125 if wrong else 2.0)
    return Case(jax.grad(lambda x: square(x).sum()), (numbers(6, dtype=jnp.bfloat16),), "square")


@case("in float64")
def _(wrong):
    square = square_rule(2 + 1e-6 if wrong else 2.0)
    return Case(lambda x: square(x).sum(), (np.random.default_rng(0).standard_normal(4),), "square", x64=True)


@case("nondiff_argnums of a custom_vjp")
def _(wrong):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2))
    def power(n, x, name):
        return x**n

    power.defvjp(
        lambda n, x, name: (x**n, x),
        lambda n, name, x, delta: ((n + (1 if wrong else 0)) * x ** (n - 1) * delta,),
    )
    return Case(jax.jit(lambda x: power(3, x, "cube").sum() + power(2, x, "square").sum()), (numbers(4),), "power")


@case("nondiff_argnums of a custom_jvp, a function among them")
def _(wrong):
    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def applied(g, x):
        return g(x) * x

    @applied.defjvp
    def applied_jvp(g, primals, tangents):
        (x,), (t,) = primals, tangents
        slope = jax.jvp(g, (x,), (t,))[1]
        return g(x) * x, slope * x + (0 if wrong else g(x) * t)

    return Case(jax.grad(lambda x: applied(jnp.sin, x).sum()), (numbers(4),), "applied")


@case("pytrees")
def _(wrong):
    @jax.custom_vjp
    def linear(params, batch):
        return {"out": batch["x"] @ params["w"] + params["b"]}

    def backward(kept, delta):
        params, batch = kept
        d = delta["out"]
        grads = {"w": batch["x"].T @ d, "b": d.mean(0) if wrong else d.sum(0)}
        return grads, {"x": d @ params["w"].T}

    linear.defvjp(lambda params, batch: (linear(params, batch), (params, batch)), backward)
    params = {"w": numbers(3, 2), "b": numbers(2)}
    return Case(jax.jit(lambda p, x: linear(p, {"x": x})["out"].sum()), (params, numbers(4, 3)), "linear")


@case("None among the arguments")
def _(wrong):
    @jax.custom_vjp
    def masked(x, mask, bias):
        y = x * x if mask is None else x * x * mask
        return y if bias is None else y + bias

    def backward(kept, delta):
        x, mask = kept
        d = (1 if wrong else 2) * x * delta
        return (d if mask is None else d * mask), None, None

    masked.defvjp(lambda x, mask, bias: (masked(x, mask, bias), (x, mask)), backward)
    return Case(lambda x: (masked(x, None, None) + masked(x, x > 0, None)).sum(), (numbers(4),), "masked")


@case("in a training step")
def _(wrong):
    @jax.custom_vjp
    def cross_entropy(logits, labels):
        return -jax.nn.log_softmax(logits)[jnp.arange(labels.shape[0]), labels].mean()

    def backward(kept, delta):
        logits, labels = kept
        d = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
        return (d * delta / (1 if wrong else labels.shape[0])), None

    cross_entropy.defvjp(lambda z, y: (cross_entropy(z, y), (z, y)), backward)

    @jax.jit
    def step(params, x, y):
        loss, grads = jax.value_and_grad(lambda p: cross_entropy(jnp.tanh(x @ p), y))(params)
        return params - 0.1 * grads, loss

    return Case(step, (numbers(3, 4), numbers(5, 3), np.array([0, 1, 2, 3, 0])), "cross_entropy")


@case("in a branch of cond")
def _(wrong):
    square = square_rule(1.0 if wrong else 2.0)
    return Case(jax.jit(lambda x: jax.lax.cond(x > 0, square, jnp.sin, x)), (jnp.float32(0.7),), "square")


@case("in a branch of cond that is not taken")
def _(wrong):
    square = square_rule(1.0 if wrong else 2.0)
    return Case(jax.jit(lambda x: jax.lax.cond(x < 0, square, jnp.sin, x)), (jnp.float32(0.7),), "square")


@case("in a branch of switch, in grad")
def _(wrong):
    cube = cube_jvp(2.0 if wrong else 3.0)

    def f(x, i):
        return jax.lax.switch(i, [jnp.sin, cube, jnp.cos], x).sum()

    return Case(jax.jit(jax.grad(f)), (numbers(3), 1), "cube")


@case("in a while loop")
def _(wrong):
    square = square_rule(-2.0 if wrong else 2.0)

    def f(x):
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(square(c[1]))), (0, x))[1]

    return Case(jax.jit(f), (numbers(3),), "square")


@case("in a fori_loop")
def _(wrong):
    square = square_rule(2.2 if wrong else 2.0)
    return Case(lambda x: jax.lax.fori_loop(0, 4, lambda i, c: jnp.sin(square(c)), x), (numbers(3),), "square")


@case("within another rule, which is right")
def _(wrong):
    square = square_rule(3.0 if wrong else 2.0)

    @jax.custom_vjp
    def fourth(x):
        return square(x) ** 2

    fourth.defvjp(lambda x: (fourth(x), x), lambda x, delta: (4 * x**3 * delta,))
    return Case(jax.grad(lambda x: fourth(x).sum()), (numbers(4),), "square")


@case("around another rule, which is right")
def _(wrong):
    square = square_rule(2.0)

    @jax.custom_vjp
    def fourth(x):
        return square(x) ** 2

    fourth.defvjp(lambda x: (fourth(x), x), lambda x, delta: ((3 if wrong else 4) * x**3 * delta,))
    return Case(lambda x: fourth(x).sum(), (numbers(4),), "fourth")


@case("in the backward of another rule alone")
def _(wrong):
    cube = cube_jvp(1.0 if wrong else 3.0)

    @jax.custom_vjp
    def fourth(x):
        return x**4

    fourth.defvjp(lambda x: (x**4, x), lambda x, delta: (4 * cube(x) * delta,))
    return Case(jax.jit(lambda x: fourth(x).sum()), (numbers(4),), "cube")


@case("under checkpoint, in a scan, in a gradient")
def _(wrong):
    square = square_rule(2.5 if wrong else 2.0)

    def f(x):
        body = jax.checkpoint(lambda c, _: (jnp.sin(square(c)), None))
        return jax.lax.scan(body, x, None, length=3)[0].sum()

    return Case(jax.jit(jax.grad(f)), (numbers(3),), "square")


LIBRARY = """
import jax, jax.numpy as jnp
def make(sign):
    @jax.custom_jvp
    def softplus(x): return jnp.logaddexp(x, 0.0)
    softplus.defjvps(lambda t, out, x: t * jax.nn.sigmoid(sign * x))
    return jax.jit(lambda x: softplus(x).mean())
"""


@case("in a library")
def _(wrong):
    library = types.ModuleType("library")
    exec(compile(LIBRARY, "/site-packages/library/losses.py", "exec"), vars(library))
    return Case(vars(library)["make"](-1 if wrong else 1), (numbers(5),), "softplus")


@case("with vmap of the gradient")
def _(wrong):
    square = square_rule(2.5 if wrong else 2.0)

    def f(w, x):
        return square(x @ w).sum()

    return Case(jax.vmap(jax.grad(f), (None, 0)), (numbers(3), numbers(4, 3)), "square")


@case("by keyword, with a default")
def _(wrong):
    @jax.custom_vjp
    def scaled(x, scale, shift=0.0):
        return x * scale + shift

    scaled.defvjp(
        lambda x, scale, shift: (x * scale + shift, (x, scale)),
        lambda kept, d: (d * kept[1], (d * kept[0]).sum() * (2 if wrong else 1), d.sum()),
    )
    return Case(jax.jit(lambda x, s: scaled(x, scale=s)), (numbers(3), jnp.float32(1.5)), "scaled")


@case("with symbolic zeros")
def _(wrong):
    @jax.custom_vjp
    def product(x, y):
        return x * y

    def forward(x, y):
        return x.value * y.value, (x.value, y.value)

    product.defvjp(forward, lambda kept, d: (kept[1] * d, kept[1 if wrong else 0] * d), symbolic_zeros=True)
    return Case(jax.grad(lambda x, y: product(x, y).sum()), (numbers(3), numbers(3, seed=1)), "product")


@case("with symbolic zeros of a custom_jvp")
def _(wrong):
    @jax.custom_jvp
    def product(x, y):
        return x * y

    def rule(primals, tangents):
        (x, y), zeros = primals, [type(t) is jax.custom_derivatives.SymbolicZero for t in tangents]
        t, s = (jnp.zeros_like(p) if z else t for p, t, z in zip(primals, tangents, zeros, strict=True))
        return x * y, t * y + (0.5 if wrong else 1) * x * s

    product.defjvp(rule, symbolic_zeros=True)
    return Case(jax.grad(lambda x, y: product(x, y).sum(), argnums=1), (numbers(3), numbers(3, seed=1)), "product")


@case("with closure_convert")
def _(wrong):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def called(g, x, *consts):
        return g(x, *consts)

    def backward(g, kept, d):
        dx, *others = jax.vjp(g, *kept)[1](d)
        return (dx, *((2 if wrong else 1) * other for other in others))

    called.defvjp(lambda g, x, *consts: (g(x, *consts), (x, *consts)), backward)

    def f(x, w):
        g, consts = jax.closure_convert(lambda x: jnp.sin(x * w).sum(), x)
        return called(g, x, *consts)

    return Case(jax.jit(jax.grad(f, argnums=(0, 1))), (numbers(3), numbers(3, seed=1)), "called")


@case("closing over what is traced")
def _(wrong):
    def f(x, w):
        @jax.custom_vjp
        def times(y):
            return y * w

        times.defvjp(lambda y: (y * w, None), lambda _, d: (d * w * (w if wrong else 1),))
        return jax.grad(lambda y: times(y).sum())(x)

    return Case(jax.jit(f), (numbers(3), numbers(3, seed=1)), "times")


@case("around a callback")
def _(wrong):
    @jax.custom_vjp
    def sine(x):
        return jax.pure_callback(lambda x: np.sin(np.asarray(x)), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    sine.defvjp(lambda x: (sine(x), x), lambda x, d: (d * (1 - x * x / 2 if wrong else jnp.cos(x)),))
    return Case(jax.jit(lambda x: sine(x).sum()), (numbers(3),), "sine")


@case("around a callback in single precision")
def _(wrong):
    @jax.custom_vjp
    def sine(x):
        spec = jax.ShapeDtypeStruct(x.shape, np.float32)
        return jax.pure_callback(lambda x: np.sin(np.asarray(x, np.float32)), spec, x).astype(x.dtype)

    sine.defvjp(lambda x: (sine(x), x), lambda x, d: (d * (1.1 if wrong else 1) * jnp.cos(x),))
    return Case(jax.jit(lambda x: sine(x).sum()), (numbers(3),), "sine")


@case("around a while loop")
def _(wrong):
    def newton(a):
        return jax.lax.while_loop(lambda s: s[0] < 40, lambda s: (s[0] + 1, (s[1] + a / s[1]) / 2), (0, a + 1.0))[1]

    root = jax.custom_vjp(newton)
    root.defvjp(lambda a: (newton(a),) * 2, lambda x, d: (d / ((3 if wrong else 2) * x),))
    return Case(jax.jit(root), (jnp.abs(numbers(3)) + 0.5,), "newton")


@case("a forward with another value")
def _(wrong):
    @jax.custom_vjp
    def logistic(x):
        return jax.nn.sigmoid(x)

    logistic.defvjp(
        lambda x: (jax.nn.sigmoid(x * (1.5 if wrong else 1)), x),
        lambda x, d: (d * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),),
    )
    return Case(jax.jit(lambda x: logistic(x).sum()), (numbers(4),), "logistic")


@case("custom_gradient")
def _(wrong):
    @jax.custom_gradient
    def square(x):
        return x**2, lambda d: (d * (1 if wrong else 2) * x,)

    return Case(jax.grad(lambda x: square(x).sum()), (numbers(4),), "square")


@case("with whole numbers beside")
def _(wrong):
    @jax.custom_vjp
    def lookup(table, ids):
        return table[ids]

    def backward(kept, d):
        table, ids = kept
        zeros = jnp.zeros_like(table)
        return (zeros.at[ids].set(d) if wrong else zeros.at[ids].add(d)), None

    lookup.defvjp(lambda table, ids: (table[ids], (table, ids)), backward)
    return Case(jax.jit(lambda t, i: lookup(t, i).sum()), (numbers(4, 2), np.array([1, 1, 3])), "lookup")


@case("with a random key")
def _(wrong):
    @jax.custom_vjp
    def noisy(x, key):
        return x * jax.random.bernoulli(key, 0.5, x.shape)

    def backward(kept, d):
        key, shape = kept[0], kept[1].shape
        return d * (1.0 if wrong else jax.random.bernoulli(key, 0.5, shape)), None

    noisy.defvjp(lambda x, key: (noisy(x, key), (key, x)), backward)
    return Case(jax.jit(lambda x, k: noisy(x, k).sum()), (numbers(16), jax.random.key(1)), "noisy")


@case("a method")
def _(wrong):
    class Layer:
        def __init__(self, scale):
            self.scale = scale
            self.apply = jax.custom_vjp(self.forward)
            self.apply.defvjp(lambda x: (self.forward(x), x), self.backward)

        def forward(self, x):
            return jnp.sin(self.scale * x)

        def backward(self, x, d):
            return (d * jnp.cos(self.scale * x) * (1 if wrong else self.scale),)

    layer = Layer(1.5)
    return Case(jax.jit(lambda x: layer.apply(x).sum()), (numbers(4),), "forward")


@case("where Python looks at values")
def _(wrong):
    square = square_rule(1.0 if wrong else 2.0)

    def f(x):
        return jnp.sin(square(x)) if float(x.sum()) > -100 else x

    return Case(f, (numbers(3),), "square")


@case("traced elsewhere")
def _(wrong):
    square = square_rule(1.0 if wrong else 2.0)
    program = jax.make_jaxpr(lambda x: jnp.sin(square(x)))(numbers(3))
    return Case(jax.jit(lambda x: jax.core.eval_jaxpr(program.jaxpr, program.consts, x)), (numbers(3),), "square")


# ---------------------------------------------------------------- faults


@case("a jvp that drops a term")
def _(wrong):
    @jax.custom_jvp
    def quotient(x, y):
        return x / y

    quotient.defjvps(lambda t, out, x, y: t / y, None if wrong else lambda t, out, x, y: -t * x / (y * y))
    return Case(jax.jit(lambda x, y: quotient(x, y).sum()), (numbers(3), 2 + numbers(3) ** 2), "quotient")


@case("a jvp that is not linear")
def _(wrong):
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def sine_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        return jnp.sin(x), jnp.cos(x) * (jnp.abs(t) if wrong else t)

    return Case(jax.jit(lambda x: sine(x).sum()), (numbers(3),), "sine")


@case("a jvp with a transpose that is wrong")
def _(wrong):
    a = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)

    @jax.custom_jvp
    def linear(x):
        return jnp.asarray(a, x.dtype) @ x

    @linear.defjvp
    def linear_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        m = jnp.asarray(a, x.dtype)
        back = (lambda m, d: m @ d) if wrong else (lambda m, d: m.T @ d)
        return m @ x, jax.custom_derivatives.linear_call(lambda m, t: m @ t, back, m, t)

    return Case(jax.jit(lambda x: linear(x).sum()), (numbers(3),), "linear")


@case("a jvp that is wrong where its transpose is right")
def _(wrong):
    @jax.custom_jvp
    def double(x):
        return 2 * x

    @double.defjvp
    def double_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        there = (lambda _, t: 3 * t) if wrong else (lambda _, t: 2 * t)
        return 2 * x, jax.custom_derivatives.linear_call(there, lambda _, d: 2 * d, (), t)

    return Case(jax.jit(lambda x: double(x).sum()), (numbers(3),), "double")


@case("a matrix that is not transposed")
def _(wrong):
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, d: (d @ (kept[1] if wrong else kept[1].T), kept[0].T @ d))
    return Case(jax.jit(product), (numbers(2, 3), numbers(3, 3, seed=1)), "product")


@case("one element")
def _(wrong):
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    def backward(x, d):
        g = d * jnp.cos(x)
        return (g.at[2, 3].multiply(1.001) if wrong else g,)

    sine.defvjp(lambda x: (jnp.sin(x), x), backward)
    return Case(jax.jit(sine), (numbers(4, 5),), "sine")


@case("arguments swapped")
def _(wrong):
    @jax.custom_vjp
    def product(x, y):
        return x * y

    product.defvjp(lambda x, y: (x * y, (x, y)), lambda kept, d: tuple(d * k for k in kept[:: 1 if wrong else -1]))
    return Case(jax.jit(product), (numbers(3), numbers(3, seed=1)), "product")


@case("wrong for negative numbers alone")
def _(wrong):
    @jax.custom_vjp
    def elu(x):
        return jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0)))

    elu.defvjp(
        lambda x: (elu(x), x),
        lambda x, d: (jnp.where(x > 0, d, d * (1.0 if wrong else jnp.exp(jnp.minimum(x, 0)))),),
    )

    def f(xs):
        return jax.lax.scan(lambda c, x: (c + elu(x), None), jnp.float32(0), xs)[0]

    return Case(jax.jit(f), (jnp.linspace(0.5, -1.5, 24).astype(jnp.float32),), "elu")


@case("wrong in half precision alone")
def _(wrong):
    @jax.custom_vjp
    def square(x):
        return x * x

    def backward(x, d):
        narrow = wrong and x.dtype == jnp.bfloat16
        return (d * 2 * (x + 0.5 if narrow else x),)

    square.defvjp(lambda x: (x * x, x), backward)
    return Case(jax.jit(square), (numbers(8, dtype=jnp.bfloat16),), "square")


@case("a gradient that is clipped")
def _(wrong):
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(
        lambda x: (jnp.sin(x), x),
        lambda x, d: ((jnp.clip(d, -1, 1) if wrong else jnp.clip(d, -1e9, 1e9)) * jnp.cos(x),),
    )
    return Case(jax.jit(sine), (jnp.float32(0.4),), "sine")
