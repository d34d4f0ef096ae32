"""Compiled programs kept between runs, so that the second start of a command is a fast one."""

import os
from pathlib import Path

MAX_BYTES = 2 << 30  # of all programs together; the longest unused go first


def use_compilation_cache() -> None:
    """Keeps what XLA compiles in the user's cache folder; call it before the first compilation.

    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` turns it
    off. Where the folder cannot be written, JAX warns and compiles as without.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:  # however it may be given
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def cache_folder() -> Path:
    """Where programs are kept by default: `$XDG_CACHE_HOME/audiosep_jax/xla`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "audiosep_jax" / "xla"
