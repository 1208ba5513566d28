"""``echoirrestore``: an artifact inside a GStreamer pipeline; loaded by GStreamer's Python plug-in loader.

    export GST_PLUGIN_PATH=$(python -m echoir.runtime.streams.gstreamer)
    gst-launch-1.0 videotestsrc ! video/x-raw,format=NV12 ! echoirrestore artifact=denoise.onnx ! fakesink

The loader runs the Python that GStreamer was built with: that one must find ``echoir``.
"""

from __future__ import annotations

import json
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
CAPS = Gst.Caps.from_string(
    f"video/x-raw,format={{{FORMATS}}},width=[1,32767],height=[1,32767],framerate=[0/1,2147483647/1]"
)
FLAGS = GObject.ParamFlags.READWRITE


class EchoirRestore(GstBase.BaseTransform):
    """Restores every frame in place; a frame that is late passes as it is, or is dropped."""

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
        self._converter: Any = None
        self._layout: Any = None
        self._restored: Any = None

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
        return True

    def do_stop(self) -> bool:
        if self._restorer is not None:
            self._restorer.close()
        self._restorer = self._converter = None
        return True

    def do_set_caps(self, caps: Any, out: Any) -> bool:
        """Frames of another size or format: another conversion."""
        try:
            from echoir.runtime.streams.conversion import Converter
            from echoir.runtime.streams.gstreamer import describe
            from echoir.runtime.streams.videoframes import resolve_colour

            info = describe(caps)
            chosen = {name: self._settings[name] or None for name in ("matrix", "range")}
            colour, assumed = resolve_colour(info, **chosen)
            if info.fields is not None:
                assumed.append("frames are interlaced and restored as whole pictures: put deinterlace before")
            for note in assumed:
                text = (
                    note.replace("(--matrix)", "(matrix=)").replace("(--range)", "(range=)").replace(" (--siting)", "")
                )
                self._post(Gst.Message.new_info, text, Gst.StreamError.FORMAT)
            eight_bit = self._restorer.manifest.input.dtype == "uint8"
            self._converter = Converter(info.format, info.height, info.width, colour, eight_bit=eight_bit)
            self._layout, self._restored = GstVideo.VideoInfo.new_from_caps(caps), None
        except Exception as error:
            return self._fail(str(error), Gst.ResourceError.SETTINGS)
        return True

    def do_transform_ip(self, buffer: Any) -> Any:
        self._counts["frames"] += 1
        if self._late(buffer):
            if self._settings["policy"] == "pass":
                self._counts["passed"] += 1
                return Gst.FlowReturn.OK
            self._counts["dropped"] += 1
            return Gst.FlowReturn.CUSTOM_SUCCESS  # GST_BASE_TRANSFORM_FLOW_DROPPED, which typelibs do not name
        try:
            self._restore(buffer)
        except Exception as error:
            self._fail(str(error), Gst.ResourceError.FAILED)
            return Gst.FlowReturn.ERROR
        self._counts["restored"] += 1
        return Gst.FlowReturn.OK

    def _restore(self, buffer: Any) -> None:
        import numpy as np

        from echoir.runtime.streams.gstreamer import planes_in

        layout = GstVideo.buffer_get_video_meta(buffer) or self._layout
        with buffer.map(Gst.MapFlags.READ | Gst.MapFlags.WRITE) as mapped:
            planes = planes_in(mapped.data, self._converter.format, layout)
            image = self._converter.image(planes)
            if self._restored is None:
                self._restored = np.empty_like(image, order="C", subok=False)
            self._restorer(image, out=self._restored)
            self._converter.restore(self._restored, planes, planes)

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


GObject.type_register(EchoirRestore)
__gstelementfactory__ = ("echoirrestore", Gst.Rank.NONE, EchoirRestore)
