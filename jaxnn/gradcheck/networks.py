"""`network`: every layer's hand-derived rule against jax.grad, each at its own spot.

One pass by jax.grad, through forward functions alone, notes at every layer, combinators included, what came in and
which δ came back. Then each rule is judged there by itself, with that input and that δ: a wrong rule elsewhere does
not reach it, so every wrong one is named and no other is blamed. A combinator whose result is wrong while a layer
inside it is wrong too is judged again with jax.grad's rule in that layer's place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import plain_data
from jaxnn.combinators.walk import Place, ordered_leaves, places, rebuilt
from jaxnn.gradcheck.judge import ONLY_HERE, judge
from jaxnn.gradcheck.programs import Problem
from jaxnn.gradcheck.report import BY_AUTODIFF, CANNOT_TELL, KINK, RIGHT, SEVERITY, WRONG, Report, Row
from jaxnn.gradcheck.spots import DELTA_IN, Spot, Spots, Uses, at_spot, counted, find_spots
from jaxnn.jaxprs import first_difference
from jaxnn.keys import as_key
from jaxnn.mistakes import alive, array_leaves
from jaxnn.passes.backprop import autodiff, backprop, check_records
from jaxnn.passes.parts import check_params, costs
from jaxnn.trees import named_leaves
from jaxnn.twins import autodiff_twin
from jaxnn.types import Key, Layer, Loss, Params, State, Tree

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
    seed: int = 0,
) -> Report:
    """Are the hand-derived rules of this network right: every layer's δ_in and gradients, the loss's δ, the whole pass?

    Args:
        net: the network; its layers' rules are what is checked.
        loss: a Loss record; its δ is checked too.
        params: the network's parameters, in float32, bfloat16, float16 or (under x64) float64.
        state: its state, () if it has none.
        x: inputs [N, …], or a pytree of such.
        target: as the loss wants it.
        train: whether layers behave as in training.
        rng: a key, where layers draw random numbers.
        weights: [N] or [N, …], as for `backprop`.
        seed: of the jitter.

    Returns:
        A Report. Its rows: each layer in the network's order, with δ_in and every gradient leaf at the layer's own
        spot; the loss; and the whole pass, backprop against jax.grad, with every layer's δ and every gradient leaf.
        Its `wrong` names the layers whose own rule is wrong. What has no rule by hand is "by autodiff", and not judged.

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
    check_records("gradcheck.network", net, loss)
    rng = None if rng is None else as_key(rng)
    parts = {"params": params, "state": state, "x": x, "target": target, "weights": weights}
    for what, tree in parts.items():
        plain_data(f"gradcheck.network: {what}", tree)
        array_leaves(f"gradcheck.network: {what}", tree)
        alive(f"gradcheck.network: {what}", tree)
    params, state, x, target, weights = jax.tree.map(jnp.asarray, (params, state, x, target, weights))
    check_params(net, params, x)
    derive = backprop(net, loss, train=train)
    _deterministic(net, params, state, x, train, rng)
    nodes = list(places(net, inner_first=True))
    try:
        jax.eval_shape(lambda p, s, x: derive(p, s, x, target, rng=rng, weights=weights), params, state, x)
    except Exception as error:
        noted = (net, loss, params, state, x, target, train, rng, weights)
        raise _at_its_layer(error, nodes, lambda: find_spots(*noted), train) from None
    spots, uses, output = find_spots(net, loss, params, state, x, target, train, rng, weights)
    seen = costs(loss, output, target, weights)
    by_hand = [node for node in nodes if not node.layer.by_autodiff]
    problems = {node.index: at_spot(node, spots[node.index], uses[node.index], train) for node in by_hand}
    of_loss = [] if loss.by_autodiff else [_loss(loss, seen.prediction, seen.target)]
    whole = _whole(net, loss, params, state, x, target, train, rng, weights)
    judged = iter(judge([*problems.values(), *of_loss, *whole], seed))
    local = [next(judged) if node.index in problems else [_no_rule(node.label, node.layer.kind)] for node in nodes]
    at_loss = next(judged) if of_loss else [_no_rule(loss.name, "loss")]
    deltas, grads = judged
    local, blamed = _blame(nodes, local, spots, uses, train, seed)
    wrong = [node.label for node in nodes if node.index in blamed] + [loss.name] * (_worst(at_loss) == WRONG)
    rows = [row for node, found in zip(nodes, local, strict=True) for row in _folded(node, found)]
    kinks = [row.place for found in local for row in found if row.verdict == KINK]
    order = list(ordered_leaves(net, params))  # jax.tree sorts names: dense_10 before dense_2
    grads = sorted(grads, key=lambda row: order.index(row.leaf))
    overall = [_explained(row, wrong, kinks) for row in [*deltas, *grads]]
    broken = _not_finite(counted(seen), nodes, spots, uses, train)
    return Report(_title(net, params), (*broken, *rows, *at_loss, *overall), tuple(wrong))


