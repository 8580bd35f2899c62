"""`network`: every layer's hand-derived rule against jax.grad, each at its own call.

One pass by jax.grad, through forward functions alone, reads the inputs of every layer, combinators included, and the δ
that comes back to it. Then each rule is judged there by itself, with those inputs and that δ: a wrong rule elsewhere
does not affect it, so exactly the wrong ones are named. A combinator whose result is wrong while a layer inside it is
wrong too is judged again with jax.grad's rule in that layer's place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import plain_data
from jaxnn.combinators.precision import in_full
from jaxnn.combinators.walk import Place, ordered_leaves, rebuilt
from jaxnn.gradcheck.arrays import as_float64
from jaxnn.gradcheck.checking import verdicts
from jaxnn.gradcheck.judge import ONLY_HERE
from jaxnn.gradcheck.layer_calls import DELTA_IN, LayerCalls, Pass, coarsest_unit, counted, layer_calls
from jaxnn.gradcheck.nonsmooth import first_of
from jaxnn.gradcheck.programs import Problem
from jaxnn.gradcheck.report import BY_AUTODIFF, CANNOT_TELL, KINK, RIGHT, WRONG, Report, Row, worst_verdict
from jaxnn.jaxprs import first_difference
from jaxnn.keys import as_key, seed_of
from jaxnn.mistakes import alive, array_leaves
from jaxnn.passes.backprop import autodiff, backprop, check_records
from jaxnn.passes.parts import check_params, costs
from jaxnn.spmd.batches import on_one_device
from jaxnn.trees import named_leaves
from jaxnn.twins import autodiff_twin
from jaxnn.types import Array, Key, Layer, Loss, Params, State, Tree

WHOLE = "the whole pass"


def network(
    net: Layer,
    loss: Loss,
    params: Params,
    state: State,
    x: Tree,
    target: Tree,
    *,
    train: bool = True,
    rng: Key | None = None,
    weights: jax.Array | None = None,
    key: Key | int = 0,
) -> Report:
    """Checks the hand-derived rules of a network: every layer's δ_in and gradients, the loss's δ, and the whole pass.

    Args:
        net: the network; its layers' rules are what is checked.
        loss: a Loss record; its δ is checked too.
        params: the network's parameters, in float32, bfloat16, float16 or (under x64) float64.
        state: its state, () if it has none.
        x: inputs [N, …], or a pytree of such.
        target: as the loss takes it.
        train: whether layers behave as in training.
        rng: a key, if layers draw random numbers.
        weights: [N] or [N, …], as for `backprop`.
        key: a PRNG key or an integer seed, for jitter.

    Returns:
        A Report. Its rows: each layer in the network's order, with δ_in and every gradient leaf at its own
        inputs and δ; the loss; and the whole pass, backprop against jax.grad, with every layer's δ and every gradient
        leaf. Its `wrong` names the layers whose own rule is wrong. What has no hand-derived rule is "by autodiff", and
        not judged.

    Raises:
        ValueError, TypeError: as `backprop`, for arguments that do not fit.

    Source: `jaxnn.gradcheck.judge` for the criterion.

    >>> from jaxnn import dense, losses, serial, tanh, with_rules
    >>> no_bias = with_rules(dense(3), backward=lambda p, x, d: (d @ p["w"].T, {"w": x.T @ d, "b": 0 * p["b"]}))
    >>> net = serial(dense(3), tanh, no_bias)
    >>> params, state = net.init(jax.random.key(0), (2,))
    >>> network(net, losses.mse, params, state, jnp.ones((4, 2)), jnp.zeros((4, 3))).wrong
    ('dense_1',)
    """
    seed = seed_of(key)
    given = _checked(Pass(net, loss, params, state, x, target, train, rng, weights))
    called = layer_calls(given)
    seen = costs(loss, called.output, given.target, given.weights)
    nodes = called.nodes
    problems = {node.index: called.problem(node) for node in nodes if not node.layer.by_autodiff}
    of_loss = [] if loss.by_autodiff else [_loss(loss, seen.prediction, seen.target)]
    judged = iter(verdicts([*problems.values(), *of_loss, *_whole_pass(given)], seed))
    local = [next(judged) if node.index in problems else [_no_rule(node.label, node.layer.kind)] for node in nodes]
    at_loss = next(judged) if of_loss else [_no_rule(loss.name, "loss")]
    deltas, grads = judged
    local, at_fault = _own_faults(called, local, seed)
    wrong = [node.label for node in nodes if node.index in at_fault]
    wrong += [loss.name] * (worst_verdict(at_loss) == WRONG)
    order = list(ordered_leaves(net, given.params))  # jax.tree sorts names: dense_10 before dense_2
    grads = sorted(grads, key=lambda row: order.index(row.leaf))
    rows = _not_finite(as_float64(counted(seen)), called)
    rows += [row for node, found in zip(nodes, local, strict=True) for row in _folded(node, found)]
    kinks = [row.place for found in local for row in found if row.verdict == KINK]
    rows += [*at_loss, *(_explained(row, wrong, kinks) for row in [*deltas, *grads])]
    return Report(_title(net, given.params), tuple(rows), tuple(wrong))


def _checked(given: Pass) -> Pass:
    """The arguments as arrays; raises where they do not fit the network, or a layer's rule does not fit the layer."""
    net, loss = given.net, given.loss
    check_records("gradcheck.network", net, loss)
    given = given._replace(rng=None if given.rng is None else as_key(given.rng))
    data = {what: getattr(given, what) for what in ("params", "state", "x", "target", "weights")}
    for what, tree in data.items():
        plain_data(f"gradcheck.network: {what}", tree)
        array_leaves(f"gradcheck.network: {what}", tree)
        alive(f"gradcheck.network: {what}", tree)
    given = given._replace(**on_one_device(jax.tree.map(jnp.asarray, data)))  # numbers are compared one by one
    check_params(net, given.params, given.x)
    derive = backprop(net, loss, train=given.train)
    _deterministic(given)
    try:
        jax.eval_shape(
            lambda params, state, x: derive(params, state, x, given.target, rng=given.rng, weights=given.weights),
            given.params, given.state, given.x,
        )  # fmt: skip
    except Exception as error:
        raise _at_its_layer(error, given) from None
    return given


