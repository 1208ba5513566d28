"""From a frame's planes to the pixels a model takes, and back.

Only what the model changed goes back: the restored pixels minus those that went in, through the inverse
conversion, on top of the codes that were there. A model that changes nothing gives every code back as it
was, colours outside RGB's cube and bits below an 8-bit model's among them. What a model enlarged has no codes
to go on top of: there it is all of the picture, on top of black.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from echoir.runtime.channels import enlarged
from echoir.runtime.streams.chroma import double_columns, double_rows, halve_columns, halve_rows
from echoir.runtime.streams.pixels import SHARES, Array, Colour, Format, Planes

BAND = 64  # luma rows converted at a time, so that what is worked on stays in the cache; even


@dataclass(frozen=True)
class Levels:
    """What codes of luma and chroma stand for.

    Args:
        black: the code of no luma.
        middle: the code of no chroma.
        luma, chroma: of the model's units for a code.
    """

    black: int
    middle: int
    luma: float
    chroma: float

    @classmethod
    def of(cls, format: Format, colour: Colour, white: float) -> Levels:
        """Of a format's codes; ``white`` is white in the model's units."""
        deep = format.depth - 8
        black, top = (16 << deep, 235 << deep) if colour.range == "limited" else (0, format.peak)
        swing = (224 << deep) if colour.range == "limited" else format.peak
        return cls(black, 128 << deep, white / (top - black), white / swing)


class Converter:
    """Between the frames of one stream and the pixels of a model; keeps its buffers, so not for two threads.

    Args:
        format: of the frames, in and out.
        height, width: of the frames that go in, in pixels; any from 1 up.
        colour: what the codes mean; RGB is taken as it is.
        eight_bit: the model takes 8-bit pixels; else it is given floats, unless the frames are 8-bit RGB.
        scale: how many times larger, each side, the frames are that come out.
    """

    def __init__(
        self, format: Format, height: int, width: int, colour: Colour, *, eight_bit: bool, scale: int = 1
    ) -> None:
        self.format, self.height, self.width, self.colour, self.scale = format, height, width, colour, scale
        if format.kind == "rgb":
            return
        self._levels = Levels.of(format, colour, 255.0 if eight_bit else 1.0)
        # Even sizes inside: an odd one is extended by its last row or column and cut off again.
        across, down = (1 << shared for shared in format.shared)
        self._rows, self._columns = -(-height // down) * down, -(-width // across) * across
        depth = (3,) if format.kind == "yuv" else ()
        self._image = np.empty((self._rows, self._columns, *depth), np.uint8 if eight_bit else np.float32)
        band = min(BAND, self._rows)
        self._luma = np.empty((band, self._columns), np.float32)
        self._work = np.empty((band, self._columns), np.float32)
        if format.kind == "yuv":
            chroma = self._rows // down, self._columns // across
            self._fields = np.empty((3, *chroma), np.float32)
            self._tall = np.empty((band, chroma[1]), np.float32)
        self._codes = _Codes(format, scale * height, scale * width, colour, self._levels)

    def image(self, planes: Planes) -> Array:
        """The pixels for the model.

        Args:
            planes: one frame, as :meth:`Format.shapes` says; rows may be longer.

        Returns:
            [H, W, 3] RGB, or [H, W] gray: uint8 for an 8-bit model and for 8-bit RGB frames, else float32 with 1
            being white; colours that RGB cannot show lie below 0 or above 1, where the type allows. A view,
            valid until the next call.
        """
        views = self.format.components(planes, self.height, self.width)
        if self.format.kind == "rgb":
            return _pixels(planes[0], self.format, self.height, self.width)[..., _order(self.format)]
        if self.format.kind == "gray":
            for rows in self._bands():
                luma = self._luma[: rows.stop - rows.start, : self.width]
                self._read(views[0][rows], luma, self._levels.black, self._levels.luma)
                self._store(luma, self._image[rows])
            return self._image
        self._read_chroma(views)
        for rows in self._bands():
            inside = views[0][rows]
            luma = self._luma[: rows.stop - rows.start]
            self._read(inside, luma[: len(inside), : self.width], self._levels.black, self._levels.luma)
            luma[: len(inside), self.width :] = luma[: len(inside), self.width - 1 : self.width]
            luma[len(inside) :] = luma[len(inside) - 1]
            for channel in range(3):
                self._add_upsampled(self._fields[channel], luma, rows, channel)
        return self._image[: self.height, : self.width]

    def restore(self, strips: Iterable[Array], planes: Planes, out: Planes) -> None:
        """Write a restored frame: the codes that were there, and on top what the model changed.

        Args:
            strips: what the model made of :meth:`image`, of its type, in rows from top to bottom.
            planes: the frame that went in.
            out: planes that are written; where nothing is enlarged they may be ``planes``.
        """
        size = self.scale * self.height, self.scale * self.width
        if self.format.kind == "rgb":
            target = _pixels(out[0], self.format, *size)
            self._write_fourth(_pixels(planes[0], self.format, self.height, self.width), target)
            done = 0
            for rows in strips:
                target[done : done + len(rows), :, _order(self.format)] = rows
                done += len(rows)
            return
        if self.scale == 1:
            self._codes.begin(out, self.format.components(planes, *size), self._image)
        else:
            self._codes.begin(out)
        for rows in strips:
            self._codes.put(rows)
        self._codes.end()

    def _write_fourth(self, pixels: Array, target: Array) -> None:
        """The sample beside R, G and B: alpha, or nothing."""
        if len(self.format.places) < 4:
            return
        place = self.format.places[3][1]
        if self.scale == 1:
            target[..., place] = pixels[..., place]
        else:
            target[..., place] = enlarged(pixels[..., place], Fraction(self.scale)) if self.format.alpha else 255

    def _bands(self) -> list[slice]:
        return [slice(start, min(start + BAND, self._rows)) for start in range(0, self._rows, BAND)]

    def _read(self, codes: Array, out: Array, zero: float, gain: float) -> None:
        if self.format.shift:
            codes = codes >> self.format.shift
        np.subtract(codes, np.float32(zero), out=out, dtype=np.float32)
        out *= np.float32(gain)

    def _store(self, pixels: Array, out: Array) -> None:
        """Floats as the model's type; ``pixels`` is used up."""
        if out.dtype == np.uint8:
            np.rint(pixels, out=pixels)
            np.clip(pixels, 0, 255, out=pixels)
        np.copyto(out, pixels, casting="unsafe")

    def _read_chroma(self, views: list[Array]) -> None:
        """What chroma adds to R, G and B, at chroma's own resolution: everything here is linear."""
        red, blue = SHARES[self.colour.matrix]
        first, green, last = self._fields
        self._read(views[1], last, self._levels.middle, self._levels.chroma * 2 * (1 - blue))
        self._read(views[2], first, self._levels.middle, self._levels.chroma * 2 * (1 - red))
        rest = 1 - red - blue
        np.multiply(first, np.float32(-red / rest), out=green)
        for start in range(0, len(last), BAND):  # the band's own buffer, so that none is allocated
            part = slice(start, start + BAND)
            scaled = self._tall[: len(last[part])]
            np.multiply(last[part], np.float32(-blue / rest), out=scaled)
            green[part] += scaled

    def _add_upsampled(self, field: Array, luma: Array, rows: slice, channel: int) -> None:
        across, down = self.format.shared
        tall = field[rows]
        if down:
            tall = self._tall[: rows.stop - rows.start]
            double_rows(field, rows.start // 2, tall, self.colour.siting == "topleft")
        wide = self._work[: len(luma)]
        if across:
            double_columns(tall, wide, self.colour.siting != "center")
            wide += luma
        else:
            np.add(tall, luma, out=wide)
        self._store(wide, self._image[rows, :, channel])


class _Codes:
    """Restored pixels of frames of one size as codes of luma and chroma, strip by strip.

    Args:
        format, height, width, colour: of the frames.
        levels: of their codes.
    """

    def __init__(self, format: Format, height: int, width: int, colour: Colour, levels: Levels) -> None:
        self._format, self._height, self._width, self._colour, self._levels = format, height, width, colour, levels
        across, down = (1 << shared for shared in format.shared)
        rows, columns = -(-height // down) * down, -(-width // across) * across
        depth = (3,) if format.kind == "yuv" else ()
        band = min(BAND, rows)
        self._change = np.empty((band, columns, *depth), np.float32)
        # What pixels are without a picture that went in: black.
        self._nothing = np.broadcast_to(np.float32(0), (height, width, *depth))
        self._black = [
            np.broadcast_to(format.dtype.type(code << format.shift), format.size(component, height, width))
            for component, code in enumerate((levels.black, levels.middle, levels.middle)[: len(format.places)])
        ]
        if format.kind == "yuv":
            self._luma, self._work = (np.empty((band, columns), np.float32) for _ in range(2))
            self._narrow = np.empty((2, rows if down > 1 else band, columns // across), np.float32)
            self._chroma = np.empty((rows // down, columns // across), np.float32)

    def begin(self, out: Planes, before: list[Array] | None = None, image: Array | None = None) -> None:
        """A frame whose strips come now.

        Args:
            out: planes to write to.
            before: the components that were there; may be those of ``out``. None: black.
            image: the pixels they are, as the model was given them. None: black.
        """
        self._after = self._format.components(out, self._height, self._width)
        self._before = self._black if before is None else before
        self._image = self._nothing if image is None else image[: self._height, : self._width]
        self._done = 0

    def put(self, rows: Array) -> None:
        """The next rows, of the model's type."""
        for start in range(0, len(rows), BAND):
            part = rows[start : start + BAND]
            where = slice(self._done, self._done + len(part))
            change = self._change[: len(part)]
            inside = change[:, : self._width]
            np.subtract(part, self._image[where], out=inside, dtype=np.float32, casting="unsafe")
            if self._format.kind == "gray":
                change *= np.float32(1 / self._levels.luma)
                self._write(0, where, change)
            else:
                change[:, self._width :] = change[:, self._width - 1 : self._width]
                self._put_colours(change, where)
            self._done = where.stop

    def _put_colours(self, change: Array, where: slice) -> None:
        red, blue = SHARES[self._colour.matrix]
        across, down = self._format.shared
        luma, work = self._luma[: len(change)], self._work[: len(change)]
        np.matmul(change, np.array([red, 1 - red - blue, blue], np.float32), out=luma)
        for field, (channel, share) in enumerate(((2, blue), (0, red))):
            np.subtract(change[..., channel], luma, out=work)
            work *= np.float32(0.5 / (1 - share) / self._levels.chroma)
            narrow = self._narrow[field, where if down else slice(len(work))]
            halve_columns(work, narrow, across, self._colour.siting != "center")
            if not down:
                self._write(1 + field, where, narrow)
        luma *= np.float32(1 / self._levels.luma)
        self._write(0, where, luma[:, : self._width])

    def end(self) -> None:
        """All rows are there: the chroma that several share."""
        if not self._format.shared[1]:
            return
        for field, narrow in enumerate(self._narrow):
            narrow[self._height :] = narrow[self._height - 1]
            halve_rows(narrow, self._chroma, self._format.shared[1], self._colour.siting == "topleft")
            self._write(1 + field, slice(None), self._chroma)

    def _write(self, component: int, rows: slice, change: Array) -> None:
        """Rounded and clipped: codes + change; ``change`` is used up."""
        codes, out = self._before[component][rows], self._after[component][rows]
        if self._format.shift:
            codes = codes >> self._format.shift
        change += codes
        np.rint(change, out=change)
        np.clip(change, 0, self._format.peak, out=change)
        np.copyto(out, change, casting="unsafe")
        if self._format.shift:
            np.left_shift(out, self._format.shift, out=out)


def _pixels(plane: Array, format: Format, height: int, width: int) -> Array:
    step = format.places[0][2]
    return plane[:height, : width * step].reshape(height, width, step)


def _order(format: Format) -> slice:
    """R, G and B among the samples of a pixel, as a slice: a view, where a list would copy."""
    red, blue = format.places[0][1], format.places[2][1]
    if red < blue:
        return slice(red, blue + 1)
    return slice(red, blue - 1 if blue else None, -1)
