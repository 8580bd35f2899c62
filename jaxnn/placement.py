"""Where arrays live on several devices: JAX's own SPMD, and what it asks of a program.

Placement follows the data. Arrays that lie on a mesh, or `jax.set_mesh`, say where; XLA divides the work. A few things
are left for a program to say, and on one device none of them leaves an operation behind:

    placed          on Explicit axes, such as `jax.make_mesh` makes: where the sum over what they divide lives
    scan            what enters a loop as its carry lies where it will lie
    over_devices    inside `jax.shard_map`: the gradient of what all devices share is the sum of theirs
    rows            a batch gathered from all over the data is divided again, or every device would do all the work

N examples, B of them in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxnn.aliases import Array, Tree

Axes = tuple[Any, ...]  # of each axis of an array: the mesh's axis, or axes, along which it is divided, or None
ROUNDS = 4  # in which the types of a carry settle: each can only come to lie on more axes


# ---------------------------------------------------------------- Explicit axes


def axes_of(x: Any) -> Axes:
    """Along which axes of a mesh each axis of x is divided, as its type says: known of Explicit axes alone."""
    return tuple(jax.typeof(x).sharding.spec) if hasattr(x, "ndim") else ()


def placed(f: Callable[..., Any], *operands: Any, axes: Axes) -> Any:
    """f(*operands), divided along those axes.

    For what JAX does not work out by itself, such as a product summed over examples that Explicit axes divide. XLA
    divides the work within; f reads arrays from its operands alone.
    """
    mesh = _explicit_mesh(operands)
    if mesh is None:
        return f(*operands)
    return jax.sharding.auto_axes(f, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, PartitionSpec(*axes)))(
        *operands
    )


def reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """X [N, …] in another shape [N, …], its examples where they are."""
    first, *others = axes_of(x) or (None,)
    if any(axis is not None for axis in others):
        return x.reshape(shape)  # JAX knows some of these
    return placed(lambda x: x.reshape(shape), x, axes=(first, *(None,) * (len(shape) - 1)))


def on_mesh(*trees: Tree) -> AbstractContextManager[Any]:
    """Within it, JAX knows of the Explicit mesh that the arrays lie on, also where no `jax.set_mesh` says so.

    `jax.grad` of a loop needs it: it makes zeros for the gradient of what the loop reads.
    """
    mesh = _explicit_mesh(jax.tree.leaves(trees))
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def _explicit_mesh(leaves: Any) -> AbstractMesh | None:
    for leaf in leaves:
        mesh = jax.typeof(leaf).sharding.mesh if hasattr(leaf, "dtype") and hasattr(leaf, "ndim") else None
        if mesh is not None and not mesh.empty and mesh.explicit_axes:
            return mesh
    return None


# ---------------------------------------------------------------- inside of jax.shard_map


def over_devices(gradient: Array, like: Any) -> Array:
    """The gradient of `like`: summed over the axes of devices on which `like` is one and the same.

    What `jax.grad` does within `jax.shard_map`: each device has a loss of its own, and the gradient is that of their
    sum. With `check_vma=False` JAX does not know what is the same, and no device's gradient meets another's.
    """
    axes = varying(gradient) - varying(like)
    return jax.lax.psum(gradient, tuple(sorted(axes, key=str))) if axes else gradient


def varying(*trees: Tree) -> frozenset[Any]:
    """The axes of devices along which the arrays differ, as their types say; none outside of `jax.shard_map`."""
    return frozenset().union(*(_varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(trees)))


def _varying(type_: Any) -> frozenset[Any]:
    return getattr(getattr(type_, "mat", type_), "varying", frozenset())


def made_varying(tree: Tree, axes: frozenset[Any]) -> Tree:
    """The same arrays, of types that differ from device to device along those axes."""

    def one(leaf: Any) -> Any:
        more = tuple(sorted(axes - varying(leaf), key=str))
        return jax.lax.pcast(leaf, more, to="varying") if more else leaf

    return jax.tree.map(one, tree) if axes else tree


# ---------------------------------------------------------------- loops


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, **settings: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, the first carry moved to where the body leaves the next one."""
    return jax.lax.scan(body, _settled(body, carry, xs), xs, **settings)


def while_loop(goes_on: Callable[[Any], Array], body: Callable[[Any], Any], carry: Any) -> Any:
    """`jax.lax.while_loop`, likewise."""
    return jax.lax.while_loop(goes_on, body, _settled(lambda carry, xs: (body(carry), xs), carry, ()))


def _settled(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> Any:
    """The carry, where the body leaves it."""
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.manual_axes or mesh.explicit_axes or _explicit_mesh(jax.tree.leaves((carry, xs)))):
        return carry
    for _ in range(ROUNDS):
        types = _types_after(body, carry, xs)
        structures: list[Any] = [jax.tree.structure(tree) for tree in (types, carry)]
        if structures[0] != structures[1]:
            break  # the loop says what is wrong
        moved = jax.tree.map(_moved, carry, types)
        if all(a is b for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(carry), strict=True)):
            break
        carry = moved
    return carry


