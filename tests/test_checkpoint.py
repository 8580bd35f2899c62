"""Checkpoints: what is saved comes back to the bit, whole or not at all, and no changed bit goes unseen."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn import checkpoint, losses
from jaxnn.checkpoint import layout
from jaxnn.checkpoint.structures import CLASSES
from jaxnn.stopping import Best, Monitors, early_stopping, keep_best
from jaxnn.types import EPOCH_START, TrainState

NET = jaxnn.mlp([3, 1])
OPTIMIZER = jaxnn.adam(1e-3)
SMALL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": 3}


def state_of(step=0, **fields):
    """A training state without anything compiled."""
    params = {"dense_0": {"w": np.full((2, 3), 0.1, np.float32), "b": np.zeros(3, np.float32)}}
    step = np.int32(step) if isinstance(step, int) else step
    return TrainState(params, (), (), step, jax.random.key(7), np.int32(1))._replace(**fields)


def assert_same(got, expected):
    """Equal containers, dtypes and bits; keys of one implementation."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if isinstance(other, (int, float)):
            assert type(one) is type(other)
            assert repr(one) == repr(other)
            continue
        assert one.dtype == other.dtype
        assert getattr(one, "weak_type", False) == getattr(other, "weak_type", False)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(one) == jax.random.key_impl(other)
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def again(tmp_path, tree, **given):
    return checkpoint.load(checkpoint.save(tmp_path / "a.safetensors", tree), **given)


def by_hand(path):
    """The arrays of a file of safetensors, by NumPy and the format's description alone."""
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert content[8:9] == b"{"
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    names = {
        "F32": "<f4",
        "F64": "<f8",
        "F16": "<f2",
        "I32": "<i4",
        "U32": "<u4",
        "BOOL": "?",
        "I64": "<i8",
        "U64": "<u8",
        "C64": "<c8",
    }
    arrays, expected = {}, 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert start == expected
        raw, expected = content[8 + length + start : 8 + length + stop], stop
        dtype = np.dtype(names.get(entry["dtype"], "<u2" if "16" in entry["dtype"] else "u1"))  # their bits
        assert (8 + length + start) % dtype.itemsize == 0
        arrays[name] = np.frombuffer(raw, dtype).reshape(entry["shape"])
    assert 8 + length + expected == len(content)
    return arrays


# ---------------------------------------------------------------- what comes back


