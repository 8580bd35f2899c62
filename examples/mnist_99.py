"""MNIST: 99 % of the test images and more with a multi-layer perceptron alone, by bending the training images.

    python examples/mnist_99.py --data FOLDER [--epochs 20] [--out out]

Every image is moved, turned, stretched, sheared and bent anew each time it is seen, inside of the compiled epoch, so
that no epoch shows the same images. FOLDER holds MNIST's four files. The recipe was chosen on the 5,000 training images
that are held out for validation; the test images are looked at once, when training is over. The curves go to
out/mnist_99.png: training is harder than validation, which is not bent.

20 epochs take 81 seconds on two cores, 3.4 an epoch, and end at 99.20 % of the validation and 99.41 % of the test
images (one seed). Cireşan, Meier, Gambardella & Schmidhuber (2010), "Deep, big, simple neural nets for handwritten
digit recognition", reach 99.65 % with 2500-2000-1500-1000-500 hidden units and very many epochs of this. That network
has 9 times the weights (`jaxnn.summary` counts them): 500 epochs of it would be 225 times this, about 5 hours.
"""

import argparse
import statistics
from pathlib import Path

import jaxnn

NET = jaxnn.serial(jaxnn.flatten(), jaxnn.mlp([1024, 512, 10]))
LOSS, ACCURACY = jaxnn.losses.softmax_cross_entropy, jaxnn.metrics.accuracy
BATCH, VALIDATION = 128, 5_000
RATE = 1e-3  # Adam's η: up to it in the first epoch, then down to 0 along a cosine
BEND = jaxnn.augment.deform(alpha=34, sigma=5, shift=1.5, rotate=12, scale=0.15, shear=8)


def main(data: str, epochs: int = 20, out: str = "out", images: int | None = None) -> dict[str, float]:
    """Trains on the first so many images (all of them by default); returns the test's loss and accuracy."""
    (x, labels), test = jaxnn.data.mnist(data)
    train, validation = jaxnn.data.split((x[:images], labels[:images]), VALIDATION, key=0)
    steps = -(-len(train[1]) // BATCH)  # in an epoch
    rate = jaxnn.schedules.warmup(steps, jaxnn.schedules.cosine(RATE, steps=(epochs - 1) * steps), initial=RATE / 10)
    fitted = jaxnn.fit(
        NET,
        LOSS,
        jaxnn.adam(rate),
        train,
        key=1,
        epochs=epochs,
        batch_size=BATCH,
        validation=validation,
        metrics=[ACCURACY],
        augment=BEND,
        progress=True,
    )
    history = fitted.history
    path = Path(out) / "mnist_99.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    jaxnn.plots.learning_curves(history).savefig(path)
    print(f"{statistics.median(history['seconds']):.2f} seconds per epoch")  # the first one's include the compilation
    print(f"validation accuracy: {100 * history['validation_accuracy'][-1]:.2f} %")
    score = jaxnn.evaluate(NET, LOSS, fitted.train_state, test, metrics=[ACCURACY])
    print(f"test accuracy: {100 * score['accuracy']:.2f} %")
    return score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of MNIST's four files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", default="out", help="the folder for the picture")
    main(**vars(parser.parse_args()))
