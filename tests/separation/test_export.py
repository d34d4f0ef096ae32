"""The exported separator: run where this library cannot be imported, it gives the same numbers."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_run import RATE_HZ, save_run

from audiosep_jax.errors import InputError
from audiosep_jax.separation.export import export_separator, main
from audiosep_jax.separation.separator import Separator

PROGRAM = """
import json, sys
sys.modules["audiosep_jax"] = None  # importing it fails
import jax, numpy as np
folder = sys.argv[1]
run = jax.export.deserialize(bytearray(open(folder + "/tiny.jax", "rb").read()))
inputs = np.load(folder + "/in.npz")
results = [run.call(inputs["mixture"], np.int32(n), inputs["condition"]) for n in inputs["counts"]]
np.save(folder + "/out.npy", np.stack(results))
"""
COUNTS = (1, 2, 20, 511, 2000)


@pytest.mark.smoke
def test_runs_without_the_library_with_equal_numbers(tmp_path):
    save_run(tmp_path / "run")
    separator = Separator.load(tmp_path / "run")
    export_separator(separator, tmp_path / "tiny.jax", batch_size=2, tile_seconds=0.25)
    about = json.loads((tmp_path / "tiny.jax.json").read_text())
    assert about["mixture"] == [2, 2000]
    assert about["sample_rate_hz"] == RATE_HZ
    mixture_BS = np.random.default_rng(0).standard_normal((2, 2000)).astype(np.float32)
    condition_BE = separator.embed_text(["rain", "a dog"])
    np.savez(tmp_path / "in.npz", mixture=mixture_BS, condition=condition_BE, counts=COUNTS)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for count, actual_BS in zip(COUNTS, np.load(tmp_path / "out.npy"), strict=True):
        for row in (0, 1):
            one_S, condition_NE = mixture_BS[row, :count], condition_BE[row : row + 1]
            expected_S = separator.separate_conditions(one_S, RATE_HZ, condition_NE)[0]
            np.testing.assert_allclose(actual_BS[row, :count], expected_S, rtol=0, atol=1e-5)
        assert not actual_BS[:, count:].any()


def test_sizes_and_places_that_make_no_sense(tmp_path):
    save_run(tmp_path / "run")
    separator = Separator.load(tmp_path / "run")
    with pytest.raises(InputError, match="positive"):
        export_separator(separator, tmp_path / "a.jax", batch_size=0)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        export_separator(separator, tmp_path / "file" / "a.jax", tile_seconds=0.01)


def test_the_command(tmp_path, capsys):
    save_run(tmp_path / "run")
    path = tmp_path / "new" / "tiny.jax"
    options = ["--batch_size", "2", "--tile_seconds", "0.1", "--platforms", "cpu", "cuda"]
    assert main([str(path), "--checkpoint", str(tmp_path / "run"), *options]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    about = json.loads((tmp_path / "new" / "tiny.jax.json").read_text())
    assert about["mixture"] == [2, 800]
    assert about["platforms"] == ["cpu", "cuda"]
    assert jax.export.deserialize(bytearray(path.read_bytes())).platforms == ("cpu", "cuda")
    wanted = str(tmp_path / "none.safetensors")
    assert main([str(path), "--checkpoint", str(tmp_path / "run"), "--adapter", wanted]) == 2
    assert f"{wanted}: no such file" in capsys.readouterr().err
    assert main([str(path), "--checkpoint", str(tmp_path / "none")]) == 2
    assert "error: --checkpoint " in capsys.readouterr().err