def _no_rule(place: str, kind: str) -> Row:
    what = "delta is jax.grad of value" if kind == "loss" else "backward is jax.vjp of forward"
    return Row(place, kind, "δ" if kind == "loss" else "δ_in, gradients", BY_AUTODIFF, f"there is no rule: its {what}")


def _deterministic(net: Layer, params: Params, state: State, x: Tree, train: bool, rng: Key | None) -> None:
    """Raises ValueError if forward, traced twice, is two programs."""

    def traced() -> Any:
        def forward(params: Params, state: State, x: Tree, rng: Key | None) -> Any:
            return net.forward(params, state, x, train=train, rng=rng)[0]

        return jax.make_jaxpr(forward)(params, state, x, rng)

    differs = first_difference(traced(), traced())
    if differs is not None:
        raise ValueError(
            f"gradcheck.network: {net.name or net.kind} is not deterministic: its forward, called twice with the same "
            f"arguments, is two different programs, first at {differs}; draw random numbers from rng"
        )


def _at_its_layer(error: Exception, nodes: list[Place], find: Callable[[], Any], train: bool) -> Exception:
    """What the backward pass raised, or what the layer raises whose rule does not fit, by its name."""
    try:
        spots, uses, _ = find()
    except Exception:
        return error
    for node in nodes:
        problem = at_spot(node, spots[node.index], uses[node.index], train)
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


def _worst(rows: list[Row]) -> str:
    return max((row.verdict for row in rows), key=SEVERITY.index, default=RIGHT)


def _explained(row: Row, culprits: list[str], kinks: list[str]) -> Row:
    """What is off in the whole pass follows from a layer's own rule, or from a kink that a layer stands at."""
    if row.verdict == WRONG and culprits:
        return row._replace(why=f"follows from {', '.join(culprits)}")
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
    return Problem(loss.name, "loss", tuple(names), value, rule, leaves, target, [ones], witness=True)


def _whole(
    net: Layer,
    loss: Loss,
    params: Params,
    state: State,
    x: Tree,
    target: Tree,
    train: bool,
    rng: Key | None,
    weights: Any,
) -> list[Problem]:
    """The loss and every layer's δ, then every gradient leaf: backprop against autodiff, end to end."""
    leaves, tree = jax.tree.flatten(params)
    fixed = (state, x, target, rng, weights)
    order = list(ordered_leaves(net, jax.tree.unflatten(tree, list(range(len(leaves))))).items())

    def run(derive: Any, leaves: list[Any], fixed: Any, read: tuple[str, ...] = ()) -> Any:
        state, x, target, rng, weights = fixed
        params = jax.tree.unflatten(tree, leaves)
        return derive(net, loss, read=read, train=train)(params, state, x, target, rng=rng, weights=weights)

    def noted(derive: Any) -> Any:
        def passed(leaves: list[Any], fixed: Any, _: list[Any]) -> list[Any]:
            out = run(derive, leaves, fixed, ("deltas",))
            return [out.loss, *ordered_leaves(net, out.readings["deltas"]).values()]

        return passed

    def grads(leaves: list[Any], fixed: Any, deltas: list[Any]) -> list[Any]:
        found = jax.tree.leaves(run(backprop, leaves, fixed).grads)
        return [g * deltas[0].astype(g.dtype) for g in found]

    def value(leaves: list[Any], fixed: Any) -> list[Any]:
        return [run(autodiff, leaves, fixed).loss]

    outs = jax.eval_shape(lambda: run(backprop, leaves, fixed, ("deltas",)))
    names = ["loss", *(f"{path} δ" for path in ordered_leaves(net, outs.readings["deltas"]))]
    one = [jnp.ones((), outs.loss.dtype)]
    through = Problem(WHOLE, "δ", tuple(names), value, noted(backprop), leaves, fixed, one, auto=noted(autodiff))
    labels = [name for name, _ in sorted(order, key=lambda item: item[1])]
    return [through, Problem(WHOLE, "gradient", tuple(labels), value, grads, leaves, fixed, one, witness=True)]


