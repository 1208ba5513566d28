"""Frames through a network: what becomes of a stream, and how its frames are restored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from echoir.runtime.channels import route
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ImageError
from echoir.runtime.restorer import Restorer
from echoir.runtime.streams.conversion import Converter
from echoir.runtime.streams.pixels import Array, Colour, Format, Planes
from echoir.runtime.streams.videoframes import MATRICES, UNSPECIFIED, Sink, Source, StreamInfo, VideoFrame


class UnfitError(Exception):
    """A network and a stream that do not go together; nothing was restored. A usage error."""


def check_format(network: Descriptor, format: Format) -> None:
    """Refuse frames that a network does not take, or would make other planes of.

    Raises:
        UnfitError: colour through a network that makes gray of it or colour of gray, or one for mosaics or pairs.
    """
    try:
        way = route(network, format.channels)
    except ImageError:
        way = None
    if way is None or way.mosaic != 1 or way.result != format.channels:
        kind = "gray" if format.channels == 1 else "colour"
        raise UnfitError(
            f"{network.name} makes {network.output} of {network.input}; frames of {format.name} are {kind}, and stay so"
        )


def becomes(info: StreamInfo, colour: Colour, network: Descriptor) -> StreamInfo:
    """What a network makes of a stream: the same, or a larger one.

    A larger one says which colour matrix it has, also where the stream does not: players go by the size.

    Args:
        info: of the stream.
        colour: what its codes mean, by :func:`echoir.runtime.streams.videoframes.resolve_colour`.
        network: what its frames go through.

    Raises:
        UnfitError: as :func:`check_format`; or two fields in a frame, of which each would be enlarged by itself, and
            then lie in other places than fields do.
    """
    check_format(network, info.format)
    scale = network.scale
    if scale == 1:
        return info
    if info.fields is not None:
        raise UnfitError(
            f"{network.name} enlarges {scale} times, which the two fields of interlaced frames do not take; make whole "
            "frames of them first (--deinterlace; in a pipeline or before a pipe, its own element or filter)"
        )
    tags, display = info.tags, info.display
    if info.format.kind == "yuv" and tags.matrix == UNSPECIFIED:
        tags = replace(tags, matrix=max(code for code, name in MATRICES.items() if name == colour.matrix))
    if display is not None:  # where it moves the picture to, in pixels
        display = (*display[:6], *(min(scale * value, 2**31 - 1) for value in display[6:8]), display[8])
    return replace(info, width=scale * info.width, height=scale * info.height, tags=tags, display=display)


class PlanesRestorer:
    """Planes of frames restored; for frames of one stream, or their fields, and one thread.

    Args:
        restorer: restores the pixels.
        format, width: of the planes that go in.
        colour: what their codes mean.
    """

    def __init__(self, restorer: Restorer, format: Format, width: int, colour: Colour) -> None:
        self.format = format
        self._restorer, self._width, self._colour = restorer, width, colour
        self._converters: dict[int, Converter] = {}  # by height: of frames, and of fields
        self._restored: dict[int, Array] = {}

    def __call__(self, height: int, planes: Planes, out: Planes) -> None:
        """Restore planes of that height into others; the same, where nothing is enlarged.

        Raises:
            RejectedOutputError: the session gave NaN, infinite or constant pixels; planes that are not enlarged are
                as they were.
        """
        if (converter := self._converters.get(height)) is None:
            manifest = self._restorer.manifest
            converter = self._converters[height] = Converter(
                self.format,
                height,
                self._width,
                self._colour,
                eight_bit=manifest.input.dtype == "uint8",
                scale=manifest.network.scale,
            )
        image = converter.image(planes)
        if converter.scale == 1:
            if height not in self._restored:
                self._restored[height] = np.empty_like(image, order="C", subok=False)
            self._restorer(image, out=self._restored[height])
            converter.restore([self._restored[height]], planes, out)
        else:  # strip by strip: the whole would be large
            strips = self._restorer.strips(
                lambda y0, y1: image[y0:y1], height, self._width, channels=self.format.channels
            )
            converter.restore(strips, planes, out)


class FrameRestorer:
    """A frame in, a restored frame out; for one stream and one thread.

    The two fields of an interlaced frame are pictures of two moments, and each is restored by itself.
    """

    def __init__(self, restorer: Restorer, info: StreamInfo, colour: Colour, source: Source, sink: Sink) -> None:
        self._restore = PlanesRestorer(restorer, info.format, info.width, colour)
        self._info, self._source, self._sink = info, source, sink

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        """Restore into a frame of the sink's, and give the source its own back."""
        height, out = self._info.height, self._sink.blank(frame)
        whole = height % 4 if self._info.format.shared[1] else height % 2  # rows that fields do not share evenly
        if frame.interlaced and not whole:
            for field in (slice(0, None, 2), slice(1, None, 2)):
                self._restore(height // 2, [p[field] for p in frame.planes], [p[field] for p in out.planes])
        else:
            self._restore(height, frame.planes, out.planes)
        out.pts, out.duration = frame.pts, frame.duration
        if out is not frame:
            self._source.give_back(frame)
        return out
