"""Errors that know where they happened."""

from __future__ import annotations


class LayerError(ValueError):
    """A layer's complaint about its input or parameters. Layers do not know their names: combinators add the path."""

    def __init__(self, kind: str, complaint: str, *, about_params: bool = False) -> None:
        super().__init__(f"{kind} {complaint}")
        self.complaint, self.about_params = complaint, about_params
