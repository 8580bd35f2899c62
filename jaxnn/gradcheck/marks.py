"""Marks the calls of functions with derivative rules in a program, and collects the values that reach the marks.

A mark is the identity on the arrays of a call. It has rules for differentiation, batching and transposition, so it
survives `jax.grad`, `scan`, `cond`, `vmap` and `checkpoint`; as the program runs, it passes its values to a collector.
Marked programs are traced under metadata that only this module uses and that is part of the key of `jax.jit`'s cache:
they are never taken for a user's programs, nor a user's for them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import core, source_info_util
from jax.interpreters import ad, batching, mlir

from jaxnn.aliases import Array
from jaxnn.gradcheck.collecting import Call, Collector
from jaxnn.gradcheck.programs import ONE_SHOT
from jaxnn.gradcheck.sites import Programs, Site, Spec, closes_over_tracers, floats, is_array, resolved, site_of
from jaxnn.jaxprs import (
    RULED,
    Values,
    bind,
    called,
    constants_first,
    equations,
    function_of,
    is_float,
    source_of,
    spec_of,
)

CLASSES = (jax.custom_vjp, jax.custom_jvp)
ORIGINAL = {cls: cls.__call__ for cls in CLASSES}

source_info_util.register_exclusion(__file__)


# ---------------------------------------------------------------- the mark

mark_p = core.Primitive("gradcheck_mark")
mark_p.multiple_results = True


def _seen(*args: Any, site: Site, levels: tuple[Any, ...]) -> list[Any]:
    _noted(site, levels, *_readable(args))
    return list(args)


mark_p.def_impl(_seen)


# With these effects a mark is kept even if its outputs are unused, as calls of jax.debug.callback are.
EFFECTS = frozenset(jax.make_jaxpr(lambda: jax.debug.callback(lambda: None))().effects)
mark_p.def_effectful_abstract_eval(lambda *avals, **_: (list(avals), set(EFFECTS)))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Any], list[Any]]:
    return mark_p.bind(*primals, **params), list(tangents)


def _batched(args: Sequence[Any], axes: Sequence[Any], *, site: Site, levels: tuple[Any, ...]) -> Any:
    level = tuple(axis if isinstance(axis, int) else None for axis in axes)
    return mark_p.bind(*args, site=site, levels=(*levels, level)), list(axes)


def _lowered(*args: Any, site: Site, levels: tuple[Any, ...]) -> list[Any]:
    jax.debug.callback(functools.partial(_noted, site, levels), *_readable(args))
    return list(args)


ad.primitive_jvps[mark_p] = _jvp
ad.primitive_transposes[mark_p] = lambda cotangents, *_, **__: list(cotangents)
batching.primitive_batchers[mark_p] = _batched
mlir.register_lowering(mark_p, mlir.lower_fun(_lowered, multiple_results=True))


def _readable(args: Sequence[Any]) -> list[Any]:
    """Arrays as a callback takes them: random keys as numbers."""
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in args]


def _noted(site: Site, levels: tuple[Any, ...], *values: Any) -> None:
    if _active.collector is not None:
        _active.collector.take(site, levels, values)


# ---------------------------------------------------------------- calls of functions with rules


class _Active:
    """The current mode of calls of functions with rules, in one thread."""

    thread = 0
    mode = ""
    collector: Collector | None = None


_active = _Active()
_lock = threading.RLock()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    original = ORIGINAL[type(self) if type(self) in ORIGINAL else next(c for c in CLASSES if isinstance(self, c))]
    if _active.thread != threading.get_ident() or not _active.mode:
        return original(self, *args, **kwargs)
    try:
        given = resolved(self.fun, args, kwargs)
        if _active.mode == "plain":
            return self.fun(*given)
        found = site_of(self, given)
    except TypeError:
        found = None
    if found is None or _active.collector is None:
        return original(self, *args, **kwargs)
    site, arrays = found
    if closes_over_tracers(self):
        site, held = _with_programs(site, arrays)
    else:
        held = []
    _active.collector.meet(site)
    if arrays:
        marked = mark_p.bind(*arrays, *held, site=site, levels=())
        given = site.arguments(marked[: len(arrays)])
    return original(self, *given)


def _with_programs(site: Site, arrays: list[Any]) -> tuple[Site, list[Any]]:
    """The site with its function and rule as programs, and what they close over, which does not outlive the trace."""
    value, pulled = functions_of(site)
    before, _active.mode = _active.mode, ""
    try:
        with set_xla_metadata(jaxnn_gradcheck="off"):
            deltas = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in jax.eval_shape(value, arrays)]
            closed = jax.make_jaxpr(value)(arrays), jax.make_jaxpr(pulled)(arrays, deltas)
    except Exception:  # whatever a user's rule raises: the program raises it again
        return site, []
    finally:
        _active.mode = before
    held = {id(const): const for program in closed for const in program.consts}
    order = {name: i for i, name in enumerate(held)}
    value_held, rule_held = (tuple(order[id(const)] for const in program.consts) for program in closed)
    arrays_held = [const if is_array(const) else np.asarray(const) for const in held.values()]
    specs = tuple(map(Spec.of, arrays_held))
    programs = Programs(constants_first(closed[0]), constants_first(closed[1]), specs, value_held, rule_held)
    return replace(site, programs=programs), arrays_held


def functions_of(site: Site) -> tuple[Callable[..., list[Any]], Callable[..., list[Any]]]:
    """(`arrays -> float outputs` of a site's function, `arrays, deltas -> gradients` of its rule)."""
    chosen = floats(site)

    def outputs(f: Callable[..., Any], arrays: Sequence[Any]) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(f(*site.arguments(arrays))) if is_float(leaf)]

    def pulled(arrays: Sequence[Any], deltas: Sequence[Any]) -> list[Any]:
        def of_floats(leaves: Sequence[Any]) -> list[Any]:
            mine = dict(zip(chosen, leaves, strict=True))
            return outputs(functools.partial(ORIGINAL[class_of(site.rule)], site.rule),
                           [mine.get(k, array) for k, array in enumerate(arrays)])  # fmt: skip

        return list(jax.vjp(of_floats, [arrays[k] for k in chosen])[1](list(deltas))[0])

    return lambda arrays: outputs(site.rule.fun, arrays), pulled


