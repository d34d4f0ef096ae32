"""The folder `examples/space` runs as a Hugging Face Space, and the Dockerfile serves the page."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from visitor import Visitor, sounds

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "examples" / "space"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_the_space_requires_what_the_package_does():
    required = (SPACE / "requirements.txt").read_text().splitlines()
    assert required == sorted({*PROJECT["dependencies"], *EXTRAS["demo"], *EXTRAS["cpu"]})
    header = (SPACE / "README.md").read_text().split("---\n")[1]
    fields = dict(line.split(": ") for line in header.splitlines())
    assert fields["sdk"] == "gradio"
    assert (SPACE / fields["app_file"]).is_file()
    assert f"gradio>={fields['sdk_version'].split('.')[0]}," in " ".join(required)


@pytest.mark.slow
def test_the_space_separates_an_example(tmp_path):
    """A Space has the package beside app.py, and sets these variables."""
    folder, temporary = tmp_path / "app", tmp_path / "tmp"
    temporary.mkdir()
    shutil.copytree(SPACE, folder)
    (folder / "audiosep_jax").symlink_to(ROOT / "audiosep_jax")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    space = {"SYSTEM": "spaces", "SPACE_ID": "user/separate", "PORT": port}
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=folder,
        env={**os.environ, **space, "TMPDIR": str(temporary), "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().strip() == f"http://0.0.0.0:{port}"
        visitor = Visitor(f"http://127.0.0.1:{port}")
        visitor.get("")
        given, text = visitor.call("example", [0])[1][:2]
        event, answer = visitor.separate(given["path"], text)
        assert event == "complete"
        assert len(sounds(visitor, answer[0])) == 3
        visitor.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.communicate()
    assert not list(temporary.glob("audiosep_jax_demo_*"))


def test_the_container_serves_without_privileges():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    commands = [re.split(r"\s+", line)[0] for line in lines if re.match("[A-Z]+ ", line)]
    assert commands.index("USER") < commands.index("HEALTHCHECK") < commands.index("ENTRYPOINT")
    assert "USER page" in lines
    assert not any("--no_auth" in line for line in lines if not line.startswith("#"))
    for name in re.findall(r"COPY (.*) /src", "\n".join(lines)):
        assert all((ROOT / path).exists() for path in name.split())
