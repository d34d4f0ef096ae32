"""Shared by all tests: eight emulated devices, one compilation cache, the real recordings."""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs that run for a few steps spend their time in the compiler; these settings halve it.
# XLA aborts at a flag that it does not know, and newer releases have dropped the second one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if importlib.metadata.version("jax").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Worker processes inherit these: memory that malloc returns to the system must be cleared again.
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(10**11))
CACHE = Path(tempfile.gettempdir()) / f"audiosep_jax_tests_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("AUDIOSEP_JAX_CACHE", str(CACHE / "package"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")

import pytest  # noqa: E402

# Each worker is pinned to cores of its own, before XLA counts them. This takes a third less time
# than workers whose threads compete.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    cores = sorted(os.sched_getaffinity(0))
    own = cores[worker :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, own or cores)

# These files take longest. If they started last, one of two workers would end up idle.
LONGEST_FIRST = ("test_steps", "test_configs", "test_train", "test_convert", "test_streaming")
SHARED = Path(__file__).resolve().parents[2] / "shared"
CI = os.environ.get("CI") == "true"
GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first."""
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the tests that CI must not skip."""
    for report in terminalreporter.stats.get("skipped", []) if CI else []:
        terminalreporter.write_line(f"error: skipped in CI: {report.nodeid}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail in CI if a test was skipped: `.ci/run` installs what the tests need."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped") if reporter else None
    if CI and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def speech_packages() -> None:
    """Skip without the packages of the extra `eval`, one of which needs a C compiler."""
    for name in ("pesq", "pystoi"):
        if importlib.util.find_spec(name) is None:
            assert os.environ.get("CI") != "true", f"{name} must be installed in CI"
            pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real recordings beside the checkout. It may be absent, but not in CI."""
    if not SHARED.is_dir():
        assert os.environ.get("CI") != "true", "../shared must stand beside the checkout in CI"
        pytest.skip("../shared is absent")
    return SHARED


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the browser saves to."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def browser(saved: Path) -> Iterator[Any]:
    """One Chromium for the tests of a file; without it they are skipped, but not in CI."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        assert not CI, "CI needs chromium and chromium-driver"
        pytest.skip("chromium and chromium-driver are not installed")
    import chromium

    with chromium.opened(saved) as driver:
        yield driver
