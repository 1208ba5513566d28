"""Runs inside a real tritonserver, on its Python backend, in place of its ONNX Runtime backend.

The server gives requests of many clients in one list where they share a batch; as the C++ backends do, it runs them as
one. STAND_IN_SECONDS in the environment makes every execution that much slower.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend  # the server's own


class TritonPythonModel:
    """The model beside this file."""

    def initialize(self, arguments: dict[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        folder = Path(arguments["model_repository"]) / arguments["model_version"]
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.seconds = float(os.environ.get("STAND_IN_SECONDS", "0"))

    def execute(self, requests: list[Any]) -> list[Any]:
        time.sleep(self.seconds)
        tiles = [backend.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        (restored,) = self.session.run(None, {self.input: np.concatenate(tiles)})
        parts = np.split(restored, np.cumsum([len(tile) for tile in tiles])[:-1])
        return [backend.InferenceResponse([backend.Tensor(self.output, np.ascontiguousarray(part))]) for part in parts]
