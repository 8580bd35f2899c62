"""How records show themselves: a line for a person, a table in a terminal, a table in a notebook.

Records are pytrees: their leaves may be arrays, deleted ones, tracers, `jax.ShapeDtypeStruct`s, or anything that a
`jax.tree.map` has put there. Whatever they are, they are shown without computing on a device: of an array that holds
one number the number is read, of any other the dtype and the shape.

    >>> import numpy as np
    >>> brief(np.float32(0.5)), brief({"w": np.ones((2, 3)), "b": np.ones(3)})
    ('0.5', '9 numbers in 2 leaves')
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

__all__ = ["brief", "figure", "fit_line", "fit_table", "line", "shown", "state_line", "state_table"]

Record = TypeVar("Record")
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, headings, rows

ROWS = 24  # of a table; more are left out in the middle
NAMES = 6  # of layers or readings in a line


def shown(
    line_of: Callable[[Any], str] | None = None, table_of: Callable[[Any], Table] | None = None
) -> Callable[[type[Record]], type[Record]]:
    """A decorator of records: `repr` is one line, `print` and a notebook show a table where there is one.

    A class that says itself what `print` shows keeps that, and a notebook shows the same.
    """

    def decorate(record: type[Record]) -> type[Record]:
        its_own = record.__dict__.get("__str__")

        def text(self: Any) -> str:
            if table_of is not None:
                return _as_text(table_of(self))
            return repr(self)

        def notebook(self: Any) -> str:
            if table_of is not None:
                return _as_html(table_of(self))
            return f"<pre>{html.escape(str(self))}</pre>"

        added: dict[str, Any] = {"__repr__": line_of or line, "__str__": its_own or text, "_repr_html_": notebook}
        for name, method in added.items():
            if name == "__repr__" or name not in record.__dict__:
                setattr(record, name, method)
        return record

    return decorate


# ---------------------------------------------------------------- values


def figure(value: Any) -> str:
    """A number in at most four digits; of anything else what `brief` says."""
    number = _number(value)
    if number is None:
        return brief(value)
    if isinstance(number, bool):
        return str(number)
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"


def brief(value: Any) -> str:
    """A value in a few words: a number, dtype and shape of an array, the size of a tree."""
    if isinstance(value, str):
        return repr(value)
    if _number(value) is not None:
        return figure(value)
    if value is None or _is_empty(value):
        return repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{_dtype(value)}[{', '.join(map(str, value.shape))}]" + (" deleted" if _deleted(value) else "")
    if callable(value) and not isinstance(value, tuple):
        return str(getattr(value, "__name__", type(value).__name__))
    leaves = jax.tree.leaves(value)
    if not leaves:
        return "nothing"
    if len(leaves) == 1 and leaves[0] is value:
        return type(value).__name__
    return f"{numbers(value):,} numbers in {_counted(len(leaves), 'leaf', 'leaves')}"


def numbers(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(math.prod(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(tree))


def _number(value: Any) -> bool | int | float | None:
    """The number that value is, or that an array without axes holds; None for what is not known here and now."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct)) or _deleted(value):
        return None
    if getattr(value, "shape", None) != () or not getattr(value, "is_fully_addressable", True):
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "V" and "float" in str(value.dtype):  # bfloat16 and the like
        return float(value)
    return np.asarray(value).item() if kind in ("b", "i", "u", "f") else None


def _is_empty(value: Any) -> bool:
    return isinstance(value, (tuple, list, dict)) and not value


def _deleted(value: Any) -> bool:
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted()


def _dtype(value: Any) -> str:
    return str(value.dtype)


