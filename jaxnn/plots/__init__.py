"""Figures of what the other modules return, in one style for screen and print; each function returns its figure.

Matplotlib is an extra, and is imported only when a figure is drawn. Figures are self-contained: no window and no global
state; `figure.savefig("a.png")` saves one, and a notebook displays it.

    activations, losses     values and slopes
    schedules               learning rates over the steps
    learning_curves         the history of `fit`, with the best and the last epoch
    gradient_flow           norms of δ, or of anything else, from layer to layer
    flow_over_time          the same at every epoch, layer by layer
    landscape               a figure of a sweep over its settings
    decision_boundary       the class that a classifier assigns to each point of a plane
    weight_images           the weights into each unit, as an image
    confusion_matrix        the class predicted for the examples of each class
    image_rows              images in labelled rows, such as digits and their augmentations

Colours are those of Okabe & Ito (2008), which colour-blind readers can distinguish; lines differ in their dashes too.
Letters: N examples, D features, H units, K classes.
"""

from jaxnn.plots.functions import activations, losses, schedules
from jaxnn.plots.images import confusion_matrix, decision_boundary, image_rows
from jaxnn.plots.layers import gradient_flow, weight_images
from jaxnn.plots.sweeps import landscape
from jaxnn.plots.training import flow_over_time, learning_curves

__all__ = [
    "activations", "losses", "schedules", "learning_curves", "gradient_flow", "flow_over_time", "decision_boundary",
    "weight_images", "confusion_matrix", "image_rows", "landscape",
]  # fmt: skip
__dir__ = __all__.copy
