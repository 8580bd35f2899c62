"""Data sets and their preparation on the host, before training: reading, splitting, standardising.

Functions run outside `jit` unless stated otherwise, return NumPy arrays for NumPy arrays (`fit` moves them to the
device, once), and check values: a damaged file or an invalid label raises a named error here, instead of becoming a NaN
in the middle of training.
"""

from jaxnn.data.idx import DataError, read_idx, write_idx
from jaxnn.data.sets import digits, mnist
from jaxnn.data.splitting import split
from jaxnn.data.values import Standardisation, one_hot, standardisation, standardise, unstandardise

__all__ = [
    "DataError",
    "read_idx",
    "write_idx",
    "mnist",
    "digits",
    "split",
    "Standardisation",
    "standardisation",
    "standardise",
    "unstandardise",
    "one_hot",
]
__dir__ = __all__.copy
