"""A TrainState in Orbax's checkpoints, for those who keep theirs there.

    pip install orbax-checkpoint
    python examples/orbax_checkpoint.py [--out out/orbax]

A TrainState is a pytree of arrays, so that other libraries save it as well; its typed key is saved by its numbers.
jaxnn's own checkpoints need no further library, and `fit(checkpoint=folder)` saves and continues by itself.
"""

import argparse
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

import jaxnn

NET, OPTIMIZER = jaxnn.mlp([16, 1]), jaxnn.adam(1e-2)
X = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]


def plain(train_state):
    """The state as Orbax takes it: its key as numbers, and the position within an epoch as an array."""
    position = np.asarray(train_state.position, np.int32)
    return train_state._replace(key=jax.random.key_data(train_state.key), position=position)


def main(out: str | Path = "out/orbax") -> bool:
    """Trains, saves, loads, trains on; says whether that is the training in one go, to the bit."""
    path = Path(out).absolute()
    shutil.rmtree(path, ignore_errors=True)
    data = X, np.sin(3 * X)
    settings = {"batch_size": 16, "key": 0}
    half = jaxnn.fit(NET, jaxnn.losses.mse, OPTIMIZER, data, epochs=5, **settings)

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, plain(half.train_state))
    with ocp.StandardCheckpointer() as checkpointer:
        loaded = checkpointer.restore(path, jax.eval_shape(lambda: plain(half.train_state)))
    state = loaded._replace(key=jax.random.wrap_key_data(loaded.key))

    whole = jaxnn.fit(NET, jaxnn.losses.mse, OPTIMIZER, data, epochs=10, **settings)
    going_on = jaxnn.fit(NET, jaxnn.losses.mse, OPTIMIZER, data, epochs=5, batch_size=16, train_state=state)
    pairs = zip(*map(jax.tree.leaves, (going_on.train_state.params, whole.train_state.params)), strict=True)
    same = all(np.array_equal(a, b) for a, b in pairs)
    print(f"5 epochs, saved and loaded, and 5 more: {going_on!r}")
    print(f"the same as 10 epochs in one go, to the bit: {same}")
    return same


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/orbax", help="the folder of the checkpoint")
    main(**vars(parser.parse_args()))
