"""Trained networks as programs that run without this library."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp

from jaxnn.checkpoint.files import replace
from jaxnn.checkpoint.layout import Damaged, Path
from jaxnn.mistakes import alive, array_leaves, net_record, not_traced
from jaxnn.shapes import input_spec
from jaxnn.types import DType, InShape, Layer, Params, State, Tree


def export(
    net: Layer,
    params: Params,
    state: State,
    in_shape: InShape,
    *,
    dtype: DType = jnp.float32,
    path: Path | None = None,
    platforms: Sequence[str] | None = None,
) -> jax.export.Exported:
    """The network's output as a program of x [N, …] for every N, with the layers as in evaluation (train=False).

    The parameters are constants of the program. It runs wherever JAX and flatbuffers do, without this library:
    `jax.export.deserialize(bytearray(open(path, "rb").read())).call(x)`.

    Args:
        net: the network.
        params: its parameters, `train_state.params`.
        state: its state, `train_state.state`.
        in_shape: the shape of one example, or a tree of jax.ShapeDtypeStructs.
        dtype: of x, where in_shape has none.
        path: of a file for the serialized program, which takes the place of an older one as a whole.
        platforms: that it is compiled for, such as ("cpu", "cuda", "tpu"); by default the one in use.

    Raises:
        ValueError, TypeError: if the network does not take in_shape and params, or an x or output in other containers
            than dicts, lists and tuples is to be written.
        ImportError: if a program is to be written without the package flatbuffers, which jax.export needs for it.
        OSError: as `save`.

    >>> from jaxnn import mlp
    >>> net = mlp([3, 1])
    >>> program = export(net, *net.init(0, (2,)), (2,))
    >>> program.call(jnp.ones((5, 2))).shape
    (5, 1)
    """
    net_record("checkpoint.export", net)
    array_leaves("checkpoint.export: the parameters", params)
    not_traced("checkpoint.export", "export what the compiled function returns", params, state)
    alive("params", params)
    if isinstance(platforms, str):
        raise TypeError(f"checkpoint.export: platforms must be several, give ({platforms!r},)")

    if path is not None and importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("a program is written by jax.export with the package flatbuffers: pip install flatbuffers")

    def output(x: Tree) -> Tree:
        return net.forward(params, state, x)[0]

    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(output), platforms=platforms)(input_spec(in_shape, dtype, cast(Any, n)))
    if path is not None:
        try:
            program = bytes(exported.serialize())
        except ValueError as error:  # jax.export's, for a class of a container
            raise ValueError(
                "checkpoint.export: with other containers than dicts, lists and tuples in x or its output, a program "
                f"can be called, but not written: leave out path=. {error}"
            ) from None
        replace(path, [program], partial(_same, program))
    return exported


def _same(program: bytes, path: str) -> None:
    """Raises Damaged unless a file holds this program."""
    with open(path, "rb") as file:
        if file.read() != program:
            raise Damaged(f"{path} does not read back as it was written")
