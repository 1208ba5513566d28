"""Runs ONNX models, on ONNX Runtime."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echoir.runtime.artifact import Artifact
from echoir.runtime.caches import cache_folder, keep, recall
from echoir.runtime.contract import Array, check_tensor, run_in_batches
from echoir.runtime.errors import ArtifactError, BackendError, ClosedSessionError
from echoir.runtime.machine import all_cores, processor_id
from echoir.runtime.manifest import Manifest, Role

if TYPE_CHECKING:
    import onnxruntime
    from typing_extensions import Self


WORTH_KEEPING = 1 << 20  # bytes of a model: optimizing a smaller one takes no time
OPTIMIZED = 512 << 20  # bytes of optimized models that are kept


def session_options(threads: int | None) -> onnxruntime.SessionOptions:
    """How this project runs ONNX Runtime: all optimizations, and threads that yield their core while they wait.

    Raises:
        ValueError: more threads than there are cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: they come back as exceptions too
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that wait by spinning take the cores from other programs, and from this one: with one of
    # two cores busy elsewhere, the tiny network took 0.29 s a tile with spinning and 0.18 s without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Planned memory holds more than is needed at once: one 256-pixel tile of the tiny network peaked at 515 MiB
    # with the plan and 299 MiB without in fp16 (397 and 244 in fp32), in the same time.
    options.enable_mem_pattern = False
    if threads is not None:
        if not 1 <= threads <= all_cores():  # ONNX Runtime would start them all
            raise ValueError(f"threads must be from 1 to {all_cores()}, the cores here, got {threads}")
        options.intra_op_num_threads = threads
    return options


class OnnxSession:
    """ONNX Runtime on the CPU or, where that provider is installed, on a CUDA device."""

    def __init__(
        self, artifact: Artifact, *, threads: int | None = None, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"onnxruntime cannot be imported ({error}); run: pip install onnxruntime") from error
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise BackendError(
                f"ONNX Runtime has no {provider} here, only {', '.join(available)}; "
                "run: pip install onnxruntime-gpu (instead of onnxruntime)"
            )
        options = session_options(threads)
        self.manifest = artifact.manifest
        self._session: onnxruntime.InferenceSession | None = None
        try:
            if device == "cpu" and artifact.manifest.model.bytes >= WORTH_KEEPING:
                self._session = _optimized(artifact, options)
            else:
                source = model_source(artifact.model_path)
                self._session = onnxruntime.InferenceSession(source, options, providers=[provider])
        except Exception as error:  # onnxruntime's own exceptions derive from Exception directly
            hint = "this ONNX Runtime may be older than the model's operators"
            raise ArtifactError(
                "model", f"{artifact.model_path.name}, which does not load ({error})", "an ONNX model", hint
            ) from error
        if device == "cuda" and provider not in self._session.get_providers():
            raise BackendError("ONNX Runtime could not start its CUDA provider; do the driver, CUDA and cuDNN fit it?")
        _check_tensors(self.manifest, self._session)

    def run(self, tiles: Array) -> Array:
        """As :class:`~echoir.runtime.contract.Session` says: in the model's own batches if its batch is fixed."""
        return run_in_batches(self.manifest, tiles, self.manifest.tile.batch or max(len(tiles), 1), self._run)

    def run_into(self, tiles: Array, out: Array) -> None:
        """As :meth:`run`, to a contiguous array of the caller's."""
        run_in_batches(self.manifest, tiles, self.manifest.tile.batch or max(len(tiles), 1), self._run, out)

    def _run(self, batch: Array, out: Array) -> None:
        """One batch, from and into memory of ours: ONNX Runtime allocates nothing for it."""
        if self._session is None:
            raise ClosedSessionError
        source, sink = self.manifest.input, self.manifest.output
        try:
            binding = self._session.io_binding()
            binding.bind_input(source.name, "cpu", 0, batch.dtype, batch.shape, batch.ctypes.data)
            binding.bind_output(sink.name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed on {len(batch)} tiles (out of memory?): {error}") from error

    def facts(self) -> dict[str, str]:
        """Version, provider and threads of ONNX Runtime; see :class:`echoir.runtime.contract.Described`."""
        import onnxruntime

        if self._session is None:
            raise ClosedSessionError
        threads = self._session.get_session_options().intra_op_num_threads
        return {
            "onnxruntime": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": str(threads or "one per physical core"),
        }

    def close(self) -> None:
        """Release the model."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def model_source(path: Path) -> str | bytes:
    """What ONNX Runtime opens: a path, or the model itself where the path is no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return str(path)


def _optimized(artifact: Artifact, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on the CPU for the model as ONNX Runtime optimized it at its first start, which takes most of a start.

    The layout of its weights is the processor's. What is kept gives the very values that the model gives.
    """
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    words = [artifact.manifest.model.sha256[:32], onnxruntime.__version__, processor_id()]
    path = cache_folder("onnxruntime") / ("-".join(words) + ".onnx")
    everything = options.graph_optimization_level
    if (model := recall(path)) is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with suppress(Exception):  # ONNX Runtime's own derive from it directly
            return onnxruntime.InferenceSession(model, options, providers=providers)
        options.graph_optimization_level = everything
    with suppress(Exception), tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "model.onnx")
        options.optimized_model_filepath = str(written)
        session = onnxruntime.InferenceSession(model_source(artifact.model_path), options, providers=providers)
        keep(path, written.read_bytes(), OPTIMIZED)
        return session
    options.optimized_model_filepath = ""
    return onnxruntime.InferenceSession(model_source(artifact.model_path), options, providers=providers)


def without_functions(path: Path) -> bytes:
    """A model with the functions of its own written out, for a library that has none: ONNX Runtime does it.

    Raises:
        ArtifactError: the file is no model.
    """
    import onnxruntime

    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "model.onnx")
        options.optimized_model_filepath = str(written)
        try:
            onnxruntime.InferenceSession(model_source(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions derive from Exception directly
            raise ArtifactError("model", f"{path.name}, which does not load ({error})", "an ONNX model") from error
        return written.read_bytes()


def _check_tensors(manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
    """Refuse a model whose input or output is not the manifest's."""
    tensors: dict[Role, Any] = {"input": session.get_inputs(), "output": session.get_outputs()}
    for role, actual in tensors.items():
        if len(actual) != 1:
            raise ArtifactError(role, f"{len(actual)} tensors", "one")
        types = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
        # A dynamic axis has a name or None in place of a number.
        shape = [size if isinstance(size, int) else 0 for size in actual[0].shape]
        check_tensor(role, manifest, actual[0].name, types.get(actual[0].type, actual[0].type), shape)
