"""Text of records: a line for `repr`, a table in a terminal, a table in a notebook.

Records are pytrees: their leaves may be arrays, deleted arrays, tracers, `jax.ShapeDtypeStruct`s, or any result of
`jax.tree.map`. Nothing is computed on a device: an array of one number is shown as that number, any other by dtype and
shape.

    >>> import numpy as np
    >>> brief(np.float32(0.5)), brief({"w": np.ones((2, 3)), "b": np.ones(3)})
    ('0.5', '9 numbers in 2 leaves')
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

Record = TypeVar("Record")
Fields: TypeAlias = Any  # a NamedTuple whose fields are pytrees
Leaf: TypeAlias = Any  # a leaf of a pytree, any object
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, headings, rows

ROWS = 24  # of a table; further ones are omitted in the middle
NAMES = 6  # of readings in a line


def shown(
    line_of: Callable[[Fields], str] | None = None, table_of: Callable[[Fields], Table] | None = None
) -> Callable[[type[Record]], type[Record]]:
    """A decorator of records: `repr` is one line; `print` and a notebook show a table if `table_of` is given.

    A class with a `__str__` keeps it, and a notebook shows the same text.
    """

    def decorate(record: type[Record]) -> type[Record]:
        def text(self: object) -> str:
            return repr(self) if table_of is None else _as_text(table_of(self))

        def notebook(self: object) -> str:
            return f"<pre>{html.escape(str(self))}</pre>" if table_of is None else _as_html(table_of(self))

        for name, method in {"__repr__": line_of or line, "__str__": text, "_repr_html_": notebook}.items():
            if name == "__repr__" or name not in record.__dict__:
                setattr(record, name, method)
        return record

    return decorate


# ---------------------------------------------------------------- values


def figure(value: Leaf) -> str:
    """A number to four digits; anything else by `brief`."""
    number = _number(value)
    if number is None:
        return brief(value)
    if isinstance(number, bool):
        return str(number)
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"


def brief(value: Leaf) -> str:
    """A value in a few words: a number, the dtype and shape of an array, the size of a tree."""
    if isinstance(value, str):
        return repr(value)
    if _number(value) is not None:
        return figure(value)
    if value is None or _is_empty(value):
        return repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _spec(value)
    if callable(value) and not isinstance(value, tuple):
        return str(getattr(value, "__name__", type(value).__name__))
    leaves = jax.tree.leaves(value)
    if not leaves:
        return "nothing"
    if len(leaves) == 1 and leaves[0] is value:
        return type(value).__name__
    return f"{numbers(value):,} numbers in {_counted(len(leaves), 'leaf', 'leaves')}"


def numbers(tree: Leaf) -> int:
    """The number of numbers in a tree."""
    return sum(math.prod(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(tree))


def _number(value: Leaf) -> bool | int | float | None:
    """A number, or that in a 0-d array; None if the value is not a number or cannot be read."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct)) or is_deleted(value):
        return None
    if getattr(value, "shape", None) != () or not _is_here(value):
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "V" and "float" in str(value.dtype):  # bfloat16 and the like
        return float(value)
    return np.asarray(value).item() if kind in ("b", "i", "u", "f") else None


def _is_here(value: object) -> bool:
    """True for an array of which this process has all values."""
    return getattr(value, "is_fully_addressable", True) or getattr(value, "is_fully_replicated", False)


def _is_empty(value: object) -> bool:
    return isinstance(value, (tuple, list, dict)) and not value


def is_deleted(value: object) -> bool:
    """True for an array whose memory has been given away."""
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted()


