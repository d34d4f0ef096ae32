"""Shared by all tests: eight emulated devices, one compilation cache, the real recordings."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
CACHE = Path(tempfile.gettempdir()) / f"audiosep_jax_tests_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import pytest  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def speech_packages() -> None:
    """Packages of the extra `eval`, one of which needs a C compiler; CI has them."""
    for name in ("pesq", "pystoi"):
        if importlib.util.find_spec(name) is None:
            assert os.environ.get("CI") != "true", f"{name} must be installed in CI"
            pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real recordings beside the checkout; it may be absent, but not in CI."""
    if not SHARED.is_dir():
        assert os.environ.get("CI") != "true", "../shared must stand beside the checkout in CI"
        pytest.skip("../shared is absent")
    return SHARED


@pytest.fixture
def quick_compile() -> Iterator[None]:
    """Half the time to compile, for what is small and runs but a few steps."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
