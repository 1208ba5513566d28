"""From a checkpoint to a folder that can be deployed: ONNX, engines, manifests, and the proof."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir import __version__
from echoir.degradations import TASKS
from echoir.export.build import build_all, engines, require_builders, runs_here
from echoir.export.graph import INPUT, OPSET, OUTPUT
from echoir.export.lowering import PLAIN, lowering_of
from echoir.export.overflow import as_input
from echoir.export.proof.golden import crop_side, make_golden
from echoir.export.proof.parity import measure_parity
from echoir.export.proof.report import write_report
from echoir.export.proof.results import GATES, ParityReport, default_gate
from echoir.export.proof.seam import Seam
from echoir.export.quantized import Int8, export_int8, prepare, time_against, verdict
from echoir.export.request import Request
from echoir.export.settled import pictures_of, settle
from echoir.export.sources import Source, open_source
from echoir.export.typed import export_onnx
from echoir.fitting import mosaic, planes
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.errors import ArtifactError, GateError, ImageError
from echoir.runtime.files import set_aside, staged
from echoir.runtime.manifest import (
    FLOAT_NCHW,
    UINT8_NHWC,
    Manifest,
    Model,
    Precision,
    TensorSpec,
    Tile,
)
from echoir.runtime.progress import Progress
from echoir.runtime.sessions import open_session
from echoir.samples import Several, filled, middle, shipped_crops

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

TRIED = 3  # tiles that float16's range is tried on
GOLDEN = 4  # pictures that golden tiles come from, where the task is not one of the project's


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
    settled = request.settled(source.descriptor)
    if request.precision == "int8" and source.batch not in (None, 1):
        needed = "1 or an open one, since int8 calibrates on one tile at a time"
        raise ArtifactError(
            "batch",
            f"{source.batch}, fixed in {source.record.name}",
            needed,
            "export the ONNX again with an open batch",
        )
    said: list[str] = []
    samples = pictures_of(request, source, said.append)
    wanted = engines(settled.targets) if settled.most is None else {}
    require_builders(wanted)
    request, seam, found = settle(request, source, samples, log_json=log_json, quiet=quiet)
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
        artifact, report = _prove(request, source, artifact, samples, seam, progress)
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
            built[index], failures = _prove_engine(request, source, engine, samples, seam, progress)
            if failures:
                kept = set_aside(stage, request.folder)
                raise GateError(f"{engine.manifest.name}: {'; '.join(failures)}; kept aside in {kept}")
        notes = [*found, *_notes(request, artifact, int8)]
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
    return [planes(filled(sample.degraded, *large), network) for sample in islice(samples, TRIED)]


def _make_onnx(request: Request, source: Source, samples: Several, stage: Path, int8: Int8 | None) -> Artifact:
    import onnx
    import torch

    assert isinstance(request.tile, tuple)
    assert isinstance(request.overlap, int)
    path = stage / f"{request.name}.onnx"
    tried = [] if request.precision == "fp32" else _tried(source, samples, request.tile)
    if int8 is not None:
        given = [as_input(tile, request.batch, request.io) for tile in tried]
        precision = export_int8(path, int8, remainder=request.remainder, tried=given)
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
            tried=tried,
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
        tile=Tile(*request.tile, request.overlap, request.batch, request.most, request.margin),
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
    request: Request, source: Source, artifact: Artifact, samples: Several, seam: Seam | None, progress: Progress
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
    report = replace(report, seam=seam)
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
    request: Request, source: Source, artifact: Artifact, samples: Several, seam: Seam | None, progress: Progress
) -> tuple[Artifact, tuple[str, ...]]:
    """Measure an engine like its source if the GPU it is for is in this machine; and what its gate says."""
    if not runs_here(artifact):
        return artifact, ()
    if progress.total is not None:
        progress.total += len(samples)
    artifact, report = _prove(request, source, artifact, samples, seam, progress)
    return artifact, tuple(report.failures)
