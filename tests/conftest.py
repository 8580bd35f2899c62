"""A strict house: no silent dtype promotion, warnings are errors, several devices, deterministic; and compiled fast."""

import os
import subprocess
import sys

# Most of the suite's time is compiling. LLVM's optimisation and XLA's newer code generator are more than half of that,
# and do nothing for programs of this size; JAXNN_OPTIMISED=1 (make test-optimised) compiles as users' programs are.
FAST_COMPILING = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def understood(flags):
    """Whether this XLA knows them all; it ends the process otherwise."""
    start = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    return subprocess.run(start, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode == 0


# Before jax starts: two fake devices, so that nothing silently relies on there being one. Workers inherit the flags.
if "host_platform_device_count" not in (given := os.environ.get("XLA_FLAGS", "")):
    flags = f"{given} --xla_force_host_platform_device_count=2"
    if not os.environ.get("JAXNN_OPTIMISED") and understood(f"{flags} {FAST_COMPILING}"):
        flags += f" {FAST_COMPILING}"
    os.environ["XLA_FLAGS"] = flags
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")  # TF32 on a GPU is not a wrong gradient
