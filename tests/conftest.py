"""A strict house: no silent promotion of dtypes or ranks, warnings are errors, several devices; and compiled fast.

Most of the suite's time is compiling, so programs are compiled without LLVM's optimisations, and what was compiled is
kept in .jax_cache for the next run. JAXNN_OPTIMISED=1 (make test-all) compiles as users' programs are.
"""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".jax_cache"
MOST_BYTES = 500e6  # of the cache; then it begins anew
MOST_KEPT = 1.2e9  # bytes of a worker's memory, above which it forgets its compiled programs between modules
AS_USERS_WRITE = (  # test files
    *("test_examples", "test_readme", "test_nonfinite"),
    *(f"test_gradcheck_{of}" for of in ("function", "evidence", "verdicts")),
    *(
        f"test_graph_{of}"
        for of in ("trace", "libraries", "explain", "page", "flow", "text", "dot", "folding", "layout")
    ),
)
FAST_COMPILING = (  # XLA's flags change between releases: each is taken where it is known
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def understood(flags):
    """Whether this XLA knows them all; it ends the process otherwise."""
    start = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    return subprocess.run(start, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode == 0


# Before jax starts: eight fake devices, so that nothing silently relies on there being one. Workers inherit the flags.
if "host_platform_device_count" not in (given := os.environ.get("XLA_FLAGS", "")):
    flags = f"{given} --xla_force_host_platform_device_count=8"
    if not os.environ.get("JAXNN_OPTIMISED"):
        flags = " ".join([flags, *(flag for flag in FAST_COMPILING if understood(flag))])
    os.environ["XLA_FLAGS"] = flags
    if CACHE.is_dir() and sum(file.stat().st_size for file in CACHE.iterdir()) > MOST_BYTES:
        shutil.rmtree(CACHE)
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import pytest  # noqa: E402
from long_tests import is_long  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")  # TF32 on a GPU is not a wrong gradient
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
gc.set_threshold(50_000, 20, 20)  # tracing makes many objects and few cycles


@pytest.fixture(scope="module", autouse=True)
def promotion(request):
    """No array is given axes that nobody wrote, but in programs such as users write them, where x @ W + b is usual."""
    jax.config.update("jax_numpy_rank_promotion", "allow" if request.path.name.startswith(AS_USERS_WRITE) else "raise")


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Compiled programs stay for as long as there is room for them."""
    yield
    if _resident() > MOST_KEPT:
        jax.clear_caches()
        gc.collect()


def _resident():
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if is_long(item.nodeid):
            item.add_marker(pytest.mark.long)
