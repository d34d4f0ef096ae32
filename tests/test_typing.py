"""A user's program sees the types of the stable names, as strictly as mypy checks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import numpy as np
from audiosep_jax import Separator
from audiosep_jax.audio.files import read, write
from audiosep_jax.errors import InputError
from audiosep_jax.separation.export import export_onnx

def separate(path: str, query: str) -> float:
    separator = Separator.load("runs/demo", engine="auto")
    try:
        audio_CS, sample_rate_hz = read(path)
    except InputError as error:
        raise SystemExit(str(error)) from error
    target_CS: np.ndarray = separator.separate(audio_CS, sample_rate_hz, query, stereo="mid")
    write("target.wav", target_CS, sample_rate_hz)
    done = separator.separate_file(path, ["dog.wav"], separator.embed_text([query]))
    export_onnx(separator, "dog.onnx", dtype="float16")
    return done.spans[0][0][1]

reveal_type(Separator.load("x").stream(8000, np.zeros((1, 512))).feed(np.zeros((1, 9))))
separate(3, query="rain")
Separator.load("x", engine="fast")
"""


@pytest.mark.slow
def test_a_program_is_checked_against_the_types_of_the_package(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", "--no-incremental"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = re.findall(r"program.py:(\d+): (?:error|note): (.*)", checked.stdout)
    assert [int(line) for line, _ in told] == [20, 21, 22], checked.stdout
    assert "ndarray" in told[0][1]
    assert '"separate" has incompatible type "int"; expected "str"' in told[1][1]
    assert "engine" in told[2][1]
    assert (ROOT / "audiosep_jax" / "py.typed").is_file()
