"""A small server of the open inference protocol v2 on the loopback, that can be told to misbehave.

Written from the protocol's text, apart from the client: it shares no code with it.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from echoir.runtime.artifact import Artifact
from echoir.runtime.onnx_session import OnnxSession

Misbehave = Callable[["Handler", dict[str, Any], np.ndarray[Any, Any]], bool]
TYPES = {"TYPE_FP32": ("FP32", np.float32), "TYPE_UINT8": ("UINT8", np.uint8)}


class Server(ThreadingHTTPServer):
    """Serves one model repository folder by ONNX Runtime."""

    daemon_threads = True

    def __init__(self, artifact: Artifact, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        message = text_format.Parse(text, model_config_pb2.ModelConfig())
        self.config: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
        self.session = OnnxSession(artifact, threads=1)
        self.ready = True
        self.misbehave: Misbehave | None = None  # called with every tile but a canary; True if it has answered
        self.canaries = 1  # requests that are answered properly before
        self.batches: list[int] = []
        self.connections = 0
        self.open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.config['name']}"

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""

    def say(self, status: int, body: bytes, **headers: object) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, error: str) -> None:
        self.say(status, json.dumps({"error": error}).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        config = self.server.config
        match = re.fullmatch(r"/v2/models/([^/]+)(/ready|/config)?", self.path)
        if match is None or match[1] != config["name"]:
            self.refuse(404, f"Request for unknown model: {self.path}")
        elif match[2] == "/ready":
            self.say(200 if self.server.ready else 400, b"")
        elif match[2] == "/config":
            self.say(200, json.dumps(config).encode())
        else:
            first = [-1] if config.get("max_batch_size") else []
            described = {
                f"{role}s": [
                    {"name": one["name"], "datatype": TYPES[one["data_type"]][0], "shape": [*first, *one["dims"]]}
                    for one in config[role]
                ]
                for role in ("input", "output")
            }
            self.say(200, json.dumps({"name": config["name"], "versions": ["1"], **described}).encode())

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        asked = json.loads(body[:length])
        (given,) = asked["inputs"]
        data = body[length:]
        assert given["parameters"]["binary_data_size"] == len(data)
        dtype = {name: dtype for name, dtype in TYPES.values()}[given["datatype"]]
        tiles = np.frombuffer(data, dtype).reshape(given["shape"])
        restored = server.session.run(tiles)
        if server.canaries:
            server.canaries -= 1
        elif server.misbehave is not None and server.misbehave(self, asked, restored):
            return
        server.batches.append(len(tiles))
        self.answer(asked, restored)

    def answer(self, asked: dict[str, Any], restored: np.ndarray[Any, Any], **changes: object) -> None:
        """A proper answer, but for what is changed in its only output."""
        header, data = self.message(asked, restored, **changes)
        self.say(200, header + data, Inference_Header_Content_Length=len(header))

    def message(self, asked: dict[str, Any], restored: np.ndarray[Any, Any], **changes: object) -> tuple[bytes, bytes]:
        data = restored.tobytes()
        output = {
            "name": asked["outputs"][0]["name"],
            "datatype": "FP32" if restored.dtype == np.float32 else "UINT8",
            "shape": list(restored.shape),
            "parameters": {"binary_data_size": len(data)},
        }
        said = {"model_name": self.server.config["name"], "model_version": "1", "outputs": [output | changes]}
        return json.dumps(said).encode(), data


@contextmanager
def serving(artifact: Artifact, folder: Path, port: int = 0) -> Iterator[Server]:
    """A server on a (free) port of the loopback, until the block ends."""
    server = Server(artifact, folder, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