def class_of(rule: Any) -> Any:
    """The class of JAX's from which a rule inherits its call."""
    return next(cls for cls in CLASSES if isinstance(rule, cls))


@contextlib.contextmanager
def calls_are(mode: str, collector: Collector | None = None) -> Iterator[None]:
    """A context in which calls of functions with rules are marked ("marked"), or made without the rule ("plain")."""
    with _lock:
        before = (_active.thread, _active.mode, _active.collector)
        installed = {cls: cls.__call__ for cls in CLASSES}
        _active.thread, _active.mode = threading.get_ident(), mode
        if collector is not None:
            _active.collector = collector
        for cls in CLASSES:
            cls.__call__ = _call  # type: ignore[method-assign]
        try:
            with set_xla_metadata(jaxnn_gradcheck=mode):
                yield
        finally:
            for cls, call in installed.items():
                cls.__call__ = call  # type: ignore[method-assign]
            _active.thread, _active.mode, _active.collector = before


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A context in which a user's strict settings of JAX and of warnings do not stop a check."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name, value in (
            ("numpy_rank_promotion", "allow"),
            ("numpy_dtype_promotion", "standard"),
            ("debug_nans", False),
            ("debug_infs", False),
            ("checking_leaks", False),
            ("transfer_guard", "allow"),
        ):
            setting = getattr(jax, name, None)
            if setting is not None:
                with contextlib.suppress(TypeError):
                    stack.enter_context(setting(value))
        yield


# ---------------------------------------------------------------- a run


