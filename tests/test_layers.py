"""The layers of the packages hold, and what is above them can be deleted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DELETABLE = ("demo", "evaluation", "preparing")


@pytest.fixture
def checkout(tmp_path):
    """Copy of the package and its contracts, to be changed."""
    for name in ("audiosep_jax", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("pyproject.toml", "train.py", "separate.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def lint(checkout):
    """Output of `lint-imports` in a folder."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=checkout, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def append(path, line):
    path.write_text(path.read_text() + line + "\n")


def test_the_contracts_hold_and_fail_when_broken(checkout):
    assert "2 kept, 0 broken" in lint(checkout)
    append(checkout / "audiosep_jax/model/stft.py", "from audiosep_jax.training import optim")
    assert "audiosep_jax.model is not allowed to import audiosep_jax.training" in lint(checkout)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("training/steps.py", "from audiosep_jax.evaluation import results"),  # a deletable folder
        ("files.py", "from audiosep_jax import cli"),  # a circle on the ground floor
        ("data/mixing.py", "from audiosep_jax.data import batches"),  # a circle within a package
    ],
)
def test_a_wrong_import_breaks_a_contract(checkout, importer, imported):
    append(checkout / "audiosep_jax" / importer, imported)
    assert "0 broken" not in lint(checkout)


@pytest.mark.slow
def test_folders_above_separation_can_be_deleted(checkout):
    for name in DELETABLE:
        shutil.rmtree(checkout / "audiosep_jax" / name)
    program = (
        "import importlib, pkgutil, audiosep_jax\n"
        "for module in pkgutil.walk_packages(audiosep_jax.__path__, 'audiosep_jax.'):\n"
        "    importlib.import_module(module.name)\n"
        "import train, separate\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
