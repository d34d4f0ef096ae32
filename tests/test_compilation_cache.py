"""The compilation cache is filled by one process, read by the next, and moved by the user."""

import os
import subprocess
import sys

PROGRAM = """
import os, sys
from audiosep_jax.cli import use_compilation_cache
assert "jax" not in sys.modules, "the command line imports JAX"
use_compilation_cache()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 3)))
print(len(hits))
"""


def hits(tmp_path, **environment):
    """Return how many compiled programs a new process found."""
    kept = {name: x for name, x in os.environ.items() if not name.startswith("JAX_")}
    kept |= {"JAX_PLATFORMS": "cpu", "AUDIOSEP_JAX_CACHE": str(tmp_path / "user"), **environment}
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    assert hits(tmp_path) == 0
    assert hits(tmp_path) > 0
    assert any((tmp_path / "user" / "xla").iterdir())


def test_goes_where_the_environment_says(tmp_path):
    folder = tmp_path / "elsewhere"
    hits(tmp_path, JAX_COMPILATION_CACHE_DIR=str(folder))
    assert any(folder.iterdir())
    assert not (tmp_path / "user").exists()
