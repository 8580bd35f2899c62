"""Learning-rate schedules: every one of them over 1,000 steps, with the expression that makes it.

    python examples/schedules.py [--out out]

A schedule is a function step → rate; an optimizer takes any such function as its learning rate. The last three combine
others: a warm-up before a schedule, two in succession, one times a factor. The picture goes to out/schedules.png.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import jaxnn

STEPS = 1000
EXPRESSIONS = (
    "constant(0.4)",
    "step_decay(0.4, factor=0.5, every=250)",
    "piecewise([0.4, 0.1, 0.2], boundaries=[300, 700])",
    "exponential(0.4, factor=0.5, every=250)",
    "inverse_time(0.4, rate=1.0, every=250)",
    "polynomial(0.4, final=0.05, steps=800, power=2)",
    "cosine(0.4, steps=1000)",
    "warmup(100, then=cosine(0.4, steps=900))",
    "joined([constant(0.4), cosine(0.2, steps=600)], boundaries=[400])",
    "scaled(step_decay(0.4, factor=0.5, every=250), factor=0.5)",
)


def main(out="out"):
    """Draws all of them; returns {expression: the rate at each step}."""
    names = {name: getattr(jaxnn.schedules, name) for name in jaxnn.schedules.__all__}
    rates = {text: jax.vmap(eval(text, names))(jnp.arange(STEPS)) for text in EXPRESSIONS}
    figure = Figure(figsize=(10.5, 8), layout="constrained")
    cells = figure.subplots(len(rates) // 2, 2, sharex=True, sharey=True).flat
    for axes, (text, rate) in zip(cells, rates.items(), strict=True):
        axes.plot(rate, linewidth=1.5)
        axes.set_title(text, fontsize=8, loc="left", family="monospace")
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