# ---------------------------------------------------------------- whose fault


def _blame(
    nodes: list[Place], judged: list[list[Row]], spots: Spots, uses: Uses, train: bool, seed: int
) -> tuple[list[list[Row]], set[tuple[int, ...]]]:
    """Takes from each combinator what a layer inside it has done: the rows, and the layers whose own rule is wrong."""
    blamed: set[tuple[int, ...]] = set()
    rows = list(judged)
    for i, node in enumerate(nodes):
        if _worst(rows[i]) != WRONG:
            continue
        inside = {index for index in blamed if index[: len(node.index)] == node.index}
        if inside:
            again = judge(_isolated(node, spots[node.index], uses[node.index], train, inside), seed)
            failed = [row for found in again for row in found if row.verdict == WRONG]
            if not failed:
                culprits = ", ".join(other.label for other in nodes if other.index in inside)
                why = f"its own rule is right; what is off comes from {culprits}"
                rows[i] = [Row(node.label, node.layer.kind, "δ_in, gradients", RIGHT, why)]
                continue
            rows[i] = failed
        blamed.add(node.index)
    return rows, blamed


def _isolated(node: Place, spot: Spot, uses: int, train: bool, inside: set[tuple[int, ...]]) -> list[Problem]:
    """A combinator's own rule, without those of the wrong layers inside it.

    First jax.grad's rule in their places; then its record's rule against that of the same combinator made anew, since
    a rule that was replaced on the record is not in what `rebuild` makes.
    """
    within = {index[len(node.index) :] for index in inside}
    twin = lambda layer, place: autodiff_twin(layer) if place.index in within else layer  # noqa: E731
    anew = at_spot(node, spot, uses, train, node.layer.rebuild(node.layer.children))
    children_right = at_spot(node, spot, uses, train, rebuilt(twin, node.layer))
    return [children_right, at_spot(node, spot, uses, train)._replace(auto=anew.rule)]


def _folded(node: Place, rows: list[Row]) -> list[Row]:
    """A combinator whose rule is right takes one row."""
    if node.is_leaf or any(row.verdict != RIGHT for row in rows) or not rows:
        return rows
    furthest = max(rows, key=lambda row: row.excess or 0.0)
    return [Row(node.label, node.layer.kind, "δ_in, gradients", RIGHT, rows[0].why, excess=furthest.excess)]


def _not_finite(loss: Any, nodes: list[Place], spots: Spots, uses: Uses, train: bool) -> list[Row]:
    """Where NaN or infinity comes from, if the loss is not finite: the first layer that makes it of finite numbers."""
    values = np.asarray(loss).astype(np.float64)
    if np.isfinite(values).all():
        return []
    why = f"the loss is not finite for {int((~np.isfinite(values)).sum())} of {values.size} examples"
    for node in nodes:
        if not node.is_leaf:
            continue
        problem = at_spot(node, spots[node.index], uses[node.index], train)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in problem.leaves):
            why += f"; what goes into {node.label} is not finite"
            return [Row(node.label, node.layer.kind, "input", CANNOT_TELL, why)]
        for y in problem.value(problem.leaves, problem.fixed):
            bad = ~np.isfinite(np.asarray(y).astype(np.float64))
            if bad.any():
                element = tuple(map(int, np.unravel_index(int(np.argmax(bad)), bad.shape)))
                why += f"; {node.label} makes it of finite numbers, {int(bad.sum())} of {bad.size}"
                return [Row(node.label, node.layer.kind, "output", CANNOT_TELL, why, element=element)]
    return [Row("loss", "loss", "value", CANNOT_TELL, why)]
