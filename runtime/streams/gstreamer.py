"""GStreamer pipelines as sources and sinks, through GStreamer's own Python binding (PyGObject).

Raw video as in GStreamer's
design document "Raw video media types"; colours and sites of chroma by the names of its caps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from echoir.runtime.errors import BackendError, ImageError, remedy
from echoir.runtime.streams.pixels import FORMATS, Format, Range, Siting
from echoir.runtime.streams.videoframes import UNSPECIFIED, Array, Pool, StreamInfo, Tags, VideoFrame

# GStreamer's names of the formats, as FFmpeg calls them.
NAMES = {
    "NV12": "nv12",
    "I420": "yuv420p",
    "P010_10LE": "p010le",
    "I420_10LE": "yuv420p10le",
    "I420_12LE": "yuv420p12le",
    "RGB": "rgb24",
    "BGR": "bgr24",
    "BGRx": "bgr0",
    "RGBx": "rgb0",
    "xRGB": "0rgb",
    "xBGR": "0bgr",
    "RGBA": "rgba",
    "BGRA": "bgra",
    "GRAY8": "gray",
    "GRAY16_LE": "gray16le",
    "NV21": "nv21",
    "YUY2": "yuyv422",
    "UYVY": "uyvy422",
    "Y42B": "yuv422p",
    "I422_10LE": "yuv422p10le",
    "I422_12LE": "yuv422p12le",
    "Y444": "yuv444p",
    "Y444_10LE": "yuv444p10le",
    "Y444_12LE": "yuv444p12le",
}
CAPS = f"video/x-raw,format={{{','.join(NAMES)}}}"
SITES: dict[str, Siting] = {"mpeg2": "left", "jpeg": "center", "none": "center", "dv": "topleft", "cosited": "topleft"}
_SITE_NAMES = {"left": "mpeg2", "center": "jpeg", "topleft": "cosited"}
_RANGES: dict[str, Range] = {"1": "full", "2": "limited"}
_LONGEST = 30  # seconds that a sink may take to finish its file after the last frame


def gst() -> tuple[Any, Any]:
    """The modules Gst and GstVideo, initialised.

    Raises:
        BackendError: PyGObject or GStreamer is not here for this Python.
    """
    try:
        import gi

        for name in ("Gst", "GstApp", "GstVideo"):
            gi.require_version(name, "1.0")
        from gi.repository import Gst, GstApp, GstVideo  # noqa: F401 (GstApp gives appsink its methods)
    except (ImportError, ValueError) as error:
        raise BackendError(
            f"GStreamer's Python binding cannot be imported ({error}); run: apt install python3-gi python3-gst-1.0 "
            "gir1.2-gst-plugins-base-1.0 and use a virtual environment of /usr/bin/python3 with "
            f"--system-site-packages, or compile it; {remedy('gstreamer')}"
        ) from error
    if not Gst.is_initialized():
        Gst.init(None)
    return Gst, GstVideo


def describe(caps: Any) -> StreamInfo:
    """Caps of raw video as what they say; time stamps are nanoseconds.

    Raises:
        ImageError: a format that is not supported.
    """
    _, video = gst()
    info = video.VideoInfo.new_from_caps(caps)
    structure = caps.get_structure(0)
    name = structure.get_string("format")
    if name not in NAMES:
        raise ImageError(f"the pipeline gives {name} frames, which are not supported; put videoconvert before")
    tags = _tags(structure.get_string("colorimetry"), structure.get_string("chroma-site"))
    return StreamInfo(
        info.width,
        info.height,
        FORMATS[NAMES[name]],
        tags=tags,
        rate=Fraction(info.fps_n, info.fps_d) if info.fps_n > 0 and info.fps_d > 0 else None,
        time_base=Fraction(1, 10**9),
        aspect=Fraction(info.par_n, info.par_d) if info.par_n > 0 and info.par_d > 0 else None,
        fields=_fields(structure),
    )


def _fields(structure: Any) -> Literal["top", "bottom"] | None:
    """The field that is shown first, of frames that hold two; ``mixed`` frames are marked one by one."""
    if structure.get_string("interlace-mode") not in ("interleaved", "mixed"):
        return None
    return "bottom" if structure.get_string("field-order") == "bottom-field-first" else "top"


def _tags(colorimetry: str | None, site: str | None) -> Tags:
    """``bt709`` and its like, or four numbers: range, matrix, transfer, primaries, in GStreamer's own counting."""
    siting = SITES.get(site or "")
    if not colorimetry:
        return Tags(siting=siting)
    _, video = gst()
    colours = video.VideoColorimetry()
    if not colours.from_string(colorimetry):
        return Tags(siting=siting)
    matrix, primaries, transfer = (
        int(kind.to_iso(value))
        for kind, value in (
            (video.VideoColorMatrix, colours.matrix),
            (video.VideoColorPrimaries, colours.primaries),
            (video.VideoTransferFunction, colours.transfer),
        )
    )
    return Tags(matrix, primaries, transfer, _RANGES.get(str(int(colours.range))), siting)


