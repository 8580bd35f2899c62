"""Windows that move over an input: convolution and pooling.

`windows` says where they lie, `algorithms` has the three convolutions of a layer, plain and by other ways, `choice`
which of them serves where, `windowed` what a kernel's gradient is made of.
"""
