"""``echoirrestore``: an artifact inside a GStreamer pipeline; loaded by GStreamer's Python plug-in loader.

    export GST_PLUGIN_PATH=$(python -m echoir.runtime.streams.gstreamer)
    gst-launch-1.0 videotestsrc ! video/x-raw,format=NV12 ! echoirrestore artifact=denoise.onnx ! fakesink

The loader runs the Python that GStreamer was built with: that one must find ``echoir``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstBase", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, GObject, Gst, GstBase, GstVideo  # noqa: E402

# Said again here, so that the element can be listed without loading more; a test holds it to echoir's own list.
FORMATS = (
    "NV12,I420,P010_10LE,I420_10LE,I420_12LE,RGB,BGR,BGRx,RGBx,xRGB,xBGR,RGBA,BGRA,GRAY8,GRAY16_LE,NV21,YUY2,UYVY,"
    "Y42B,I422_10LE,I422_12LE,Y444,Y444_10LE,Y444_12LE"
)
LARGEST = 32767  # of a side
CAPS = Gst.Caps.from_string(
    f"video/x-raw,format={{{FORMATS}}},width=[1,{LARGEST}],height=[1,{LARGEST}],framerate=[0/1,2147483647/1]"
)
FLAGS = GObject.ParamFlags.READWRITE


class EchoirRestore(GstBase.BaseTransform):
    """Restores every frame: in place, or into a larger one; a frame that is late passes as it is, or is dropped."""

    __gstmetadata__ = ("EchoIR restore", "Filter/Effect/Video", "Restores video with an EchoIR artifact", "echoir")
    __gsttemplates__ = (
        Gst.PadTemplate.new("sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, CAPS),
        Gst.PadTemplate.new("src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS, CAPS),
    )
    __gproperties__ = {  # noqa: RUF012 (PyGObject reads a plain dictionary)
        "artifact": (str, "Artifact", "A model file, its .json, or a folder with one artifact", None, FLAGS),
        "overlap": (int, "Overlap", "Pixels that tiles share; -1: the artifact's", -1, 4096, -1, FLAGS),
        "threads": (int, "Threads", "Threads of the session; 0: one per physical core", 0, 1024, 0, FLAGS),
        "deadline": (
            float,
            "Deadline",
            "Milliseconds after its time stamp, by the pipeline's clock, past which a frame is not restored; 0: none",
            0.0,
            1e9,
            0.0,
            FLAGS,
        ),
        "policy": (str, "Policy", "What becomes of a late frame: pass or drop", "pass", FLAGS),
        "matrix": (str, "Matrix", "Colour matrix, where the caps are wrong: bt601, bt709, bt2020", None, FLAGS),
        "range": (str, "Range", "Range of codes, where the caps are wrong: limited, full", None, FLAGS),
        "stats": (str, "Counters", "Frames in, restored, passed, dropped; JSON", None, GObject.ParamFlags.READABLE),
    }

    def __init__(self) -> None:
        super().__init__()
        self.set_in_place(True)
        self._settings: dict[str, Any] = {
            "artifact": None,
            "overlap": -1,
            "threads": 0,
            "deadline": 0.0,
            "policy": "pass",
            "matrix": None,
            "range": None,
        }
        self._counts = {"frames": 0, "restored": 0, "passed": 0, "dropped": 0}
        self._restorer: Any = None
        self._restore: Any = None
        self._layouts: tuple[Any, Any] = (None, None)  # of what comes in and goes out

    def do_get_property(self, property: Any) -> Any:
        return json.dumps(self._counts) if property.name == "stats" else self._settings[property.name]

    def do_set_property(self, property: Any, value: Any) -> None:
        self._settings[property.name] = value

    def do_start(self) -> bool:
        """Open the artifact; what goes wrong is an error on the bus."""
        settings = self._settings
        try:
            if settings["policy"] not in ("pass", "drop"):
                return self._fail(f"the policy is pass or drop, not {settings['policy']}", Gst.ResourceError.SETTINGS)
            if not settings["artifact"]:
                return self._fail("say which artifact: echoirrestore artifact=FILE", Gst.ResourceError.NOT_FOUND)
            from echoir.runtime.restorer import Restorer

            overlap = None if settings["overlap"] < 0 else settings["overlap"]
            self._restorer = Restorer.open(settings["artifact"], overlap=overlap, threads=settings["threads"] or None)
        except Exception as error:  # nobody else would see it: GStreamer calls this, not Python
            return self._fail(str(error), Gst.ResourceError.OPEN_READ)
        if settings["deadline"] and settings["policy"] == "pass" and self._scale != 1:
            return self._refuse_to_pass()
        self.set_in_place(self._scale == 1)
        return True

    @property
    def _scale(self) -> int:
        """How many times larger frames become; 0 before that is known."""
        return self._restorer.manifest.network.scale if self._restorer is not None else 0

    def _refuse_to_pass(self) -> bool:
        words = f"this artifact enlarges {self._scale} times, so that no frame can pass unrestored: say policy=drop"
        return self._fail(words, Gst.ResourceError.SETTINGS)

    def do_stop(self) -> bool:
        if self._restorer is not None:
            self._restorer.close()
        self._restorer = self._restore = None
        return True

    def do_transform_caps(self, direction: Any, caps: Any, filter: Any) -> Any:
        """What one side has, when the other has ``caps``: larger sides going out, whole shares of them coming in."""
        made = Gst.Caps.new_empty()
        for index in range(caps.get_size()):
            structure = caps.get_structure(index)
            sides = [structure.get_value(name) for name in ("width", "height")]
            scaled = (_scaled(side, self._scale, direction == Gst.PadDirection.SINK) for side in sides)
            for width, height in product(*scaled):
                one = structure.copy()
                one.set_value("width", width)
                one.set_value("height", height)
                made.append_structure(one)
        return made if filter is None else filter.intersect_full(made, Gst.CapsIntersectMode.FIRST)

    def do_fixate_caps(self, direction: Any, caps: Any, others: Any) -> Any:
        """Frames that become larger keep their colours, which go by the height where caps do not say them."""
        structure = others.get_structure(0).copy()
        structure.fixate()
        if direction == Gst.PadDirection.SINK and self._scale > 1 and not structure.has_field("colorimetry"):
            colours = GstVideo.VideoInfo.new_from_caps(caps).colorimetry.to_string()
            if colours:
                structure.set_value("colorimetry", colours)
        made = Gst.Caps.new_empty()
        made.append_structure(structure)
        return made

    def do_transform_size(self, direction: Any, caps: Any, size: int, others: Any) -> tuple[bool, int]:
        """Bytes of a buffer on the other side, where rows have GStreamer's own padding."""
        return True, GstVideo.VideoInfo.new_from_caps(others).size

    def do_set_caps(self, caps: Any, out: Any) -> bool:
        """Frames of another size or format: another conversion."""
        try:
            from echoir.runtime.streams.gstreamer import describe
            from echoir.runtime.streams.restoring import PlanesRestorer, becomes
            from echoir.runtime.streams.videoframes import resolve_colour

            info = describe(caps)
            chosen = {name: self._settings[name] or None for name in ("matrix", "range")}
            colour, assumed = resolve_colour(info, **chosen)
            becomes(info, colour, self._restorer.manifest.network)  # refuses what does not go together
            if info.fields is not None:
                assumed.append("frames are interlaced and restored as whole pictures: put deinterlace before")
            for note in assumed:
                text = (
                    note.replace("(--matrix)", "(matrix=)").replace("(--range)", "(range=)").replace(" (--siting)", "")
                )
                self._post(Gst.Message.new_info, text, Gst.StreamError.FORMAT)
            self._restore = PlanesRestorer(self._restorer, info.format, info.width, colour)
            self._layouts = GstVideo.VideoInfo.new_from_caps(caps), GstVideo.VideoInfo.new_from_caps(out)
        except Exception as error:
            return self._fail(str(error), Gst.ResourceError.SETTINGS)
        return True

    def do_transform_ip(self, buffer: Any) -> Any:
        return self._transform(buffer, None)

    def do_transform(self, buffer: Any, out: Any) -> Any:
        return self._transform(buffer, out)

    def _transform(self, buffer: Any, out: Any) -> Any:
        """A frame; ``out`` is None where it is restored in its place."""
        self._counts["frames"] += 1
        if self._late(buffer):
            if self._settings["policy"] == "drop":
                self._counts["dropped"] += 1
                return Gst.FlowReturn.CUSTOM_SUCCESS  # GST_BASE_TRANSFORM_FLOW_DROPPED, which typelibs do not name
            if out is not None:
                self._refuse_to_pass()
                return Gst.FlowReturn.ERROR
            self._counts["passed"] += 1
            return Gst.FlowReturn.OK
        try:
            self._restore_buffer(buffer, out)
        except Exception as error:
            self._fail(str(error), Gst.ResourceError.FAILED)
            return Gst.FlowReturn.ERROR
        self._counts["restored"] += 1
        return Gst.FlowReturn.OK

    def _restore_buffer(self, buffer: Any, out: Any) -> None:
        from echoir.runtime.streams.gstreamer import planes_in

        layout, larger = self._layouts
        layout = GstVideo.buffer_get_video_meta(buffer) or layout
        format = self._restore.format
        if out is None:
            with buffer.map(Gst.MapFlags.READ | Gst.MapFlags.WRITE) as mapped:
                planes = planes_in(mapped.data, format, layout)
                self._restore(layout.height, planes, planes)
            return
        larger = GstVideo.buffer_get_video_meta(out) or larger
        with buffer.map(Gst.MapFlags.READ) as given, out.map(Gst.MapFlags.WRITE) as made:
            planes, target = planes_in(given.data, format, layout), planes_in(made.data, format, larger)
            self._restore(layout.height, planes, target)

    def _late(self, buffer: Any) -> bool:
        """Whether a frame is older than the deadline when its turn comes."""
        clock = self.get_clock()
        if not self._settings["deadline"] or clock is None or buffer.pts == Gst.CLOCK_TIME_NONE:
            return False
        age = clock.get_time() - self.get_base_time() - self.segment.to_running_time(Gst.Format.TIME, buffer.pts)
        return bool(age > self._settings["deadline"] * Gst.MSECOND)

    def _fail(self, message: str, code: Any) -> bool:
        self._post(Gst.Message.new_error, message, code)
        return False

    def _post(self, kind: Any, message: str, code: Any) -> None:
        domain = Gst.StreamError.quark() if isinstance(code, Gst.StreamError) else Gst.ResourceError.quark()
        # Twice, since gst-launch shows the detail alone of an information.
        self.post_message(kind(self, GLib.Error.new_literal(domain, message, int(code)), message))


def _scaled(side: Any, scale: int, larger: bool) -> Iterator[Any]:
    """Values that a side, a range or a list of it has behind the element, or (not ``larger``) had before it."""
    if not scale:  # the artifact is not open yet: anything may become of it
        yield Gst.IntRange(range(1, LARGEST))
    elif isinstance(side, int):
        if larger and scale * side <= LARGEST:
            yield scale * side
        elif not larger and side % scale == 0:
            yield side // scale
    elif isinstance(side, Gst.IntRange):
        low, high = side.range.start, side.range.stop
        low, high = (scale * low, min(scale * high, LARGEST)) if larger else (-(-low // scale), high // scale)
        if low < high:
            yield Gst.IntRange(range(low, high))
        elif low == high:
            yield low
    else:
        for one in side:
            yield from _scaled(one, scale, larger)


GObject.type_register(EchoirRestore)
__gstelementfactory__ = ("echoirrestore", Gst.Rank.NONE, EchoirRestore)
