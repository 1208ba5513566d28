"""The commands between an export and a device: ``build`` and ``golden``. Neither needs PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from echoir.runtime import options

if TYPE_CHECKING:
    from echoir.export.engine import EngineOptions

READABLE = click.Path(exists=True, file_okay=False, path_type=Path)
WRITABLE = click.Path(file_okay=False, path_type=Path)

_ENGINE = [
    click.option(
        "--plugin/--no-plugin",
        default=None,
        help="TensorRT: a network's own operators as plugins or as ONNX functions. "
        "[default: plugins where they can be made]",
    ),
    click.option(
        "--opt-level",
        "optimization_level",
        type=click.IntRange(0, 5),
        help="How long the engine builder searches. [default: 3]",
    ),
    click.option(
        "--workspace", type=click.IntRange(min=1), metavar="MIB", help="Memory that a layer may take. [default: all]"
    ),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="TensorRT: the engine also loads in later 10.x or 11.x; it is tens of MB larger and may be slower.",
    ),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="TensorRT: the engine also runs on other GPUs from compute capability 8.0 up; it may be slower.",
    ),
]


def engine_options(command: Any) -> Any:
    """How an engine is built: :class:`echoir.export.engine.EngineOptions`."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


def take_engine(given: dict[str, Any]) -> EngineOptions:
    """Take what :func:`engine_options` gave out of a command's options."""
    from echoir.export.engine import EngineOptions

    names = ("plugin", "optimization_level", "workspace", "version_compatible", "hardware_compatible")
    return EngineOptions(**{name: given.pop(name) for name in names})


def capabilities_option(command: Any) -> Any:
    """Which GPUs engines are for."""
    return click.option(
        "--compute-capability",
        "compute_capabilities",
        multiple=True,
        metavar="X.Y",
        help="GPU an engine is for, e.g. 8.9; may be repeated. [default: the builder's]",
    )(command)


@click.command()
@options.artifact
@click.option(
    "--target",
    "targets",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    multiple=True,
    default=["auto"],
    show_default=True,
    help="What to build; may be repeated. auto: every engine that this machine can build.",
)
@capabilities_option
@engine_options
@click.option("-o", "--output", type=WRITABLE, metavar="DIR", help="[default: where the artifact lies]")
@options.force("Replace engines that are there.")
@click.option(
    "--min-psnr",
    type=float,
    metavar="DB",
    help="Gate: engine against PyTorch, every golden tile. [default: as for parity]",
)
@options.progress
def build(
    model: str,
    targets: tuple[Any, ...],
    compute_capabilities: tuple[str, ...],
    output: Path | None,
    force: bool,
    min_psnr: float | None,
    log_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Build engines from an exported ONNX, without PyTorch.

    ARTIFACT is the .onnx with its manifest, or their folder. The engine gets a manifest of its own. Where it can be
    run, the artifact's golden tiles go through it, and one that strays from PyTorch is kept in a folder whose name ends
    in .failed; the exit code is then 5.
    """
    from echoir.export.build import build_beside, engines
    from echoir.export.proof.summary import golden_lines
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.output import displayable

    source = Artifact.open(model)
    folder = output or source.model_path.parent
    wanted = engines(targets)
    names = [f"{source.manifest.name}-{target}.engine" for target in wanted]
    if not force and (there := [name for name in names if (folder / name).exists()]):
        raise click.UsageError(f"{folder / there[0]} is there; replace it with --force, or give another -o")
    built = build_beside(
        source,
        folder,
        wanted,
        compute_capabilities=compute_capabilities,
        options=take_engine(settings),
        min_psnr=min_psnr,
        log_json=log_json,
        quiet=quiet,
    )
    lines = [f"left out {target}: {why}" for target, why in built.left_out]
    for engine in built.artifacts:
        manifest = engine.manifest
        assert manifest.engine is not None
        gpus = ", ".join(manifest.engine.compute_capability)
        lines += [
            f"{engine.model_path}  {manifest.model.bytes / 1e6:.2f} MB, built in {manifest.engine.build_seconds:.1f} s",
            f"  by {manifest.model.backend} {manifest.engine.tensorrt} for compute capability {gpus}",
        ]
        if (report := built.reports.get(manifest.name)) is not None:
            lines += golden_lines(report)
        else:
            lines.append(f"not run here; on the device: echoir parity -m {engine.model_path.name}")
    click.echo("\n".join(map(displayable, lines)))


@click.command()
@options.artifact
@click.option("-o", "--output", type=WRITABLE, metavar="DIR", required=True, help="Where to write; made if need be.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["npz", "polygraphy", "trtexec"]),
    default="npz",
    show_default=True,
    help="inputs.npz and outputs.npz; JSON for polygraphy run; or raw files, one for each tile.",
)
def golden(model: str, output: Path, format_: str) -> None:
    """The tiles that prove an artifact, for other tools.

    Inputs and PyTorch's outputs as the model itself takes and gives them, layout and type included.
    """
    from echoir.export.proof.golden import engine_tensors, read_golden
    from echoir.export.proof.interchange import WRITERS
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.output import displayable

    opened = Artifact.open(model)
    manifest, tiles = opened.manifest, read_golden(opened)
    written = WRITERS[format_](manifest, [engine_tensors(manifest, tile) for tile in tiles], output)
    lines = [f"{index}: {tile.name}" for index, tile in enumerate(tiles)]
    click.echo("\n".join(map(displayable, [*lines, *map(str, written)])))
