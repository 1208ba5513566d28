"""From an artifact to the session that runs it."""

from __future__ import annotations

from echoir.runtime.artifact import Artifact
from echoir.runtime.contract import Device, Session
from echoir.runtime.onnx_session import OnnxSession


def open_session(artifact: Artifact, *, threads: int | None = None, device: Device = "cpu") -> Session:
    """A session for an artifact, checked against its manifest.

    Args:
        artifact: what :meth:`Artifact.open` returned.
        threads: CPU threads, at most the machine's cores; None leaves it to ONNX Runtime (one per physical core).
        device: ``"cuda"`` needs an ONNX Runtime with that provider. An engine runs on the first CUDA
            device, whatever is said here.

    Raises:
        ArtifactError: the file is no model, or its tensors are not what the manifest says.
        BackendError: the backend or the device is not here.
    """
    backend = artifact.manifest.model.backend
    if backend == "onnxruntime":
        return OnnxSession(artifact, threads=threads, device=device)
    from echoir.runtime.cuda.session import TensorRTSession

    return TensorRTSession(artifact)
