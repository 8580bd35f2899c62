"""The custom rules of what is installed, each judged by `gradcheck.audit` at values that its library gives it.

    python benchmarks/audit.py [LIBRARY ...]

Every public function of a library that runs with one of a few kinds of arguments is traced; those whose program holds a
custom rule are audited, and each rule is judged once for each signature. The table has a line for each rule.
"""

import argparse
import importlib
import inspect
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.auditing import judged
from jaxnn.gradcheck.marks import collected
from jaxnn.gradcheck.report import KINK, RIGHT, SEVERITY
from jaxnn.jaxprs import RULED, equations

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


X, Y, Z = normal(4, 3), normal(4, 3), normal(4, 3)
SQUARE = normal(3, 3)
LABELS = jnp.array([0, 2, 1, 2])
RECIPES = {  # of positional arguments, tried in turn
    "x": (X,),
    "x > 0": (jnp.abs(X) + 0.3,),
    "0 < x < 1": (jax.nn.sigmoid(X),),
    "x > 1": (jnp.abs(X) + 1.5,),
    "x, y": (X, Y),
    "x, y > 0": (jnp.abs(X) + 0.3, jnp.abs(Y) + 0.3),
    "0 < x, y < 1": (jax.nn.sigmoid(X), jax.nn.sigmoid(Y)),
    "x, y, z": (X, Y, Z),
    "x, y, z > 0": (jnp.abs(X) + 0.3, jnp.abs(Y) + 0.3, jnp.abs(Z) + 0.3),
    "0 < x < 1, y, z > 0": (jax.nn.sigmoid(X), jnp.abs(Y) + 0.5, jnp.abs(Z) + 0.5),
    "symmetric": (SQUARE @ SQUARE.T + jnp.eye(3),),
    "matrix, vector": (SQUARE, normal(3)),
    "vector": (normal(5),),
    "vector, 1": (normal(5), 1.0),
    "n, x": (LABELS, jnp.abs(normal(4)) + 0.5),
    "x, labels": (X, LABELS),
    "x, one-hot": (X, jax.nn.one_hot(LABELS, 3)),
    "vector, zeros and ones": (normal(5), jnp.array([0.0, 1, 0, 1, 1])),
    "key": (jax.random.key(0),),
    "key, x > 0": (jax.random.key(0), jnp.abs(X) + 0.5),
    "key, x, y > 0": (jax.random.key(0), jnp.abs(X) + 0.5, jnp.abs(Y) + 0.5),
}
MODULES = {
    "jax": (
        *("jax.nn", "jax.numpy", "jax.numpy.linalg", "jax.numpy.fft", "jax.lax", "jax.lax.linalg", "jax.random"),
        *("jax.scipy.special", "jax.scipy.linalg", "jax.scipy.signal", "jax.scipy.interpolate", "jax.scipy.integrate"),
        *(f"jax.scipy.stats.{name}" for name in (
            *("norm", "t", "gamma", "beta", "binom", "betabinom", "chi2", "cauchy", "dirichlet", "expon", "gennorm"),
            *("geom", "gumbel_l", "gumbel_r", "laplace", "logistic", "lognorm", "nbinom", "pareto", "poisson"),
            *("truncnorm", "uniform", "vonmises", "wrapcauchy", "multivariate_normal"),
        )),
        "jax.scipy.stats",
    ),
    "optax": ("optax", "optax.losses", "optax.projections", "optax.perturbations", "optax.assignment"),
    "flax": ("flax.linen", "flax.nnx"),
    "equinox": ("equinox", "equinox.nn"),
    "distrax": ("distrax",),
    "lineax": ("lineax",),
    "optimistix": ("optimistix",),
    "diffrax": ("diffrax",),
}  # fmt: skip


# ---------------------------------------------------------------- programs that a recipe does not reach


def ctc():
    import optax

    labels = jnp.array([[1, 2, 3], [1, 1, 2]])
    return optax.ctc_loss, (normal(2, 6, 4), jnp.zeros((2, 6)), labels, jnp.zeros((2, 3)))


def root():
    def solve(f, guess):
        return jax.lax.fori_loop(0, 40, lambda i, x: x - f(x) / jax.grad(lambda y: f(y))(x), guess)

    def f(a):
        return jax.lax.custom_root(lambda x: x**3 - a, jnp.float32(1.0), solve, lambda g, y: y / g(jnp.ones_like(y)))

    return jax.grad(f), (jnp.float32(2.0),)


def minimise():
    from jax.scipy.optimize import minimize

    return lambda a: minimize(lambda x: jnp.sum((x - a) ** 4 + x**2), jnp.zeros(2), method="BFGS").x, (normal(2),)


def odeint():
    from jax.experimental.ode import odeint

    def f(y, w):
        return jnp.sum(odeint(lambda y, t, w: jnp.tanh(w @ y), y, jnp.linspace(0, 1, 3), w))

    return jax.grad(f, argnums=(0, 1)), (normal(3), SQUARE)


def attention():
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v), (normal(1, 3, 2, 4),) * 3


def perturbed():
    import optax

    smooth = optax.perturbations.make_perturbed_fun(lambda x: jax.nn.one_hot(jnp.argmax(x), 5), 20, 0.3)
    return lambda x: smooth(jax.random.key(0), x), (normal(5),)


def checkpointed_loop():
    import equinox as eqx
    from equinox.internal import while_loop

    def f(x):
        return while_loop(
            lambda c: c[0] < 5, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x), kind="checkpointed", max_steps=8
        )[1].sum()

    return eqx.filter_jit(jax.grad(f)), (normal(3),)


