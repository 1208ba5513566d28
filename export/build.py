"""From an exported ONNX to an engine with its manifest, and its proof by golden tiles. Needs no PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from echoir.export.engine import MODULES, EngineOptions, EngineTarget, build_engine, require_builder
from echoir.export.proof.golden import GoldenReport, measure_golden, read_golden
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.errors import ArtifactError, BackendError, GateError
from echoir.runtime.files import set_aside, staged_into
from echoir.runtime.manifest import Engine, Model
from echoir.runtime.progress import Progress
from echoir.runtime.sessions import open_session

Target = Literal["auto", "onnx", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Built:
    """What came out of :func:`build_beside`.

    Attributes:
        artifacts: the engines.
        reports: of those that could be run here and have golden tiles, by name.
        left_out: (target, why) of what ``auto`` could not build here.
    """

    artifacts: tuple[Artifact, ...]
    reports: dict[str, GoldenReport]
    left_out: tuple[tuple[str, str], ...]


def engines(targets: Sequence[Target]) -> dict[EngineTarget, bool]:
    """The engines to try, and whether each must succeed."""
    return {target: target in targets for target in MODULES if target in targets or "auto" in targets}


def require_builders(wanted: dict[EngineTarget, bool]) -> None:
    """Find out that a library is missing before minutes of work, not after them.

    Raises:
        MissingExtraError: of an engine that must succeed.
    """
    for target in (target for target, required in wanted.items() if required):
        require_builder(target)


def build_artifact(
    source: Artifact,
    folder: Path,
    target: EngineTarget,
    *,
    compute_capabilities: Sequence[str] = (),
    options: EngineOptions | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Artifact:
    """Build an engine and write its manifest: ``NAME-TARGET.engine`` and ``.json`` in a folder.

    Args:
        source: the ONNX artifact.
        compute_capabilities, options, on_progress: as of :func:`echoir.export.engine.build_engine`.

    Raises:
        ArtifactError: the source is an engine itself, or has free sides.
        BackendError, ImageError: as ``build_engine``.
    """
    manifest = source.manifest
    if manifest.engine is not None:
        hint = "an engine is built from the ONNX that was exported with it"
        raise ArtifactError("model.backend", manifest.model.backend, "onnxruntime", hint)
    if manifest.tile.most is not None:
        hint = "an engine has one tile; export with --fit WxH or --tile N"
        raise ArtifactError("tile.most", manifest.tile.most, "null", hint)
    path = folder / f"{manifest.name}-{target}.engine"
    info = build_engine(
        source.model_path,
        path,
        target=target,
        compute_capabilities=compute_capabilities,
        options=options,
        on_progress=on_progress,
    )
    engine = Engine(info.version, info.compute_capabilities, info.seconds, info.gpu, info.driver, info.details)
    # No figures yet; its source's are found by onnx_sha256.
    described = replace(manifest, name=path.stem, model=Model(target), engine=engine, parity=None)
    return write_artifact(replace(described, onnx_sha256=manifest.model.sha256), path)


def build_all(
    source: Artifact,
    folder: Path,
    wanted: dict[EngineTarget, bool],
    progress: Progress,
    *,
    compute_capabilities: Sequence[str] = (),
    options: EngineOptions | None = None,
) -> tuple[list[Artifact], list[tuple[str, str]]]:
    """Build engines into a folder; those that may be left out are, with the reason.

    Raises:
        BackendError: one that must succeed did not.
    """
    built: list[Artifact] = []
    left_out: list[tuple[str, str]] = []
    for target, required in wanted.items():

        def told(percent: int, target: str = target) -> None:
            progress.advance(0, last=f"{target} {percent} %")

        try:
            built.append(
                build_artifact(
                    source,
                    folder,
                    target,
                    compute_capabilities=compute_capabilities,
                    options=options,
                    on_progress=told,
                )
            )
        except BackendError as error:
            if required:
                raise
            left_out.append((target, str(error)))
        progress.advance(last=target)
    return built, left_out


def runs_here(artifact: Artifact) -> bool:
    """Whether an engine can be run on this machine, and not only built for another.

    Raises:
        ArtifactError: it is broken.
    """
    try:
        open_session(artifact).close()
    except BackendError:
        return False
    except ArtifactError as error:
        if error.field == "engine.compute_capability":  # made for another machine
            return False
        raise
    return True


def build_beside(
    source: Artifact,
    folder: Path,
    wanted: dict[EngineTarget, bool],
    *,
    compute_capabilities: Sequence[str] = (),
    options: EngineOptions | None = None,
    min_psnr: float | None = None,
    log_json: bool = False,
    quiet: bool = False,
) -> Built:
    """Build engines of an ONNX artifact into a folder, proven by its golden tiles where they can be run.

    Each engine appears with its manifest, or not at all. Progress goes to standard error.

    Args:
        source: the ONNX artifact.
        folder: may hold other things; files of the same names are replaced.
        wanted: of :func:`engines`.
        compute_capabilities, options: as of :func:`echoir.export.engine.build_engine`.
        min_psnr: gate of the proof, in dB; None takes the precision's.

    Raises:
        ArtifactError: the source is an engine, or its golden tiles are damaged.
        BackendError: an engine that must be built cannot be, or none could.
        GateError: an engine strays from PyTorch; it is kept in the folder's ``NAME.failed``.
        ImageError: the folder cannot be written.
    """
    require_builders(wanted)
    record = source.manifest.golden
    golden = None if record is None else source.model_path.with_name(record.file)
    tiles = read_golden(source) if golden is not None and golden.is_file() else []
    reports: dict[str, GoldenReport] = {}
    with (
        staged_into(folder) as stage,
        Progress("build", len(wanted), "engines", log_json=log_json, quiet=quiet) as progress,
    ):
        progress.begin(f"building from {source.model_path.name}: seconds for TensorRT-RTX, minutes for TensorRT")
        if golden is not None and not tiles:
            progress.note(f"{golden.name} is not beside {source.model_path.name}: an engine cannot be proven here")
        built, left_out = build_all(
            source, stage, wanted, progress, compute_capabilities=compute_capabilities, options=options
        )
        if not built:
            raise BackendError("; ".join(f"{target}: {why}" for target, why in left_out))
        if golden is not None and tiles:
            shutil.copyfile(golden, stage / golden.name)
        for index, engine in enumerate(built):
            if not tiles or not runs_here(engine):
                continue
            with open_session(engine) as session:
                report = measure_golden(engine.manifest, session, tiles, min_psnr=min_psnr)
            reports[engine.manifest.name] = report
            built[index] = write_artifact(replace(engine.manifest, parity=report.summary()), engine.model_path)
            if not report.passed:
                kept = set_aside(stage, folder / engine.manifest.name)
                raise GateError(f"{engine.manifest.name}: {'; '.join(report.failures)}; kept aside in {kept}")
    moved = tuple(replace(one, model_path=folder / one.model_path.name) for one in built)
    return Built(moved, reports, tuple(left_out))
