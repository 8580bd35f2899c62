"""REINFORCE: a policy learns by the δ of its log-likelihood, times how much better than expected it went.

    python examples/policy_gradient.py [--epochs 30] [--seeds 4] [--out out]

A walker in a room with a wall loses 1 by every move until it reaches the exit; one move in ten goes in a random
direction. The policy π is a softmax over four directions. With G the return that followed an action a, and b the one
that a second network expects there, ∇E[G] is the mean of (G − b) ∇log π(a) (Williams 1992), so that by hand

    δ at the policy's output = (G − b) (π − e_a)        e_a is 1 at the action that was taken

which goes into the recursion as it is. Batches are places where walks begin, and `run` makes a training of the step,
under `vmap` of all seeds. After 30 epochs the mean return is −8.0; the best possible, by Bellman's equation, is −7.8.
The picture, out/policy_gradient.png, shows the returns, and the directions that the first policy prefers.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxnn

ROOM = np.array([*map(list, ["......#...", "......#...", "......#..E", "..........", "......#...", "......#..."])])
FREE, EXIT = ROOM != "#", np.argwhere(ROOM == "E")[0]
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
ASTRAY, MOST_MOVES = 0.1, 40  # the probability that a move goes in a random direction; moves of a walk
PLACES = np.argwhere(FREE & (ROOM != "E"))
COPIES, BATCH = 8, 64  # of each place in the data; walks at a time
NETS = {"policy": jaxnn.mlp([64, 4], jaxnn.tanh), "expected": jaxnn.mlp([64, 1], jaxnn.tanh)}
OPTIMIZER = jaxnn.adam(1e-2)


def seen(place):
    """What the networks see of places [..., 2]: one-hot row and column."""
    return jnp.concatenate([jax.nn.one_hot(place[..., i], ROOM.shape[i]) for i in (0, 1)], axis=-1)


def moved(place, direction):
    """The places [N, 2] after a move; walls stop it, and who has reached the exit stays there."""
    new = jnp.clip(place + jnp.asarray(MOVES)[direction], 0, jnp.array(ROOM.shape) - 1)
    goes = jnp.asarray(FREE)[new[:, 0], new[:, 1]] & (place != EXIT).any(-1)
    return jnp.where(goes[:, None], new, place)


def walk(policy, key, place):
    """Walks of the policy: places [T, N, 2], actions [T, N], and 1 while the walker was on its way."""

    def move(place, key):
        choice, luck, where = jax.random.split(key, 3)
        action = jax.random.categorical(choice, NETS["policy"].forward(policy, (), seen(place))[0])
        random = jax.random.randint(where, action.shape, 0, len(MOVES))
        direction = jnp.where(jax.random.bernoulli(luck, ASTRAY, action.shape), random, action)
        return moved(place, direction), (place, action, (place != EXIT).any(-1).astype(jnp.float32))

    return jax.lax.scan(move, place, jax.random.split(key, MOST_MOVES))[1]


def step(state, starts):
    """Walks from those places; then both networks learn from what followed each move."""
    places, actions, going = walk(state.params["policy"], jax.random.fold_in(state.key, state.step), starts)
    returns = jnp.cumsum(-going[::-1], axis=0)[::-1]
    x, a, g, w = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in (seen(places), actions, returns, going))
    logits, _, tapes = jaxnn.passes.forward_pass(NETS["policy"], state.params["policy"], (), x)
    expected = jaxnn.backprop(NETS["expected"], jaxnn.losses.half_squared_error)
    of_b = expected(state.params["expected"], (), x, g[:, None], weights=w)  # moves behind the exit do not count
    better = (g - of_b.output[:, 0]) * w / len(starts)  # the gradient is a mean over walks
    delta = better[:, None] * (jax.nn.softmax(logits) - jax.nn.one_hot(a, len(MOVES)))
    _, of_policy, _ = jaxnn.passes.recursion(NETS["policy"], state.params["policy"], tapes, delta)

    updates, opt_state = OPTIMIZER.update({"policy": of_policy, "expected": of_b.grads}, state.opt_state, state.params)
    new = state._replace(params=jaxnn.apply_updates(state.params, updates), opt_state=opt_state)
    return new, {"return": returns[0].mean(), "loss of b": of_b.loss}


def best_return():
    """The mean return of the best policy, from v(s) = max over a of E v(s′) − 1, repeated."""
    after = [np.asarray(moved(PLACES, np.full(len(PLACES), d))).T for d in range(len(MOVES))]
    v = np.zeros(ROOM.shape)
    for _ in range(MOST_MOVES):
        of_each = np.stack([v[rows, columns] for rows, columns in after])
        v[tuple(PLACES.T)] = ((1 - ASTRAY) * of_each + ASTRAY * of_each.mean(0)).max(0) - 1
    return v[tuple(PLACES.T)].mean()


def main(epochs=30, seeds=4, out="out"):
    """Trains all seeds at once, prints and draws; returns the returns [seeds, epochs] and the best possible one."""

    def trained(key):
        params = {name: net.init(key, (sum(ROOM.shape),))[0] for name, net in NETS.items()}
        first = jaxnn.TrainState(params, (), OPTIMIZER.init(params), jnp.int32(0), key, jnp.int32(0))
        return jaxnn.run(step, epochs=epochs, batch_size=BATCH)(first, np.tile(PLACES, (COPIES, 1)))

    runs = jax.jit(jax.vmap(trained))(jax.random.split(jax.random.key(0), seeds))
    returns, best = np.asarray(runs.history["return"]), best_return()
    for i, each in enumerate(returns):
        print(f"seed {i}: mean return {each[0]:.1f} in the first epoch, {each[-1]:.1f} in the last; at best {best:.1f}")

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(1, epochs + 1), returns.T)
    left.axhline(best, color="0.7", linewidth=0.8)
    left.set(title="mean return", xlabel="epoch")
    first = jax.tree.map(lambda leaf: leaf[0], runs.train_state.params["policy"])
    directions = MOVES[NETS["policy"].forward(first, (), seen(PLACES))[0].argmax(-1)]
    right.imshow(FREE, cmap="gray", vmin=-1, vmax=1.2)
    right.quiver(*PLACES.T[::-1], *directions.T[::-1], angles="xy", pivot="mid", scale=18)
    right.plot(*EXIT[::-1], "o", color="tab:orange")
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "policy_gradient.png", dpi=150)
    return returns, best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--epochs", 30), ("--seeds", 4), ("--out", "out")):
        parser.add_argument(name, type=type(default), default=default)
    main(**vars(parser.parse_args()))