EVERY_DTYPE = {
    str(dtype): np.arange(6).reshape(2, 3).astype(dtype)
    for dtype in layout.NAMES
    if dtype.kind not in "c" or dtype.itemsize == 8
}
TREES = {
    "dtypes": EVERY_DTYPE,
    "empty and 0-d": {"none": np.zeros((0, 3), np.float32), "one": np.float32(2.5), "true": np.bool_(True)},
    "keys": [jax.random.key(1), jax.random.key(2, impl="rbg"), jax.random.split(jax.random.key(3), 4)],
    "numbers": {
        "i": 3,
        "big": 2**70,
        "f": 0.1,
        "nan": float("nan"),
        "inf": -float("inf"),
        "zero": -0.0,
        "b": True,
        "none": None,
    },
    "containers": ([], {}, (), [(1,), {"b": 2, "a": 3}], {3: np.int8(1), 10: np.int8(2)}),
    "one array": np.arange(3, dtype=np.int32),
    "weakly typed": {"rate": jnp.asarray(0.1), "steps": jnp.asarray(3), "strong": jnp.float32(0.1)},
    "equal paths": {"a/b": np.int8(1), "a": {"b": np.int8(2), "b~2": np.int8(3)}},
    "between epochs": state_of(12),
    "within an epoch": state_of(12, position=np.int32(7)),
    "monitors": Monitors(best=Best(np.float32(0.5), state_of(3)), stopping=early_stopping(2).init()),
    "big-endian and transposed": {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "one": np.int16(3)},
    "names": {'μ ⋮ "\\\n': np.int8(1), "": np.int8(2)},
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back_to_the_bit(name, tmp_path):
    tree = TREES[name]
    got = again(tmp_path, tree)
    assert_same(got, tree)
    assert_same(again(tmp_path, tree, like=tree), tree)
    wide = {"float64", "int64", "uint64"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        if isinstance(leaf, np.ndarray):  # JAX would narrow it
            assert str(leaf.dtype) in wide, path
    if name.endswith("epoch") or name == "between epochs":
        assert (got.position is EPOCH_START) == (name == "between epochs")


def test_big_endian_arrays_come_back_with_their_values(tmp_path):
    got = again(tmp_path, np.arange(3, dtype=">f4"))
    np.testing.assert_array_equal(got, [0, 1, 2])


def test_dicts_keep_their_order(tmp_path):
    assert list(again(tmp_path, {"b": 1, "a": 2})) == ["b", "a"]


OPTIMIZERS = {
    "sgd": jaxnn.sgd(0.1),
    "momentum": jaxnn.sgd(0.1, momentum=0.9),
    "adagrad": jaxnn.adagrad(0.1),
    "rmsprop": jaxnn.rmsprop(0.1),
    "adam": jaxnn.adam(lambda step: 0.1),
    "adamw": jaxnn.adamw(0.1),
    "chain": jaxnn.chain(jaxnn.clip_by_global_norm(1.0), jaxnn.adam(0.1)),
    "chain without a rate": jaxnn.chain(jaxnn.clip_by_value(1.0)),
    "accumulate": jaxnn.accumulate(jaxnn.adam(0.1), 3),
    "ema": jaxnn.ema(0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_optimizer_comes_back(name, tmp_path):
    tree = OPTIMIZERS[name].init({"w": jnp.ones(2), "b": jnp.zeros(2, jnp.bfloat16)})
    assert_same(again(tmp_path, tree), tree)
    assert type(again(tmp_path, tree)) is type(tree)


def test_every_class_that_a_file_may_name_is_one_of_ours():
    assert all(known.__module__.startswith("jaxnn.") for known in CLASSES.values())
    states = {
        name for name in vars(jaxnn.optimizers.adaptive) | vars(jaxnn.optimizers.descent) if name.endswith("State")
    }
    states |= {
        name for name in vars(jaxnn.optimizers.transforms) | vars(jaxnn.optimizers.averages) if name.endswith("State")
    }
    assert states - {"TrainState"} <= set(CLASSES)


@pytest.mark.parametrize("seed", range(30))
def test_random_trees_come_back(seed, tmp_path):
    draw = np.random.default_rng(seed)
    dtypes = [str(dtype) for dtype in layout.NAMES if dtype.itemsize < 8]

    def tree(depth):
        kind = draw.integers(0, 7 if depth else 3)
        if kind == 0:
            return float(draw.normal()) if draw.random() < 0.5 else int(draw.integers(-(2**40), 2**40))
        if kind < 3:
            shape = tuple(draw.integers(0, 4, draw.integers(0, 4)))
            return np.asarray(draw.integers(0, 2, shape)).astype(dtypes[draw.integers(len(dtypes))])
        inner = [tree(depth - 1) for _ in range(draw.integers(0, 4))]
        names = [f"{draw.integers(99)}/{i}" for i in range(len(inner))]
        return [None, inner, tuple(inner), dict(zip(names, inner, strict=True))][kind - 3]

    expected = tree(4)
    assert_same(again(tmp_path, expected), expected)
    assert_same(again(tmp_path, expected, like=expected), expected)


def test_what_was_loaded_may_be_donated(tmp_path):
    """Arrays that share NumPy's memory must not be overwritten, nor change when NumPy's is freed."""
    expected = np.arange(100_000, dtype=np.float32)
    path = checkpoint.save(tmp_path / "a.safetensors", [expected] * 3)
    twice = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)
    got = twice(checkpoint.load(path))
    np.testing.assert_array_equal(twice(got), [4 * expected] * 3)
    np.testing.assert_array_equal(checkpoint.load(path), [expected] * 3)


# ---------------------------------------------------------------- the format


def test_other_programs_read_the_arrays(tmp_path):
    path = checkpoint.save(tmp_path / "a.safetensors", EVERY_DTYPE)
    read = by_hand(path)
    assert {name: array.tobytes() for name, array in read.items()} == {
        f"train_state/{name}": array.tobytes() for name, array in EVERY_DTYPE.items()
    }
    np.testing.assert_array_equal(read["train_state/float32"], EVERY_DTYPE["float32"])


def test_the_package_safetensors_reads_the_arrays(tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    numpy = pytest.importorskip("safetensors.numpy")
    path = checkpoint.save(tmp_path / "a.safetensors", (tree := {**EVERY_DTYPE, "none": np.zeros((0, 3), np.int32)}))
    by_name = {name: entry["data"] for name, entry in safetensors.deserialize(Path(path).read_bytes())}
    assert {name.removeprefix("train_state/"): bytes(data) for name, data in by_name.items()} == {
        name: array.tobytes() for name, array in tree.items()
    }
    plain = {name: array for name, array in tree.items() if hasattr(np, name)}  # NumPy has no float8
    numbers = numpy.load_file(checkpoint.save(tmp_path / "b.safetensors", plain))
    assert_same({name: numbers[f"train_state/{name}"] for name in plain}, plain)
    with safetensors.safe_open(path, "np") as file:
        assert json.loads(file.metadata()["versions"])["jax"] == jax.__version__


def test_equal_states_make_equal_files(tmp_path):
    one, other = (checkpoint.save(tmp_path / name, state_of(3), net=NET) for name in "ab")
    assert Path(one).read_bytes() == Path(other).read_bytes()


# ---------------------------------------------------------------- what is refused when saving


class Pair(NamedTuple):
    a: object
    b: object


REFUSED = {
    "text": ({"a": ["no"]}, TypeError, "train_state/a/0 must be an array or a number, got 'no'"),
    "int4": ({"a": jnp.zeros(2, jnp.int4)}, TypeError, "train_state/a is int4, which safetensors has no name for"),
    "complex128": ([np.zeros(2, complex)], TypeError, "train_state/0 is complex128"),
    "objects": ([np.array([None])], TypeError, "train_state/0 is object"),
    "masked": ([1, np.ma.masked_array([1.0], [True])], ValueError, "train_state/1 has a mask that hides 1 of 1 values"),
    "a network": (NET, TypeError, "train_state is the Layer serial(dense(3"),
    "a Fit": (jaxnn.Fit(SMALL, {}), TypeError, "got a Fit: give fit.train_state, and history=fit.history"),
    "a function": ({"f": len}, TypeError, "train_state/f must be an array or a number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_saved_is_refused_by_its_path(name, tmp_path):
    tree, kind, words = REFUSED[name]
    with pytest.raises(kind) as error:
        checkpoint.save(tmp_path / "a.safetensors", tree)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


NOTES = {
    "a tuple": ({"a": [(1, 2)]}, "metadata['note']['a'][0] must be a dict, list, string"),
    "an array": ({"a": np.ones(2)}, "use .tolist()"),
    "a NumPy number": ({"a": np.float32(1)}, "use float(…) or int(…)"),
    "a key": ({1: 2}, "the names in a dict must be strings, got 1"),
    "a set": ({"a": {1}}, "got {1}"),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_note_that_would_come_back_as_something_else_is_refused(name, tmp_path):
    note, words = NOTES[name]
    with pytest.raises(TypeError) as error:
        checkpoint.save(tmp_path / "a.safetensors", SMALL, note=note)
    assert words in str(error.value)


def test_traced_deleted_and_misplaced_arguments_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    deleted = jax.device_put(np.ones(2))
    deleted.delete()
    for tree, words in (({"w": deleted}, "train_state/w has been"), (state_of(deleted), "train_state/step has been")):
        with pytest.raises(ValueError, match=words):
            checkpoint.save(path, tree)
    with pytest.raises(TypeError, match="runs on the host"):
        jax.make_jaxpr(lambda x: checkpoint.save(path, x))(1.0)
    for call, words in {
        lambda: checkpoint.save(SMALL, path): "path must be the path of a file, got {'w'",
        lambda: checkpoint.load(3): "path must be the path of a file, got 3",
        lambda: checkpoint.load(checkpoint.Keep("a")): "got Keep('a'): checkpoint.latest(…) finds its newest",
        lambda: checkpoint.write(path, [SMALL]): "trees and metadata must be dicts by name",
        lambda: checkpoint.write(path, {}, classes=[dict]): "classes must be NamedTuples, got the class dict",
    }.items():
        with pytest.raises(TypeError) as error:
            call()
        assert words in str(error.value)
    for name in ("a/b", "", "__metadata__"):
        with pytest.raises(ValueError, match="the name of a tree must be a word"):
            checkpoint.write(path, {name: SMALL})
    with pytest.raises(ValueError, match="names its files by their step"):
        checkpoint.save(checkpoint.Keep(tmp_path), SMALL)


# ---------------------------------------------------------------- like, and descriptions


def spec(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_like_may_be_shapes_alone_whatever_the_cursor(tmp_path):
    for position in (EPOCH_START, np.int32(7)):
        saved = state_of(3, position=position)
        for like in (spec(state_of(0)), spec(state_of(0, position=np.int32(0))), state_of(0)._replace(epoch=0)):
            assert_same(again(tmp_path, saved, like=like), saved)


def test_every_difference_from_like_is_listed_at_once(tmp_path):
    saved = {f"l{i}": np.zeros(i + 1, np.float32) for i in range(12)} | {"k": jax.random.key(0), "n": 3, "f": 0.5}
    other = {f"l{i}": np.zeros(i + 2, np.int32) for i in range(1, 13)} | {"n": 2.0, "f": np.float32(1)}
    other["k"] = jax.random.key(0, impl="rbg")
    with pytest.raises(ValueError, match="differs from like") as error:
        again(tmp_path, saved, like=other)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("a.safetensors: train_state differs from like")
    assert [line.strip() for line in lines[1:]] == [
        "train_state/f: 0.5 in the file, float32[] here",
        "train_state/k: key<fry>[] in the file, key<rbg>[] here",
        "train_state/l1: float32[2] in the file, int32[3] here",
        "train_state/l10: float32[11] in the file, int32[12] here",
        "train_state/l11: float32[12] in the file, int32[13] here",
        "train_state/l12: int32[14] here, not in the file",
        "train_state/l2: float32[3] in the file, int32[4] here",
        "train_state/l3: float32[4] in the file, int32[5] here",
        "and 8 more",
    ]


def test_arrays_go_where_those_of_like_lie(tmp_path):
    first, second = jax.devices()[:2]
    like = {
        "a": jax.device_put(np.zeros(2, np.float32), second),
        "b": jax.device_put(jax.random.key(0), second),
        "c": 1,
    }
    got = again(tmp_path, like, like=like)
    assert got["a"].devices() == got["b"].devices() == {second}
    mesh = jax.sharding.NamedSharding(jax.make_mesh((2,), ("d",)), jax.sharding.PartitionSpec("d"))
    shaped = {"a": jax.ShapeDtypeStruct((2,), np.float32, sharding=mesh), "b": like["b"], "c": 0}
    assert again(tmp_path, like, like=shaped)["a"].sharding == mesh
    assert again(tmp_path, like)["a"].devices() == {first}
    free = again(tmp_path, like, like={**like, "a": jax.device_put(np.zeros(2, np.float32))})
    assert not free["a"].committed


def test_the_state_of_another_library_needs_like(tmp_path):
    optax = pytest.importorskip("optax")
    tree = {"opt": optax.adam(1e-3).init({"w": jnp.ones(2)}), "n": 1}
    path = checkpoint.save(tmp_path / "a.safetensors", tree)
    with pytest.raises(ValueError, match=r"train_state/opt/0 is a optax.*ScaleByAdamState, which only its library"):
        checkpoint.load(path)
    assert_same(checkpoint.load(path, like=tree), tree)
    assert checkpoint.contents(path).arrays["train_state/opt/0/count"] == (np.int32, ())


def test_a_class_of_the_caller_is_given_by_name(tmp_path):
    tree, path = {"t": Pair(np.int8(1), None)}, tmp_path / "a.safetensors"
    checkpoint.write(path, tree, classes=[Pair])
    assert_same(checkpoint.read(path, classes=[Pair]).trees, tree)
    with pytest.raises(ValueError, match="t is a Pair, a class that is not known here"):
        checkpoint.read(path)
    fewer = collections.namedtuple("Pair", "a c")
    with pytest.raises(ValueError, match="Pair has other fields here than in the file: b, c"):
        checkpoint.read(path, classes=[fewer])


def test_trees_are_read_by_name(tmp_path):
    path = checkpoint.write(tmp_path / "a.safetensors", {"one": SMALL, "two": [1]}, {"x": float("inf")})
    assert checkpoint.read(path, ["two"]) == ({"two": [1]}, {"x": float("inf")})
    with pytest.raises(ValueError, match="there is no tree 'train_state', but 'one', 'two'"):
        checkpoint.load(path)


def test_a_tree_of_64_bits_needs_them(tmp_path):
    with jax.enable_x64(True):
        path = checkpoint.save(tmp_path / "a.safetensors", {"w": jnp.asarray(np.full(2, 0.1))})
        assert checkpoint.load(path)["w"].dtype == np.float64
    with pytest.raises(ValueError, match="train_state/w is float64, which JAX holds only with 64 bits"):
        checkpoint.load(path)


class Mine(jaxnn.Layer):
    def init(self, key, in_shape, dtype=jnp.float32):
        return {}, ()


DIFFERENT = {
    "width": ({"net": jaxnn.mlp([4, 1])}, "net is not the one that was saved: layers[0].width: 3 in the file, 4 here"),
    "depth": ({"net": jaxnn.serial(jaxnn.dense(3))}, "layers: 3 in the file, 1 here"),
    "kind": ({"net": jaxnn.serial(*[jaxnn.flatten()] * 3)}, "layers[0]: dense in the file, flatten here"),
    "loss": ({"loss": losses.mae}, "loss is not the one that was saved: it: losses.mse in the file, losses.mae here"),
    "rate": ({"optimizer": jaxnn.adam(0.1)}, "learning_rate: 0.001 in the file, 0.1 here"),
    "activation": (
        {"net": jaxnn.mlp([3, 1], jaxnn.tanh)},
        "layers[0].w_init: initializers.he_normal in the file, None here",
    ),
}


def test_a_record_that_is_not_the_one_that_was_saved_is_named_by_place(tmp_path):
    saved = {"net": NET, "loss": losses.mse, "optimizer": OPTIMIZER}
    path = checkpoint.save(tmp_path / "a.safetensors", SMALL, **saved)
    checkpoint.load(path, **saved)
    checkpoint.load(path, net=Mine())  # it has no description
    for given, words in DIFFERENT.values():
        with pytest.raises(ValueError, match="in the file") as error:
            checkpoint.load(path, **given)
        assert words in str(error.value)


def test_what_cannot_be_described_is_saved_with_the_reason(tmp_path):
    path = checkpoint.save(tmp_path / "a.safetensors", SMALL, net=jaxnn.serial(Mine()), optimizer=3)
    found = checkpoint.contents(path)
    assert found.net is found.optimizer is None
    assert "serial.layers[0] is" in found.undescribed["net"]
    assert "not described: describe: serial.layers[0]" in str(found)
    checkpoint.load(path, net=NET)


# ---------------------------------------------------------------- contents


def test_contents_say_what_is_in_a_file(tmp_path):
    history = {"loss": [0.1 + 0.2, float("nan")], "seconds": [1e-300, float("inf")]}
    note = {"a": [1, None, True, "μ"], "b": {"c": -0.0}}
    state = state_of(120, key=jax.random.split(jax.random.key(0, impl="rbg"), 3))
    given = {"net": NET, "loss": losses.mse, "optimizer": OPTIMIZER, "history": history, "note": note}
    path = checkpoint.save(tmp_path / "a.safetensors", state, monitors=Monitors(keep_best().init(1.0)), **given)
    found = checkpoint.contents(path)
    assert (found.step, found.epoch, found.position, found.bytes) == (120, 1, 0, os.path.getsize(path))
    assert repr((found.history, found.note)) == repr((history, note))
    assert [*map(jaxnn.from_description, (found.net, found.loss, found.optimizer))] == [NET, losses.mse, OPTIMIZER]
    assert found.arrays["train_state/params/dense_0/w"] == (np.float32, (2, 3))
    assert found.arrays["train_state/key"] == (state.key.dtype, (3,))
    assert found.versions["jax"] == jax.__version__
    text = str(found)
    for words in (
        "step 120, epoch 1, position 0",
        repr(NET),
        repr(OPTIMIZER),
        "float32[2, 3]",
        "key<rbg>[3]",
        "loss nan",
    ):
        assert words in text
    assert repr(found) == text.splitlines()[0]


def test_contents_do_not_look_at_the_arrays(tmp_path):
    path = checkpoint.save(tmp_path / "a.safetensors", SMALL)
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)
    assert checkpoint.contents(path).arrays == {"train_state/w": (np.float32, (2, 3))}
    assert checkpoint.contents(path).step is None


# ---------------------------------------------------------------- programs


ALONE = """
import sys
sys.path.append(sys.argv.pop(1))  # of flatbuffers
sys.modules["jaxnn"] = None
import jax.export, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
for path in sys.argv[2:]:
    np.save(path + ".out.npy", program.call(np.load(path)))
"""


def test_an_exported_network_runs_without_this_library(tmp_path):
    flatbuffers = pytest.importorskip(
        "flatbuffers", reason="flatbuffers, which jax.export writes with, is not installed"
    )
    net = jaxnn.serial(
        jaxnn.conv(2, (3, 3)), jaxnn.batch_norm(), jaxnn.relu, jaxnn.flatten(), jaxnn.dropout(0.5), jaxnn.dense(3)
    )
    params, state = net.init(0, (5, 5, 1))
    program = checkpoint.export(net, params, state, (5, 5, 1), path=tmp_path / "net.bin")
    inputs = []
    for n in (2, 7):
        inputs.append(str(tmp_path / f"x{n}.npy"))
        np.save(inputs[-1], np.random.default_rng(n).normal(size=(n, 5, 5, 1)).astype(np.float32))
    subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            ALONE,
            str(Path(flatbuffers.__file__).parents[1]),
            str(tmp_path / "net.bin"),
            *inputs,
        ],
        check=True,
    )
    for path in inputs:
        x = np.load(path)
        expected = jaxnn.predict(net, (params, state), x)
        np.testing.assert_allclose(np.load(path + ".out.npy"), expected, rtol=1e-5, atol=1e-6)
    assert program.in_avals[0].shape[1:] == (5, 5, 1)
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_a_program_for_a_tree_and_several_platforms():
    net = jaxnn.parallel(jaxnn.embedding(4, 2), jaxnn.embedding(4, 2))
    shape = jax.ShapeDtypeStruct((), np.int32)
    params, state = net.init(0, shape)
    program = checkpoint.export(net, params, state, shape, platforms=("cpu", "cuda", "tpu"))
    assert program.platforms == ("cpu", "cuda", "tpu")
    whole = checkpoint.export(jaxnn.dense(2), *jaxnn.dense(2).init(0, (3,), jnp.bfloat16), (3,), dtype=jnp.bfloat16)
    assert whole.out_avals[0].dtype == jnp.bfloat16


def test_bad_arguments_of_export():
    params, state = NET.init(0, (2,))
    with pytest.raises(TypeError, match=r"checkpoint.export: net must be a Layer record, got 3"):
        checkpoint.export(3, params, state, (2,))
    with pytest.raises(ValueError, match="expects 2 features"):
        checkpoint.export(NET, params, state, (5,))
    with pytest.raises(TypeError, match=r"platforms must be several, give \('cpu',\)"):
        checkpoint.export(NET, params, state, (2,), platforms="cpu")
    with pytest.raises(TypeError, match="got a TrainState"):
        checkpoint.export(NET, state_of(), (), (2,))


def test_a_program_of_sequences_is_made_but_not_written(tmp_path):
    pytest.importorskip("flatbuffers", reason="flatbuffers, which jax.export writes with, is not installed")
    x = jaxnn.Sequences(jax.ShapeDtypeStruct((4, 2), np.float32), jax.ShapeDtypeStruct((4,), np.bool_))
    net = jaxnn.dense(3)
    params, state = net.init(0, x)
    with pytest.raises(ValueError, match=r"other containers than dicts.*jaxnn\.sequences\.Sequences"):
        checkpoint.export(net, params, state, x, path=tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_not_written_without_flatbuffers(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install flatbuffers"):
        checkpoint.export(NET, *NET.init(0, (2,)), (2,), path=tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []
