"""A strict house: no silent dtype promotion, warnings are errors, several devices, deterministic."""

import os

# Before jax starts: two fake devices, so that nothing silently relies on there being one; and one XLA
# optimisation setting for all tests, so that the suite measures the code that users run.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("MPLBACKEND", "Agg")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")  # TF32 on a GPU is not a wrong gradient
