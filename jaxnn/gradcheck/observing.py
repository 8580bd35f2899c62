"""The custom rules that a test suite calls, recorded while it runs and checked when it has ended.

While tests run, a call of a function with a rule is only recorded: the function, the shapes, and the values if they are
known. If they are traced, the outermost JAX function on the stack (`jit`'s, `scan`'s, `grad`'s) is recorded with its
arguments, and run again, marked, when all tests have ended. Before that nothing is computed on a device, compiled or
traced.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

from jaxnn.gradcheck.auditing import judged
from jaxnn.gradcheck.collecting import KEPT, LARGEST, SAMPLES, Call, chosen_of, drawn
from jaxnn.gradcheck.marks import CLASSES, ORIGINAL, collected
from jaxnn.gradcheck.replay import said
from jaxnn.gradcheck.report import SEVERITY, WRONG, Report, Row
from jaxnn.gradcheck.sites import Site, closes_over_tracers, is_array, resolved, site_of

BOUNDARY = "reraise_with_filtered_traceback"  # the frame by which every JAX function is entered
NESTED = 32  # transformations around a value, at most

source_info_util.register_exclusion(__file__)


class Outer(NamedTuple):
    """The outermost call of a JAX function, to be run again."""

    f: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x64: bool


class Seen:
    """A call of a function with a rule, the first test that made it, and its values as far as they are known."""

    def __init__(self, site: Site, test: str, x64: bool) -> None:
        self.site, self.test, self.x64 = site, test, x64
        self.values: list[list[np.ndarray]] = []
        self.outer: Outer | None = None


class Finding(NamedTuple):
    """The verdict on a rule at one signature; text and numbers only, so that it can be sent between processes."""

    name: str
    kind: str
    source: str
    signature: str
    test: str
    verdict: str
    text: str
    seconds: float


LEFT = "left"  # the verdict when the budget is used up


class Observer:
    """Records the rules that are called while it is on."""

    def __init__(self) -> None:
        self.test = ""
        self.seen: dict[Any, Seen] = {}
        self.errors: dict[str, int] = {}
        self._last: tuple[Any, Outer | None] = (None, None)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """A context in which calls of functions with rules are recorded."""
        before = {cls: cls.__call__ for cls in CLASSES}

        def call(rule: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                self._note(rule, args, kwargs)
            except Exception as error:  # a test never fails because of this
                self.failed(error)
            return ORIGINAL[next(cls for cls in CLASSES if isinstance(rule, cls))](rule, *args, **kwargs)

        for cls in CLASSES:
            cls.__call__ = call  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            for cls, original in before.items():
                cls.__call__ = original  # type: ignore[method-assign]

    def failed(self, error: Exception) -> None:
        """Records an error of this module."""
        self.errors[said(error)] = self.errors.get(said(error), 0) + 1

    def _note(self, rule: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            given = resolved(rule.fun, args, kwargs)
        except TypeError:  # JAX will raise it too
            return
        found = site_of(rule, given)
        if found is None:
            return
        site, arrays = found
        seen = self.seen.get(site.key)
        if seen is None:
            kept = Site(**{**vars(site), "rule": None}) if closes_over_tracers(rule) else site
            seen = self.seen[site.key] = Seen(kept, self.test, bool(jax.config.jax_enable_x64))
        with jax.transfer_guard("allow"):
            if seen.site.rule is not None and len(seen.values) < KEPT and sum(map(np.size, arrays)) <= LARGEST:
                for i in range(SAMPLES if any(hasattr(x, "batch_dim") for x in arrays) else 1):  # of a batch
                    values = [_concrete(x, i) for x in arrays]
                    if any(value is None for value in values):
                        break
                    seen.values.append(values)
                else:
                    return
            if seen.outer is None and len(seen.values) < SAMPLES:
                seen.outer = self._outermost()

    def _outermost(self) -> Outer | None:
        frame: Any = sys._getframe(2)
        outermost = None
        while frame is not None:
            if frame.f_code.co_name == BOUNDARY:
                outermost = frame
            frame = frame.f_back
        if outermost is None:
            return None
        local = outermost.f_locals
        f, args, kwargs = local["fun"], local["args"], local["kwargs"]
        same = (self.test, f, id(args))
        if self._last[0] != same:
            self._last = (same, _copied(f, args, kwargs))
        return self._last[1]


def _concrete(x: Any, i: int) -> Any:
    """The value inside the transformations around it; None if it is traced.

    Of a batch one example: the last for i = 0, which is seldom all zeros, then the first and so on.
    """
    for _ in range(NESTED):
        if not isinstance(x, jax.core.Tracer):
            break
        if hasattr(x, "primal"):
            x = x.primal
        elif hasattr(x, "batch_dim") and hasattr(x, "val"):
            inner, axis = _concrete(x.val, i), x.batch_dim
            if inner is None or not isinstance(axis, int) or not isinstance(inner, np.ndarray):
                return inner
            return inner.take((i - 1) % max(inner.shape[axis], 1), axis)
        else:
            return None
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and x.is_deleted()):
        return None
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return x if is_key else np.array(x)


def _copied(f: Any, args: Any, kwargs: Any) -> Outer | None:
    """The call with copies of its arrays, which may be donated or overwritten before it is run again."""
    leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
    if sum(np.size(x) for x in leaves if is_array(x)) > LARGEST:
        return None
    copies = [_concrete(x, 0) if is_array(x) else x for x in leaves]
    if any(copy is None for copy in copies):
        return None
    args, kwargs = jax.tree.unflatten(tree, copies)
    return Outer(f, args, kwargs, bool(jax.config.jax_enable_x64))


def findings(observer: Observer, allow: Sequence[str], budget: float) -> list[Finding]:
    """A finding for each rule and signature; an error here is one of the observer's errors."""
    spent: dict[tuple[str, str], float] = {}
    found: list[Finding] = []

    def of_rule(call: Call) -> tuple[str, str]:
        return call.site.name, call.site.source

    for x64 in (False, True):
        with jax.enable_x64(x64), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            tests: dict[Any, str] = {}
            clock = time.perf_counter()
            calls = _calls(observer, x64, tests)
            run = judged(calls, allow, lambda call: spent.get(of_rule(call), 0.0) < budget)
            try:
                for call, rows in run:
                    now = time.perf_counter()
                    seconds, clock = now - clock, now
                    spent[of_rule(call)] = spent.get(of_rule(call), 0.0) + seconds
                    found.append(_finding(call, rows, tests.get(call.site.key, ""), seconds))
            except Exception as error:  # of this package: an error of a rule is a row
                observer.failed(error)
    return found


