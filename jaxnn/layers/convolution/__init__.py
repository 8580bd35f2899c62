"""Windows that move over an input: convolution and pooling.

`windows` says where they lie, `algorithms` has the three convolutions of a layer, plain and by other ways, `choice`
which of them serves where, `windowed` what a kernel's gradient is made of.
"""

from jaxnn.layers.convolution.conv import conv
from jaxnn.layers.convolution.pooling import avg_pool, global_avg_pool, global_max_pool, max_pool, upsample

__all__ = ["avg_pool", "conv", "global_avg_pool", "global_max_pool", "max_pool", "upsample"]
