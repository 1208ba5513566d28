"""Where a network to export comes from. Opened once; every step of the export takes it."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from echoir.checkpoint import SHIPPED, Checkpoint, find_checkpoint, load_checkpoint
from echoir.export.declared import NOTHING, Declared
from echoir.export.probe import describe, probe
from echoir.export.reference import IO, PyTorchSession
from echoir.export.whole import Floats, in_one_piece
from echoir.named import is_own
from echoir.runtime.contract import Session
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError
from echoir.runtime.files import sha256_file
from echoir.runtime.manifest import CheckpointRecord, Manifest
from echoir.runtime.output import displayable

if TYPE_CHECKING:
    import onnx


class Source(Protocol):
    """A network with what is known of it.

    Attributes:
        descriptor: what it is and needs, probed.
        record: name and SHA-256 of its weights.
        reference: what the artifact is measured against, in words.
        batch: of tiles, where the network takes no other.
    """

    descriptor: Descriptor
    batch: int | None
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
    batch: int | None = None

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
        return in_one_piece(self.module, self.descriptor, self._behaviour, image)


def open_source(weights: str | Path, said: Declared = NOTHING, *, own: bool = True) -> Source:
    """A network by the name of a shipped checkpoint, by its file, or by a function that makes it.

    Args:
        weights: a shipped name, ``FILE.safetensors``, ``FILE.pth`` (read with spandrel), ``FILE.onnx``, or
            ``FILE.py:FUNCTION`` or ``module:FUNCTION``, which gives ``(module, Descriptor)``.
        said: what is known of it; what is not is measured.
        own: whether a function is looked for, which runs its file: not for names that artifacts hold.

    Raises:
        ArtifactError: no such file or name, or weights that cannot be used.
        MissingExtraError: what reads them is not installed.
    """
    path, name = Path(weights), str(weights)
    if is_own(name) and not path.exists():
        from echoir.export.foreign import load_function

        if not own:
            hint = "it names code, which is not run unless you name it: --weights"
            raise ArtifactError("checkpoint.name", name, "a file of weights", hint)
        module, descriptor = load_function(name)
        said.check(descriptor)
        record = CheckpointRecord(displayable(name), _fingerprint(module))
        return TorchSource(module, descriptor, record)
    if path.suffix == ".onnx":
        from echoir.export.onnx_source import OnnxSource

        return OnnxSource(path, said)
    from echoir.export.foreign import SUFFIXES, load_foreign

    if path.suffix in SUFFIXES:
        module, known, multiple = load_foreign(find_checkpoint(path))
        parameters = sum(parameter.numel() for parameter in module.parameters())
        descriptor = describe(module, said.or_else(known), hint=multiple, parameters=parameters)
        return TorchSource(module, descriptor, CheckpointRecord(displayable(path.name), sha256_file(path)))
    checkpoint = load_checkpoint(weights)
    said.check(checkpoint.descriptor)
    return checkpoint_source(checkpoint)


def source_of(manifest: Manifest, reference: str | None = None) -> Source:
    """The network that an artifact was made from.

    Args:
        reference: where it is; None looks where the manifest says.

    Raises:
        ArtifactError: as :func:`open_source`; or the manifest names code.
    """
    name = reference or manifest.checkpoint.name
    bare = Path(name).suffix in (".onnx", ".pth", ".pt", ".ckpt")  # they do not say themselves what they are
    said = Declared.of(manifest.network) if bare else NOTHING
    return open_source(name, said, own=reference is not None)


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
