"""The commands of the device side: ``restore`` and ``bench``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from echoir.runtime import options

if TYPE_CHECKING:
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.bench import Subject
    from echoir.runtime.contract import Device
    from echoir.runtime.jobs import Report
    from echoir.runtime.plans import Exists
    from echoir.runtime.restorer import Restorer
    from echoir.runtime.serving.session import Served

DEVICES = ("auto", "cpu", "cuda", "openvino", "openvino-bf16")
EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "tiff": ".tif", "webp": ".webp"}


class ThreadsType(click.ParamType):  # type: ignore[type-arg]
    """A number of threads, at most one for each core of the machine: thousands would take its memory."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from echoir.runtime.machine import all_cores

        return click.IntRange(1, all_cores()).convert(value, param, ctx)


class ShardType(click.ParamType):  # type: ignore[type-arg]
    """A part of a whole, as ``2/8``."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"{value} is no part; the first of four is 1/4, the last 4/4", param, ctx)
        return int(index), int(count)


class FarmType(click.ParamType):  # type: ignore[type-arg]
    """``ray`` or ``ray:ADDRESS``; gives the address, empty for a cluster of this machine's own."""

    name = "farm"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name, colon, address = str(value).partition(":")
        if name != "ray" or bool(colon) != bool(address):
            self.fail(f"{value} is no farm; there are ray and ray:ADDRESS", param, ctx)
        return address


def model_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``-m``, alike in the commands here."""
    help = f"{options.ARTIFACT} Or a shipped checkpoint, such as denoise, of which an export is made and kept."
    return click.option("-m", "--model", metavar="ARTIFACT", required=True, help=help)(function)


def artifact_of(model: str, say: Callable[[str], None], quiet: bool = False) -> str:
    """What ``-m`` names; for a shipped checkpoint's name, an export of it in the cache, which is told.

    Raises:
        MissingExtraError: it must be made, and what makes it is not installed.
    """
    from importlib.resources import files
    from pathlib import Path

    from echoir.runtime.errors import needs_extra

    if not model.replace("-", "").isalnum() or Path(model).exists():
        return model
    if not files("echoir").joinpath("weights", f"{model}.safetensors").is_file():
        return model
    with needs_extra("export"):
        from echoir.export.cached import cached_artifact
    return str(cached_artifact(model, say, quiet))


def device_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--device``, alike in the commands that run an artifact."""
    help = (
        "What runs an ONNX model: ONNX Runtime on cpu or cuda; OpenVINO, in bfloat16 too; or auto, the quickest "
        "of those here that keep its pixels, measured once. An engine has its own."
    )
    return click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True, help=help)(function)


