"""AudioSep in pure-functional JAX: separate the sound that a sentence describes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

__all__ = ["Separator", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import audiosep_jax` stays fast."""
    if name == "Separator":
        from audiosep_jax.separation.separator import Separator

        return Separator
    if name == "__version__":
        import importlib.metadata

        try:
            return importlib.metadata.version("audiosep-jax")
        except importlib.metadata.PackageNotFoundError:
            return "not installed"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