def _no_rule(place: str, kind: str) -> Row:
    what = "delta is jax.grad of value" if kind == "loss" else "backward is jax.vjp of forward"
    return Row(place, kind, "δ" if kind == "loss" else "δ_in, gradients", BY_AUTODIFF, f"there is no rule: its {what}")


def _deterministic(given: Pass) -> None:
    """Raises ValueError if forward, traced twice, gives two programs."""
    net = given.net

    def traced() -> Any:
        def forward(params: Params, state: State, x: Tree, rng: Key | None) -> Tree:
            return net.forward(params, state, x, train=given.train, rng=rng)[0]

        return jax.make_jaxpr(forward)(given.params, given.state, given.x, given.rng)

    differs = first_difference(traced(), traced())
    if differs is not None:
        raise ValueError(
            f"gradcheck.network: {net.name or net.kind} is not deterministic: its forward, called twice with the same "
            f"arguments, gives two different programs, first at {differs}; draw random numbers from rng"
        )


def _at_its_layer(error: Exception, given: Pass) -> Exception:
    """The error of the backward pass, or that of the layer whose rule does not fit, with its name."""
    try:
        called = layer_calls(given)
    except Exception:
        return error
    for node in called.nodes:
        problem = called.problem(node)
        try:
            jax.eval_shape(problem.rule, *problem.arguments)
        except ValueError as found:
            return found if DELTA_IN in str(found) else error
        except Exception as found:
            found.add_note(f"gradcheck.network: raised by the rule of layer '{node.label}'")
            return found
    return error


def _title(net: Layer, params: Params) -> str:
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    return f"gradcheck of {net.name or net.kind}, {numbers:,} parameters in {' and '.join(dtypes) or 'no dtype'}"


def _explained(row: Row, wrong: list[str], kinks: list[str]) -> Row:
    """A row on the whole pass that is off because a layer's own rule is wrong, or because a layer is at a kink."""
    if row.verdict == WRONG and wrong:
        return row._replace(why=f"follows from {', '.join(wrong)}")
    if row.verdict == WRONG and kinks and row.why == ONLY_HERE:
        return row._replace(verdict=KINK, why=f"{row.why}: follows from the kink at {kinks[0]}")
    return row


# ---------------------------------------------------------------- problems


def _loss(loss: Loss, output: Any, target: Tree) -> Problem:
    leaves, tree = jax.tree.flatten(output)

    def value(leaves: list[Any], target: Tree) -> list[Any]:
        return [loss.value(jax.tree.unflatten(tree, leaves), target)]

    def rule(leaves: list[Any], target: Tree, deltas: list[Any]) -> list[Any]:
        delta = jax.tree.leaves(loss.delta(jax.tree.unflatten(tree, leaves), target))
        shares = [deltas[0].reshape(-1, *(1,) * (d.ndim - 1)).astype(d.dtype) for d in delta]
        return [d * share for d, share in zip(delta, shares, strict=True)]

    ones = jnp.ones_like(loss.value(output, target))
    names = ["δ"] if len(leaves) == 1 else [f"δ {name}" for name in named_leaves(output)]
    return Problem(loss.name, "loss", tuple(names), value, rule, leaves, target, [ones], always_differences=True)


def _whole_pass(given: Pass) -> list[Problem]:
    problems, unit = _whole(given), coarsest_unit(given.net)
    if not unit:
        return problems
    full = _whole(given._replace(net=in_full(given.net)))
    return [problem._replace(unit=unit, wide=wide) for problem, wide in zip(problems, full, strict=True)]


