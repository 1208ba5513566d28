"""Windows bitmaps, which libvips reads only where ImageMagick is: headers here, pixels by libvips all the same.

Source: Microsoft, "Bitmap storage" and BITMAPV5HEADER. Read are the uncompressed kinds that programs write: 8 bits
with a palette, 24 and 32 bits, from the bottom up or from the top down.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from echoir.runtime.errors import ImageError
from echoir.runtime.vips import vips

if TYPE_CHECKING:
    import pyvips

RGB, BITFIELDS, ALPHABITFIELDS, OTHER = 0, 3, 6, -1  # kinds of compression; the last for masks of another order
_MASKS = (0xFF0000, 0xFF00, 0xFF)  # red, green and blue of a pixel in the order blue, green, red, alpha
_NAMES = {OTHER: "channels in an order of its own", 1: "RLE8", 2: "RLE4", 4: "JPEG", 5: "PNG"}


def bmpload(path: bytes, *, access: str = "sequential", fail_on: str = "error") -> pyvips.Image:
    """Open a bitmap as libvips' loaders do: [H, W, C] uint8, C being 1 gray, 3 RGB or 4 RGB and alpha.

    Args:
        path: as bytes.
        access, fail_on: as of those loaders; here every access is cheap and every damage an error.

    Raises:
        ImageError: a kind that is not read, or a file that is cut short.
    """
    shown = Path(os.fsdecode(path))
    with open(path, "rb") as file:
        try:
            width, height, bits, compression, offset, palette, alpha = _header(file)
        except struct.error:
            raise ImageError(f"cannot read {shown}: a bitmap that ends in its header") from None
        size = file.seek(0, 2)
    kind = _NAMES.get(compression, f"compression {compression}")
    if compression not in (RGB, BITFIELDS, ALPHABITFIELDS) or bits not in (8, 24, 32):
        what = f"{bits} bits a pixel" if compression in (RGB, BITFIELDS, ALPHABITFIELDS) else kind
        raise ImageError(f"cannot read {shown}: a bitmap of {what}; save it as PNG first")
    stride = (width * bits // 8 + 3) // 4 * 4
    if width < 1 or height == 0 or size < offset + stride * abs(height):
        raise ImageError(f"cannot read {shown}: {size} bytes are no {width} x {abs(height)} bitmap; is it truncated?")
    image = vips().Image.rawload(path, stride, abs(height), 1, offset=offset)
    image = image.crop(0, 0, width * bits // 8, abs(height))
    if bits == 8:
        image = _coloured(image, palette)
    else:
        image = image.bandfold(factor=bits // 8)
        colours = [image[2], image[1], image[0], *([image[3]] if alpha else [])]
        image = colours[0].bandjoin(colours[1:])
    image = image.copy(interpretation="b-w" if image.bands == 1 else "srgb")
    return image.flipver() if height > 0 else image


def _header(file: BinaryIO) -> tuple[int, int, int, int, int, np.ndarray[Any, Any], bool]:
    """(width, height, bits, compression, offset of the pixels, palette [n, 3] RGB, whether there is alpha).

    A negative height means from the top down.
    """
    _, offset, length = struct.unpack("<10sII", file.read(18))
    if length == 12:  # OS/2: sizes of 16 bits, palette entries of three bytes
        width, height, _, bits = struct.unpack("<HHHH", file.read(8))
        compression, entry, masks = RGB, 3, b""
    else:
        width, height, _, bits, compression = struct.unpack("<iiHHI", file.read(16))
        rest = file.read(length - 20) + (file.read(16) if length == 40 and compression != RGB else b"")
        masks, entry = rest[20:36], 4
    alpha = False
    if compression in (BITFIELDS, ALPHABITFIELDS):
        red, green, blue, opacity = struct.unpack("<IIII", masks.ljust(16, b"\0"))
        if (red, green, blue) != _MASKS or bits != 32:
            return width, height, bits, OTHER, offset, np.empty((0, 3), np.uint8), False
        alpha = opacity == 0xFF000000 and (length > 40 or compression == ALPHABITFIELDS)
    file.seek(14 + length)
    entries = np.frombuffer(file.read(min(256 * entry, max(offset - 14 - length, 0))), np.uint8)
    entries = entries[: len(entries) // entry * entry].reshape(-1, entry)
    return width, height, bits, compression, offset, entries[:, 2::-1], alpha


def _coloured(image: pyvips.Image, palette: np.ndarray[Any, Any]) -> pyvips.Image:
    """Palette entries in place of their numbers; one band where all are gray. A number beyond the palette is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    if (table == table[:, :1]).all():
        table = table[:, :1]
    table = np.ascontiguousarray(table)
    return image.maplut(vips().Image.new_from_memory(table.tobytes(), 256, 1, table.shape[1], "uchar"))
