"""From a checkpoint to a folder that can be deployed: ONNX, engines, manifests, and the proof."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np

from echoir import __version__
from echoir.degradations import TASKS
from echoir.export.build import Target, build_all, engines, require_builders, runs_here
from echoir.export.declared import NOTHING, Declared
from echoir.export.engine import EngineOptions
from echoir.export.graph import INPUT, OPSET, OUTPUT
from echoir.export.lowering import PLAIN, lowering_of
from echoir.export.proof.golden import crop_side, make_golden
from echoir.export.proof.parity import measure_parity
from echoir.export.proof.report import write_report
from echoir.export.proof.results import GATES, ParityReport, default_gate
from echoir.export.quantized import Int8, Remainder, export_int8, prepare, time_against, verdict
from echoir.export.reference import IO
from echoir.export.sources import Source, open_source
from echoir.export.typed import export_onnx
from echoir.fitting import mosaic, planes
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, GateError, ImageError
from echoir.runtime.files import set_aside, staged
from echoir.runtime.fit import MOST, best_tile
from echoir.runtime.manifest import (
    FLOAT_NCHW,
    UINT8_NHWC,
    Manifest,
    Model,
    Precision,
    TensorSpec,
    Tile,
    check_tile,
)
from echoir.runtime.output import displayable
from echoir.runtime.progress import Progress
from echoir.runtime.sessions import open_session
from echoir.runtime.tiling import reflect
from echoir.samples import Several, middle, proof_samples, shipped_crops

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

TRIED = 3  # tiles that float16's range is tried on
OVERLAP = 32  # pixels that tiles share, unless told
GOLDEN = 4  # pictures that golden tiles come from, where the task is not one of the project's


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
        most: pixels of a tile at most, of a free one and one that fits; None takes :data:`echoir.runtime.fit.MOST`.
            Once settled, it is the manifest's: None for a fixed tile.
        batch: tiles per run; None leaves it open.
        overlap: pixels that neighbouring tiles share at least, the artifact's default; None takes 32, or more where
            the network needs it.
        io: ``"float"`` (float32 NCHW in [0, 1]) or ``"uint8"`` (NHWC).
        compute_capabilities: GPUs an engine is for, as ``"8.9"``; empty takes the builder's default.
        engine: how engines are built.
        images: pictures for parity (see :func:`echoir.samples.proof_samples`); None takes the shipped.
        forms, sigmas, limit: of the pictures.
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
    overlap: int | None = None
    io: IO = "float"
    compute_capabilities: tuple[str, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)
    images: Path | None = None
    forms: tuple[str, ...] = ()
    sigmas: tuple[float, ...] = ()
    limit: int | None = None
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
        overlap = max(OVERLAP, network.overlap) if self.overlap is None else self.overlap
        most = self.most or MOST
        if self.fit is not None:
            needs = {"multiple": network.multiple, "phase": network.phase}
            height, width = best_tile(*self.fit, most=most, overlap=overlap, **needs)
        else:
            height, width = self.tile if isinstance(self.tile, tuple) else network.tile
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


@dataclass(frozen=True)
class Export:
    """What came out.

    Attributes:
        folder: holds everything.
        artifacts: the ONNX first, then the engines.
        report: of the ONNX; engines are built from that very file.
        notes: what else there is to say, a line each.
        left_out: (target, why) of what ``auto`` could not make here.
    """

    folder: Path
    artifacts: tuple[Artifact, ...]
    report: ParityReport
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was made and what was not, for the terminal."""
        text = [f"{self.folder}{os.sep}"]
        for artifact in self.artifacts:
            engine = artifact.manifest.engine
            proof = "measured here" if artifact.manifest.parity else "not run here"
            built = f", built in {engine.build_seconds:.1f} s, {proof}" if engine else ""
            text.append(f"  {artifact.model_path.name}  {artifact.manifest.model.bytes / 1e6:.2f} MB{built}")
        sensitivity = ", sensitivity.json" if self.report.int8 else ""
        golden = self.artifacts[0].manifest.golden
        if golden is not None:
            text.append(f"  {golden.file}  {golden.bytes / 1e6:.2f} MB: {golden.tiles} tiles for proof without PyTorch")
        text.append(f"  parity.json, report.html{sensitivity}")
        return [*self.notes, *(f"left out {target}: {why}" for target, why in self.left_out), *text]


