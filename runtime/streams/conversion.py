"""From a frame's planes to the pixels a model takes, and back.

Only what the model changed goes back: the restored pixels minus those that went in, through the inverse
conversion, on top of the codes that were there. A model that changes nothing gives every code back as it
was, colours outside RGB's cube and bits below an 8-bit model's among them.
"""

from __future__ import annotations

import numpy as np

from echoir.runtime.streams.chroma import double_columns, double_rows, halve_columns, halve_rows
from echoir.runtime.streams.pixels import SHARES, Array, Colour, Format, Planes

BAND = 64  # luma rows converted at a time, so that what is worked on stays in the cache; even


class Converter:
    """Between the frames of one stream and the pixels of a model; keeps its buffers, so not for two threads.

    Args:
        format: of the frames, in and out.
        height, width: in pixels; any from 1 up.
        colour: what the codes mean; RGB is taken as it is.
        eight_bit: the model takes 8-bit pixels; else it is given floats, unless the frames are 8-bit RGB.
    """

    def __init__(self, format: Format, height: int, width: int, colour: Colour, *, eight_bit: bool) -> None:
        self.format, self.height, self.width, self.colour = format, height, width, colour
        self._unit = 255.0 if eight_bit else 1.0  # white in the model's pixels
        if format.kind == "rgb":
            return
        deep = format.depth - 8
        black, white = (16 << deep, 235 << deep) if colour.range == "limited" else (0, format.peak)
        swing = (224 << deep) if colour.range == "limited" else format.peak
        self._black, self._middle = float(black), float(128 << deep)
        self._luma_gain, self._chroma_gain = self._unit / (white - black), self._unit / swing
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
            self._change = np.empty((band, self._columns, 3), np.float32)
            self._narrow = np.empty((2, self._rows, chroma[1]), np.float32)

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
                self._read(views[0][rows], luma, self._black, self._luma_gain)
                self._store(luma, self._image[rows])
            return self._image
        self._read_chroma(views)
        for rows in self._bands():
            inside = views[0][rows]
            luma = self._luma[: rows.stop - rows.start]
            self._read(inside, luma[: len(inside), : self.width], self._black, self._luma_gain)
            luma[: len(inside), self.width :] = luma[: len(inside), self.width - 1 : self.width]
            luma[len(inside) :] = luma[len(inside) - 1]
            for channel in range(3):
                self._add_upsampled(self._fields[channel], luma, rows, channel)
        return self._image[: self.height, : self.width]

    def restore(self, restored: Array, planes: Planes, out: Planes) -> None:
        """Write a restored frame: the codes that were there, and on top what the model changed.

        Args:
            restored: what the model made of :meth:`image`, of its shape and type.
            planes: the frame that went in.
            out: planes of the same shapes that are written; may be ``planes``.
        """
        format, height, width = self.format, self.height, self.width
        if format.kind == "rgb":
            pixels, target = (_pixels(p[0], format, height, width) for p in (planes, out))
            if target.shape[2] == 4:
                spare = format.places[3][1]
                target[..., spare] = pixels[..., spare]
            target[..., _order(format)] = restored
            return
        before, after = format.components(planes, height, width), format.components(out, height, width)
        if format.kind == "gray":
            for rows in self._bands():
                change = self._work[: rows.stop - rows.start, :width]
                np.subtract(restored[rows], self._image[rows], out=change, dtype=np.float32, casting="unsafe")
                change *= np.float32(1 / self._luma_gain)
                self._write(before[0][rows], change, after[0][rows])
            return
        self._restore_yuv(restored, before, after)

    def _restore_yuv(self, restored: Array, before: list[Array], after: list[Array]) -> None:
        red, blue = SHARES[self.colour.matrix]
        shares = np.array([red, 1 - red - blue, blue], np.float32)
        for rows in self._bands():
            inside = slice(rows.start, min(rows.stop, self.height))
            count = inside.stop - inside.start
            change = self._change[: rows.stop - rows.start]
            known = change[:count, : self.width]
            np.subtract(
                restored[inside], self._image[inside, : self.width], out=known, dtype=np.float32, casting="unsafe"
            )
            change[:count, self.width :] = change[:count, self.width - 1 : self.width]
            change[count:] = change[count - 1]
            luma = self._luma[: len(change)]
            np.matmul(change, shares, out=luma)
            for field, (channel, share) in enumerate(((2, blue), (0, red))):
                work = self._work[: len(change)]
                np.subtract(change[..., channel], luma, out=work)
                work *= np.float32(0.5 / (1 - share) / self._chroma_gain)
                halve_columns(work, self._narrow[field, rows], self.format.shared[0], self.colour.siting != "center")
            luma *= np.float32(1 / self._luma_gain)
            self._write(before[0][inside], luma[:count, : self.width], after[0][inside])
        for field in range(2):
            chroma = self._fields[field]
            halve_rows(self._narrow[field], chroma, self.format.shared[1], self.colour.siting == "topleft")
            self._write(before[1 + field], chroma, after[1 + field])

    def _bands(self) -> list[slice]:
        return [slice(start, min(start + BAND, self._rows)) for start in range(0, self._rows, BAND)]

    def _read(self, codes: Array, out: Array, zero: float, gain: float) -> None:
        if self.format.shift:
            codes = codes >> self.format.shift
        np.subtract(codes, np.float32(zero), out=out, dtype=np.float32)
        out *= np.float32(gain)

    def _write(self, codes: Array, change: Array, out: Array) -> None:
        """Rounded and clipped: codes + change; ``change`` is used up."""
        if self.format.shift:
            codes = codes >> self.format.shift
        change += codes
        np.rint(change, out=change)
        np.clip(change, 0, self.format.peak, out=change)
        np.copyto(out, change, casting="unsafe")
        if self.format.shift:
            np.left_shift(out, self.format.shift, out=out)

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
        self._read(views[1], last, self._middle, self._chroma_gain * 2 * (1 - blue))
        self._read(views[2], first, self._middle, self._chroma_gain * 2 * (1 - red))
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


def _pixels(plane: Array, format: Format, height: int, width: int) -> Array:
    step = format.places[0][2]
    return plane[:height, : width * step].reshape(height, width, step)


def _order(format: Format) -> slice:
    """R, G and B among the samples of a pixel, as a slice: a view, where a list would copy."""
    red, blue = format.places[0][1], format.places[2][1]
    if red < blue:
        return slice(red, blue + 1)
    return slice(red, blue - 1 if blue else None, -1)
