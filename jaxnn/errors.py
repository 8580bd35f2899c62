"""Errors with the path of the layer in which they occur."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LayerError(ValueError):
    """An error about a layer's input or parameters; combinators add the path: layers do not know their names."""

    def __init__(self, kind: str, complaint: str, *, about_params: bool = False) -> None:
        super().__init__(f"{kind} {complaint}")
        self.complaint, self.about_params = complaint, about_params


class NothingCountsError(ValueError):
    """Examples of which none has a weight above 0, or is left by the masks."""


class _Unquoted(str):
    """A text that is its own `repr`, which a KeyError shows."""

    def __repr__(self) -> str:
        return str(self)


NAMED_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Puts the layer's path in front of the message of an error raised within."""
    try:
        yield
    except NAMED_ERRORS as error:
        path = [name, *getattr(error, "layer_path", [])] if name else getattr(error, "layer_path", [])
        message = getattr(error, "layer_message", None)
        if message is None:
            kind = "KeyError: " if isinstance(error, KeyError) else ""  # the key alone is not a message
            message = f" {error.complaint}" if isinstance(error, LayerError) else f": {kind}{error}"
        if path:
            error.args = (_Unquoted(f"layer '{'/'.join(path)}'{message}"),)
        error.layer_path, error.layer_message = path, message  # type: ignore[union-attr]
        raise