def _calls(observer: Observer, x64: bool, tests: dict[Any, str]) -> list[Call]:
    """The calls made with 64-bit floats enabled, or disabled, with their values."""
    calls: list[Call] = []
    again: dict[int, dict[Any, Call]] = {}
    for seen in observer.seen.values():
        if seen.x64 != x64:
            continue
        tests[seen.site.key] = seen.test
        known: dict[Any, Call] = {}
        if seen.outer is not None:
            if id(seen.outer) not in again:
                again[id(seen.outer)] = _again(seen.outer)
            known = again[id(seen.outer)]
        run = known.get(seen.site.key)
        if seen.values and seen.site.rule is not None:
            others = list(run.values) if run is not None and not run.drawn and run.site.programs is None else []
            calls.append(Call(seen.site, chosen_of([*seen.values, *others]), drawn=False))
        elif run is not None:
            calls.append(run)
        elif seen.site.rule is not None:
            calls.append(Call(seen.site, (drawn(seen.site.every_spec),), drawn=True))
        else:
            calls.append(Call(seen.site, (), drawn=True))
    return calls


def _again(outer: Outer) -> dict[Any, Call]:
    try:
        return {call.site.key: call for call in collected(outer.f, outer.args, outer.kwargs)}
    except Exception:  # a function that cannot be run again: random values are used
        return {}


def _finding(call: Call, rows: list[Row], test: str, seconds: float) -> Finding:
    site = call.site
    verdict = max((row.verdict for row in rows), key=SEVERITY.index, default=LEFT)
    text = str(Report(f"rule {site.name}", tuple(rows), (site.name,) if verdict == WRONG else ()))
    return Finding(site.name, site.kind, site.source, site.signature(), test, verdict, text, seconds)