def strength_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--strength``, alike in the commands that restore."""
    help = "How much of the network's change is applied: 0 leaves pictures as they are."
    number = click.FloatRange(0, 1)
    return click.option("--strength", type=number, default=1.0, show_default=True, metavar="0..1", help=help)(function)


def open_restorer(
    model: str,
    device: Device,
    *,
    overlap: int | None,
    batch: int | None,
    threads: int | None,
    strength: float,
    quiet: bool,
) -> Restorer:
    """As :meth:`Restorer.open`, but that standard error says what ``auto`` came to."""
    from echoir.runtime.output import displayable
    from echoir.runtime.restorer import Restorer

    def say(line: str) -> None:
        if not quiet:
            click.echo(displayable(line), err=True)

    wishes: dict[str, Any] = {"overlap": overlap, "batch": batch, "threads": threads, "strength": strength}
    return Restorer.open(artifact_of(model, say, quiet), device=device, say=say, **wishes)


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@model_option
@click.option("-o", "--output", metavar="OUT", required=True, help="A folder; or a file name, for one input file.")
@device_option
@click.option("--overlap", type=click.IntRange(min=0), help="Pixels that tiles share. [default: the artifact's]")
@click.option("--batch", type=click.IntRange(min=1), help="Tiles per run. [default: the artifact's, else 1]")
@click.option("--threads", type=ThreadsType(), help=options.THREADS)
@strength_option
@click.option(
    "--exists",
    type=click.Choice(["skip", "overwrite", "error"]),
    default="skip",
    show_default=True,
    help="What to do about an output that is already there.",
)
@options.force("Replace outputs that are there: as good as --exists overwrite.")
@click.option(
    "--suffix", default="", metavar="TEXT", help="Put between an output's name and its extension, e.g. _clean."
)
@click.option(
    "--format", "format_", type=click.Choice(list(EXTENSIONS)), help="Format of the outputs. [default: the input's]"
)
@click.option(
    "--orientation",
    type=click.Choice(["keep", "apply"]),
    default="keep",
    show_default=True,
    help="Keep pixels and their EXIF orientation as stored, or apply it: turn the pixels and reset the tag.",
)
@click.option("--shard", type=ShardType(), metavar="I/N", help="Do the I-th of N parts, the same on every machine.")
@click.option(
    "--on", type=FarmType(), metavar="ray[:ADDRESS]", help="Restore on a Ray cluster; bare, on one made here."
)
@click.option("--workers", type=click.IntRange(min=1), help="Restorers on the cluster. [default: 1]")
@click.option("--gpus", type=click.FloatRange(min=0), help="GPUs of each; 0.5 shares one. [default: 0]")
@click.option("--attempts", type=click.IntRange(min=1), help="Tries of a picture that kills its worker. [default: 3]")
@click.option("--max-pixels", type=click.IntRange(min=1), help="Refuse larger images, in pixels. [default: 500000000]")
@click.option("--log-json", is_flag=True, help="Report progress as JSON lines.")
@click.option("--quiet", is_flag=True, help="Report failures only.")
@click.pass_context
def restore(
    ctx: click.Context,
    inputs: tuple[str, ...],
    model: str,
    output: str,
    device: Device,
    overlap: int | None,
    batch: int | None,
    threads: int | None,
    strength: float,
    exists: Exists,
    force: bool,
    suffix: str,
    format_: str | None,
    orientation: str,
    shard: tuple[int, int] | None,
    on: str | None,
    workers: int | None,
    gpus: float | None,
    attempts: int | None,
    max_pixels: int | None,
    log_json: bool,
    quiet: bool,
) -> None:
    """Restore images and folders.

    INPUT is an image, a folder (every image in it and below; OUT gets the same tree), or a quoted glob
    pattern such as 'shots/**/*.png'. PNG, JPEG, TIFF and WebP; BMP becomes PNG. Folders and patterns leave
    hidden files out.

    An output appears only when it is complete, so running the same command again resumes: with
    --exists skip, what is there is done. One bad file does not stop the others; each failure is
    named, and the exit code is then 3. Folders beyond one machine: --shard for Slurm, Kubernetes and the like,
    --on ray for a Ray cluster (docs/scaling.md).
    """
    from echoir.runtime.images import MAX_PIXELS
    from echoir.runtime.jobs import Report
    from echoir.runtime.jobs import restore as run
    from echoir.runtime.output import displayable
    from echoir.runtime.plans import Naming, PlanError, part_of, plan

    if on is None and any(option is not None for option in (workers, gpus, attempts)):
        raise click.UsageError("--workers, --gpus and --attempts go with --on ray")
    exists = "overwrite" if force else exists
    try:
        naming = Naming(suffix, EXTENSIONS[format_] if format_ else None)
        notes: list[str] = []
        jobs, failures = plan(inputs, output, naming, exists, notes.append)
    except PlanError as error:
        raise click.UsageError(displayable(error)) from None
    if shard is not None:
        jobs = part_of(jobs, output, *shard)
    report = Report(notes, failed=failures)
    how: dict[str, Any] = {"upright": orientation == "apply", "max_pixels": max_pixels or MAX_PIXELS}
    told: dict[str, Any] = {"exists": exists, "log_json": log_json, "quiet": quiet}
    wishes: dict[str, Any] = {"overlap": overlap, "batch": batch, "strength": strength}
    if on is None:
        with (
            open_restorer(model, device, threads=threads, quiet=quiet or log_json, **wishes) as restorer,
            _summary(report, log_json, quiet),
        ):
            run(restorer, jobs, report, **how, **told)
    else:
        from echoir.runtime.ray_jobs import Cluster, Settings, restore_on_ray

        cluster = Cluster(on or None, workers or 1, gpus or 0, attempts or 3)
        settings = Settings.of(model, cluster, threads, device=device, **wishes, **how)
        with _summary(report, log_json, quiet):
            restore_on_ray(settings, cluster, jobs, report, **told)
    if report.failed:
        ctx.exit(3)


@contextmanager
def _summary(report: Report, log_json: bool, quiet: bool) -> Iterator[None]:
    """What became of the inputs, also after an interruption: what is done is done."""
    from echoir.runtime.output import displayable

    try:
        yield
    finally:
        if not log_json:
            for failure in report.failed:
                click.echo(f"failed: {displayable(failure)}", err=True)
        if not quiet:
            click.echo(report)


@click.command()
@options.artifact
@device_option
@click.option("--iterations", type=click.IntRange(min=2), default=50, show_default=True, help="Timed runs.")
@click.option("--warmup", type=click.IntRange(min=0), default=5, show_default=True, help="Runs before them.")
@click.option("--batch", type=click.IntRange(min=1), help="Tiles per run. [default: the artifact's, else 1]")
@click.option("--threads", type=ThreadsType(), help=options.THREADS)
@click.option(
    "--against",
    multiple=True,
    metavar="DEVICE|all|pytorch|ARTIFACT",
    help="Run another in turn with this one, and print ratios: the same artifact on another device, or on all that are "
    "here; PyTorch; another artifact. May be repeated.",
)
@options.weights("The checkpoint for --against pytorch. [default: what the artifact names]", "reference")
@options.figures
@click.option("--profile/--no-profile", default=True, show_default=True, help="Measure the share of each operator.")
def bench(
    model: str,
    device: Device,
    iterations: int,
    warmup: int,
    batch: int | None,
    threads: int | None,
    against: tuple[str, ...],
    reference: str | None,
    json_file: str | None,
    profile: bool,
) -> None:
    """Measure latency, throughput and memory.

    Tiles are noise, which costs what images cost. The peak memory is that of the process with this
    artifact alone, before anything it is compared with is loaded.
    """
    from functools import partial

    from echoir.runtime import bench as measure
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.choice import agreement, psnr_text
    from echoir.runtime.errors import ArtifactError, BackendError
    from echoir.runtime.machine import describe_machine, physical_cores
    from echoir.runtime.output import displayable, displayable_lines
    from echoir.runtime.profiling import profile_onnxruntime
    from echoir.runtime.sessions import open_model, open_session

    if reference and "pytorch" not in against:
        raise click.UsageError("--weights goes with --against pytorch")
    threads = threads or physical_cores()
    opened = open_model(artifact_of(model, partial(click.echo, err=True)))
    before = measure.peak_memory()
    with ExitStack() as stack:
        say = partial(click.echo, err=True)
        session = stack.enter_context(open_session(opened, threads=threads, device=device, say=say))
        subjects = [measure.subject(opened.manifest.name, opened.manifest, session, batch)]
        measure.time_in_turn(subjects, 1, warmup)
        peak = measure.peak_memory()
        for name in _named(against, opened, device):
            try:
                subjects.append(_opponent(stack, name, opened, subjects[0], threads, batch, reference))
            except (BackendError, ArtifactError) as error:
                if name in against:
                    raise
                say(f"{name} is left out: {displayable(error)}")
        latencies = measure.measure(subjects, iterations, warmup)
        agreements = {
            subject.name: agreement(opened.manifest, session, subject.session)
            for subject in subjects[1:]
            if subject.name in DEVICES
        }
        machine = describe_machine()
        shares = None
        if profile and isinstance(opened, Artifact) and opened.manifest.model.backend == "onnxruntime":
            shares = profile_onnxruntime(opened, subjects[0].tiles, threads)
    result = measure.report(
        opened.manifest, latencies, threads=threads, memory=(before, peak), machine=machine, profile=shares
    )
    result["psnr"] = agreements
    if options.write_figures(json_file, result):
        return
    click.echo(displayable_lines(measure.as_text(result)))
    for name, psnr in agreements.items():
        click.echo(f"{name} against {device}, the worst of the shipped pictures: {psnr_text(psnr)}")


def _named(against: tuple[str, ...], model: Artifact | Served, device: Device) -> list[str]:
    """What an artifact is compared with, each once."""
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.choice import installed

    if "auto" in against:
        raise click.UsageError("--against takes a device by its name, or all; auto is one of those")
    if {*against} & {*DEVICES, "all"} and not (
        isinstance(model, Artifact) and model.manifest.model.backend == "onnxruntime"
    ):
        raise click.UsageError(
            "only an ONNX model has several devices, not an engine or a server; "
            "--against takes another artifact, or pytorch"
        )
    names = [one for name in against for one in (installed() if name == "all" else [name])]
    return [name for name in dict.fromkeys(names) if name != device]


def _opponent(
    stack: ExitStack,
    against: str,
    model: Artifact | Served,
    own: Subject,
    threads: int,
    batch: int | None,
    reference: str | None,
) -> Subject:
    """The session that an artifact is compared with, by name."""
    import json

    from echoir.runtime import bench as measure
    from echoir.runtime.errors import ArtifactError, needs_extra
    from echoir.runtime.sessions import open_model, open_session

    if against in DEVICES:
        session = stack.enter_context(open_session(model, threads=threads, device=cast("Device", against)))
        return measure.subject(against, model.manifest, session, batch)
    if against != "pytorch":
        other = open_model(against)
        session = stack.enter_context(open_session(other, threads=threads))
        return measure.subject(other.manifest.name, other.manifest, session, batch)
    with needs_extra("train"):
        from echoir.export.sources import source_of
    source = source_of(model.manifest, reference)
    config = json.loads(json.dumps(source.descriptor.config))
    if config != model.manifest.network.config:
        raise ArtifactError("network.config", config, model.manifest.network.config, "other networks do not compare")
    io: Literal["uint8", "float"] = "uint8" if model.manifest.input.dtype == "uint8" else "float"
    return measure.Subject(
        "pytorch",
        stack.enter_context(source.session(io=io, threads=threads)),
        own.tiles,
        own.tile,
        own.overlap,
        own.area,
    )
