"""Normalisation to mean 0 and variance 1, followed by a learned scale γ and shift β.

N batch, D features (the last axis); further axes between N and D are kept. `batch_norm` has statistics of each feature
over all examples, `layer_norm` of each example over all features, `group_norm` of each example over a group of features
and all axes between; `rms_norm` divides by the root mean square. All compute in at least float32.
"""
