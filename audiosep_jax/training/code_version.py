"""Which code this is: of every process of a run, and of every checkpoint."""

import hashlib
import importlib.metadata
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def code_version() -> dict[str, str]:
    """Version of the package, git commit where there is one, and a hash of the source files."""
    try:
        version = importlib.metadata.version("audiosep-jax")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {"version": version, "commit": _commit(), "sources": source_hash(PACKAGE)}


def source_hash(folder: Path) -> str:
    """Of names and contents of all Python files below."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str:
    """Empty where the package was installed by itself, or without git."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
