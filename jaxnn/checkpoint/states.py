"""Training states in files: `save` and `load`, and below them `write` and `read` for any trees."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxnn.checkpoint.files import replace
from jaxnn.checkpoint.folders import Keep
from jaxnn.checkpoint.layout import Path, opened, verify_arrays
from jaxnn.checkpoint.metadata import about, check_same
from jaxnn.checkpoint.packing import Unpacked, packed, values_of, wanted_names
from jaxnn.checkpoint.structures import Class, known_classes
from jaxnn.checks import seen
from jaxnn.descriptions import Json
from jaxnn.mistakes import alive, not_traced
from jaxnn.spmd.processes import agreeing, group_of_arrays
from jaxnn.spmd.transfers import gathered
from jaxnn.types import Fit, Tree

STATE, MONITORS = "train_state", "monitors"  # the names of the trees that `save` writes


class Read(NamedTuple):
    """Trees and metadata of a file, by name."""

    trees: dict[str, Tree]
    metadata: dict[str, Json]


def write(
    path: Path | Keep, trees: dict[str, Tree], metadata: dict[str, Json] | None = None, *, classes: Iterable[Class] = ()
) -> str:
    """Writes trees of arrays and plain values into one file, and returns its path.

    The file is written beside its place, forced to the disk, read back and compared, then renamed; until then an older
    one stays as it is, whatever happens. Arrays that lie in several processes are saved by all of these together: each
    calls `write`, the first writes, and an error of it is raised in all.

    Args:
        path: of the file, in a folder that exists; or a `Keep`, whose file has the name of metadata["step"].
        trees: trees of arrays and Python numbers, by name; containers of other libraries need `like` in `read`.
        metadata: dicts, lists, strings and numbers, NaN and ∞ among them; they come back to the bit.
        classes: further NamedTuples among the containers, to be given to `read` too.

    Raises:
        TypeError, ValueError: with its path for a leaf that cannot be saved, or metadata that are something else.
        OSError: if the disk is full, the folder does not exist, …

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write(f"{folder}/a.safetensors", {"means": [jnp.ones(2), 3]}, {"loss": [0.1]})
    ...     read(path)
    Read(trees={'means': [Array([1., 1.], dtype=float32), 3]}, metadata={'loss': [0.1]})
    """
    values = {} if metadata is None else metadata
    keep, name = (path, _name_in(path, values)) if isinstance(path, Keep) else (None, _file("save", path))
    group = group_of_arrays(trees)
    with agreeing(group):
        trees = gathered(trees, group)
        if group is None or group.is_first:
            pieces = packed(trees, values, known_classes(classes))
            if keep is not None:
                os.makedirs(keep.folder, exist_ok=True)
            replace(name, pieces, _verified)
            if keep is not None:
                keep.remove_older(values["step"])
    return name


def _name_in(keep: Keep, values: Mapping[str, Json]) -> str:
    if values.get("step") is None:
        raise ValueError(f"{keep!r} names its files by their step, which only a TrainState has: give a file's path")
    return keep.path(values["step"])


def _file(where: str, path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)):
        hint = ": checkpoint.latest(…) finds its newest" if isinstance(path, Keep) else ""
        raise TypeError(f"checkpoint.{where}: path must be the path of a file, got {seen(path)}{hint}")
    return os.fspath(path)


def _verified(path: str) -> None:
    """Raises Damaged if a file does not read back as it was written."""
    with opened(path) as (file, header):
        verify_arrays(file, header)


def read(
    path: Path,
    names: Iterable[str] | None = None,
    *,
    like: Mapping[str, Tree] | None = None,
    classes: Iterable[Class] = (),
) -> Read:
    """The trees and the metadata that `write` was given.

    Args:
        path: of the file, or the result of `latest`.
        names: of the trees to be read; all by default. Only their arrays are read and verified.
        like: trees of arrays or jax.ShapeDtypeStructs by name, as for `load`.
        classes: those that `write` was given.

    Raises:
        FileNotFoundError, ValueError, Damaged: as `load`.
    """
    like, known = {} if like is None else like, known_classes(classes)
    with opened(_file("read", path)) as (file, header):
        unpacked = Unpacked(file, header, known)
        chosen = wanted_names(names, header)
        return Read({name: unpacked.tree(name, like.get(name)) for name in chosen}, values_of(header))


def save(
    path: Path | Keep,
    train_state: Tree,
    *,
    net: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    monitors: Tree = None,
    history: dict[str, list[float]] | None = None,
    note: dict[str, Json] | None = None,
) -> str:
    """Saves a training state, or any other tree of arrays, in one file, and returns its path.

    The arrays are in the layout of safetensors, so that other programs read them too. Everything comes back to the
    bit: dtypes, PRNG keys, Python numbers, containers. Arrays come back as JAX's, but for those of NumPy with 64 bits
    where JAX has only 32. The file takes the place of an older one as a whole or not at all, after it has been forced
    to the disk, read back and compared.

    Args:
        path: of the file, in a folder that exists; or a `Keep`, which names it by its step and removes old ones.
        train_state: a TrainState, or another tree.
        net: its description is saved, for `load` and `contents`; where it has none, because of a layer of your own,
            say, the reason.
        loss: likewise.
        optimizer: likewise.
        monitors: the states of monitors, `Fit.monitors`.
        history: `Fit.history`.
        note: whatever else is to be said: dicts, lists, strings and numbers.

    Raises:
        TypeError, ValueError: with its path for a leaf that cannot be saved, or a note that is something else.
        OSError: if the disk is full, the folder does not exist, …; an older file is then as it was.

    >>> import tempfile, jaxnn
    >>> state = jaxnn.init_train_state(net := jaxnn.mlp([3, 1]), optimizer := jaxnn.adam(1e-3), 0, (2,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load(save(f"{folder}/net.safetensors", state, net=net, optimizer=optimizer))
    >>> again
    TrainState(step 0, epoch 0, position 0, 13 parameters in 4 leaves, float32, AdamState)
    """
    if isinstance(train_state, Fit):
        raise TypeError(
            "checkpoint.save: got a Fit: give fit.train_state, and history=fit.history, monitors=fit.monitors"
        )
    not_traced("checkpoint.save", "save what the compiled function returns", train_state, monitors)
    alive(STATE, train_state)
    trees = {STATE: train_state} | ({} if monitors is None else {MONITORS: monitors})
    said = about(train_state, net=net, loss=loss, optimizer=optimizer)
    return write(path, trees, {**said, "history": history, "note": note})


def load(path: Path, like: Tree = None, *, net: Any = None, loss: Any = None, optimizer: Any = None) -> Tree:
    """The training state, or other tree, that `save` was given; its arrays are verified and on a device.

    Args:
        path: of the file, or the result of `latest`.
        like: a tree of arrays or jax.ShapeDtypeStructs with the containers, shapes and dtypes that are expected; each
            array is put where its counterpart lies. It is needed for containers of other libraries, such as optax's
            states: `jax.eval_shape(lambda: init_train_state(net, optimizer, 0, in_shape))`. A whole number may be
            Python's in one and an array in the other: the cursor between epochs and within one.
        net: compared with the description in the file, if there is one.
        loss: likewise.
        optimizer: likewise.

    Raises:
        FileNotFoundError: if there is no such file.
        Damaged: a ValueError, for a file that is cut off or changed, with the array.
        ValueError: if it differs from `like`, with the paths, or a record from its description, with the place; for a
            file of another format, and for arrays of 64 bits without jax_enable_x64.

    >>> import tempfile, jax, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load(save(f"{folder}/w.safetensors", {"w": jnp.ones(2)}), like={"w": jax.ShapeDtypeStruct((2,), "float32")})
    {'w': Array([1., 1.], dtype=float32)}
    """
    name = _file("load", path)
    with opened(name) as (file, header):
        check_same(values_of(header), net=net, loss=loss, optimizer=optimizer)
        return Unpacked(file, header, known_classes(())).tree(STATE, like)
