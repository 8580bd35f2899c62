"""What one process and several compute alike: a script for `python -m jaxnn.processes`, and rows for tests.

Each row is a function of a mesh and a folder that all processes share. It returns arrays, which several processes must
reproduce, or the text of the error that it raises, which all must raise.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxnn import (
    DivergenceError,
    adam,
    checkpoint,
    dense,
    dropout,
    evaluate,
    fit,
    init_train_state,
    losses,
    metrics,
    predict,
    relu,
    replay,
    run,
    serial,
    sgd,
    stopping,
    train_step,
)
from jaxnn.placement import fully_sharded, shard
from jaxnn.spmd.transfers import host

N, D, B = 32, 4, 8
NET = serial(dense(8), relu, dropout(0.2), dense(2))
LOSS, RATE = losses.softmax_cross_entropy, adam(1e-2)
TRAINING = {"key": 3, "epochs": 3, "batch_size": B, "progress": False}


def drawn(n=N, seed=0):
    """Data that every process draws alike."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, D)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int32)


def part_of(array):
    """The part of this process."""
    i, n = jax.process_index(), jax.process_count()
    return array[i * len(array) // n : (i + 1) * len(array) // n]


def numbers(result):
    """Parameters and history of a Fit."""
    lists = [np.asarray(values) for name, values in result.history.items() if name != "seconds"]
    return [host(leaf) for leaf in jax.tree.leaves(result.train_state.params)] + lists


def data_whole(mesh, folder):
    with jax.set_mesh(mesh):
        return numbers(fit(NET, LOSS, RATE, drawn(), validation=drawn(seed=1), metrics=[metrics.accuracy], **TRAINING))


def data_as_parts(mesh, folder):
    data = shard(jax.tree.map(part_of, drawn()), mesh, local=True)
    return numbers(fit(NET, LOSS, RATE, data, shards=4, **TRAINING))  # of which each process draws from two


def stops_early(mesh, folder):
    rules = {"stopping": stopping.early_stopping(2), "plateau": stopping.reduce_on_plateau(0.5, patience=1)}
    with jax.set_mesh(mesh):
        settings = TRAINING | {"epochs": 12}
        result = fit(NET, LOSS, adam(0.3), drawn(), validation=drawn(seed=1), measure=1, **rules, **settings)
        assert result.stopped
        assert len(result.diagnostics) == len(result.history["loss"])
        return numbers(result)


def evaluated(mesh, folder):
    state = init_train_state(NET, RATE, 0, (D,))
    with jax.set_mesh(mesh):
        scores = evaluate(NET, LOSS, state, (*drawn(), np.arange(N, dtype=np.float32)), metrics=[metrics.accuracy])
        return [np.asarray([*scores.values()]), host(predict(NET, state, drawn()[0], batch_size=B))]


def run_purely(mesh, folder):
    with jax.set_mesh(mesh):
        result = run(train_step(NET, LOSS, RATE), epochs=2, batch_size=B)(init_train_state(NET, RATE, 0, (D,)), drawn())
    return [host(leaf) for leaf in jax.tree.leaves((result.train_state.params, result.history))]


def sharded_state(mesh, folder):
    """A state that no process holds whole is saved by all, and loaded into its shards."""
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))
    state = shard(init_train_state(NET, RATE, 0, (D,)), mesh, fully_sharded())
    state = state._replace(params=dict(reversed(state.params.items())))  # the order of a dict is kept
    path = checkpoint.save(f"{folder}/sharded{jax.process_count()}.safetensors", state)
    again = checkpoint.load(path, like=state)
    w = again.params["dense_0"]["w"]
    assert w.sharding == state.params["dense_0"]["w"].sharding
    assert w.is_fully_addressable == (jax.process_count() == 1)
    data = shard(jax.tree.map(part_of, drawn()), mesh, local=True)
    trained = numbers(fit(NET, LOSS, RATE, data, shards=4, train_state=again, **TRAINING))
    return [np.frombuffer(Path(path).read_bytes(), np.uint8), *trained]


def saved(mesh, folder):
    """A training in a folder of checkpoints, in two calls."""
    place = f"{folder}/training{jax.process_count()}"
    fit_in(place, mesh, epochs=1)
    result = fit_in(place, mesh, epochs=3)
    assert "it continued" in result.why
    assert "step 12, epoch 3" in repr(result.train_state)
    return numbers(result)