def _types_after(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> Any:
    """The types of the carry after the first pass."""
    found: list[Any] = []

    def at_first(leaf: Array) -> Array:
        if not leaf.shape[0]:  # a loop of no passes has types too
            leaf = jnp.concatenate([leaf, jnp.zeros((1, *leaf.shape[1:]), leaf.dtype)])
        return jax.lax.index_in_dim(leaf, 0, keepdims=False)

    def once(carry: Any, xs: Any) -> None:
        found.append(jax.tree.map(jax.typeof, body(carry, jax.tree.map(at_first, xs))[0]))

    jax.eval_shape(once, carry, xs)
    return found[0]


def _moved(leaf: Any, type_: Any) -> Any:
    leaf = made_varying(leaf, _varying(type_))
    mesh, spec = type_.sharding.mesh, type_.sharding.spec
    if mesh.empty or not mesh.explicit_axes or jax.typeof(leaf).sharding == type_.sharding:
        return leaf
    return jax.sharding.reshard(leaf, NamedSharding(mesh, spec))


# ---------------------------------------------------------------- data sets and batches


class Home(NamedTuple):
    """Where a data set lies: its mesh, and the axis or axes of it that divide the examples; None where none does."""

    mesh: Any
    axes: Any

    def divides(self, n: int) -> bool:
        """Whether each of the devices gets as many of n examples."""
        return self.axes is not None and n % self.devices == 0

    @property
    def devices(self) -> int:
        """Among how many devices examples are divided."""
        names = self.axes if isinstance(self.axes, tuple) else (self.axes,)
        return math.prod(self.mesh.shape[name] for name in names if name is not None)


def home_of(data: Tree) -> Home | None:
    """Where the data lie, by their own account; None on one device.

    In a compiled program arrays on Auto axes do not tell: the only axis of their mesh, or of `jax.set_mesh`, is meant,
    and of several axes none.
    """
    leaves = [leaf for leaf in jax.tree.leaves(data) if hasattr(leaf, "ndim") and leaf.ndim]
    found = [home for home in map(_home, leaves) if home is not None]
    return next((home for home in found if home.axes is not None), found[0] if found else None)


def _home(leaf: Any) -> Home | None:
    mesh = jax.typeof(leaf).sharding.mesh
    if not mesh.empty and mesh.explicit_axes:
        return Home(mesh, axes_of(leaf)[0])
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        lies = leaf.sharding
        if len(lies.device_set) == 1 or not isinstance(lies, NamedSharding):
            return None
        return Home(lies.mesh, lies.spec[0] if len(lies.spec) else None)
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    axes: tuple[str, ...] = () if mesh.empty or mesh.manual_axes or mesh.explicit_axes else mesh.auto_axes
    return Home(mesh, axes[0]) if len(axes) == 1 else None


def rows(data: Tree, at: Array, home: Home | None = None) -> Tree:
    """The rows `at` of every leaf, [B, …], divided among the devices as the data are.

    XLA would leave a batch that it gathers from all over the data on every device. There stays one
    that they do not divide.
    """
    home = home or home_of(data)

    def gathered(leaf: Array, at: Array) -> Array:
        return leaf.at[at].get(mode="promise_in_bounds")

    def of(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if home is None or home.axes is None:
            return gathered(leaf, at)
        first = home.axes if home.divides(len(at)) else None
        if _explicit_mesh((leaf,)) is not None:
            return placed(gathered, leaf, at, axes=(first, *axes_of(leaf)[1:]))
        batch = gathered(leaf, at)
        others = [PartitionSpec.UNCONSTRAINED if isinstance(batch, jax.core.Tracer) else None] * (batch.ndim - 1)
        lies = NamedSharding(home.mesh, PartitionSpec(first, *others))
        if getattr(home.mesh, "explicit_axes", ()):  # of data on the mesh this part is not
            return jax.sharding.reshard(batch, NamedSharding(home.mesh, PartitionSpec(first)))
        if first is None or (isinstance(home.mesh, AbstractMesh) and not isinstance(batch, jax.core.Tracer)):
            return batch
        return jax.lax.with_sharding_constraint(batch, lies)

    return jax.tree.map(of, data)


def beside(tree: Tree, data: Tree) -> Tree:
    """The tree, a copy of it on every device of the mesh that the data lie on, but for what is there already."""
    arrays = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array)]
    lies = [leaf.sharding for leaf in arrays if not isinstance(leaf, jax.core.Tracer)]
    there = next((s for s in lies if isinstance(s, NamedSharding) and len(s.device_set) > 1), None)
    if there is None:
        return tree

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer) or (
            isinstance(leaf, jax.Array) and leaf.sharding.device_set == there.device_set
        ):
            return leaf
        return jax.device_put(leaf, NamedSharding(there.mesh, PartitionSpec()))

    return jax.tree.map(moved, tree)


def spread(x: Any) -> NamedSharding | None:
    """Where an array [N, …] in NumPy goes under `jax.set_mesh`: along a mesh of one axis, if that divides N."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    mesh = jax.sharding.get_mesh()
    whole = len(mesh.axis_names) > 1 or not x.ndim or x.shape[0] % mesh.size
    return NamedSharding(mesh, PartitionSpec() if whole else PartitionSpec(mesh.axis_names[0]))
