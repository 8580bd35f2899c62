"""Training states in files: saved at once and durably, found again, verified to the bit; and trained networks exported.

`save` and `load` are for a TrainState or any tree of arrays, `write` and `read` for several trees and plain values in
one file; `contents` says what is in a file, `latest` which is the newest whole one in a folder that `Keep` names and
tidies. The arrays are in the layout of safetensors, so that other programs read them; the trees are in its metadata.
Nothing in a file is unpickled or evaluated. `export` makes a program of a network, which needs JAX alone.
"""

from jaxnn.checkpoint.exporting import export
from jaxnn.checkpoint.folders import Keep, Latest, latest
from jaxnn.checkpoint.layout import Damaged
from jaxnn.checkpoint.overview import Contents, contents
from jaxnn.checkpoint.states import Read, load, read, save, write

__all__ = [
    "save",
    "load",
    "write",
    "read",
    "contents",
    "latest",
    "export",
    "Keep",
    "Contents",
    "Latest",
    "Read",
    "Damaged",
]
__dir__ = __all__.copy
