"""Where arrays lie on several devices. The program stays what it is: JAX divides the work where the arrays are divided.

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data = placement.shard((x, target), mesh)          # each device has an eighth of the examples
    fit(net, loss, optimizer, data, key=0, epochs=10, batch_size=256)

    with jax.set_mesh(mesh):                           # or: NumPy arrays, of which every device gets a copy
        fit(net, loss, optimizer, (x, target), key=0, epochs=10, batch_size=256)

`fit`, `run`, `train_epoch`, `evaluate`, `predict`, `sweep`, `replay` and checkpoints take such arrays. Each batch is
divided along the first axis of the mesh, or that along which the data are; every gradient is summed over the devices
once. Axes may be Auto or Explicit (`jax.make_mesh` makes Explicit ones).

- Data that every device has all of are drawn in the same order as on one device, so that the training is the same to
  rounding. Data that are divided are drawn from by each device in its own part, which takes no communication: the order
  is that of `shards=` equal to the number of parts, on any number of devices.
- A batch that the devices do not divide is filled up with examples of weight 0. A network that couples the examples
  of a batch (`batch_norm`) is refused then; otherwise its statistics are those of the whole batch.
- The masks of `dropout` and the draws of `augment` are those of the whole batch: they do not depend on the devices.
- Parameters and the optimizer's state are on every device, or divided by a rule, `fully_sharded`: each device then has
  a part of them. On Auto axes the parameters of a layer are gathered when they are used, so that a model larger than
  one device can be trained; on Explicit axes all of them are, before a step, but for a last axis (output features) that
  is divided by another axis than the examples.
- `run`, `train_epoch` and `metagradient` know the types of arrays alone, in which Auto axes are not: give `shards=`
  there, or the data are drawn from as a whole, in another order, and every step communicates.
- `jax.grad` of a `run` over arrays on Explicit axes needs `jax.set_mesh(mesh)` around it.

For more devices than there are, to try a program out: `cores(8)`, or XLA_FLAGS=--xla_force_host_platform_device_count=8
in the environment.

Letters: N examples, D devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn.checks import seen, yes_or_no
from jaxnn.mistakes import accepts, is_function
from jaxnn.penalties import matches
from jaxnn.records import Record
from jaxnn.sources import Source
from jaxnn.spmd.axes import names_of, parts_along
from jaxnn.spmd.cores import cores
from jaxnn.spmd.transfers import from_parts, put
from jaxnn.trees import MAX_REPORTED, describe, path_name
from jaxnn.types import TrainState, Tree

__all__ = ["shard", "shardings", "examples", "replicated", "fully_sharded", "cores"]
__dir__ = __all__.copy

Axis: TypeAlias = str | tuple[str, ...]
Rule: TypeAlias = (
    "examples | replicated | fully_sharded | PartitionSpec | Mapping[str, PartitionSpec]"
    " | Callable[[str, Any], PartitionSpec | None]"
)


class examples(Record):
    """A rule: each leaf [N, …] is divided along its first axis.

    Args:
        axis: of the mesh, or several; the first by default.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tuple(examples().spec("x", np.ones((4, 3)), mesh))
    ('data',)
    """

    axis: Axis | None = None

    def spec(self, path: str, leaf: Any, mesh: Mesh) -> PartitionSpec:
        """The axes of the mesh that divide each axis of the leaf."""
        return PartitionSpec(_first(mesh) if self.axis is None else self.axis) if np.ndim(leaf) else PartitionSpec()


class replicated(Record):
    """A rule: every device has all of each leaf.

    >>> tuple(replicated().spec("w", np.ones((4, 3)), None))
    ()
    """

    def spec(self, path: str, leaf: Any, mesh: Mesh | None) -> PartitionSpec:
        """No axis divides the leaf."""
        return PartitionSpec()


class fully_sharded(Record):
    """A rule: each leaf is divided along the longest of its axes that the devices divide.

    A leaf without such an axis, a scalar for example, is on every device. Parameters and the moments of the optimizer
    are then divided alike, and take 1/D of the memory on each of D devices. Source: Rajbhandari et al. (2020), "ZeRO:
    memory optimizations toward training trillion parameter models".

    Args:
        axis: of the mesh, or several; the first by default, the one that divides batches too.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tuple(fully_sharded().spec("w", np.ones((4, 30)), mesh))
    (None, 'data')
    """

    axis: Axis | None = None

    def spec(self, path: str, leaf: Any, mesh: Mesh) -> PartitionSpec:
        """The axes of the mesh that divide each axis of the leaf."""
        axis = _first(mesh) if self.axis is None else self.axis
        known = set(names_of(axis)) <= set(mesh.axis_names)  # otherwise `shardings` names what the mesh lacks
        parts = parts_along(mesh, axis) if known else 1
        fits = [i for i, size in enumerate(np.shape(leaf)) if size and size % parts == 0]
        if not fits:
            return PartitionSpec()
        longest = max(fits, key=lambda i: (np.shape(leaf)[i], i))
        return PartitionSpec(*[None] * longest, axis)


def shard(tree: Tree, mesh: Mesh, rule: Rule | None = None, *, local: bool = False) -> Any:
    """The arrays of a tree on the devices of a mesh.

    Args:
        tree: data, (x, target) or (x, target, weights); a TrainState; parameters; any tree of arrays.
        mesh: of devices, as from `jax.make_mesh`.
        rule: by default a TrainState is copied to every device, and all else is divided along its first axis, the
            examples, by the first axis of the mesh. Or `examples`, `replicated` or `fully_sharded`, with settings; a
            `PartitionSpec` for all leaves; a dict of such by patterns of paths, {"dense_0/w": P(None, "model")}, of
            which the first that matches is taken, and none leaves a copy on every device; or a function (path, leaf)
            of that kind. A pattern is that of `penalties`, and matches the optimizer's moments of a parameter too.
        local: for a mesh of several processes. False: each process holds the whole tree, and puts its shards; that all
            hold the same is checked. True: the tree is the part of this process, [N/P, …] of [N, …] in each of P
            processes, in the order of their devices in the mesh.

    Raises:
        ValueError: if the mesh lacks an axis, or an axis of a leaf is not divisible by the number of its parts; in all
            processes, if they hold different values, or with `local` parts of different sizes.
        TypeError: if mesh or rule is something else.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tuple(shard(np.ones((4, 3)), mesh).sharding.spec)
    ('data',)
    """
    if not yes_or_no("shard: local", local):
        return put("shard", tree, shardings(tree, mesh, rule))
    if not isinstance(mesh, Mesh):
        return shardings(tree, mesh, rule)  # raises the error
    return from_parts(tree, mesh, lambda whole: shardings(whole, mesh, rule))


def shardings(tree: Tree, mesh: Mesh, rule: Rule | None = None) -> Any:
    """The shardings that `shard` gives the leaves of a tree, which may be `jax.ShapeDtypeStruct`s.

    A model larger than one device is made where it lies:
    `jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh, fully_sharded()))()`.

    Raises:
        ValueError, TypeError: as `shard`.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tuple(shardings({"w": np.ones((4, 3))}, mesh, fully_sharded())["w"].spec)
    ('data',)
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f'mesh must be a jax.sharding.Mesh, as jax.make_mesh((4,), ("data",)) is, got {seen(mesh)}')
    if rule is None:
        rule = replicated() if isinstance(tree, TrainState) else examples()
    spec_of = _function(rule)
    _check_arrays(tree, rule)
    problems: list[str] = []

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = spec_of(name, leaf, mesh)
        spec = PartitionSpec() if spec is None else spec
        if not isinstance(spec, PartitionSpec):
            raise TypeError(f"rule must give a PartitionSpec or None for {name or 'the array'}, got {seen(spec)}")
        problem = _problem(spec, leaf, mesh)
        if problem:
            problems.append(f"{name or 'the array'}, {describe(leaf)}: {problem}")
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, spec)

    lies = jax.tree_util.tree_map_with_path(one, tree)
    if problems:
        more = [f"and {len(problems) - MAX_REPORTED} more"] if len(problems) > MAX_REPORTED else []
        raise ValueError("\n  ".join(["shard: arrays do not fit the mesh", *problems[:MAX_REPORTED], *more]))
    return lies


