"""480 trainings at once: 32 seeds, five learning rates, three penalties, and any of their steps again.

    python examples/sweep.py [--seeds 32] [--epochs 30] [--out out]

A network of 30 hidden units reads scikit-learn's digits, with early stopping. All members are trained side by side, in
one compilation; each is what it would be alone. Then one step of one member is repeated, from nothing but its number:
its batch, its δs, and the images that it got wrong. The picture goes to out/sweep.png.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import jaxnn

NET = jaxnn.mlp([30, 10])
LOSS = jaxnn.losses.softmax_cross_entropy
SETTINGS = {"learning_rate": [1e-4, 1e-3, 1e-2, 1e-1, 1.0], "penalty": [0.0, 1e-3, 1e-1]}
BATCH = 50


def make(learning_rate, penalty, epochs):
    """The training of one member."""
    step = jaxnn.train_step(NET, LOSS, jaxnn.adam(learning_rate), penalty=jaxnn.penalties.l2(penalty))
    stopping = jaxnn.stopping.early_stopping(3)
    return jaxnn.run(step, epochs=epochs, batch_size=BATCH, metrics=[jaxnn.metrics.accuracy], stopping=stopping)


def main(seeds: int = 32, epochs: int = 30, out: str | Path = "out") -> jaxnn.Sweep:
    """Trains all members, prints the table and a step of the best one, and draws the landscape."""
    images, labels = jaxnn.data.digits()
    train, validation = jaxnn.data.split((images.reshape(-1, 64), labels), 0.2, key=0)
    sweep = jaxnn.sweep(lambda learning_rate, penalty: make(learning_rate, penalty, epochs), SETTINGS, seeds=seeds)

    began = time.perf_counter()
    swept = sweep(train, validation)
    seconds = time.perf_counter() - began
    print(swept)
    steps = int(swept.member(0).step) // int(swept.runs.epochs_run[0])
    print(f"{len(swept)} trainings, {int(swept.runs.epochs_run.sum()) * steps:,} steps, in {seconds:.0f} seconds")
    print("\nThe mean over the seeds, the three best points:")
    for point, mean, spread in swept.means()[:3]:
        print(f"  rate {point['learning_rate']:g}, penalty {point['penalty']:g}: {mean:.4f} ± {spread:.4f}")

    best = swept.best()
    print(f"\nThe best member: {best}")
    moment = jaxnn.replay(swept, best.epochs_run * steps // 2, best.number)
    print(f"A step in the middle of it: {moment}")
    _, passed = moment.take()
    wrong = np.asarray(passed.output.argmax(-1) != moment.batch[1])
    print(f"  its loss was {passed.loss:.4f}, and {wrong.sum()} of its {len(wrong)} images were read wrong")
    print(f"  {moment.diagnose().verdict}")

    Path(out).mkdir(parents=True, exist_ok=True)
    jaxnn.plots.landscape(swept).savefig(Path(out) / "sweep.png")
    return swept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
