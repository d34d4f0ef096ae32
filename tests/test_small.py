"""The weights in the package: complete, found without a network, and the same in every engine."""

import glob
import json
import socket
import tomllib
from pathlib import Path

import numpy as np
import pytest

from audiosep_jax.__main__ import main
from audiosep_jax.audio import files as audio_files
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.trained import SHIPPED_FOLDER

PACKAGE = SHIPPED_FOLDER.parents[1]
STREET = PACKAGE / "demo" / "street.flac"
MOST_BYTES = 8_000_000
QUERIES = ["a dog barking", "a violin"]  # in the recording, and not


@pytest.fixture(autouse=True)
def _without_a_network(monkeypatch):
    def connect(self, address):
        raise OSError(f"{address}: there is no network")

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_every_file_is_packed_and_all_are_small():
    stored = {path for path in SHIPPED_FOLDER.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in stored) <= MOST_BYTES
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["audiosep_jax"]
    found = [x for pattern in patterns for x in glob.glob(f"{PACKAGE}/{pattern}", recursive=True)]
    assert stored <= {Path(path) for path in found}


@pytest.mark.slow
def test_the_command_takes_them_by_default(tmp_path, capsys):
    words = ["separate", str(STREET), "--output", str(tmp_path), "--residual"]
    words += ["--json", str(tmp_path / "found.json")]
    assert main([*words, *(x for query in QUERIES for x in ("--text", query))]) == 0
    assert "using the weights in the package" in capsys.readouterr().err
    present, absent = json.loads((tmp_path / "found.json").read_text())[0]["results"]
    assert present["presence"] > 0.5 > absent["presence"]
    mixture_CS = audio_files.read(STREET)[0]
    parts = [audio_files.read(path)[0] for path in tmp_path.glob("*.flac")]
    assert len(parts) == 3
    np.testing.assert_allclose(sum(parts), mixture_CS, atol=1e-3)


@pytest.mark.slow
def test_engines_and_streams_agree():
    mixture_CS, rate_hz = audio_files.read(STREET)
    separators = [Separator.load("small", engine=engine) for engine in ("jax", "openvino")]
    condition_NE = separators[0].embed_text(QUERIES)
    expected_NS = separators[0].separate_conditions(mixture_CS[0], rate_hz, condition_NE)
    for separator in separators:
        stream = separator.stream(rate_hz, condition_NE, tile_seconds=0.5)
        blocks = [stream.feed(block_CS) for block_CS in np.array_split(mixture_CS, 9, axis=1)]
        streamed_NS = np.concatenate([*blocks, stream.finish()], axis=-1)[:, 0]
        whole_NS = separator.separate_conditions(mixture_CS[0], rate_hz, condition_NE)
        for estimate_NS in (whole_NS, streamed_NS):
            error = np.sum((estimate_NS - expected_NS)[0] ** 2) / np.sum(expected_NS[0] ** 2)
            assert -10 * np.log10(error + 1e-30) > 80
