"""From a checkpoint to a folder that can be deployed: ONNX, engines, manifests, and the proof."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import click

from echoir import __version__
from echoir.export.engine import MODULES, EngineOptions, EngineTarget, build_engine
from echoir.export.graph import INPUT, OPSET, OUTPUT
from echoir.export.proof.parity import measure_parity
from echoir.export.proof.report import write_report
from echoir.export.proof.results import GATES, ParityReport, default_gate
from echoir.export.quantized import Int8, Remainder, export_int8, prepare, time_against, verdict
from echoir.export.reference import IO
from echoir.export.sources import Source, open_source
from echoir.export.typed import export_onnx
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, BackendError, GateError, ImageError, MissingExtraError
from echoir.runtime.files import set_aside, staged
from echoir.runtime.manifest import (
    FLOAT_NCHW,
    UINT8_NHWC,
    Engine,
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
from echoir.samples import SHIPPED, Samples, open_samples

OVERLAP = 32  # pixels that tiles share, unless told

Target = Literal["auto", "onnx", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Request:
    """What to export; the defaults are those of the command.

    Attributes:
        weights: a shipped checkpoint's name, or a file.
        precision: ``"fp16"``, ``"fp32"`` or ``"int8"``.
        targets: ``"auto"`` is every engine this machine can build; the ONNX is always made.
        tile: (height, width) in pixels, multiples of the network's; None takes the one that the network likes.
        batch: tiles per run; None leaves it open.
        overlap: pixels that neighbouring tiles share at least, the artifact's default; None takes 32, or more where
            the network needs it.
        io: ``"float"`` (float32 NCHW in [0, 1]) or ``"uint8"`` (NHWC).
        compute_capabilities: GPUs an engine is for, as ``"8.9"``; empty takes the builder's default.
        engine: how engines are built.
        images: pictures for parity (see :func:`echoir.samples.open_samples`); None takes the shipped.
        sigma, limit: of the pictures.
        min_psnr, max_drop: the gate; None takes the precision's. For int8, ``max_drop`` is also the budget
            that its layers are chosen within.
        calibration: pictures for int8 (see :func:`echoir.export.quantized.prepare`); other ones than ``images``.
        remainder: what is not INT8 in an int8 artifact; ``"fp16"`` is for GPUs, ``"fp32"`` for CPUs.
        threads: of engine and PyTorch; None takes all cores.
        output: the folder to make; None makes ``./echoir-WEIGHTS-PRECISION``.
    """

    weights: str = "denoise"
    precision: Literal["fp16", "fp32", "int8"] = "fp16"
    targets: tuple[Target, ...] = ("auto",)
    tile: tuple[int, int] | None = None
    batch: int | None = 1
    overlap: int | None = None
    io: IO = "float"
    compute_capabilities: tuple[str, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)
    images: Path | None = None
    sigma: float | None = None
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
        height, width = self.tile or network.tile
        overlap = max(OVERLAP, network.overlap) if self.overlap is None else self.overlap
        try:
            check_tile(network, height, width, overlap)
        except ArtifactError as error:  # its fields are the options' names
            raise click.BadParameter(str(error)) from None
        return replace(self, tile=(height, width), overlap=overlap)

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
        text.append(f"  parity.json, report.html{sensitivity}")
        return [*text, *(f"left out {target}: {why}" for target, why in self.left_out), *self.notes]


def export_artifact(request: Request, source: Source | None = None, *, log_json: bool = False) -> Export:
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
        source = open_source(request.weights)
    request = request.settled(source.descriptor)
    said: list[str] = []
    samples = open_samples(
        request.images or SHIPPED, source.descriptor.task, sigma=request.sigma, limit=request.limit, say=said.append
    )
    wanted = engines(request.targets)
    for target in (target for target, required in wanted.items() if required):
        module, extra = MODULES[target]
        if find_spec(module) is None:  # before the export, not after minutes of it
            raise MissingExtraError(module, extra)
    int8, memory = None, request.folder.absolute().with_name(f".{request.folder.name}.search.json")
    if request.precision == "int8":
        int8 = _prepare(request, source, samples, memory, log_json)
    steps = 1 + len(samples) + len(wanted)
    with staged(request.folder) as stage, Progress("export", steps, "steps", log_json=log_json) as progress:
        for line in said:
            progress.note(line)
        artifact = _make_onnx(request, source, stage, int8)
        progress.advance(last=artifact.model_path.name)
        artifact, report = _prove(request, source, artifact, samples, progress)
        if int8 is not None:
            report = replace(report, int8=int8.sensitivity)
        write_report(report, stage)
        if not report.passed:
            kept = set_aside(stage, request.folder)
            raise GateError(f"{request.name}: {'; '.join(report.failures)}; kept aside in {kept}")
        built, left_out = _build_engines(request, artifact, wanted, progress)
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


def engines(targets: tuple[Target, ...]) -> dict[EngineTarget, bool]:
    """The engines to try, and whether each must succeed."""
    return {target: target in targets for target in MODULES if target in targets or "auto" in targets}


def _prepare(request: Request, source: Source, samples: Samples, memory: Path, log_json: bool) -> Int8:
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
    assert request.tile is not None
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
    )


def _make_onnx(request: Request, source: Source, stage: Path, int8: Int8 | None) -> Artifact:
    import onnx
    import torch

    assert request.tile is not None
    assert request.overlap is not None
    path = stage / f"{request.name}.onnx"
    if int8 is not None:
        precision = export_int8(path, int8, remainder=request.remainder)
    else:
        assert request.precision != "int8"
        float32 = export_onnx(
            source, path, tile=request.tile, batch=request.batch, io=request.io, precision=request.precision
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
        tile=Tile(*request.tile, request.overlap, request.batch),
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


def _prove(
    request: Request, source: Source, artifact: Artifact, samples: Samples, progress: Progress
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


def _build_engines(
    request: Request, source: Artifact, wanted: dict[EngineTarget, bool], progress: Progress
) -> tuple[list[Artifact], list[tuple[str, str]]]:
    """Build engines from the ONNX; those that may be left out are, with the reason."""
    built: list[Artifact] = []
    left_out: list[tuple[str, str]] = []
    for target, required in wanted.items():
        try:
            built.append(_build_engine(request, source, target, progress))
        except BackendError as error:
            if required:
                raise
            left_out.append((target, str(error)))
        progress.advance(last=target)
    return built, left_out


def _build_engine(request: Request, source: Artifact, target: EngineTarget, progress: Progress) -> Artifact:
    manifest = source.manifest
    path = source.model_path.with_name(f"{request.name}-{target}.engine")
    info = build_engine(
        source.model_path,
        path,
        target=target,
        compute_capabilities=request.compute_capabilities,
        options=request.engine,
        on_progress=lambda percent: progress.advance(0, last=f"{target} {percent} %"),
    )
    engine = Engine(info.version, info.compute_capabilities, info.seconds, info.gpu, info.driver, info.details)
    # No figures yet; its source's are found by onnx_sha256.
    return write_artifact(
        replace(
            manifest,
            name=path.stem,
            model=Model(target),
            onnx_sha256=source.manifest.model.sha256,
            engine=engine,
            parity=None,
        ),
        path,
    )


def _prove_engine(
    request: Request, source: Source, artifact: Artifact, samples: Samples, progress: Progress
) -> tuple[Artifact, tuple[str, ...]]:
    """Measure an engine like its source if the GPU it is for is in this machine; and what its gate says."""
    try:
        open_session(artifact).close()
    except BackendError:
        return artifact, ()
    except ArtifactError as error:
        if error.field == "engine.compute_capability":  # made for another machine
            return artifact, ()
        raise
    if progress.total is not None:
        progress.total += len(samples)
    artifact, report = _prove(request, source, artifact, samples, progress)
    return artifact, tuple(report.failures)