def caps_of(info: StreamInfo) -> Any:
    """What a stream says, as caps."""
    module, video = gst()
    name = {own: theirs for theirs, own in NAMES.items()}[info.format.name.replace("yuvj", "yuv")]
    rate, aspect = info.rate or Fraction(0), info.aspect or Fraction(1)
    text = f"video/x-raw,format={name},width={info.width},height={info.height}"
    text += f",framerate={rate.numerator}/{rate.denominator}"
    text += f",pixel-aspect-ratio={aspect.numerator}/{aspect.denominator}"
    if info.fields is not None:
        text += f",interlace-mode=interleaved,field-order={info.fields}-field-first"
    tags = info.tags
    if info.format.kind == "yuv" and tags.matrix != UNSPECIFIED and tags.range is not None:
        colours = video.VideoColorimetry()
        colours.range = video.VideoColorRange(1 if tags.range == "full" else 2)
        colours.matrix = video.VideoColorMatrix.from_iso(tags.matrix)
        colours.primaries = video.VideoColorPrimaries.from_iso(tags.primaries)
        colours.transfer = video.VideoTransferFunction.from_iso(tags.transfer)
        text += f",colorimetry={colours.to_string()}"
    if tags.siting is not None and info.format.shared != (0, 0):
        text += f",chroma-site={_SITE_NAMES[tags.siting]}"
    return module.Caps.from_string(text)


@contextmanager
def mapped(buffer: Any, flags: Any) -> Iterator[Any]:
    """The bytes of a buffer: the memory itself with gst-python's overrides, a copy with PyGObject alone."""
    result = buffer.map(flags)
    if isinstance(result, tuple):
        done, info = result
        if not done:
            raise ImageError("a buffer of the pipeline cannot be read")
        try:
            yield info.data
        finally:
            buffer.unmap(info)
    else:
        with result as info:
            yield info.data


def planes_in(data: Any, format: Format, layout: Any) -> list[Array]:
    """The planes of a mapped buffer as views [rows, samples per row and padding].

    Args:
        data: the bytes of the buffer.
        format: of the frames.
        layout: what has ``offset`` and ``stride`` in bytes for every plane, and the ``height``: VideoInfo or VideoMeta.
    """
    raw = np.frombuffer(data, np.uint8)
    planes = []
    for index, (rows, columns) in enumerate(format.shapes(layout.height, layout.width)):
        stride, start = layout.stride[index], layout.offset[index]
        used = raw[start : start + (rows - 1) * stride + columns * format.dtype.itemsize]
        whole = np.lib.stride_tricks.as_strided(used, (rows, columns * format.dtype.itemsize), (stride, 1))
        planes.append(whole.view(format.dtype))
    return planes


