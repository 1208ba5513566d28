"""From a model, in a file or on a server, to the session that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from echoir.runtime.artifact import Artifact, open_tiles
from echoir.runtime.contract import Device, Session
from echoir.runtime.onnx_session import OnnxSession

if TYPE_CHECKING:
    from echoir.runtime.serving.session import Served


def open_model(where: str | os.PathLike[str]) -> Artifact | Served:
    """What an artifact's path or a server's address (``http://HOST:PORT/MODEL``) names; both have a ``manifest``.

    Raises:
        ArtifactError: the artifact is broken, or what is served does not match its manifest.
        BackendError: the server or the model is not there.
    """
    if isinstance(where, str) and "://" in where:
        from echoir.runtime.serving.session import Served

        return Served.open(where)
    return Artifact.open(where)


def open_models(where: str | os.PathLike[str]) -> list[Artifact | Served]:
    """As :func:`open_model`; or the artifacts of one network in a folder, that differ in their tile.

    Raises:
        ArtifactError, BackendError: as there; or the artifacts do not belong together.
    """
    if not (isinstance(where, str) and "://" in where) and (tiles := open_tiles(Path(where))):
        return [*tiles]
    return [open_model(where)]


def open_session(
    model: Artifact | Served,
    *,
    threads: int | None = None,
    device: Device = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Session:
    """A session for a model, checked against its manifest.

    Args:
        model: what :func:`open_model` or :meth:`Artifact.open` returned.
        threads: CPU threads, at most the machine's cores; None leaves it to the library (one per physical core).
        device: ``"cpu"`` and ``"cuda"`` are ONNX Runtime, ``"openvino"`` and ``"openvino-bf16"`` (in bfloat16)
            OpenVINO on the processor; ``"auto"`` is the quickest of those that are here and pass the gate
            (:func:`echoir.runtime.choice.choose`). An engine runs on the first CUDA device, and a server as it
            was told, whatever is said here.
        say: told in a line what ``"auto"`` came to.

    Raises:
        ArtifactError: the file is no model, or its tensors are not what the manifest says.
        BackendError: the backend or the device is not here, or a server does not answer as it should.
    """
    if not isinstance(model, Artifact):
        from echoir.runtime.serving.session import RemoteSession

        return RemoteSession(model)
    if model.manifest.model.backend != "onnxruntime":
        from echoir.runtime.cuda.session import TensorRTSession

        return TensorRTSession(model)
    if device == "auto":
        from echoir.runtime.choice import choose

        choice = choose(model, lambda one: open_session(model, threads=threads, device=one), threads)
        say(f"{model.model_path.name} {choice}")
        device = choice.device
    if device in ("openvino", "openvino-bf16"):
        from echoir.runtime.openvino_session import OpenVinoSession

        return OpenVinoSession(model, threads=threads, bfloat16=device == "openvino-bf16")
    return OnnxSession(model, threads=threads, device="cuda" if device == "cuda" else "cpu")