def _counted(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


# ---------------------------------------------------------------- lines


def line(record: Fields) -> str:
    """`Name(field value, …)`."""
    return f"{type(record).__name__}({', '.join(f'{name} {brief(getattr(record, name))}' for name in record._fields)})"


def pass_line(record: Fields) -> str:
    """`Pass(loss 0.31, grads of 4 leaves, …)`."""
    return line(record._replace(readings=None)).replace("readings None", f"readings {_keys(record.readings)}")


def epoch_line(record: Fields) -> str:
    """`EpochResult(loss 0.31, accuracy 0.93, 16 steps, finite)`."""
    metrics = record.metrics if isinstance(record.metrics, Mapping) else {}
    figures = [f"{name} {figure(value)}" for name, value in metrics.items()]
    rest = [
        f"{name} {brief(getattr(record, name))}"
        for name in record._fields
        if name not in ("loss", "metrics") and not _is_empty(getattr(record, name))
    ]
    return f"{type(record).__name__}({', '.join([f'loss {figure(record.loss)}', *figures, *rest])})"


def _keys(tree: object) -> str:
    return (_some(list(map(str, tree))) or "none") if isinstance(tree, Mapping) else brief(tree)


def _some(names: Sequence[str]) -> str:
    more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
    return ", ".join([*names[:NAMES], *more])


# ---------------------------------------------------------------- the state and the result of training


def state_line(state: Fields) -> str:
    """`TrainState(step 120, 7,850 parameters in 4 leaves, float32, AdamState)`."""
    return f"{type(state).__name__}({', '.join(_state_parts(state))})"


def _state_parts(state: Fields) -> Iterator[str]:
    shape = getattr(state.step, "shape", ())
    if shape:
        yield f"{math.prod(shape):,} states side by side"
    yield f"step {_range(state.step)}"
    for name in ("epoch", "position"):
        if getattr(state, name, None) is not None:
            yield f"{name} {_range(getattr(state, name))}"
    leaves = jax.tree.leaves(state.params)
    if not leaves:
        yield "no parameters"
    else:
        dtypes = dict.fromkeys(str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves)
        yield f"{numbers(state.params):,} parameters in {_counted(len(leaves), 'leaf', 'leaves')}"
        yield " and ".join(dtypes)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        yield "traced"
    if any(is_deleted(leaf) for leaf in jax.tree.leaves(state)):
        yield "deleted"
    opt_state = state.opt_state
    if type(opt_state) is tuple and opt_state:
        yield f"({', '.join(type(part).__name__ for part in opt_state)})"
    elif opt_state is not None and not _is_empty(opt_state):
        yield brief(opt_state) if hasattr(opt_state, "dtype") else type(opt_state).__name__


def _range(value: Leaf) -> str:
    """A number; of several, the least and the greatest."""
    known = hasattr(value, "shape") and not isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct))
    if not known or not value.shape or is_deleted(value) or not _is_here(value):
        return figure(value)
    host = np.asarray(value)
    low, high = (figure(end(initial)) if host.size else "" for end, initial in ((np.min, host), (np.max, host)))
    return low if low == high else f"{low} to {high}"


def state_table(state: Fields) -> Table:
    """The arrays of parameters and state by path."""
    rows: list[tuple[str, ...]] = []
    for part in ("params", "state"):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(state, part))
        named = [(_path(part, path), leaf) for path, leaf in leaves]
        rows += [(name, brief_spec(leaf), f"{numbers(leaf):,}") for name, leaf in sorted(named, key=_natural)]
    return state_line(state), ("leaf", "array", "numbers"), rows


def pass_table(record: Fields) -> Table:
    """The gradients and readings by path."""
    rows: list[tuple[str, ...]] = []
    for part in ("grads", "readings"):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(record, part))
        rows += [(_path(part, path), brief_spec(leaf), f"{numbers(leaf):,}") for path, leaf in leaves]
    return pass_line(record), ("leaf", "array", "numbers"), rows


def brief_spec(leaf: Leaf) -> str:
    """`float32[784, 30]`, also for an array of one number."""
    return _spec(leaf) if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else brief(leaf)


def _spec(leaf: Leaf) -> str:
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]" + (" deleted" if is_deleted(leaf) else "")


def _path(part: str, path: Sequence[Leaf]) -> str:
    return "/".join(filter(None, (part, jax.tree_util.keystr(tuple(path), simple=True, separator="/"))))


