"""Several devices, by JAX's own SPMD: placement follows the data, and XLA divides the work."""
