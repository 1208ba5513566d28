"""The command ``stream``: frames from a file, a camera or a pipe to a file, a pipeline or a pipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from echoir.runtime import options
from echoir.runtime.commands import ThreadsType, device_option, model_option, open_restorer, strength_option

if TYPE_CHECKING:
    from echoir.runtime.contract import Device
    from echoir.runtime.streams.endpoints import Raw, Wishes
    from echoir.runtime.streams.pipeline import Policy
    from echoir.runtime.streams.pixels import Matrix, Range, Siting


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value} is not NAME=VALUE", ctx, parameter)
    return dict(value.partition("=")[::2] for value in values)


def _groups(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_model_options = _groups(
    click.option("--overlap", type=click.IntRange(min=0), help="Pixels that tiles share. [default: the artifact's]"),
    click.option("--batch", type=click.IntRange(min=1), help="Tiles per run. [default: the artifact's, else 1]"),
    click.option("--threads", type=ThreadsType(), help=options.THREADS),
)
_live_options = _groups(
    click.option(
        "--deadline",
        type=click.FloatRange(min=0, min_open=True),
        metavar="MS",
        help="Milliseconds from a frame's coming in to its going out; see --policy.",
    ),
    click.option(
        "--policy",
        type=click.Choice(["pass", "drop", "slow"]),
        default="pass",
        show_default=True,
        help="What becomes of frames that are late: they pass unrestored, are dropped, or the newest is restored "
        "as often as the model can.",
    ),
    click.option("--queue", type=click.IntRange(min=1), help="Frames that may wait. [default: 4; 64 with a deadline]"),
    click.option("--realtime", is_flag=True, help="Read the source no faster than its time stamps, like a camera."),
    click.option("--timeout", default=10.0, show_default=True, help="Seconds after which a live source is lost."),
    click.option(
        "--retries", type=click.IntRange(min=0), default=10, show_default=True, help="Attempts to get it back."
    ),
)
_pixel_options = _groups(
    click.option("--size", metavar="WxH", help="Standard input has raw frames of this size."),
    click.option("--pixel-format", metavar="NAME", help="... of this format, by FFmpeg's name, e.g. nv12."),
    click.option("--rate", metavar="FPS", help="... so many a second, e.g. 30 or 30000/1001."),
    click.option(
        "--matrix",
        type=click.Choice(["bt601", "bt709", "bt2020", "smpte240m", "fcc"]),
        help="Colour matrix. [default: what the stream says]",
    ),
    click.option("--range", "range_", type=click.Choice(["limited", "full"]), help="Range of codes. [default: alike]"),
    click.option("--deinterlace", is_flag=True, help="Make whole frames of interlaced ones (FFmpeg's bwdif)."),
    click.option("--siting", type=click.Choice(["left", "center", "topleft"]), help="Of chroma. [default: alike]"),
    click.option("--max-pixels", type=click.IntRange(min=1), help="Refuse larger frames. [default: 500000000]"),
)
_sink_options = _groups(
    click.option(
        "--output-format", type=click.Choice(["y4m", "raw"]), help="Of standard output. [default: the input's]"
    ),
    click.option("--encoder", metavar="NAME", help="FFmpeg's. [default: libx264; libx265 of more than 8 bits]"),
    click.option("--quality", type=click.IntRange(min=0), help="The encoder's CRF; lower is better. [default: 18]"),
    click.option(
        "--encoder-option",
        "encoder_options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_pairs,
        help="Another option of the encoder, e.g. preset=fast; may be repeated.",
    ),
    click.option(
        "--source-option",
        "source_options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_pairs,
        help="An option of FFmpeg for the source, e.g. rtsp_transport=tcp; may be repeated.",
    ),
    click.option("--video-only", is_flag=True, help="Leave out audio and subtitles."),
    options.force("Replace SINK, and start anew instead of resuming.", "overwrite"),
)


@click.command()
@click.argument("source")
@click.argument("sink")
@model_option
@device_option
@_model_options
@strength_option
@_live_options
@_pixel_options
@_sink_options
@click.option("--log-json", is_flag=True, help="Report progress and counters as JSON lines.")
@click.option("--quiet", is_flag=True, help="Report failures only.")
@click.pass_context
def stream(
    ctx: click.Context,
    /,
    source: str,
    sink: str,
    model: str,
    device: Device,
    overlap: int | None,
    batch: int | None,
    threads: int | None,
    strength: float,
    deadline: float | None,
    policy: Policy,
    queue: int | None,
    realtime: bool,
    matrix: Matrix | None,
    range_: Range | None,
    siting: Siting | None,
    max_pixels: int | None,
    log_json: bool,
    quiet: bool,
    **wishes: Any,
) -> None:
    """Restore video: a file, a camera, a pipe.

    \b
    SOURCE  a video file, /dev/video0, rtsp://...; a GStreamer pipeline
            ("v4l2src ! video/x-raw,format=NV12"); - for standard input:
            YUV4MPEG2, or raw frames with --size and --pixel-format
    SINK    a video file, which keeps audio, subtitles, time stamps and
            colour tags; a GStreamer pipeline; - for standard output; null

    Without a deadline every frame is restored and goes out in order. With --deadline the source is never
    kept waiting, and --policy says what becomes of frames that the model is too slow for; counters tell.

    A model that enlarges makes a larger film of it, where no frame can pass unrestored.

    The first SIGINT or SIGTERM finishes the file. A file made from a file can be resumed by the same command.
    """
    import os

    if sink == "-" and os.isatty(1):
        raise click.UsageError("standard output is a terminal: pipe it into a program or a file")
    from echoir.runtime.output import displayable
    from echoir.runtime.streams.restoring import UnfitError
    from echoir.runtime.streams.run import Run

    wanted = _wishes(source, **wishes)
    settings: dict[str, Any] = {"overlap": overlap, "batch": batch, "threads": threads, "strength": strength}
    with open_restorer(model, device, quiet=quiet or log_json, **settings) as restorer:
        network = restorer.manifest.network
        if deadline is not None and policy == "pass" and network.scale != 1:
            raise click.UsageError(
                f"{network.name} enlarges {network.scale} times, so that no frame can pass unrestored; "
                "with --deadline say --policy drop or slow"
            )
        run = Run(restorer, source, sink, wanted, deadline and deadline / 1e3, policy, queue, realtime)
        try:
            code = run((matrix, range_, siting), max_pixels, log_json, quiet)
        except UnfitError as error:
            raise click.UsageError(displayable(error)) from None
    if code:
        ctx.exit(code)


def _wishes(
    source: str, size: str | None, pixel_format: str | None, rate: str | None, timeout: float, retries: int, **rest: Any
) -> Wishes:
    from echoir.runtime.streams.endpoints import Wishes, is_pipeline

    if (size is None) != (pixel_format is None):
        raise click.UsageError("raw frames need both --size and --pixel-format")
    if source != "-" and (size or rate):
        raise click.UsageError("--size, --pixel-format and --rate are for raw frames on standard input")
    if rest["deinterlace"] and (source == "-" or is_pipeline(source)):
        raise click.UsageError("--deinterlace is for what FFmpeg reads; a pipeline has its own element: deinterlace")
    raw = _raw(size, pixel_format, rate) if size and pixel_format else None
    return Wishes(raw=raw, timeout=timeout, retries=retries, **rest)


def _raw(size: str, pixel_format: str, rate: str | None) -> Raw:
    from fractions import Fraction

    from echoir.runtime.streams.endpoints import Raw

    try:
        width, height = (int(side) for side in size.lower().split("x"))
        fraction = None if rate is None else Fraction(rate)
        if fraction is not None and fraction <= 0:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise click.UsageError(f"--size is WxH and --rate frames per second, got {size} and {rate}") from None
    return Raw(width, height, pixel_format, fraction)