def collected(f: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Call]:
    """The calls in `f(*args, **kwargs)`, run with its calls marked.

    It is compiled as one program if possible, and otherwise, as when Python depends on values, run eagerly. Values of
    calls that were traced elsewhere, and so have no mark, are drawn at random. Errors of f are raised.
    """
    leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
    indices = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))]
    arrays = [leaves[i] for i in indices]

    def of_arrays(arrays: Sequence[Any]) -> list[Any]:
        given = dict(zip(indices, arrays, strict=True))
        args, kwargs = jax.tree.unflatten(tree, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
        return [leaf for leaf in jax.tree.leaves(f(*args, **kwargs)) if is_array(leaf)]

    collector = Collector()
    with undisturbed(), calls_are("marked", collector):
        try:
            traced = jax.jit(of_arrays, compiler_options=ONE_SHOT).trace(arrays)
        except Exception:  # Python depends on values; an error in f itself is raised again below
            collector = _active.collector = Collector()
            f(*args, **kwargs)
            jax.effects_barrier()
            return collector.calls()
        found = list(equations(traced.jaxpr.jaxpr))
        for eqn in found:
            if eqn.primitive is mark_p:
                collector.meet(eqn.params["site"])
        failed = ""
        try:
            jax.block_until_ready(traced.lower().compile()(arrays))
            jax.effects_barrier()
        except Exception as error:
            failed = str(error)
        if failed:
            collector = _active.collector = Collector()
            f(*args, **kwargs)
            jax.effects_barrier()
        for site in _unmarked(found):
            collector.meet(site)
    return collector.calls()


def _unmarked(found: Sequence[core.JaxprEqn]) -> list[Site]:
    """The sites of calls of functions with rules whose inputs do not come from a mark."""
    marked = {var for eqn in found if eqn.primitive is mark_p for var in eqn.outvars}
    sites = []
    for eqn in found:
        inputs = [atom for atom in eqn.invars if not isinstance(atom, core.Literal)]
        if eqn.primitive.name in RULED and inputs and marked.isdisjoint(inputs):
            sites.append(_site_of_equation(eqn))
    return [site for site in sites if site is not None]


def _site_of_equation(eqn: core.JaxprEqn) -> Site | None:
    """A call that was traced elsewhere: its function and rule are known only as programs."""
    program = called(eqn)
    arrays = list(map(spec_of, eqn.invars))
    specs = tuple(Spec(tuple(array.shape), array.dtype) for array in arrays)
    chosen = [k for k, spec in enumerate(specs) if is_float(spec.dtype)]
    deltas = [spec_of(var) for var in eqn.outvars if is_float(var.aval)]

    def value(*arrays: Array) -> Values:
        return [out for out in function_of(program)(*arrays) if is_float(out)]

    def pulled(*inputs: Array) -> Values:
        arrays, deltas = inputs[: len(specs)], inputs[len(specs) :]

        def of_floats(leaves: Sequence[Array]) -> Values:
            mine = dict(zip(chosen, leaves, strict=True))
            outs = bind(eqn.primitive, [mine.get(k, array) for k, array in enumerate(arrays)], eqn.params)
            return [out for out in outs if is_float(out)]

        return list(jax.vjp(of_floats, [arrays[k] for k in chosen])[1](list(deltas))[0])

    try:
        programs = Programs(jax.make_jaxpr(value)(*arrays), jax.make_jaxpr(pulled)(*arrays, *deltas), (), (), ())
    except Exception:  # whatever a rule raises that has never run
        return None
    info = getattr(program.jaxpr, "debug_info", None)
    name = getattr(info, "func_name", "") or "a function with a rule"
    where = (getattr(info, "func_filename", ""), getattr(info, "func_lineno", ""))
    source = f"{where[0]}:{where[1]} ({name})" if all(where) else ""
    tree = jax.tree.structure((0,) * len(specs))
    kind = "custom_jvp" if "jvp" in eqn.primitive.name else "custom_vjp"
    key = (kind, name, source, specs, str(programs.value), str(programs.rule))
    return Site(None, name, source, source_of(eqn), tree, tuple(range(len(specs))), (), specs, programs, key, kind)