def lineax_solve(solver):
    def make():
        import lineax as lx

        def f(a, b):
            return jnp.sum(lx.linear_solve(lx.MatrixLinearOperator(a), b, solver(lx)).value)

        return jax.grad(f, argnums=(0, 1)), (SQUARE @ SQUARE.T + jnp.eye(3), normal(3))

    return make


def optimistix_root():
    import optimistix as optx

    def f(a):
        return optx.root_find(lambda x, a: x**3 + x - a, optx.Newton(1e-6, 1e-6), a, a).value.sum()

    return jax.grad(f), (normal(3),)


def optimistix_fit():
    import optimistix as optx

    def f(a):
        return optx.least_squares(
            lambda x, a: jnp.concatenate([x - a, x**2]), optx.LevenbergMarquardt(1e-6, 1e-6), a, a
        ).value.sum()

    return jax.grad(f), (normal(2),)


def diffrax_solve(adjoint):
    def make():
        import diffrax

        def f(y, w):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, w: jnp.tanh(w @ y)), diffrax.Tsit5(), 0.0, 1.0, 0.2, y, args=w,
                adjoint=getattr(diffrax, adjoint)(),
                stepsize_controller=diffrax.PIDController(1e-3, 1e-5),
            )  # fmt: skip
            return jnp.sum(solution.ys)

        return jax.grad(f, argnums=(0, 1)), (normal(3), SQUARE)

    return make


PROGRAMS = {
    "jax": {
        "lax.custom_root": root, "scipy.optimize.minimize": minimise, "experimental.ode.odeint": odeint,
        "nn.dot_product_attention": attention,
    },
    "optax": {"ctc_loss": ctc, "perturbations": perturbed},
    "equinox": {"internal.while_loop": checkpointed_loop},
    "lineax": {
        **{f"linear_solve, {n}": lineax_solve(lambda lx, n=n: getattr(lx, n)()) for n in ("LU", "QR", "SVD")},
        **{f"linear_solve, {n}": lineax_solve(lambda lx, n=n: getattr(lx, n)(1e-6, 1e-6)) for n in ("CG", "GMRES")},
    },
    "optimistix": {"root_find": optimistix_root, "least_squares": optimistix_fit},
    "diffrax": {
        f"diffeqsolve, {name}": diffrax_solve(name)
        for name in ("RecursiveCheckpointAdjoint", "BacksolveAdjoint", "DirectAdjoint", "ImplicitAdjoint")
    },
}  # fmt: skip


# ---------------------------------------------------------------- the run


def functions_of(module):
    """(name, function) of what a module offers, classes left out."""
    for name in sorted(getattr(module, "__all__", None) or dir(module)):
        f = getattr(module, name, None)
        if not name.startswith("_") and callable(f) and not inspect.isclass(f):
            yield name, f


def traced(f, args):
    """The names of the primitives with a rule in a function's program; None where it does not run."""
    try:
        return {eqn.primitive.name for eqn in equations(jax.make_jaxpr(f)(*args).jaxpr)} & RULED
    except Exception:  # arguments that are not meant for it
        return None


def audit(f, args, known):
    """Rows on the rules of a program that are not known yet."""
    calls = [
        call for call in collected(f, args, {}) if (call.site.name, call.site.source, call.site.specs) not in known
    ]
    found = []
    for call, rows in judged(calls, ()):
        row = max(rows, key=lambda row: SEVERITY.index(row.verdict))
        if "not finite here" in row.why:  # arguments outside of where it is defined
            continue
        known.add((call.site.name, call.site.source, call.site.specs))
        found.append((call.site, row))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", default=list(MODULES))
    chosen = parser.parse_args().libraries
    warnings.simplefilter("ignore")
    known, lines, tried, start = set(), {}, 0, time.perf_counter()

    def note(library, function, f, args):
        for site, row in audit(f, args, known):
            key = (site.name, site.source)
            before = lines.get(key)
            if before is None or SEVERITY.index(row.verdict) > SEVERITY.index(before[2]):
                lines[key] = (library, before[1] if before else function, row.verdict, row, site)
            print(f"  {library}: {function}: {site.name} {site.signature()}: {row.verdict}", flush=True)

    for library in chosen:
        seen = set()
        for path in MODULES[library]:
            try:
                module = importlib.import_module(path)
            except ImportError as error:
                print(f"{path} is left out: {error}")
                continue
            for name, f in functions_of(module):
                if id(f) in seen:
                    continue
                seen.add(id(f))
                for args in RECIPES.values():
                    ruled = traced(f, args)
                    tried += ruled is not None
                    if ruled:
                        try:
                            note(library, f"{path.removeprefix(library + '.')}.{name}", f, args)
                        except Exception as error:
                            print(f"\n{path}.{name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        for name, make in PROGRAMS.get(library, {}).items():
            try:
                f, args = make()
                note(library, name, f, args)
            except Exception as error:
                print(f"\n{library} {name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")

    print(f"\n\n{len(lines)} rules in {tried} programs, {len(known)} signatures, {time.perf_counter() - start:.0f} s\n")
    print(f"{'library':<11}{'function':<38}{'rule':<30}{'verdict':<12}reason")
    for (name, source), (library, function, verdict, row, _) in sorted(lines.items(), key=lambda i: i[1][:2]):
        reason = "" if verdict == RIGHT else row.why.partition("; called at")[0][:110]
        where = f"{source.partition(' (')[0].rpartition('/')[2]}" if verdict not in (RIGHT, KINK) else ""
        print(f"{library:<11}{function:<38}{name:<30}{verdict:<12}{reason} {where}".rstrip())
    for row in (line[3] for line in lines.values() if line[2] not in (RIGHT, KINK)):
        print(f"\n{row}")


if __name__ == "__main__":
    main()