def _natural(item: tuple[str, Leaf]) -> list[tuple[bool, int, str]]:
    """A sort key that puts dense_2 before dense_10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", item[0])]


def fit_line(fit: Fields) -> str:
    """`Fit(5 epochs, loss 0.31 -> 0.05, validation_loss 0.07, best epoch 4, "all 5 epochs were run")`."""
    history = _history(fit)
    epochs = max(map(len, history.values()), default=0)
    parts = [_counted(epochs, "epoch", "epochs")]
    if history.get("loss"):
        ends = [figure(history["loss"][i]) for i in (0, -1)]
        parts.append(f"loss {' -> '.join(ends if epochs > 1 else ends[-1:])}")
    if history.get("validation_loss"):
        parts.append(f"validation_loss {figure(history['validation_loss'][-1])}")
    if fit.best_epoch is not None:
        parts.append(f"best epoch {figure(fit.best_epoch)}")
    if fit.why:
        parts.append(f'"{fit.why}"' if isinstance(fit.why, str) else brief(fit.why))
    return f"{type(fit).__name__}({', '.join(parts)})"


def fit_table(fit: Fields) -> Table:
    """The history, one row for each epoch."""
    history = _history(fit)
    epochs = max(map(len, history.values()), default=0)
    rows = [
        (str(i + 1), *(figure(values[i]) if i < len(values) else "" for values in history.values()))
        for i in range(epochs)
    ]
    return fit_line(fit), ("epoch", *history), rows


def run_line(run: Fields) -> str:
    """`Run(3 of 5 epochs, loss 0.31 -> 0.05, …)`; of several runs at once the shapes of their arrays."""
    history = _curves(run)
    if history is None:
        return line(run)
    ran = _number(run.epochs_run)
    epochs = max(map(len, history.values()), default=int(ran or 0))
    counted = _counted(epochs, "epoch", "epochs")
    parts = [counted if ran in (None, epochs) else f"{ran} of {counted}"]
    for name, values in history.items():
        real = [value for value in values if not math.isnan(value)] or values
        ends = [figure(real[i]) for i in (0, -1)] if len(real) > 1 else [figure(value) for value in real]
        parts.append(f"{name} {' -> '.join(ends)}")
    return f"{type(run).__name__}({', '.join(parts)})"


def run_table(run: Fields) -> Table:
    """The history, one row for each epoch that was run."""
    history = _curves(run) or {}
    ran = _number(run.epochs_run)
    epochs = max(map(len, history.values()), default=0) if ran is None else int(ran)
    rows = [(str(i + 1), *(figure(values[i]) for values in history.values())) for i in range(epochs) if history]
    return run_line(run), ("epoch", *history), rows


def _curves(run: Fields) -> dict[str, list[float]] | None:
    """The arrays [E] of a history as lists; None if they are others, such as tracers or those of several runs."""
    history = run.history if isinstance(run.history, Mapping) else {}
    curves = {}
    for name, values in history.items():
        if not hasattr(values, "ndim") or isinstance(values, jax.core.Tracer) or values.ndim != 1 or is_deleted(values):
            return None
        if isinstance(values, jax.ShapeDtypeStruct):
            return None
        curves[str(name)] = np.asarray(values).astype(float).tolist()
    return dict(sorted(curves.items(), key=lambda item: item[0] != "loss"))


def _history(fit: Fields) -> dict[str, Sequence[Leaf]]:
    """The lists in the history, without other results of `jax.tree.map`."""
    history = fit.history if isinstance(fit.history, Mapping) else {}
    return {str(name): values for name, values in history.items() if isinstance(values, (list, tuple))}


# ---------------------------------------------------------------- tables


def _abbreviated(rows: list[tuple[str, ...]], columns: int) -> list[tuple[str, ...]]:
    """The first and the last rows, and between them the number of omitted ones."""
    if len(rows) <= ROWS + 1:
        return rows
    half = ROWS // 2
    left_out = (f"⋮ {len(rows) - 2 * half:,} more", *[""] * (columns - 1))
    return [*rows[:half], left_out, *rows[-half:]]


def _as_text(table: Table) -> str:
    title, headings, rows = table
    if not rows:
        return title
    cells = [headings, *_abbreviated(rows, len(headings))]
    widths = [max(len(row[i]) for row in cells if not row[0].startswith("⋮") or i) for i in range(len(headings))]
    to_the_left = headings[0] != "epoch"

    def text(row: tuple[str, ...]) -> str:
        if row[0].startswith("⋮"):
            return row[0]
        words = [f"{cell:<{w}}" if to_the_left and i < 2 else f"{cell:>{w}}"
                 for i, (cell, w) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        return "  ".join(words).rstrip()

    return "\n".join([title, "", *map(text, cells)])


def _as_html(table: Table) -> str:
    title, headings, rows = table
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
        for row in _abbreviated(rows, len(headings))
    )
    grid = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<div>{html.escape(title)}{grid}</div>"
