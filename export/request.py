"""What somebody wants exported; the defaults are those of the command."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import click

from echoir.export.build import Target, engines
from echoir.export.declared import NOTHING, Declared
from echoir.export.engine import EngineOptions
from echoir.export.lowering import lowering_of
from echoir.export.quantized import Remainder
from echoir.export.reference import IO
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError
from echoir.runtime.fit import MOST, MOST_FITTED, best_tile
from echoir.runtime.manifest import check_tile
from echoir.runtime.output import displayable

OVERLAP = 24  # pixels that tiles share, unless told


@dataclass(frozen=True)
class Request:
    """What to export; the defaults are those of the command.

    Attributes:
        weights: a shipped checkpoint's name, a file, or a function: see :func:`echoir.export.sources.open_source`.
        network: what is known of a network that does not say it itself; the rest is measured.
        precision: ``"fp16"``, ``"fp32"`` or ``"int8"``.
        targets: ``"auto"`` is every engine this machine can build; the ONNX is always made.
        tile: (height, width) in pixels, multiples of the network's; None takes the one that the network likes, and
            ``"free"`` leaves it to the size of each picture.
        fit: (height, width) of pictures whose least wasteful tile is taken.
        most: pixels of a tile at most, of a free one and one that fits; None takes :data:`echoir.runtime.fit.MOST` of
            a free one, or the network's own tile, and :data:`echoir.runtime.fit.MOST_FITTED` of one that fits. Once
            settled, it is the manifest's: None for a fixed tile.
        batch: tiles per run; None leaves it open.
        overlap: pixels that neighbouring tiles share at least, the artifact's default; None takes 24, or more where
            the network needs it; ``"auto"`` the least that keeps tiles within ``min_seam`` of whole pictures.
        margin: pixels along a tile's edge that count for nothing; found with ``"auto"``, not asked for.
        io: ``"float"`` (float32 NCHW in [0, 1]) or ``"uint8"`` (NHWC).
        compute_capabilities: GPUs an engine is for, as ``"8.9"``; empty takes the builder's default.
        engine: how engines are built.
        images: pictures for parity (see :func:`echoir.samples.proof_samples`); None takes the shipped.
        forms, sigmas, limit: of the pictures.
        min_seam: the gate on tiles against whole pictures; None is 55 dB for a network that is local.
        min_psnr, max_drop: the gate; None takes the precision's. For int8, ``max_drop`` is also the budget
            that its layers are chosen within.
        calibration: pictures for int8 (see :func:`echoir.export.quantized.prepare`); other ones than ``images``.
        remainder: what is not INT8 in an int8 artifact; ``"fp16"`` is for GPUs, ``"fp32"`` for CPUs.
        threads: of engine and PyTorch; None takes all cores.
        output: the folder to make; None makes ``./echoir-WEIGHTS-PRECISION``.
    """

    weights: str = "denoise"
    network: Declared = NOTHING
    precision: Literal["fp16", "fp32", "int8"] = "fp16"
    targets: tuple[Target, ...] = ("auto",)
    tile: tuple[int, int] | Literal["free"] | None = None
    fit: tuple[int, int] | None = None
    most: int | None = None
    batch: int | None = 1
    overlap: int | Literal["auto"] | None = None
    margin: int = 0
    io: IO = "float"
    compute_capabilities: tuple[str, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)
    images: Path | None = None
    forms: tuple[str, ...] = ()
    sigmas: tuple[float, ...] = ()
    limit: int | None = None
    min_seam: float | None = None
    min_psnr: float | None = None
    max_drop: float | None = None
    calibration: Path | None = None
    remainder: Remainder = "fp16"
    threads: int | None = None
    output: Path | None = None

    @property
    def name(self) -> str:
        """Of the artifact: ``denoise-fp16``, ``denoise-fp16-uint8``."""
        return displayable(f"{Path(self.weights).stem}-{self.precision}") + ("-uint8" if self.io == "uint8" else "")

    def settled(self, network: Descriptor) -> Request:
        """With tile and overlap chosen, and held to what the network needs.

        Raises:
            click.BadParameter: they do not fit.
        """
        self._check_tile()
        if self.tile == "free" and not lowering_of(network.architecture).free:
            raise click.BadParameter(
                f"--tile free: found {network.architecture}, whose export has one size: give it, or --fit WxH"
            )
        overlap = self.overlap if isinstance(self.overlap, int) else network.overlap  # before it is found
        if self.overlap is None or (self.overlap == "auto" and self.fit is not None):
            overlap = max(OVERLAP, overlap)
        if self.fit is not None:
            most = self.most or MOST_FITTED
            needs = {"multiple": network.multiple, "phase": network.phase}
            height, width = best_tile(*self.fit, most=most, overlap=overlap, **needs)
        else:
            height, width = self.tile if isinstance(self.tile, tuple) else network.tile
            most = self.most or max(MOST, height * width)
        if self.tile == "free" and height * width > most:
            raise click.BadParameter(f"--most {most}: the network's own tile of {height} x {width} has more pixels")
        try:
            check_tile(network, height, width, overlap)
        except ArtifactError as error:  # its fields are the options' names
            raise click.BadParameter(str(error)) from None
        return replace(self, tile=(height, width), overlap=overlap, most=most if self.tile == "free" else None)

    def _check_tile(self) -> None:
        """Refuse wishes about the tile that contradict each other."""
        if self.fit is not None and self.tile is not None:
            raise click.UsageError("--fit chooses the tile; drop --tile")
        if self.most is not None and self.fit is None and self.tile != "free":
            raise click.UsageError("--most is for --fit and for --tile free")
        if self.tile == "free" and self.precision == "int8":
            raise click.UsageError("int8 has a fixed tile: give its size, or --fit WxH")
        if self.tile == "free" and any(engines(self.targets).values()):
            raise click.UsageError("an engine has a fixed tile: give its size, or --fit WxH")

    @property
    def folder(self) -> Path:
        return Path(f"echoir-{self.name}") if self.output is None else self.output