def export_artifact(
    request: Request, source: Source | None = None, *, log_json: bool = False, quiet: bool = False
) -> Export:
    """Make a folder with the ONNX, the engines asked for, their manifests, ``parity.json`` and ``report.html``.

    The folder appears whole or not at all; an earlier one of that name is replaced. Progress goes
    to standard error.

    Args:
        source: what ``request.weights`` names, if it is open already.

    Raises:
        ArtifactError: the checkpoint cannot be used, or the result is not what its manifest says.
        BackendError: an engine asked for by name cannot be built here.
        GateError: the figures do not pass, and the files are kept in the folder's name + ``.failed``; or
            no layer can go to INT8 within the budget.
        ImageError: pictures cannot be read, or the folder cannot be written.
        click.BadParameter: a tile that the network does not take.
    """
    if source is None:
        source = open_source(request.weights, request.network)
    request = request.settled(source.descriptor)
    said: list[str] = []
    samples = proof_samples(
        request.images,
        source.descriptor.task,
        forms=request.forms,
        sigmas=request.sigmas,
        limit=request.limit,
        network=source.descriptor,
        say=said.append,
    )
    wanted = engines(request.targets) if request.most is None else {}
    require_builders(wanted)
    int8, memory = None, request.folder.absolute().with_name(f".{request.folder.name}.search.json")
    if request.precision == "int8":
        int8 = _prepare(request, source, samples, memory, log_json, quiet)
    steps = 1 + len(samples) + len(wanted)
    with (
        staged(request.folder) as stage,
        Progress("export", steps, "steps", log_json=log_json, quiet=quiet) as progress,
    ):
        for line in said:
            progress.note(line)
        progress.begin(f"making {request.name}.onnx from {request.weights}: half a minute or more")
        artifact = _make_onnx(request, source, samples, stage, int8)
        artifact = _keep_golden(request, source, artifact, samples)
        progress.advance(last=artifact.model_path.name)
        artifact, report = _prove(request, source, artifact, samples, progress)
        if int8 is not None:
            report = replace(report, int8=int8.sensitivity)
        write_report(report, stage)
        if not report.passed:
            kept = set_aside(stage, request.folder)
            raise GateError(f"{request.name}: {'; '.join(report.failures)}; kept aside in {kept}")
        built, left_out = build_all(
            artifact,
            stage,
            wanted,
            progress,
            compute_capabilities=request.compute_capabilities,
            options=request.engine,
        )
        if request.most is not None and "auto" in request.targets:
            left_out.append(("engines", "they have one tile; export for them with --fit WxH or --tile"))
        for index, engine in enumerate(built):
            built[index], failures = _prove_engine(request, source, engine, samples, progress)
            if failures:
                kept = set_aside(stage, request.folder)
                raise GateError(f"{engine.manifest.name}: {'; '.join(failures)}; kept aside in {kept}")
        notes = _notes(request, artifact, int8)
    memory.unlink(missing_ok=True)
    artifacts = (artifact, *built)
    moved = tuple(replace(one, model_path=request.folder / one.model_path.name) for one in artifacts)
    return Export(request.folder, moved, report, tuple(left_out), tuple(notes))


def _prepare(request: Request, source: Source, samples: Several, memory: Path, log_json: bool, quiet: bool) -> Int8:
    """Calibrate and choose layers, on other pictures than the gate's."""
    if request.calibration is None:
        raise ImageError("int8 needs pictures to calibrate on: give --calibration DIR")
    folder = request.calibration.resolve()
    for picture in samples.pictures:
        if folder in picture.clean.resolve().parents:
            raise ImageError(
                f"{picture.clean} is in the calibration folder too; the gate wants pictures that calibration never saw"
            )
    memory.parent.mkdir(parents=True, exist_ok=True)
    budget = GATES["int8"].max_drop if request.max_drop is None else request.max_drop
    assert budget is not None
    assert isinstance(request.tile, tuple)
    return prepare(
        source,
        request.calibration,
        budget,
        tile=request.tile,
        batch=request.batch,
        io=request.io,
        memory=memory,
        threads=request.threads,
        log_json=log_json,
        quiet=quiet,
    )


