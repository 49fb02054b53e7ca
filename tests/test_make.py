"""What `make` starts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def lab(tmp_path):
    """Address of the JupyterLab that `make lab` starts, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = "--no-browser --allow-root --IdentityProvider.token=secret"
    words += f" --ServerApp.port={port} --ServerApp.ip=127.0.0.1"
    command = ["make", "-o", ".venv/.complete", "lab", f"ARGS={words}"]
    command.append(f"BIN={Path(sys.executable).parent}")
    places = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    own = {f"JUPYTER_{place}": str(tmp_path / place) for place in places}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | own,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}", server
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


def test_make_lab_opens_the_first_notebook_at_the_root(lab, tmp_path):
    address, server = lab
    for _ in range(300):
        try:
            page = urllib.request.urlopen(f"{address}/?token=secret")
            break
        except urllib.error.URLError:
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
    with page:
        assert "/lab/tree/notebooks/00_prepare_data.ipynb" in page.url
    for name in ("README.md", "figures/monuments/pipeline.png"):
        file = f"{address}/api/contents/{name}?token=secret&content=0"
        with urllib.request.urlopen(file) as found:
            assert json.load(found)["path"] == name