def fit_in(place, mesh, epochs):
    with jax.set_mesh(mesh):
        return fit(
            NET, LOSS, RATE, drawn(), checkpoint=checkpoint.Keep(place, every=3), **TRAINING | {"epochs": epochs}
        )


def explained(mesh, folder):
    """A training that diverges is replayed."""
    try:
        with jax.set_mesh(mesh):
            fit(serial(dense(2)), losses.mse, sgd(1e20), (drawn()[0], drawn()[0][:, :2]), **TRAINING)
    except DivergenceError as error:
        moment = replay(error)
        assert not moment.explain().finite
        return [np.asarray(error.step), *(host(leaf) for leaf in jax.tree.leaves(moment.train_state.params))]
    raise AssertionError("it did not diverge")


ROWS = (data_whole, data_as_parts, stops_early, evaluated, run_purely, sharded_state, saved, explained)


# ---------------------------------------------------------------- errors that all raise


def fitted(mesh, data, **settings):
    with jax.set_mesh(mesh):
        fit(NET, LOSS, RATE, data, **TRAINING | settings)


def in_parts(mesh, *arrays):
    return shard(arrays, mesh, local=True)


def nan_in_one_part(mesh, folder):
    x, labels = map(part_of, drawn())
    if jax.process_index() == 1:
        x[3, 2] = np.nan
    fitted(mesh, in_parts(mesh, x, labels))


def label_in_one_part(mesh, folder):
    x, labels = map(part_of, drawn())
    labels[5] += 7 * jax.process_index()
    fitted(mesh, in_parts(mesh, x, labels))


def no_weight_anywhere(mesh, folder):
    fitted(mesh, in_parts(mesh, *map(part_of, drawn()), np.zeros(len(part_of(drawn()[0])), np.float32)))


def other_data(mesh, folder):
    x, labels = drawn()
    fitted(mesh, (x + jax.process_index(), labels))


def other_seeds(mesh, folder):
    fitted(mesh, drawn(), key=jax.process_index())


def unequal_parts(mesh, folder):
    in_parts(mesh, drawn()[0][: 12 + jax.process_index()])


def shape_in_one(mesh, folder):
    x, labels = drawn()
    fitted(mesh, (x, labels[: N - jax.process_index()]))


def folder_of_one(mesh, folder):
    fitted(mesh, drawn(), checkpoint=f"{folder}/of_process_{jax.process_index()}")


def not_written(mesh, folder):
    place = f"{folder}/not_written"
    checkpoint.save(f"{place}/no/such.safetensors", shard(part_of(drawn()[0]), mesh, local=True))


ERRORS = {
    nan_in_one_part: ("1 of 64 values are not finite, the first at index (3, 2)", "in process 1 of 2"),
    label_in_one_part: ("label", "in process 1 of 2"),
    no_weight_anywhere: ("all zero",),
    other_data: ("data: x: process 1 has other values than process 0",),
    other_seeds: ("process 1 has other values than process 0",),
    unequal_parts: ("process 0: float32[12, 4]; process 1: float32[13, 4]", "weight 0"),
    shape_in_one: ("data: target: process 1 has other values than process 0",),
    folder_of_one: ("that all processes share",),
    not_written: ("the folder does not exist",),
}


def weight_in_one_part(mesh, folder):
    """No error: in one process nothing counts."""
    weights = np.full(len(part_of(drawn()[0])), float(jax.process_index() or jax.process_count() == 1), np.float32)
    fitted(mesh, in_parts(mesh, *map(part_of, drawn()), weights), epochs=1)


def killed(mesh):
    """Process 1 is killed while the others wait for it."""
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    shard(np.zeros(jax.process_count()), mesh)


def text_of(row, mesh, folder):
    """The text of the error of a row; "" without one."""
    try:
        row(mesh, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder, *names):
    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    me = jax.process_index()
    for name in names:
        row = globals()[name]
        if row is killed:
            killed(mesh)
        elif row in ROWS:
            np.savez(f"{folder}/{name}.{me}.npz", *row(mesh, folder))
        else:
            Path(f"{folder}/{name}.{me}.json").write_text(json.dumps(text_of(row, mesh, folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
