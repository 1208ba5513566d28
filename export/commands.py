"""The commands ``export`` and ``parity``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from echoir.export.engine_commands import READABLE, WRITABLE, capabilities_option, engine_options, take_engine
from echoir.export.parameters import BatchType, OverlapType, PictureType, TileType
from echoir.runtime import options
from echoir.runtime.commands import ThreadsType, device_option
from echoir.runtime.output import displayable

if TYPE_CHECKING:
    from echoir.export.proof.golden import GoldenReport
    from echoir.export.proof.results import ParityReport
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.contract import Session
    from echoir.runtime.descriptor import Planes
    from echoir.runtime.serving.session import Served


_MEASURE = [
    options.pictures("Clean pictures, or pairs, as for train. [default: the shipped pictures]", type=READABLE),
    click.option(
        "--form",
        "forms",
        multiple=True,
        metavar="NAME|all",
        help="The form that clean pictures come in, as in evaluate; may be repeated. [default: rgb; of the shipped "
        "pictures a crop in every other form, too]",
    ),
    click.option(
        "--sigma",
        "sigmas",
        type=click.FloatRange(min=0),
        multiple=True,
        help="Noise to add to clean pictures, of 255; may be repeated. [default: 25]",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N pictures by name."),
    click.option(
        "--min-psnr",
        type=float,
        metavar="DB",
        help="Gate: engine against PyTorch, every picture. [default: fp32 90, fp16 55, int8 40; with uint8 70, 52.4 "
        "and 39.9]",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0),
        metavar="DB",
        help="Gate: change against ground truth, either way; int8 chooses its layers within it. "
        "[default: fp16 0.02, int8 0.1]",
    ),
    click.option("--threads", type=ThreadsType(), help=options.THREADS),
    options.progress,
]


def measure_options(command: Any) -> Any:
    """The options that both commands share."""
    for option in reversed(_MEASURE):
        command = option(command)
    return command


class ChannelsType(click.ParamType):  # type: ignore[type-arg]
    """Planes in and out: ``3``, or ``4:3``."""

    name = "channels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Planes, Planes]:
        from echoir.runtime.descriptor import CHANNELS

        known: dict[str, Planes] = {str(count): planes for planes, count in CHANNELS.items()}
        given, _, made = str(value).partition(":")
        if given not in known or (made or given) not in known:
            self.fail(
                f"{value!r} is not one of 1, 3, 4 (RGGB), 6 (two RGB pictures), or two of them as 4:3", param, ctx
            )
        return known[given], known[made or given]


_NETWORK = [
    click.option("--task", help="Of FILE.pth and FILE.onnx: what it restores. [default: sr if it enlarges]"),
    click.option("--scale", type=click.IntRange(1, 4), help="Pixels out for one in, each side. [default: measured]"),
    click.option(
        "--channels", type=ChannelsType(), metavar="IN[:OUT]", help="1, 3, 4 (RGGB) or 6. [default: measured]"
    ),
    click.option("--multiple", type=TileType(), metavar="N|HxW", help="Sides are multiples of it. [default: measured]"),
    click.option(
        "--phase", type=TileType(), metavar="N|HxW", help="Tiles start at multiples of it. [default: measured]"
    ),
]


def network_options(command: Any) -> Any:
    """What is said of a network that does not say it itself: :class:`echoir.export.declared.Declared`."""
    for option in reversed(_NETWORK):
        command = option(command)
    return command


@click.command()
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32", "int8"]),
    default="fp16",
    show_default=True,
    help="Of weights and activations; what needs it stays higher. int8 needs --calibration.",
)
@click.option(
    "--calibration",
    type=READABLE,
    metavar="DIR",
    help="int8: a few dozen pictures like those to restore, other ones than --data; clean, or input/ and target/.",
)
@click.option(
    "--remainder",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="int8: what the other layers compute in. fp16 is for GPUs, fp32 for CPUs.",
)
@click.option(
    "--weights",
    default="denoise",
    show_default=True,
    metavar="NAME|FILE",
    help="A shipped checkpoint; FILE.safetensors of echoir train; FILE.pth of a network that spandrel knows; "
    "FILE.onnx, with FILE.toml beside it if need be; or FILE.py:FUNCTION, which gives (module, Descriptor).",
)
@network_options
@click.option(
    "--target",
    "targets",
    type=click.Choice(["auto", "onnx", "tensorrt", "tensorrt-rtx"]),
    multiple=True,
    default=["auto"],
    show_default=True,
    help="What to make; may be repeated. The ONNX is always written; auto adds every engine this machine can build.",
)
@click.option(
    "--tile",
    "tiles",
    type=TileType(),
    multiple=True,
    metavar="N|HxW|free",
    help="Size of a tile; free takes for each picture the one that wastes least, in ONNX Runtime and OpenVINO. "
    "May be repeated: an artifact for each, in one folder, of which each picture takes the one that wastes least. "
    "[default: the network's own, often 256]",
)
@click.option(
    "--fit",
    "fits",
    type=PictureType(),
    multiple=True,
    metavar="WxH",
    help="Take the tile that wastes least at that size of input; may be repeated, as --tile.",
)
@click.option(
    "--most",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pixels of a tile at most. [default: --tile free 131072, as in 256 x 512; --fit 262144, as in 512 x 512]",
)
@click.option("--batch", type=BatchType(), default="1", show_default=True, metavar="N|dynamic", help="Tiles per run.")
@click.option(
    "--overlap",
    type=OverlapType(),
    metavar="N|auto",
    help="Pixels that tiles share; auto measures the least with which tiles are what the whole picture would be. "
    "[default: 24, or more where the network needs it]",
)
@click.option(
    "--min-seam",
    type=float,
    metavar="DB",
    help="Gate: tiles against whole pictures where tiles meet, in PyTorch; auto chooses within it. [default: 55 for a "
    "network that is said to be local]",
)
@click.option(
    "--io",
    type=click.Choice(["float", "uint8"]),
    default="float",
    show_default=True,
    help="float32 NCHW in [0, 1]; or uint8 NHWC as cameras give it, converted inside the model.",
)
@capabilities_option
@engine_options
@click.option("-o", "--output", type=WRITABLE, metavar="DIR", help="[default: ./echoir-WEIGHTS-PRECISION]")
@options.force("Replace an earlier export in DIR.")
@measure_options
def export(log_json: bool, quiet: bool, force: bool, **settings: Any) -> None:
    """Make a deployable artifact from a checkpoint, with its proof.

    Writes a folder with the model, its manifest, parity.json and report.html. It appears whole, or
    not at all: when the parity gate fails, the files are kept aside in a folder whose name ends
    in .failed, and the exit code is 5.
    """
    from echoir.runtime.errors import needs_extra

    with needs_extra("export"):
        from echoir.export.declared import Declared
        from echoir.export.pipeline import export_artifact
        from echoir.export.proof.summary import lines
        from echoir.export.request import Request
        from echoir.export.tiles import export_tiles, is_export, several
        from echoir.forms import forms_named

    settings["forms"] = forms_named(settings["forms"])
    planes = settings.pop("channels") or (None, None)
    said = {name: settings.pop(name) for name in ("task", "scale", "multiple", "phase")}
    network = Declared(**said, input=planes[0], output=planes[1])
    tiles, fits = settings.pop("tiles"), settings.pop("fits")
    request = Request(
        images=settings.pop("data"),
        engine=take_engine(settings),
        network=network,
        tile=tiles[0] if tiles else None,
        fit=fits[0] if fits else None,
        **settings,
    )
    folder = request.folder
    if (request.precision == "int8") != (request.calibration is not None):
        raise click.UsageError(
            "int8 needs pictures to set its ranges on: give --calibration DIR"
            if request.calibration is None
            else f"--calibration is for --precision int8, not {request.precision}"
        )
    if folder.resolve() == Path.cwd():  # it is replaced as a whole, and a shell would be left in the old one
        raise click.UsageError("-o names the folder you are in; name one to be made")
    if folder.is_dir() and any(folder.iterdir()):
        if not is_export(folder):
            raise click.UsageError(f"{folder} holds something else than an export; name another folder with -o")
        if not force:
            raise click.UsageError(f"{folder} holds an earlier export; replace it with --force, or give another -o")
    many = several(request, tiles, fits)
    told: dict[str, Any] = {"log_json": log_json, "quiet": quiet}
    for result in export_tiles(many, folder, **told) if len(many) > 1 else [export_artifact(request, **told)]:
        click.echo("\n".join(map(displayable, [*lines(result.report), "", *result.lines()])))


@click.command()
@options.artifact
@options.weights("The checkpoint it came from. [default: the manifest's]", "reference")
@device_option
@click.option(
    "--golden",
    is_flag=True,
    help="Compare with the tiles that the export kept, without PyTorch. [default: where PyTorch is not installed]",
)
@click.option("--overlap", type=click.IntRange(min=0), help="Pixels that tiles share. [default: the artifact's]")
@click.option("-o", "--output", type=WRITABLE, metavar="DIR", help="Write parity.json and report.html there.")
@options.figures
@measure_options
def parity(
    model: str, reference: str | None, golden: bool, output: Path | None, json_file: str | None, **settings: Any
) -> None:
    """Measure an artifact against PyTorch.

    There are two proofs, and the first line says which one it is. With PyTorch: pictures go through the engine and
    through the checkpoint, which must be the one the artifact was made from (exit code 4 otherwise). Without: the
    export kept a few tiles with what PyTorch made of them, and they go through the engine.

    When the gate fails, the exit code is 5.
    """
    from echoir.runtime.errors import GateError, ImageError
    from echoir.runtime.sessions import open_model

    asked = [name for name in ("data", "forms", "sigmas", "limit", "max_drop", "overlap") if settings[name]]
    if golden and (asked or reference):
        raise click.UsageError("golden tiles are what they are: --golden goes with --min-psnr, --threads and -o alone")
    opened = open_model(model)
    kept = opened.manifest.golden is not None and find_spec("torch") is None and not asked and not reference
    report: GoldenReport | ParityReport
    if golden or kept:
        report, shown = _by_golden_tiles(opened, settings)
    else:
        report, shown = _by_pytorch(opened, reference, settings)
    if output is not None:
        from echoir.export.proof.report import write_report

        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"cannot write {output}: {error.strerror}") from error
        write_report(report, output)
    if not options.write_figures(json_file, report.to_json()):
        click.echo("\n".join(map(displayable, shown)))
    if not report.passed:
        raise GateError(f"{opened.manifest.name}: {'; '.join(report.failures)}")


def _by_golden_tiles(opened: Artifact | Served, settings: dict[str, Any]) -> tuple[GoldenReport, list[str]]:
    from echoir.export.proof.golden import measure_golden, read_golden
    from echoir.export.proof.summary import golden_lines
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.progress import Progress

    if not isinstance(opened, Artifact):
        raise click.UsageError(
            "golden tiles lie beside an artifact, and this is a server: name its checkpoint with --weights"
        )
    tiles = read_golden(opened)
    with (
        _session(opened, settings) as session,
        Progress("parity", len(tiles), "tiles", log_json=settings["log_json"], quiet=settings["quiet"]) as progress,
    ):
        report = measure_golden(
            opened.manifest,
            session,
            tiles,
            min_psnr=settings["min_psnr"],
            on_tile=lambda name: progress.advance(last=name),
        )
    return report, golden_lines(report)


def _by_pytorch(
    opened: Artifact | Served, reference: str | None, settings: dict[str, Any]
) -> tuple[ParityReport, list[str]]:
    from echoir.runtime.errors import needs_extra
    from echoir.runtime.progress import Progress

    with needs_extra("export"):
        from echoir.export.proof.parity import measure_parity
        from echoir.export.proof.results import default_gate
        from echoir.export.proof.summary import lines
        from echoir.export.sources import source_of
        from echoir.forms import forms_named
        from echoir.samples import proof_samples

    manifest = opened.manifest
    source = source_of(manifest, reference)
    said: list[str] = []
    samples = proof_samples(
        settings["data"],
        manifest.task,
        forms=forms_named(settings["forms"]),
        sigmas=settings["sigmas"],
        limit=settings["limit"],
        network=manifest.network,
        say=said.append,
    )
    with (
        _session(opened, settings) as session,
        Progress(
            "parity", len(samples), "pictures", log_json=settings["log_json"], quiet=settings["quiet"]
        ) as progress,
    ):
        for line in said:
            progress.note(line)
        report = measure_parity(
            manifest,
            session,
            source,
            samples,
            gate=default_gate(manifest, settings["min_psnr"], settings["max_drop"]),
            overlap=settings["overlap"],
            threads=settings["threads"],
            on_image=lambda name: progress.advance(last=name),
        )
    return report, lines(report)


def _session(opened: Artifact | Served, settings: dict[str, Any]) -> Session:
    from echoir.runtime.sessions import open_session

    def say(line: str) -> None:
        if not settings["quiet"]:
            click.echo(displayable(line), err=True)

    return open_session(opened, threads=settings["threads"], device=settings["device"], say=say)
