"""A trained network on data, in batches: `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import whole_number
from jaxnn.compiled import program
from jaxnn.mistakes import is_traced, loss_record
from jaxnn.passes.parts import costs
from jaxnn.records import Record
from jaxnn.shapes import batch_size as size_of
from jaxnn.sources import Source
from jaxnn.spmd.axes import gathered, placed
from jaxnn.spmd.batches import Home, arranged, beside, home_of, rows
from jaxnn.spmd.processes import agreeing, group_of
from jaxnn.training.batches import batch_of, in_batches, in_turn
from jaxnn.training.entry import entered, of_network
from jaxnn.training.looking import check_values
from jaxnn.training.means import DataSet, Metrics, NamedMetrics, batch_sums, in_moderation, means_of, named_metrics
from jaxnn.training.parts import FromSource, Part
from jaxnn.types import Array, Layer, Loss, Params, State, TrainState, Tree

EVALUATION_BATCH = 1024  # examples at a time where no gradient is kept; memory, not results, depends on it


def evaluate(
    net: Layer,
    loss: Loss,
    train_state: TrainState | tuple[Params, State],
    data: DataSet,
    *,
    metrics: Metrics = (),
    batch_size: int = EVALUATION_BATCH,
    check_data: bool = True,
) -> dict[str, Any]:
    """The mean loss and metrics over data, in batches, with the layers as in evaluation (train=False).

    Args:
        net: the network.
        loss: a Loss record.
        train_state: from `fit`, or a pair (params, state).
        data: (x, target) or (x, target, weights), N examples first, or a `Source`, as for `fit`.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict.
        batch_size: examples at a time; it affects the result by rounding alone.
        check_data: False skips the check of values.

    Returns:
        {"loss": Σ wₙCₙ / Σ wₙ, each metric by name}: floats; under `jit` and `vmap` arrays, and no value is checked.

    Raises:
        ValueError, TypeError: as `fit`.

    >>> from jaxnn import losses, mlp
    >>> net = mlp([1], w_init=lambda key, shape, dtype: jnp.ones(shape, dtype))
    >>> evaluate(net, losses.mse, net.init(0, (2,)), (jnp.ones((5, 2)), jnp.zeros((5, 1))))
    {'loss': 4.0}
    """
    batch_size = whole_number("evaluate: batch_size", batch_size, least=1)
    loss_record("evaluate", loss)
    named = named_metrics(metrics)
    with agreeing(group_of(data, train_state)):
        data = entered("data", data, divided=True)
        params, state = of_network("evaluate", net, beside(train_state, data), data[0])
        check_values("data", net, loss, params, state, data, named, look=check_data)
    return Evaluation(net, loss, named, home_of(data), batch_size).scores(params, state, data)


def predict(
    net: Layer, train_state: TrainState | tuple[Params, State], x: Tree, *, batch_size: int = EVALUATION_BATCH
) -> Any:
    """The network's output on x [N, …], in batches, with the layers as in evaluation (train=False).

    `train_state` is that of `fit`, or a pair (params, state); x may be a `Source` or an `np.memmap`.

    Raises:
        ValueError, TypeError: if x is empty or does not fit the parameters.

    >>> from jaxnn import mlp
    >>> net = mlp([3])
    >>> predict(net, net.init(0, (2,)), jnp.ones((5, 2))).shape
    (5, 3)
    """
    batch_size = whole_number("predict: batch_size", batch_size, least=1)
    with agreeing(group_of(x, train_state)):
        data = entered("x", x if isinstance(x, Source) else (x,), divided=True)
        x = data[0]
        params, state = of_network("predict", net, beside(train_state, x), x)
    prediction = _Prediction(net, batch_size, home_of(data))
    if isinstance(data, FromSource):
        run = lambda part: jax.block_until_ready(_predict(prediction, params, state, part[0]))  # noqa: E731
        with closing(data.in_order(min(batch_size, size_of("x", x)))) as parts:
            return _together([run(part) for part in parts])
    return _predict(prediction, params, state, x)


# ---------------------------------------------------------------- the compiled programs


_score = program("evaluation")
_predict = program("prediction")


class Evaluation(Record):
    """The mean loss and metrics of a network over a data set, `(params, state, data) -> {name: mean}`.

    Of a `Part` of the data, its sums; of the last part, given those before it, the means.
    """

    net: Layer
    loss: Loss
    metrics: NamedMetrics
    home: Home | None = None
    batch: int = EVALUATION_BATCH

    def __call__(
        self, params: Params, state: State, data: DataSet | Part, before: list[dict[str, Array]] | None = None
    ) -> dict[str, Array]:
        def one(carry: tuple[()], rows: Array) -> tuple[tuple[()], dict[str, Array]]:
            x, target, weights = batch_of(examples, rows, self.home, shards)
            output = self.net.forward(gathered(params, x), state, x)[0]
            found = costs(self.loss, output, target, weights)
            figures = {"loss": found.mean}
            return carry, batch_sums(factor, found.total, figures, output, target, weights, self.metrics)

        examples, factor = data.prepared() if isinstance(data, Part) else in_moderation(data)
        n, shards = size_of("x", examples[0]), 1 if self.home is None else self.home.parts
        sums = in_batches(one, (), in_turn(n, shards), min(self.batch, n))[1]
        if isinstance(data, Part) and before is None:
            return sums
        return means_of(jax.tree.map(lambda *parts: jnp.concatenate(parts), *before, sums) if before else sums)

    def scores(self, params: Params, state: State, data: DataSet) -> dict[str, Any]:
        """The means as floats, by the compiled program; inside another one, as arrays."""
        scores = self._of_parts(params, state, data) if isinstance(data, FromSource) else None
        scores = _score(self, params, state, data) if scores is None else scores
        return {name: score if is_traced(score) else float(score) for name, score in scores.items()}

    def _of_parts(self, params: Params, state: State, data: FromSource) -> dict[str, Array]:
        n, start, seen = data.source.length, np.asarray(0, np.int32), 0
        sums: list[dict[str, Array]] = []
        with closing(data.in_order(min(self.batch, n))) as parts:
            for part in parts:
                seen += size_of("x", part[0])
                found = _score(self, params, state, Part(part, start, n), sums if seen == n else None)
                sums.append(jax.block_until_ready(found))  # a part more in memory would be one too many
        return sums[-1]


class _Prediction(Record):
    net: Layer
    batch: int
    home: Home | None

    def __call__(self, params: Params, state: State, x: Tree) -> Any:
        n, batch = size_of("x", x), self.batch
        full = n // batch
        cut = lambda start, stop: jax.tree.map(lambda leaf: leaf[start:stop], x)  # noqa: E731
        forward = lambda x: self.net.forward(gathered(params, x), state, x)[0]  # noqa: E731
        outs = []
        if self.home is not None:
            return self._on_a_mesh(forward, x, self.home)
        if full:
            stacked = jax.tree.map(lambda leaf: leaf.reshape(full, batch, *leaf.shape[1:]), cut(0, full * batch))
            outs.append(jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), jax.lax.map(forward, stacked)))
        if n % batch:
            outs.append(forward(cut(full * batch, n)))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)

    def _on_a_mesh(self, forward: Callable[[Tree], Any], x: Tree, home: Home) -> Any:
        """The batches gathered, so that each of them is divided among the devices."""
        n, parts = size_of("x", x), home.parts
        order, batch = in_turn(n, parts), max(self.batch, home.devices)
        each = min(batch - batch % home.devices, n)
        whole = n - n % each

        def of(at: Array) -> Any:
            at = arranged(at, n, parts, home.devices)
            return forward(rows(x, at, home, local=parts > 1))

        outs = [jax.lax.map(of, order[:whole].reshape(-1, each))]
        if whole < n:
            outs.append(jax.tree.map(lambda y: y[None, :], of(order[whole:])))

        def together(*ys: Array) -> Array:
            """[batches, parts · b, …] of each to [parts · n, …], without what fills the last one up."""
            split = [y.reshape(y.shape[0], parts, -1, *y.shape[2:]) for y in ys]
            rows_of_part = [jnp.moveaxis(y, 0, 1).reshape(parts, -1, *y.shape[3:]) for y in split]
            return jnp.concatenate(rows_of_part, axis=1)[:, : n // parts].reshape(n, *ys[0].shape[2:])

        first = home.axes if home.divides(n) else None
        return jax.tree.map(lambda *ys: placed(together, *ys, axes=(first, *(None,) * (ys[0].ndim - 2))), *outs)


def _together(parts: list[Any]) -> Any:
    """Outputs of parts, one behind the other."""
    return jax.tree.map(lambda *leaves: jax.device_put(np.concatenate(leaves)), *parts)
