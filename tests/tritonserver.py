"""A real tritonserver on the loopback: the binary in nvidia-pytriton's wheel, which has the Python backend alone.

It lives in an environment of its own (its stub needs numpy before 2), named by ECHOIR_SERVING_PYTHON: `make serving`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTHON = os.environ.get("ECHOIR_SERVING_PYTHON")
FIND = """if True:
    import sysconfig
    from importlib.util import find_spec
    from pathlib import Path
    package = Path(find_spec("pytriton").origin).parent
    print(package, sysconfig.get_python_version(), sysconfig.get_config_var("LIBDIR"), sep="\\n")
"""


@dataclass
class Triton:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def url(self, model: str) -> str:
        return f"http://127.0.0.1:{self.port}/{model}"

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of /v2/path."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/{path}", timeout=10) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None

    def counts(self, model: str) -> tuple[int, int]:
        """Tiles inferred, and executions of the model, since the start."""
        stats = self.get(f"models/{model}/stats")[1]["model_stats"][0]
        return int(stats["inference_count"]), int(stats["execution_count"])

    def stubs(self) -> list[int]:
        """Processes that run models."""
        children = Path(f"/proc/{self.process.pid}/task")
        found = [child for task in children.iterdir() for child in (task / "children").read_text().split()]
        return [int(child) for child in found if b"triton_python_backend_stub" in _command(int(child))]


def _command(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def stand_in(folder: Path) -> None:
    """Have a model of a repository run by the Python backend, the only one in the wheel; all else stays as written."""
    config = folder / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    assert 'backend: "onnxruntime"' in text
    text = text.replace('backend: "onnxruntime"', 'backend: "python"')
    config.write_text(text.replace('"model.onnx"', '"model.py"'), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("triton_model.py"), folder / "1" / "model.py")


@contextmanager
def tritonserver(
    models: Path, scratch: Path, *arguments: str, seconds: float = 0, limit: float = 60
) -> Iterator[Triton]:
    """Serve a repository until the block ends.

    Args:
        scratch: an empty folder.
        seconds: that an execution takes beyond its own time.
        limit: seconds until it must be ready.
    """
    assert PYTHON is not None
    found = subprocess.run([PYTHON, "-c", FIND], check=True, capture_output=True, text=True)
    place, version, libraries = found.stdout.splitlines()
    package = Path(place)
    backends = scratch / "backends"
    shutil.copytree(package / "tritonserver" / "backends", backends)
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(package / "tritonserver" / "bin" / "tritonserver"), f"--model-repository={models}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}"]
    command += ["--allow-grpc=false", "--allow-metrics=false", "--exit-timeout-secs=5"]
    command += [f"--backend-config=python,shm-region-prefix-name=echoir{port}", *arguments]
    environment = {
        "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{package.parent / 'nvidia_pytriton.libs'}:{libraries}",  # the stub links libpython
        "STAND_IN_SECONDS": str(seconds),
        "OMP_NUM_THREADS": "1",
    }
    log = scratch / "log.txt"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        server = Triton(process, port, log)
        end = time.monotonic() + limit
        while not _ready(server):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"not ready in {limit} s: {log.read_text()}"
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        print(log.read_text(), file=sys.stderr)  # shown when the test fails


def _ready(server: Triton) -> bool:
    try:
        return server.get("health/ready")[0] == 200
    except OSError:
        return False
