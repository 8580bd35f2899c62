"""Normalisation: features of mean 0 and variance 1, then of a scale γ and a shift β that are learnt.

N batch, D features (the last axis); further axes between N and D are kept. `batch_norm` takes its statistics of one
feature over all examples, `layer_norm` those of one example over all features, `group_norm` over a group of them and
all axes between; `rms_norm` divides by the root of the mean square alone. All take them in at least float32.
"""
