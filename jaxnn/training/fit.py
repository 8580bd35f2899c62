"""Training from the host: `fit` checks what it is given, then `driver` runs epoch after epoch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import jax

from jaxnn.checks import whole_number, yes_or_no
from jaxnn.keys import as_key
from jaxnn.passes.backprop import backprop
from jaxnn.spmd.batches import beside
from jaxnn.spmd.processes import together
from jaxnn.stopping import Monitor, Monitors
from jaxnn.training.chunks import as_count, chunk_of
from jaxnn.training.driver import Done, Job, drive
from jaxnn.training.entry import Entered, check_fit_arguments, enter
from jaxnn.training.epochs import Epoch
from jaxnn.training.means import DataSet, Metrics, named_metrics
from jaxnn.training.monitoring import Monitoring, monitoring
from jaxnn.training.steps import Augment, Gradient, train_step
from jaxnn.types import Fit, Key, Layer, Loss, Optimizer, Penalty, TrainState

if TYPE_CHECKING:
    from jaxnn.checkpoint.folders import Keep
    from jaxnn.training.saving import Saving


def fit(
    net: Layer,
    loss: Loss,
    optimizer: Optimizer,
    data: DataSet,
    *,
    epochs: int,
    batch_size: int,
    key: Key | int | None = None,
    validation: DataSet | None = None,
    metrics: Metrics = (),
    gradient: Gradient = backprop,
    penalty: Penalty | None = None,
    train_state: TrainState | None = None,
    shuffle: bool = True,
    check_data: bool = True,
    progress: bool | None = None,
    augment: Augment | None = None,
    stopping: Monitor | None = None,
    plateau: Monitor | None = None,
    keep: Monitor | None = None,
    watch: str | None = None,
    restore_best: bool = True,
    monitors: Monitors | None = None,
    measure: int = 0,
    skip_nonfinite: int = 0,
    checkpoint: Keep | str | os.PathLike[str] | None = None,
    shards: int | None = None,
) -> Fit:
    """Trains a network; every epoch is one call of one compiled program.

    The same arguments and key on one machine give bit-identical results, and so do a + b epochs in one call or in
    two, if the second continues from the `train_state` of the first, and from its `monitors` if there are any. The
    caller's arrays are left unchanged. A `train_state` within an epoch, such as that of a DivergenceError, finishes
    that epoch first: it is the first of `epochs`, and its row in the history covers the steps that were run. With
    another batch size the remaining examples are cut into batches of that size, of which the last may be smaller.

    The learning rate is the one in `train_state` if `optimizer` was made with the same number as the optimizer of that
    state; otherwise, and for a schedule, it is that of `optimizer`.

    With `stopping`, training ends early when the watched figure has not improved for `patience` epochs, and the state
    that is returned is the best one: parameters, running statistics, the optimizer's state and the step of the best
    epoch. The watched figure must stay finite.

    Args:
        net: the network.
        loss: a Loss record.
        optimizer: an Optimizer record, or one of optax's.
        data: (x, target) or (x, target, weights), arrays with N examples first; x may be a tree of such. Weights are
            [N], or [N, …] with one for each step or pixel, as for `backprop`; x and target may be `Sequences`. Or a
            `Source` of such, for data larger than memory, as arrays that contain an `np.memmap` become by themselves.
            What is checked of its values is checked where they are read.
        epochs: the number of passes over the data, at least 1.
        batch_size: B, from 1 to N. A last, smaller batch is a step too.
        key: a PRNG key or an integer seed. With train_state it is optional: by default the key of the state is used.
        validation: data of the same form, evaluated after every epoch.
        metrics: functions (prediction, target) -> [N], in a list or by name in a dict; see `metrics` for weights and
            masks of entries.
        gradient: `backprop` (by hand) or `autodiff`.
        penalty: a Penalty record, part of the objective; the history lists it beside the loss, which excludes it.
        train_state: the state to continue from.
        shuffle: False keeps the order of the data.
        check_data: False skips the search for values that are not finite and for labels out of range.
        progress: show a progress bar; by default if tqdm is installed and the output is a terminal.
        augment: a function (key, x) -> x, such as those of `augment`, applied to each training batch in the compiled
            epoch, with another key in every step. Evaluation never augments. Compiled programs are cached by the
            identity of the function, so define it once.
        stopping: `stopping.early_stopping(patience)`.
        plateau: `stopping.reduce_on_plateau(factor)`; the updates of the next epochs are multiplied by its scale.
        keep: `stopping.keep_best()`, for the best state without stopping, or without restoring it.
        watch: the figure that these three read, the name of a list in the history; by default "validation_loss", or
            "loss" without validation.
        restore_best: whether the returned train_state is the best one after early stopping. False with `stopping` and
            without `keep` saves the memory of a copy.
        monitors: `Fit.monitors` of the training that is continued.
        measure: the number of steps of each epoch that are measured for `Fit.diagnostics`, at equal distances; 1 is the
            last full batch. An epoch that had begun measures those of them that are left.
        skip_nonfinite: n ≥ 1 skips steps whose loss or gradient is not finite: they change nothing and are counted in
            the history as "skipped"; n of them in a row, also across the epochs of a call, end training as a
            divergence. 0 ends it at the first.
        checkpoint: a folder, in which the training is saved after every epoch, or `checkpoint.Keep(folder, every=n)`,
            every n steps. If the folder has checkpoints of this training, it continues from the newest whole one, to
            the bit as if it had never ended, but for the times; `epochs` are then counted from its beginning, and a
            finished training is returned at once. A folder has one training: with other settings or data, or another
            start, it is refused. Functions of your own are compared by their names and
            the numbers in their closures.
        shards: the number of parts of N/shards consecutive examples from which each batch is drawn in equal numbers;
            by default that in which the data lie on the devices of a mesh, so that each draws from its own, and 1 for
            data of which every device has all. See `placement`.

    Returns:
        A Fit: train_state, history with one float per epoch in each list, the reason why it ended, and the best epoch.

    Raises:
        ValueError, TypeError: before anything compiles, for data, labels, sizes or parameters that do not fit.
        DivergenceError: if the loss of a step, a parameter at the end of an epoch, the validation loss or the watched
            figure is not finite. It names the step and the first such gradient or parameter, and carries the last good
            state.
        Interrupted: on Ctrl-C, a KeyboardInterrupt that carries the Fit so far.
        OSError: if a checkpoint cannot be saved; those before it are whole, and the training continues from them.

    >>> import jax.numpy as jnp
    >>> from jaxnn import losses, mlp, sgd
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> result = fit(mlp([8, 1]), losses.mse, sgd(0.1), (x, x**2), key=0, epochs=3, batch_size=8)
    >>> len(result.history["loss"]), int(result.train_state.step)
    (3, 12)
    """
    traceable = (data, validation, train_state, key, monitors)
    check_fit_arguments(net, loss, optimizer, gradient, penalty, may_be_traced=traceable)
    step = train_step(net, loss, optimizer, gradient=gradient, penalty=penalty, augment=augment)
    epochs = whole_number("fit: epochs", epochs, least=1)
    epoch = Epoch(
        step,
        whole_number("fit: batch_size", batch_size, least=1),
        named_metrics(metrics),
        yes_or_no("fit: shuffle", shuffle),
        whole_number("fit: measure", measure, least=0),
        whole_number("fit: skip_nonfinite", skip_nonfinite, least=0),
        shards=None if shards is None else whole_number("fit: shards", shards, least=1),
    )
    look = yes_or_no("fit: check_data", check_data)
    figures = _figures(epoch, validation)
    watched = monitoring(watch, figures, stopping=stopping, plateau=plateau, keep=keep, restore_best=restore_best)
    memory = watched.begin(monitors)
    with together("fit", {} if key is None else {"key": as_key(key)}, data, validation, train_state):
        entered = enter(epoch, data, validation, train_state, key, epochs=epochs, look=look)
        saves = _saving(checkpoint, entered, watched, key, (train_state, monitors))
    zero = beside(jax.device_put(as_count(0)), entered.data)
    job = Job(*entered[:3], watched, zero, chunk_of(entered.epoch, entered.data), saves)
    found, done = job.resumed(entered.like, epochs)
    owned = train_state is None or done is not None
    if done is None:
        first = entered.first()  # nothing has compiled before
        done = Done(first, memory, began=int(first.position), found=found)
    return drive(job, done, epochs, progress, owned=owned)


def _saving(checkpoint: Any, entered: Entered, watched: Monitoring, key: Any, start: Any) -> Saving | None:
    """The saving of a training that began from `start`; None without a folder."""
    if checkpoint is None:
        return None
    from jaxnn.training.saving import saving  # most trainings are not saved

    return saving(checkpoint, entered.epoch, watched, *entered[1:3], key=key, start=start)


def _figures(epoch: Epoch, validation: DataSet | None) -> tuple[str, ...]:
    """The names of the lists of the history that can be watched, the default one last."""
    figures: tuple[str, ...] = (*(name for name, _ in epoch.metrics), "loss")
    if validation is not None:
        figures += tuple(f"validation_{name}" for name in figures)
    return figures if epoch.step.penalty is None else ("penalty", *figures)