class _Pipeline:
    """A running pipeline, and what it complains about."""

    def __init__(self, text: str) -> None:
        self.gst, _ = gst()
        try:
            self.pipeline = self.gst.parse_launch(text)
        except Exception as error:  # GLib.Error, which cannot be imported before the binding
            raise ImageError(f"not a GStreamer pipeline: {getattr(error, 'message', error)}") from None
        self.bus = self.pipeline.get_bus()

    def state(self, state: Any) -> Any:
        return self.pipeline.set_state(state)

    def complaint(self, wait: float = 0) -> str | None:
        """The first error on the bus, in a line."""
        kinds = self.gst.MessageType.ERROR
        message = self.bus.timed_pop_filtered(int(wait * self.gst.SECOND), kinds)
        if message is None:
            return None
        error, debug = message.parse_error()
        detail = (debug or "").splitlines()[-1:] or [""]
        return f"{message.src.get_name()}: {error.message}" + (f" ({detail[0].strip()})" if detail[0] else "")

    def close(self) -> None:
        self.state(self.gst.State.NULL)


class PipelineSource:
    """Frames of a GStreamer pipeline whose last element gives raw video.

    Args:
        text: as for ``gst-launch-1.0``; an appsink is put at its end.
        timeout: seconds without a frame after which the source counts as lost.

    Raises:
        ImageError: no such pipeline, or it gives no frame in time.
        BackendError: GStreamer's binding is not here.
    """

    def __init__(self, text: str, *, timeout: float = 10.0) -> None:
        self._timeout, self._name = timeout, text.strip()
        # Never a frame thrown away here, where nobody would count it: the caller reads without delay or on purpose.
        sink = f'appsink name=echoir caps="{CAPS}" max-buffers=4 drop=false sync=false'
        self._pipeline = _Pipeline(f"{self._name} ! {sink}")
        self._sink = self._pipeline.pipeline.get_by_name("echoir")
        states = self._pipeline.gst.State
        try:
            self.live = self._pipeline.state(states.PAUSED) == self._pipeline.gst.StateChangeReturn.NO_PREROLL
            self._pipeline.state(states.PLAYING)
            self._first = self._pull()
            if self._first is None:
                raise ImageError(f"the pipeline {self._name} ended without a frame")
            self.info = describe(self._first.get_caps())
        except BaseException:
            self._pipeline.close()
            raise
        self._pool = Pool(self.info)

    def _pull(self) -> Any:
        """The next sample; None at the end."""
        sample = None
        until = time.monotonic() + self._timeout
        while sample is None and time.monotonic() < until:
            sample = self._sink.try_pull_sample(self._pipeline.gst.SECOND // 5)
            if sample is None and (complaint := self._pipeline.complaint()):
                raise ImageError(f"the pipeline failed: {complaint}")
            if sample is None and self._sink.is_eos():
                return None
        if sample is None:
            raise ImageError(f"no frame for {self._timeout:g} s from the pipeline {self._name}")
        return sample

    def frames(self) -> Iterator[VideoFrame]:
        """Frames until the end; raises ImageError when the pipeline fails, stalls, or changes its format."""
        module, video = gst()
        sample = self._first
        caps, layout = sample.get_caps(), video.VideoInfo.new_from_caps(sample.get_caps())
        while sample is not None:
            if not sample.get_caps().is_equal(caps):
                caps, layout = sample.get_caps(), video.VideoInfo.new_from_caps(sample.get_caps())
                self._check(describe(caps))
            buffer = sample.get_buffer()
            frame = self._pool.take()
            with mapped(buffer, module.MapFlags.READ) as data:
                meta = video.buffer_get_video_meta(buffer)
                for target, plane in zip(frame.planes, planes_in(data, self.info.format, meta or layout), strict=True):
                    np.copyto(target, plane)
            mixed = caps.get_structure(0).get_string("interlace-mode") == "mixed"
            marked = not mixed or int(buffer.mini_object.flags) & int(video.VideoBufferFlags.INTERLACED)
            frame.interlaced = self.info.fields is not None and bool(marked)
            none = module.CLOCK_TIME_NONE
            # Stamps begin anew in every segment (concat, loops, seeks); the running time goes on.
            time = none if buffer.pts == none else sample.get_segment().to_running_time(module.Format.TIME, buffer.pts)
            frame.pts = None if time == none else time
            frame.duration = None if buffer.duration == none else buffer.duration
            yield frame
            sample = self._pull()
        if self.live:
            raise ImageError(f"the pipeline {self._name} has ended")

    def _check(self, found: StreamInfo) -> None:
        for value in ("width", "height", "format"):
            if getattr(found, value) != getattr(self.info, value):
                raise ImageError(f"the pipeline changed its frames from {self.info} to {found}")

    def give_back(self, frame: VideoFrame) -> None:
        """The frame is not used any more."""
        self._pool.give_back(frame)

    def close(self) -> None:
        """Stop the pipeline."""
        self._pipeline.close()


class PipelineSink:
    """Frames into a GStreamer pipeline whose first element takes raw video.

    Args:
        text: as for ``gst-launch-1.0``; an appsrc is put before it.
        info: of the frames; what it says about colours becomes caps.

    Raises:
        ImageError: no such pipeline.
        BackendError: GStreamer's binding is not here.
    """

    def __init__(self, text: str, info: StreamInfo) -> None:
        self._pipeline = _Pipeline(f"appsrc name=echoir format=time block=true max-buffers=4 ! {text.strip()}")
        self._info, self._pool, self._written = info, Pool(info), 0
        self._source = self._pipeline.pipeline.get_by_name("echoir")
        caps = caps_of(info)
        self._source.set_caps(caps)
        _, video = gst()
        self._layout = video.VideoInfo.new_from_caps(caps)
        self._bytes = np.zeros(self._layout.size, np.uint8)
        self._planes = planes_in(self._bytes, info.format, self._layout)
        if self._pipeline.state(self._pipeline.gst.State.PLAYING) == self._pipeline.gst.StateChangeReturn.FAILURE:
            complaint = self._pipeline.complaint(wait=1)
            self._pipeline.close()
            raise ImageError(f"the pipeline does not start: {complaint}")

    def blank(self, like: VideoFrame) -> VideoFrame:
        """A frame to be filled and written."""
        return self._pool.take()

    def write(self, frame: VideoFrame) -> None:
        """Hand a frame to the pipeline; raises ImageError when it has failed."""
        module = self._pipeline.gst
        for target, plane in zip(self._planes, frame.planes, strict=True):
            np.copyto(target, plane[: target.shape[0], : target.shape[1]])
        buffer = module.Buffer.new_wrapped(self._bytes.tobytes())
        scale = self._info.time_base * 10**9
        if frame.pts is not None:
            buffer.pts = max(0, round(frame.pts * scale))
        if frame.duration is not None:
            buffer.duration = round(frame.duration * scale)
        flow = self._source.push_buffer(buffer)
        self._pool.give_back(frame)
        if flow != module.FlowReturn.OK or (complaint := self._pipeline.complaint()):
            complaint = self._pipeline.complaint(wait=0.5) if flow != module.FlowReturn.OK else complaint
            raise ImageError(f"the pipeline failed after {self._written} frames: {complaint or flow.value_nick}")
        self._written += 1

    def finish(self, complete: bool) -> None:
        """Let the pipeline finish, a file for instance; raises ImageError when it does not."""
        module = self._pipeline.gst
        self._source.end_of_stream()
        kinds = module.MessageType.EOS | module.MessageType.ERROR
        message = self._pipeline.bus.timed_pop_filtered(_LONGEST * module.SECOND, kinds)
        if message is None or message.type == module.MessageType.ERROR:
            cause = f"it did not end within {_LONGEST} s" if message is None else message.parse_error()[0].message
            raise ImageError(f"the pipeline failed after {self._written} frames: {cause}")

    def close(self) -> None:
        """Stop the pipeline."""
        self._pipeline.close()


def plugin_path() -> str:
    """The folder for GST_PLUGIN_PATH, in which the element ``echoirrestore`` lies."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "gst")


if __name__ == "__main__":  # export GST_PLUGIN_PATH=$(python -m echoir.runtime.streams.gstreamer)
    print(plugin_path())
