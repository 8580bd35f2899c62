"""Every learning-rate schedule over 1,000 steps, each as it is written.

    python examples/schedules.py [--out out]

A schedule is a function step → rate; any such function will do where an optimizer takes a learning rate. The last three
are made of others: a warm-up before one, one after another, one times a factor. The picture goes to out/schedules.png.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import jaxnn

STEPS = 1000
WRITTEN = (
    "constant(0.4)",
    "step_decay(0.4, factor=0.5, every=250)",
    "piecewise([0.4, 0.1, 0.2], boundaries=[300, 700])",
    "exponential(0.4, factor=0.5, every=250)",
    "inverse_time(0.4, rate=1.0, every=250)",
    "polynomial(0.4, final=0.05, steps=800, power=2)",
    "cosine(0.4, steps=1000)",
    "warmup(100, cosine(0.4, steps=900))",
    "joined([constant(0.4), cosine(0.2, steps=600)], [400])",
    "scaled(step_decay(0.4, factor=0.5, every=250), 0.5)",
)


def main(out="out"):
    """Draws all of them; returns {as it is written: the rate of each step}."""
    names = {name: getattr(jaxnn.schedules, name) for name in jaxnn.schedules.__all__}
    rates = {text: jax.vmap(eval(text, names))(jnp.arange(STEPS)) for text in WRITTEN}
    figure = Figure(figsize=(9, 8), layout="constrained")
    cells = figure.subplots(len(rates) // 2, 2, sharex=True, sharey=True).flat
    for axes, (text, rate) in zip(cells, rates.items(), strict=True):
        axes.plot(rate, linewidth=1.5)
        axes.set_title(text, fontsize=9, loc="left", family="monospace")
        axes.set(ylim=(0, 0.45))
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("learning rate", fontsize=10)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out) / "schedules.png", dpi=150)
    return rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
