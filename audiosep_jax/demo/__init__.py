"""The web page: `python -m audiosep_jax.demo`; needs the extra `demo`."""