def _whole(given: Pass) -> list[Problem]:
    """The loss and every layer's δ, then every gradient leaf: backprop against autodiff, end to end."""
    net, loss = given.net, given.loss
    leaves, tree = jax.tree.flatten(given.params)
    fixed = (given.state, given.x, given.target, given.rng, given.weights)

    def run(derive: Callable[..., Any], leaves: list[Array], fixed: Any, read: tuple[str, ...] = ()) -> Any:
        state, x, target, rng, weights = fixed
        params = jax.tree.unflatten(tree, leaves)
        return derive(net, loss, read=read, train=given.train)(params, state, x, target, rng=rng, weights=weights)

    def deltas_of(derive: Callable[..., Any]) -> Callable[[list[Array], Any, list[Array]], list[Array]]:
        def passed(leaves: list[Array], fixed: Any, _: list[Array]) -> list[Array]:
            out = run(derive, leaves, fixed, ("deltas",))
            return [out.loss, *ordered_leaves(net, out.readings["deltas"]).values()]

        return passed

    def grads(leaves: list[Array], fixed: Any, deltas: list[Array]) -> list[Array]:
        return [g * deltas[0].astype(g.dtype) for g in jax.tree.leaves(run(backprop, leaves, fixed).grads)]

    def value(leaves: list[Array], fixed: Any) -> list[Array]:
        return [run(autodiff, leaves, fixed).loss]

    outs = jax.eval_shape(lambda: run(backprop, leaves, fixed, ("deltas",)))
    names = ["loss", *(f"{path} δ" for path in ordered_leaves(net, outs.readings["deltas"]))]
    one = [jnp.ones((), outs.loss.dtype)]
    hand, auto = deltas_of(backprop), deltas_of(autodiff)
    through = Problem(WHOLE, "δ", tuple(names), value, hand, leaves, fixed, one, auto=auto)
    place = ordered_leaves(net, jax.tree.unflatten(tree, range(len(leaves))))
    labels = tuple(sorted(place, key=lambda name: place[name]))
    return [through, Problem(WHOLE, "gradient", labels, value, grads, leaves, fixed, one, always_differences=True)]


# ---------------------------------------------------------------- the layers at fault


def _own_faults(
    called: LayerCalls, judged: Sequence[list[Row]], seed: int
) -> tuple[list[list[Row]], set[tuple[int, ...]]]:
    """The rows of each layer without the errors of layers inside it, and the layers whose own rule is wrong."""
    at_fault: set[tuple[int, ...]] = set()
    rows = list(judged)
    for i, node in enumerate(called.nodes):
        if worst_verdict(rows[i]) != WRONG:
            continue
        inside = {index for index in at_fault if index[: len(node.index)] == node.index}
        if inside:
            again = verdicts(_isolated(called, node, inside), seed)
            failed = [row for found in again for row in found if row.verdict == WRONG]
            if not failed:
                labels = ", ".join(other.label for other in called.nodes if other.index in inside)
                why = f"its own rule is right; the error comes from {labels}"
                rows[i] = [Row(node.label, node.layer.kind, "δ_in, gradients", RIGHT, why)]
                continue
            rows[i] = failed
        at_fault.add(node.index)
    return rows, at_fault


def _isolated(called: LayerCalls, node: Place, inside: set[tuple[int, ...]]) -> list[Problem]:
    """A combinator's own rule, without those of the wrong layers inside it.

    First with jax.grad's rule in their places, then against that of the combinator rebuilt, which lacks a rule that was
    replaced on the record.
    """
    within = {index[len(node.index) :] for index in inside}
    twin = lambda layer, place: autodiff_twin(layer) if place.index in within else layer  # noqa: E731
    anew = called.problem(node, node.layer.rebuild(node.layer.children))
    alone = called.problem(node)
    if alone.wide is not None and anew.wide is not None:
        alone = alone._replace(wide=alone.wide._replace(auto=anew.wide.rule))
    return [called.problem(node, rebuilt(twin, node.layer)), alone._replace(auto=anew.rule)]


def _folded(node: Place, rows: list[Row]) -> list[Row]:
    """One row for a combinator whose rule is right."""
    if node.is_leaf or any(row.verdict != RIGHT for row in rows) or not rows:
        return rows
    furthest = max(rows, key=lambda row: row.excess or 0.0)
    return [Row(node.label, node.layer.kind, "δ_in, gradients", RIGHT, rows[0].why, excess=furthest.excess)]


def _not_finite(loss: np.ndarray, called: LayerCalls) -> list[Row]:
    """The origin of NaN or infinity in the loss: the first layer that gives it for finite inputs."""
    if np.isfinite(loss).all():
        return []
    why = f"the loss is not finite for {int((~np.isfinite(loss)).sum())} of {loss.size} examples"
    for node in called.nodes:
        if not node.is_leaf:
            continue
        problem = called.problem(node)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in problem.leaves):
            why += f"; the input of {node.label} is not finite"
            return [Row(node.label, node.layer.kind, "input", CANNOT_TELL, why)]
        for y in problem.value(problem.leaves, problem.fixed):
            bad = ~np.isfinite(as_float64(y))
            if bad.any():
                why += f"; {node.label} makes it of finite numbers, {int(bad.sum())} of {bad.size}"
                return [Row(node.label, node.layer.kind, "output", CANNOT_TELL, why, element=first_of(bad))]
    return [Row("loss", "loss", "value", CANNOT_TELL, why)]
