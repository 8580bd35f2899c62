"""`audit(f)(*args)`: finds and checks every custom derivative rule that a function calls.

Libraries define `jax.custom_vjp`s and `jax.custom_jvp`s, and a wrong one makes training worse without any sign. A
program holds the plain function next to each rule, and so the reference that the rule must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxnn.gradcheck.collecting import Call
from jaxnn.gradcheck.marks import collected
from jaxnn.gradcheck.report import ALLOWED, WRONG, Report, Row
from jaxnn.gradcheck.rule_checks import check, reached
from jaxnn.gradcheck.sites import allowed
from jaxnn.jaxprs import name_of


def audit(f: Callable[..., Any], *, allow: Sequence[str] = ()) -> Callable[..., Report]:
    """Checks the custom rules that a function calls, each against autodiff of its own plain function.

    `audit(f)(*args, **kwargs)` runs f once, in a separate trace, and finds the `jax.custom_vjp`s and `jax.custom_jvp`s
    that it calls: under jit, vmap, grad and checkpoint, in loops and branches, in libraries, in other rules. Each is
    judged once for each shape, dtype and static argument, at up to three of the values that reach it, by the criterion
    of `gradcheck.function`; the outputs that it computes beside the derivative are compared with the function's. A
    function that JAX cannot differentiate (a callback, a kernel) is differentiated by finite differences. An argument
    for which a backward returns None counts as a constant.

    Args:
        f: any function; best a whole training step, with its own calls of `jax.grad`.
        allow: names of functions whose rules are not meant to be derivatives (straight-through estimators, gradient
            reversal), or "file:function"; both may have wildcards. They are listed and not judged.

    Returns:
        `(*args, **kwargs) -> Report`, with one row for each rule, or for each of its arguments that is not right.
        `wrong` names the functions; `source` is the line that defines them, `why` gives the line that calls them.

    Raises:
        TypeError: if f is not a function, or allow is not a list of names.
        Exception: whatever f raises.

    Source: Griewank & Walther (2008), ch. 3, for the adjoint; see `jaxnn.gradcheck.judge` for the criterion.

    >>> import jax, jax.numpy as jnp
    >>> cube = jax.custom_vjp(lambda x: x**3)
    >>> cube.defvjp(lambda x: (x**3, x), lambda x, delta: (3 * x * delta,))
    >>> report = audit(jax.grad(lambda x: jnp.sum(jnp.tanh(cube(x)))))(jnp.array([0.3, 0.5]))
    >>> report.verdict, report.wrong
    ('wrong', ('<lambda>',))
    """
    if not callable(f):
        raise TypeError(f"gradcheck.audit takes a function, as in audit(step)(params, x), got {type(f).__name__}")
    if isinstance(allow, str) or not all(isinstance(pattern, str) for pattern in allow):
        raise TypeError(f'gradcheck.audit: allow must be names of functions, as in ["round_through"], got {allow!r}')

    def run(*args: Any, **kwargs: Any) -> Report:
        found = list(judged(collected(f, args, kwargs), allow))
        wrong = (call.site.name for call, rows in found if any(row.verdict == WRONG for row in rows))
        every = tuple(row for _, rows in found for row in rows)
        return Report(f"audit of {name_of(f)}", every, tuple(dict.fromkeys(wrong)))

    return run


def judged(
    calls: Iterable[Call], allow: Sequence[str], wanted: Callable[[Call], bool] = lambda call: True
) -> Iterator[tuple[Call, list[Row]]]:
    """Every call with its rows, then the calls that only the rules make; calls that are not wanted get no rows."""
    waiting = [(call, frozenset({_definition(call)})) for call in calls]
    known = {call.site.key for call, _ in waiting}
    while waiting:
        call, within = waiting.pop(0)
        if allowed(allow, call.site.name, call.site.source):
            yield call, [listed(call)]
        elif not wanted(call):
            yield call, []
        else:
            yield call, check(call)
            for inner in reached(
                call
            ):  # the derivative of a rule may call the rule again, with n + 1 in place of n, without end
                if inner.site.key not in known and _definition(inner) not in within:
                    known.add(inner.site.key)
                    waiting.append((inner, within | {_definition(inner)}))


def _definition(call: Call) -> tuple[str, str]:
    return call.site.name, call.site.source


def listed(call: Call) -> Row:
    """The row of a rule on the allow list."""
    site = call.site
    place = f"{site.name} {site.signature()}"
    return Row(place, site.kind, "", ALLOWED, f"not judged; called at {site.called}", source=site.source)
