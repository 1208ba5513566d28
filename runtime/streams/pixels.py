"""Pixel formats of video: from a frame's planes to the pixels a model takes, and back.

Only what the model changed goes back: the restored pixels minus those that went in, through the inverse
conversion, on top of the codes that were there. A model that changes nothing gives every code back as it
was, colours outside RGB's cube and bits below an 8-bit model's among them.

Subsampled chroma is interpolated linearly from where its samples are sited, and brought back by the dual
filter, so that down after up is the identity on every plane and no noise stays behind in between. The
pairs are the low-passes of the spline wavelets 5/3 (sited on a luma sample) and 3/1 (between two): Cohen,
Daubechies, Feauveau, "Biorthogonal bases of compactly supported wavelets", 1992.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Planes = Sequence[Array]
Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m", "fcc"]
Range = Literal["limited", "full"]
Siting = Literal["left", "center", "topleft"]

# Shares of red and blue in luma: ITU-R BT.601-7, BT.709-6, BT.2020-2 (non-constant luminance); H.273 table 4.
SHARES: dict[str, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}
BAND = 64  # luma rows converted at a time, so that what is worked on stays in the cache; even


@dataclass(frozen=True)
class Colour:
    """What codes mean.

    Args:
        matrix: between luma, chroma and RGB.
        range: ``"limited"``: black 16, white 235, chroma 16 to 240 (times 4 with 10 bits); ``"full"``: all codes.
        siting: where a chroma sample lies among its luma samples: ``"left"`` (on the even column, between two
            rows: MPEG-2, H.264, HEVC), ``"center"`` (between columns and rows: JPEG, MPEG-1) or ``"topleft"``
            (on both: most BT.2020 and DV).
    """

    matrix: Matrix = "bt709"
    range: Range = "limited"
    siting: Siting = "left"


@dataclass(frozen=True)
class Format:
    """How a pixel format lies in memory.

    Args:
        name: FFmpeg's name.
        kind: what the components are: R, G, B (and one more that is carried along), Y, or Y, Cb, Cr.
        places: (plane, offset, step) of each component, in samples.
        shared: log2 of the columns and rows that share a chroma sample.
        depth: bits of a code.
        shift: bits below the code inside a sample (P010: 6).
    """

    name: str
    kind: Literal["rgb", "gray", "yuv"]
    places: tuple[tuple[int, int, int], ...]
    shared: tuple[int, int] = (0, 0)
    depth: int = 8
    shift: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a sample: uint8, or little-endian uint16."""
        return np.dtype(np.uint8 if self.depth + self.shift <= 8 else "<u2")

    @property
    def peak(self) -> int:
        """The largest code."""
        return (1 << self.depth) - 1

    def size(self, component: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a component in a picture of this size (half a chroma sample counts as one)."""
        if component == 0 or self.kind != "yuv":
            return height, width
        across, down = self.shared
        return -(-height >> down), -(-width >> across)

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and samples per row of every plane."""
        shapes: dict[int, tuple[int, int]] = {}
        for component, (plane, _, step) in enumerate(self.places):
            rows, columns = self.size(component, height, width)
            shapes[plane] = rows, max(columns * step, shapes.get(plane, (0, 0))[1])
        return [shapes[plane] for plane in sorted(shapes)]

    def empty(self, height: int, width: int) -> list[Array]:
        """Planes of one frame, not filled."""
        return [np.empty(shape, self.dtype) for shape in self.shapes(height, width)]

    def components(self, planes: Planes, height: int, width: int) -> list[Array]:
        """Views of the components, [rows, columns] each, of planes that may be wider than the picture."""
        views = []
        for component, (plane, offset, step) in enumerate(self.places):
            rows, columns = self.size(component, height, width)
            views.append(planes[plane][:rows, offset : offset + (columns - 1) * step + 1 : step])
        return views


def _formats() -> dict[str, Format]:
    formats = [Format("gray", "gray", ((0, 0, 1),))]
    formats += [Format(f"gray{depth}le", "gray", ((0, 0, 1),), depth=depth) for depth in (10, 12, 16)]
    orders = {"rgb24": "RGB", "bgr24": "BGR"}
    orders |= {"rgb0": "RGBX", "bgr0": "BGRX", "0rgb": "XRGB", "0bgr": "XBGR", "rgba": "RGBX", "bgra": "BGRX"}
    for name, order in orders.items():
        places = tuple((0, order.index(channel), len(order)) for channel in "RGBX"[: len(order)])
        formats.append(Format(name, "rgb", places))
    planar = ((0, 0, 1), (1, 0, 1), (2, 0, 1))
    for ratio, shared in {"420": (1, 1), "422": (1, 0), "444": (0, 0)}.items():
        formats += [Format(f"{name}{ratio}p", "yuv", planar, shared) for name in ("yuv", "yuvj")]
        formats += [Format(f"yuv{ratio}p{depth}le", "yuv", planar, shared, depth) for depth in (10, 12)]
    formats.append(Format("nv12", "yuv", ((0, 0, 1), (1, 0, 2), (1, 1, 2)), (1, 1)))
    formats.append(Format("nv21", "yuv", ((0, 0, 1), (1, 1, 2), (1, 0, 2)), (1, 1)))
    formats.append(Format("p010le", "yuv", ((0, 0, 1), (1, 0, 2), (1, 1, 2)), (1, 1), 10, 6))
    formats.append(Format("yuyv422", "yuv", ((0, 0, 2), (0, 1, 4), (0, 3, 4)), (1, 0)))
    formats.append(Format("uyvy422", "yuv", ((0, 1, 2), (0, 0, 4), (0, 2, 4)), (1, 0)))
    return {format.name: format for format in formats}


FORMATS = _formats()


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
                _narrow(work, self._narrow[field, rows], self.format.shared[0], self.colour.siting != "center")
            luma *= np.float32(1 / self._luma_gain)
            self._write(before[0][inside], luma[:count, : self.width], after[0][inside])
        for field in range(2):
            chroma = self._fields[field]
            _shorten(self._narrow[field], chroma, self.format.shared[1], self.colour.siting == "topleft")
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
            _heighten(field, rows.start // 2, tall, self.colour.siting == "topleft")
        wide = self._work[: len(luma)]
        if across:
            _widen(tall, wide, self.colour.siting != "center")
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


def _between(out: Array, first: Array, second: Array, share: float) -> None:
    """``out = share * first + (1 - share) * second`` with no array but ``out``: second + share * (first - second)."""
    np.subtract(first, second, out=out)
    out *= np.float32(share)
    out += second


def _widen(narrow: Array, wide: Array, on_even: bool) -> None:
    """Twice the columns, by linear interpolation; past the border, the border's sample."""
    even, odd = wide[:, 0::2], wide[:, 1::2]
    if on_even:
        even[:] = narrow
        _between(odd[:, :-1], narrow[:, :-1], narrow[:, 1:], 0.5)
        odd[:, -1] = narrow[:, -1]
    else:
        _between(even[:, 1:], narrow[:, 1:], narrow[:, :-1], 0.75)
        even[:, 0] = narrow[:, 0]
        _between(odd[:, :-1], narrow[:, :-1], narrow[:, 1:], 0.75)
        odd[:, -1] = narrow[:, -1]


def _heighten(low: Array, first: int, tall: Array, on_even: bool) -> None:
    """Twice the rows from row ``first`` on, as :func:`_widen`; neighbours above and below are looked up."""
    count = len(tall) // 2
    own = low[first : first + count]
    above = low[max(first - 1, 0) : first + count - 1]  # misses its first row at the upper border
    below = low[first + 1 : first + count + 1]  # ... and this its last at the lower
    even, odd = tall[0::2], tall[1::2]
    share = 0.5 if on_even else 0.75
    if on_even:
        even[:] = own
    else:
        top = count - len(above)
        _between(even[top:], own[top:], above, share)
        even[:top] = own[:top]
    _between(odd[: len(below)], own[: len(below)], below, share)
    odd[len(below) :] = own[len(below) :]


def _narrow(wide: Array, narrow: Array, shared: int, on_even: bool) -> None:
    """Half the columns, by the filter that is dual to :func:`_widen`."""
    if shared:
        _dual(wide.T, narrow.T, on_even)
    else:
        narrow[:] = wide


def _shorten(tall: Array, low: Array, shared: int, on_even: bool) -> None:
    """Half the rows, by the filter that is dual to :func:`_heighten`."""
    if shared:
        _dual(tall, low, on_even)
    else:
        low[:] = tall


def _dual(fine: Array, coarse: Array, on_even: bool) -> None:
    """Half the rows: (-1, 2, 6, 2, -1)/8 around the even ones, or (-1, 3, 3, -1)/4 between pairs.

    Reflected at the border as the interpolation is: on the border's sample, or just outside it. ``fine`` is
    used up.
    """
    even, odd = fine[0::2], fine[1::2]
    if not on_even:
        # 3 (e + o) - o[-1] - e[+1], over 4
        np.add(even, odd, out=coarse)
        coarse *= np.float32(3)
        coarse[1:] -= odd[:-1]
        coarse[0] -= even[0]
        coarse[:-1] -= even[1:]
        coarse[-1] -= odd[-1]
        coarse *= np.float32(0.25)
        return
    # In two steps: d = o - (e + e[+1]) / 2, then e + (d + d[-1]) / 4.
    coarse[:-1] = even[1:]
    coarse[-1] = even[-1]
    coarse += even
    coarse *= np.float32(0.5)
    odd -= coarse
    coarse[1:] = odd[:-1]
    coarse[0] = odd[0]
    coarse += odd
    coarse *= np.float32(0.25)
    coarse += even