def _tried(source: Source, samples: Several, tile: tuple[int, int]) -> list[NDArray[np.float32]]:
    """Real tiles to try float16's range on; none for a network whose precision was measured here."""
    network = source.descriptor
    if lowering_of(network.architecture) is not PLAIN:
        return []
    large = mosaic(network) * tile[0], mosaic(network) * tile[1]
    tiles = []
    for sample in islice(samples, TRIED):
        picture = middle(sample.degraded, *large)
        down, across = (reflect(size, side) for size, side in zip(picture.shape[:2], large, strict=True))
        tiles.append(planes(picture[down][:, across], network))
    return tiles


def _make_onnx(request: Request, source: Source, samples: Several, stage: Path, int8: Int8 | None) -> Artifact:
    import onnx
    import torch

    assert isinstance(request.tile, tuple)
    assert request.overlap is not None
    path = stage / f"{request.name}.onnx"
    if int8 is not None:
        precision = export_int8(path, int8, remainder=request.remainder)
    else:
        assert request.precision != "int8"
        float32 = export_onnx(
            source,
            path,
            tile=request.tile,
            batch=request.batch,
            io=request.io,
            precision=request.precision,
            free=request.most is not None,
            tried=_tried(source, samples, request.tile),
        )
        precision = Precision(request.precision, {"float32": float32} if float32 else {})
    tensor: dict[str, Any] = FLOAT_NCHW if request.io == "float" else UINT8_NHWC
    manifest = Manifest(
        name=request.name,
        network=source.descriptor,
        checkpoint=source.record,
        model=Model("onnxruntime"),
        precision=precision,
        calibration=None if int8 is None else int8.record,
        tile=Tile(*request.tile, request.overlap, request.batch, request.most),
        input=TensorSpec(INPUT, **tensor, colour=source.descriptor.input),
        output=TensorSpec(OUTPUT, **tensor, colour=source.descriptor.output),
        versions={
            "echoir": __version__,
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "opset": str(OPSET),
        },
    )
    return write_artifact(manifest, path)


def _keep_golden(request: Request, source: Source, artifact: Artifact, samples: Several) -> Artifact:
    """Keep what PyTorch makes of a few tiles, for machines without it: shipped pictures where the task allows."""
    manifest, network = artifact.manifest, source.descriptor
    height, width = crop_side(manifest)

    def pictures() -> Iterator[tuple[str, NDArray[np.float32]]]:
        known = network.task in TASKS
        crops = (
            shipped_crops(network.task, network.scale * height, network.scale * width, network) if known else samples
        )
        for index, sample in enumerate(crops):
            if index >= GOLDEN and not known:
                return
            yield sample.name, middle(sample.degraded, mosaic(network) * height, mosaic(network) * width)

    with source.session(io=request.io, threads=request.threads) as reference:
        record = make_golden(artifact, reference, pictures())
    return write_artifact(replace(manifest, golden=record), artifact.model_path)


def _prove(
    request: Request, source: Source, artifact: Artifact, samples: Several, progress: Progress
) -> tuple[Artifact, ParityReport]:
    """Measure the ONNX, and write the figures into its manifest."""
    manifest = artifact.manifest
    with open_session(artifact, threads=request.threads) as session:
        report = measure_parity(
            manifest,
            session,
            source,
            samples,
            gate=default_gate(manifest, request.min_psnr, request.max_drop),
            threads=request.threads,
            on_image=lambda name: progress.advance(last=name),
        )
    return write_artifact(replace(manifest, parity=report.summary()), artifact.model_path), report


def _notes(request: Request, artifact: Artifact, int8: Int8 | None) -> list[str]:
    """Of INT8: what it covers, what it does not, and where it is the slower choice."""
    if int8 is None:
        return []
    notes = int8.lines()
    if request.batch is not None:
        notes.append(verdict(time_against(int8, artifact.model_path, threads=request.threads)))
    return [*notes, "engines were not timed: before you deploy INT8, compare it with fp16 on the device (echoir bench)"]


def _prove_engine(
    request: Request, source: Source, artifact: Artifact, samples: Several, progress: Progress
) -> tuple[Artifact, tuple[str, ...]]:
    """Measure an engine like its source if the GPU it is for is in this machine; and what its gate says."""
    if not runs_here(artifact):
        return artifact, ()
    if progress.total is not None:
        progress.total += len(samples)
    artifact, report = _prove(request, source, artifact, samples, progress)
    return artifact, tuple(report.failures)
