"""Runs ONNX models on the processor, on OpenVINO: in the model's own types, or with its float32 in bfloat16."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.artifact import Artifact
from echoir.runtime.bfloat16 import keeping_float32
from echoir.runtime.caches import cache_folder, keep, recall
from echoir.runtime.contract import Array, check_tensor, run_in_batches
from echoir.runtime.errors import ArtifactError, BackendError, ClosedSessionError, needs_extra
from echoir.runtime.floors import without_floors
from echoir.runtime.machine import all_cores
from echoir.runtime.manifest import Role, TensorSpec
from echoir.runtime.onnx_session import without_functions

if TYPE_CHECKING:
    from typing_extensions import Self

COMPILED = 512 << 20  # bytes of compiled models that are kept
FORM = "3"  # of what is changed before: compiled models of another are not taken from the cache
BFLOAT16 = "bf16"


class OpenVinoSession:
    """OpenVINO on the processor.

    Args:
        artifact: with an ONNX model.
        threads: at most the machine's cores; None leaves it to OpenVINO (one per physical core).
        bfloat16: compute in bfloat16 what the model computes in floats, but for what
            :mod:`echoir.runtime.bfloat16` keeps. Matrix units (AMX) take it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: bfloat16 on a processor that does not have it, or a library that does not load.
        ArtifactError: the model does not load, or its tensors are not what the manifest says.
        ValueError: more threads than there are cores.
    """

    def __init__(self, artifact: Artifact, *, threads: int | None = None, bfloat16: bool = False) -> None:
        if threads is not None and not 1 <= threads <= all_cores():
            raise ValueError(f"threads must be from 1 to {all_cores()}, the cores here, got {threads}")
        openvino = _library()
        core = openvino.Core()
        if bfloat16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this processor has no bfloat16; take --device openvino, or cpu")
        self.manifest = artifact.manifest
        self._tensor = openvino.Tensor
        self._model: Any = None
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            # Said outright: without it OpenVINO takes bfloat16 by itself where there is any.
            "INFERENCE_PRECISION_HINT": BFLOAT16 if bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": threads or 0,
        }
        try:
            self._model = _compiled(openvino, core, artifact, settings)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["it gave no reason"])[-1]
            raise ArtifactError(
                "model", f"{artifact.model_path.name}, which OpenVINO does not load ({reason})", "an ONNX model"
            ) from error
        self._idle: deque[Any] = deque()

    def run(self, tiles: Array) -> Array:
        """As :class:`~echoir.runtime.contract.Session` says: in the model's batches if fixed, else one by one."""
        return run_in_batches(self.manifest, tiles, self.manifest.tile.batch or 1, self._run)

    def run_into(self, tiles: Array, out: Array) -> None:
        """As :meth:`run`, to a contiguous array of the caller's."""
        run_in_batches(self.manifest, tiles, self.manifest.tile.batch or 1, self._run, out)

    def _run(self, batch: Array, out: Array) -> None:
        if self._model is None:
            raise ClosedSessionError
        try:
            request = self._idle.pop()  # atomic: a request serves one thread at a time
        except IndexError:
            request = self._model.create_infer_request()
        try:
            # It reads and writes our own memory, and wants to be allowed to write what it only reads.
            given = batch if batch.flags.writeable else batch.copy()
            request.set_input_tensor(self._tensor(given, shared_memory=True))
            request.set_output_tensor(self._tensor(out, shared_memory=True))
            request.infer(share_outputs=True)  # what it returns would be copied otherwise
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed on {len(batch)} tiles (out of memory?): {error}") from error
        self._idle.append(request)

    def facts(self) -> dict[str, str]:
        """Version, precision and threads of OpenVINO; see :class:`echoir.runtime.contract.Described`."""
        if self._model is None:
            raise ClosedSessionError
        asked = {name: self._model.get_property(name) for name in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS")}
        precision = asked["INFERENCE_PRECISION_HINT"].get_type_name()
        return {
            "openvino": _library().__version__.split("-")[0],
            "provider": f"CPU, {precision}",
            "threads": str(asked["INFERENCE_NUM_THREADS"] or "one per physical core"),
        }

    def close(self) -> None:
        """Release the model."""
        self._model = None
        self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _library() -> Any:
    with needs_extra("openvino"):
        try:
            import openvino
        except ModuleNotFoundError:
            raise
        except (ImportError, OSError) as error:
            raise BackendError(f"openvino is installed but does not load ({error})") from error
    return openvino


def _compiled(openvino: Any, core: Any, artifact: Artifact, settings: dict[str, Any]) -> Any:
    """The model compiled, and checked against its manifest; from the cache where it was compiled before.

    OpenVINO refuses, as a RuntimeError, what another version or another processor compiled.
    """
    bfloat16 = settings["INFERENCE_PRECISION_HINT"] == BFLOAT16
    words = [
        FORM,
        artifact.manifest.model.sha256[:32],
        openvino.__version__.split("-")[0],
        *map(str, settings.values()),
    ]
    path = cache_folder("openvino") / ("-".join(words) + ".blob")
    if (blob := recall(path)) is not None:
        try:
            return core.import_model(blob, "CPU", settings)
        except RuntimeError:
            pass
    # It knows no functions of a model's own, and refuses what calls one.
    model = core.read_model(without_functions(artifact.model_path), b"")
    _check_tensors(artifact, model)
    tile = artifact.manifest.tile
    if tile.batch is None:  # one size for all runs: it would prepare itself anew for each
        sides = (tile.height, tile.width) if tile.most is None else (-1, -1)
        model.reshape(list(artifact.manifest.input.shape(1, *sides)))
    without_floors(model)
    compiled = core.compile_model(keeping_float32(openvino, core, model) if bfloat16 else model, "CPU", settings)
    keep(path, compiled.export_model().getvalue(), COMPILED)
    return compiled


def _check_tensors(artifact: Artifact, model: Any) -> None:
    """Refuse a model whose input or output is not the manifest's."""
    manifest = artifact.manifest
    tensors: dict[Role, Any] = {"input": model.inputs, "output": model.outputs}
    for role, actual in tensors.items():
        if len(actual) != 1:
            raise ArtifactError(role, f"{len(actual)} tensors", "one")
        dtype = np.dtype(actual[0].element_type.to_dtype()).name
        shape = [0 if size.is_dynamic else size.get_length() for size in actual[0].partial_shape]
        spec: TensorSpec = getattr(manifest, role)
        name = spec.name if spec.name in actual[0].names else actual[0].any_name
        check_tensor(role, manifest, name, dtype, shape)