def _check_arrays(tree: Tree, rule: Any) -> None:
    """Raises TypeError for leaves that are no arrays, and ValueError for a pattern that matches none of them."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True):
        if not hasattr(leaf, "shape") and not isinstance(leaf, Number):
            raise TypeError(f"shard: {path or 'tree'} must be an array or a tree of arrays, got {seen(leaf)}")
    if isinstance(tree, Source):
        raise TypeError("shard: a Source has no arrays to place: its parts follow `jax.set_mesh`")
    for pattern in rule if isinstance(rule, Mapping) else ():
        if not any(_matches(pattern, path) for path in paths):
            raise ValueError(
                f"rule: no path matches {pattern!r}; there are {', '.join(map(repr, paths[:MAX_REPORTED]))}"
            )


def _function(rule: Any) -> Callable[[str, Any, Mesh], Any]:
    """The rule as a function (path, leaf, mesh) -> PartitionSpec or None; TypeError for what is no rule."""
    if isinstance(rule, PartitionSpec):
        return lambda path, leaf, mesh: rule
    if isinstance(rule, Mapping):
        for pattern in rule:
            if not isinstance(pattern, str):
                raise TypeError(f"rule: the keys of a dict are patterns of paths, got {seen(pattern)}")
        return lambda path, leaf, mesh: next((spec for pattern, spec in rule.items() if _matches(pattern, path)), None)
    if isinstance(rule, (examples, replicated, fully_sharded)):
        return rule.spec
    if isinstance(rule, type) and issubclass(rule, (examples, replicated, fully_sharded)):
        raise TypeError(f"rule is a class: give {rule.__name__}()")
    if is_function(rule) and accepts(rule, None, None):
        return lambda path, leaf, mesh: rule(path, leaf)
    raise TypeError(
        "rule must be examples(), replicated(), fully_sharded(), a PartitionSpec, a dict of these by patterns of paths "
        f"or a function (path, leaf) -> PartitionSpec, got {seen(rule)}"
    )


def _matches(pattern: str, path: str) -> bool:
    """Whether the pattern matches the path, or what is below a field of a TrainState, a moment, ….

    So "dense_0/w" is params/dense_0/w and opt_state/mu/dense_0/w alike.
    """
    parts = path.split("/")
    return any(matches(pattern, "/".join(parts[i:])) for i in range(len(parts)))


def _problem(spec: PartitionSpec, leaf: Any, mesh: Mesh) -> str:
    """What does not fit; "" if all does."""
    shape = np.shape(leaf)
    names = [name for axis in spec for name in names_of(axis)]
    if missing := [name for name in names if name not in mesh.axis_names]:
        axes = ", ".join(f"{name!r} of {size}" for name, size in mesh.shape.items())
        return f"the mesh has no axis {missing[0]!r}; it has {axes}"
    if len(spec) > len(shape):
        return f"{spec} has {len(spec)} axes, the array {len(shape)}"
    if twice := [name for name in names if names.count(name) > 1]:
        return f"{spec} uses the axis {twice[0]!r} of the mesh twice; it can divide one axis of an array"
    for i, (size, axis) in enumerate(zip(shape, spec, strict=False)):
        parts = parts_along(mesh, axis)
        if size % parts:
            rest = size % parts
            advice = f"leave out {rest}, repeat {parts - rest}, or give" if i == 0 else "give"
            return (
                f"axis {i} has {size} entries, which {parts} devices cannot have equal parts of: {advice} another "
                "rule, such as replicated()"
            )
    return ""


def _first(mesh: Mesh) -> str:
    return str(mesh.axis_names[0])
