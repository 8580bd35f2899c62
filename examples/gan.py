"""A generative adversarial network: two networks, two optimizers, and a δ that goes from one into the other.

    python examples/gan.py [--epochs 40] [--seeds 4] [--out out]

The data are points around eight places on a circle. A generator G turns noise z into points, a discriminator D tells
them from data (Goodfellow et al. 2014). Both costs are cross-entropies of D's answer, so that by hand

    δ at D's output     σ(y) − t, with t = 1 for data and 0 for G(z): the gradient of D
    δ at G's output     δ at D's input, where D is asked with t = 1 for G(z): the gradient of G

No cost of G is written down: the recursion through D ends in ∂C/∂x, and that is where the recursion through G begins.
The step is a function (state, batch) -> (state, info), and `run` makes a training of it, under `vmap` of all seeds.

A place is covered if at least 2 % of the generated points are within 3 σ of it. The picture, out/gan.png, shows points
of each seed, and the number of places covered.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import jaxnn

PLACES, SIGMA = 8, 0.1
N, BATCH, Z = 4096, 64, 4
ANGLES = jnp.linspace(0, 2 * jnp.pi, PLACES, endpoint=False)
CENTRES = jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=-1)
NETS = {"G": jaxnn.mlp([48, 48, 2]), "D": jaxnn.mlp([48, 48, 1], jaxnn.leaky_relu(0.2))}
WIDTHS = {"G": (Z,), "D": (2,)}
LOSS = jaxnn.losses.sigmoid_binary_cross_entropy
OPTIMIZERS = {"G": jaxnn.adam(1e-3, b1=0.5), "D": jaxnn.adam(1e-3, b1=0.5)}


def points(key, n=N):
    """Points around the places, [n, 2]."""
    noise = SIGMA * jax.random.normal(jax.random.fold_in(key, 0), (n, 2))
    return CENTRES[jax.random.randint(jax.random.fold_in(key, 1), (n,), 0, PLACES)] + noise


def start(key):
    """Both networks and both optimizers in one state."""
    params = {name: net.init(jax.random.fold_in(key, i), WIDTHS[name])[0] for i, (name, net) in enumerate(NETS.items())}
    opt_state = {name: OPTIMIZERS[name].init(params[name]) for name in NETS}
    return jaxnn.TrainState(params, (), opt_state, jnp.int32(0), key, jnp.int32(0))


def step(state, real):
    """D learns to tell data from G(z); then G learns what D takes for data."""
    params, opt_state = dict(state.params), dict(state.opt_state)

    def update(name, grads):
        updates, opt_state[name] = OPTIMIZERS[name].update(grads, opt_state[name], params[name])
        params[name] = jaxnn.apply_updates(params[name], updates)

    z = jax.random.normal(jax.random.fold_in(state.key, state.step), (len(real), Z))
    fake, _, tapes = jaxnn.passes.forward_pass(NETS["G"], params["G"], (), z)
    is_real = jnp.concatenate([jnp.ones((len(real), 1)), jnp.zeros((len(real), 1))])
    of_d = jaxnn.backprop(NETS["D"], LOSS)(params["D"], (), jnp.concatenate([real, fake]), is_real)
    update("D", of_d.grads)

    answer, _, tapes_of_d = jaxnn.passes.forward_pass(NETS["D"], params["D"], (), fake)
    wanted = jaxnn.passes.seed(LOSS, answer, jnp.ones_like(answer))
    delta, _, _ = jaxnn.passes.recursion(NETS["D"], params["D"], tapes_of_d, wanted.of_mean)  # ∂C/∂x at D's input …
    _, grads, _ = jaxnn.passes.recursion(NETS["G"], params["G"], tapes, delta)  # … is δ at G's output
    update("G", grads)
    info = {"loss": of_d.loss, "loss of G": wanted.loss, "right": ((of_d.output > 0) == (is_real > 0.5)).mean()}
    return state._replace(params=params, opt_state=opt_state), info


def figures(state, z):
    """Of the points made from z: the share near a place, and the number of places covered."""
    made = NETS["G"].forward(state.params["G"], (), z)[0]
    near = jnp.square(made[:, None] - CENTRES).sum(-1) < (3 * SIGMA) ** 2
    return {"near": near.any(1).mean(), "covered": (near.mean(0) > 0.02).sum()}


def draw(made, covered, path):
    """Points of every seed, and the number of places covered after each epoch."""
    figure = Figure(figsize=(2.4 * (len(made) + 1), 2.5), layout="constrained")
    *each, last = figure.subplots(1, len(made) + 1)
    for axes, x in zip(each, made, strict=True):
        axes.plot(*CENTRES.T, "o", color="0.85", markersize=16)
        axes.plot(*x.T, ".", color="tab:blue", markersize=2)
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect=1, xticks=(), yticks=())
    last.plot(range(1, covered.shape[1] + 1), covered.T)
    last.set(title="places covered", xlabel="epoch", ylim=(0, PLACES + 0.3))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(epochs=40, seeds=4, out="out"):
    """Trains all seeds at once, prints and draws; returns the history, [seeds, epochs] in each figure."""
    train = jaxnn.run(step, epochs=epochs, batch_size=BATCH, evaluate=figures)
    data, z = points(jax.random.key(1)), jax.random.normal(jax.random.key(2), (1000, Z))
    trained = jax.jit(jax.vmap(lambda key: train(start(key), data, z)))(jax.random.split(jax.random.key(0), seeds))
    history = trained.history
    for i in range(seeds):
        covered, near, right = (history[name][i, -1] for name in ("validation_covered", "validation_near", "right"))
        print(f"seed {i}: {covered:.0f} of {PLACES} places, {near:.0%} of the points near one; D is right {right:.0%}")
    made = jax.vmap(lambda params: NETS["G"].forward(params, (), z)[0])(trained.train_state.params["G"])
    draw(made, history["validation_covered"], Path(out) / "gan.png")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
