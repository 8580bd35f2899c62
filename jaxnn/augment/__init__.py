"""Augmentation: images moved, rotated, stretched, bent and made noisy at random, as pure functions of a key.

Every factory returns a function `(key, x) -> x` of a batch x [N, H, W, C] of floats. Each image gets its own draw;
shape and dtype are kept, equal keys give equal images, and under `jit` all of it runs inside a compiled epoch. At
strength 0, a function returns x itself.

A strength is a number s, for a draw between −s and s, or a pair (low, high). Resampling is bilinear: outside the image
the value is `fill`; a NaN propagates to every pixel that is computed from it.

    function                        draws, per image
    shift(pixels)                   rows and columns to move down and right, independently
    rotate(degrees)                 an angle, anticlockwise
    scale(amount)                   a factor between 1/(1 + s) and 1 + s, its logarithm uniform; a pair gives factors
    shear(degrees)                  an angle by which columns lean to the right
    affine(shift, rotate, …)        all of them, in one resampling: scaled, sheared, rotated, then moved
    elastic(alpha, sigma)           a smooth field of displacements
    deform(alpha, sigma, shift, …)  affine, then elastic, in one resampling
    noise(std)                      a normal number for each entry

    compose(f, g, …)                one after another, each with a separate key
    resample(x, points)             what these have in common, not random: x at given points

Letters: N batch, H and W height and width, C channels; p a point of the result, q the point of x that it shows, both
(row, column) from the image's centre.
"""

from jaxnn.augment.composition import compose
from jaxnn.augment.distortions import deform, elastic, noise
from jaxnn.augment.maps import affine, rotate, scale, shear, shift
from jaxnn.augment.resampling import affine_points, resample
from jaxnn.augment.strengths import Augmentation

__all__ = [
    "Augmentation", "shift", "rotate", "scale", "shear", "affine", "elastic", "deform", "noise", "compose",
    "affine_points", "resample",
]  # fmt: skip
__dir__ = __all__.copy