def _counted(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


# ---------------------------------------------------------------- lines


def line(record: Any) -> str:
    """`Name(field value, …)`."""
    return f"{type(record).__name__}({', '.join(f'{name} {brief(getattr(record, name))}' for name in record._fields)})"


def pass_line(record: Any) -> str:
    """`Pass(loss 0.31, grads of 4 leaves, …)`."""
    return line(record._replace(readings=None)).replace("readings None", f"readings {_keys(record.readings)}")


def epoch_line(record: Any) -> str:
    """`EpochResult(loss 0.31, accuracy 0.93, 16 steps, finite)`."""
    metrics = record.metrics if isinstance(record.metrics, Mapping) else {}
    figures = [f"{name} {figure(value)}" for name, value in metrics.items()]
    rest = [
        f"{name} {brief(getattr(record, name))}"
        for name in record._fields
        if name not in ("loss", "metrics") and not _is_empty(getattr(record, name))
    ]
    return f"{type(record).__name__}({', '.join([f'loss {figure(record.loss)}', *figures, *rest])})"


def _keys(tree: Any) -> str:
    return (_some(list(map(str, tree))) or "none") if isinstance(tree, Mapping) else brief(tree)


def _some(names: Sequence[str]) -> str:
    more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
    return ", ".join([*names[:NAMES], *more])


# ---------------------------------------------------------------- a training's state, and what a training gave


def state_line(state: Any) -> str:
    """`TrainState(step 120, 7,850 parameters in 4 leaves, float32, AdamState)`."""
    return f"{type(state).__name__}({', '.join(_state_parts(state))})"


def _state_parts(state: Any) -> Iterator[str]:
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
    if any(_deleted(leaf) for leaf in jax.tree.leaves(state)):
        yield "deleted"
    opt_state = state.opt_state
    if type(opt_state) is tuple and opt_state:
        yield f"({', '.join(type(part).__name__ for part in opt_state)})"
    elif opt_state is not None and not _is_empty(opt_state):
        yield brief(opt_state) if hasattr(opt_state, "dtype") else type(opt_state).__name__


def _range(value: Any) -> str:
    """A number; of several the least and the greatest."""
    known = hasattr(value, "shape") and not isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct))
    if not known or not value.shape or _deleted(value) or not getattr(value, "is_fully_addressable", True):
        return figure(value)
    host = np.asarray(value)
    low, high = (figure(end(initial)) if host.size else "" for end, initial in ((np.min, host), (np.max, host)))
    return low if low == high else f"{low} to {high}"


def state_table(state: Any) -> Table:
    """Every parameter and every number of state, by path."""
    rows: list[tuple[str, ...]] = []
    for part in ("params", "state"):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(state, part))
        named = [(_path(part, path), leaf) for path, leaf in leaves]
        rows += [(name, brief_spec(leaf), f"{numbers(leaf):,}") for name, leaf in sorted(named, key=_natural)]
    return state_line(state), ("leaf", "array", "numbers"), rows


def pass_table(record: Any) -> Table:
    """Every gradient, and every array that was read, by path."""
    rows: list[tuple[str, ...]] = []
    for part in ("grads", "readings"):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(record, part))
        rows += [(_path(part, path), brief_spec(leaf), f"{numbers(leaf):,}") for path, leaf in leaves]
    return pass_line(record), ("leaf", "array", "numbers"), rows


def brief_spec(leaf: Any) -> str:
    """`float32[784, 30]`."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return brief(leaf)
    return f"{_dtype(leaf)}[{', '.join(map(str, leaf.shape))}]" + (" deleted" if _deleted(leaf) else "")


def _path(part: str, path: Any) -> str:
    return "/".join(filter(None, (part, jax.tree_util.keystr(tuple(path), simple=True, separator="/"))))


def _natural(item: tuple[str, Any]) -> list[tuple[bool, int, str]]:
    """For sorting: dense_2 before dense_10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", item[0])]


def fit_line(fit: Any) -> str:
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


def fit_table(fit: Any) -> Table:
    """The history, a row for each epoch."""
    history = _history(fit)
    epochs = max(map(len, history.values()), default=0)
    rows = [
        (str(i + 1), *(figure(values[i]) if i < len(values) else "" for values in history.values()))
        for i in range(epochs)
    ]
    return fit_line(fit), ("epoch", *history), rows


def _history(fit: Any) -> dict[str, Sequence[Any]]:
    """The lists of the history; nothing where a `jax.tree.map` has put something else there."""
    history = fit.history if isinstance(fit.history, Mapping) else {}
    return {str(name): values for name, values in history.items() if isinstance(values, (list, tuple))}


# ---------------------------------------------------------------- tables


def _abbreviated(rows: list[tuple[str, ...]], columns: int) -> list[tuple[str, ...]]:
    """As many rows as a screen takes, and in the middle how many are left out."""
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
