"""Where a network to export comes from. Opened once; every step of the export takes it."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from echoir.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from echoir.export.probe import probe
from echoir.export.reference import IO, PyTorchSession
from echoir.runtime.contract import Session
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.manifest import CheckpointRecord
from echoir.runtime.output import displayable
from echoir.runtime.tiling import reflect

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float32]
# Numbers in the largest activation that one pass over a whole picture may make, 2.7 GB: 4 megapixels of a network
# with 170 per pixel.
WHOLE_BUDGET = 4_000_000 * 170


class Source(Protocol):
    """A network with what is known of it.

    Attributes:
        descriptor: what it is and needs, probed.
        record: name and SHA-256 of its weights.
        reference: what the artifact is measured against, in words.
    """

    descriptor: Descriptor
    reference: str

    @property
    def record(self) -> CheckpointRecord: ...

    def graph(self, *, tile: tuple[int, int], batch: int | None, io: IO, free: bool = False) -> onnx.ModelProto:
        """The simplified float32 graph; see :func:`echoir.export.graph.build_model`."""

    def session(self, *, io: IO = "float", threads: int | None = None) -> Session:
        """The reference, behind the interface of an artifact's session of that ``io``."""

    def whole(self, image: Floats) -> Floats | None:
        """A picture [H, W, C] restored in one piece, [scale * H, scale * W, C'], not clipped; None where it is too
        large for memory, or the network takes tiles alone."""


class TorchSource:
    """A module of PyTorch.

    Args:
        module: float32; [N, C, H, W] in [0, 1] -> [N, C', scale * H, scale * W], where H and W are multiples of
            ``descriptor.multiple``.
        descriptor: what it is said to be.
        record: of its weights' file; None makes one of the weights themselves.

    Raises:
        ArtifactError: the module does something else than its descriptor says; the message names the field.
    """

    reference = "PyTorch"

    def __init__(self, module: nn.Module, descriptor: Descriptor, record: CheckpointRecord | None = None) -> None:
        self.module, self.descriptor, self._record = module.eval(), descriptor, record
        self._behaviour = probe(self.module, descriptor)

    @cached_property
    def record(self) -> CheckpointRecord:
        return self._record or CheckpointRecord(self.descriptor.architecture, _fingerprint(self.module))

    def graph(self, *, tile: tuple[int, int], batch: int | None, io: IO, free: bool = False) -> onnx.ModelProto:
        from echoir.export.graph import build_model  # here, since comparing with PyTorch needs no ONNX

        return build_model(self.module, self.descriptor, tile=tile, batch=batch, io=io, free=free)

    def session(self, *, io: IO = "float", threads: int | None = None) -> PyTorchSession:
        return PyTorchSession(self.module, io=io, threads=threads)

    def whole(self, image: Floats) -> Floats | None:
        height, width, _ = image.shape
        if height * width * self._behaviour.activation > WHOLE_BUDGET:
            return None
        if not self._behaviour.any_size:
            down, across = (
                reflect(size, -(-size // multiple) * multiple)
                for size, multiple in zip((height, width), self.descriptor.multiple, strict=True)
            )
            image = image[down][:, across]
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
            restored = np.asarray(self.module(batch))[0].transpose(1, 2, 0)
        scale = self.descriptor.scale
        return np.ascontiguousarray(restored[: scale * height, : scale * width])


def open_source(weights: str | Path) -> Source:
    """A network by the name of a shipped checkpoint, or by its file.

    Raises:
        ArtifactError: no such file or name, or weights that cannot be used.
        MissingExtraError: what reads them is not installed.
    """
    return checkpoint_source(load_checkpoint(weights))


def checkpoint_source(checkpoint: Checkpoint) -> TorchSource:
    """A checkpoint's network; the record names a shipped one by its name, another by its file's."""
    name = checkpoint.path.stem if checkpoint.path.parent == SHIPPED else checkpoint.path.name
    return TorchSource(
        checkpoint.network, checkpoint.descriptor, CheckpointRecord(displayable(name), checkpoint.sha256)
    )


def _fingerprint(module: nn.Module) -> str:
    """The SHA-256 of all weights by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Any) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
