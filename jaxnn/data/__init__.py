"""Reading data sets, and what is done to data once, on the host, before training: splitting, standardising.

Everything here runs outside `jit` unless it says otherwise, keeps NumPy arrays NumPy arrays (`fit` moves them
to the device, once), and looks at values: a damaged file or an impossible label stops here, by name, rather
than as a NaN in the middle of training.
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


def __dir__() -> list[str]:
    return list(__all__)
