"""Reading and writing pictures: PNG, JPEG, TIFF and WebP, 8 and 16 bits, with what else is in the file. BMP is read.

libvips does the work (pyvips): it holds 16-bit colour, which Pillow does not, needs no copy of the
pixels to write them, and carries profiles, EXIF, XMP, IPTC and resolution between formats. Within a format,
what it does not keep goes on as it stands: a PNG's chunks, a JPEG's segments, a TIFF's tags
(``png.py``, ``jpeg.py``, ``tags.py``). :attr:`Picture.left` says what does not.

Memory is that of the decoded pixels. Only WebP, progressive JPEG and interlaced PNG are held whole once
more while they are decoded (or, WebP, written): those formats cannot be streamed.

Pixels stay as stored and the orientation tag stays with them, since turning a picture that the next
program turns again is the worse mistake; ``upright=True`` turns the pixels and resets the tag.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.bmp import bmpload
from echoir.runtime.encoders import encode
from echoir.runtime.errors import ImageError
from echoir.runtime.extras import Extras
from echoir.runtime.files import atomic_write
from echoir.runtime.picture import WRITABLE, Picture
from echoir.runtime.png import SIGNATURE
from echoir.runtime.segments import is_whole, read_extras
from echoir.runtime.tags import ORIENTATION, PHOTOMETRIC, exif_resolution
from echoir.runtime.vips import cause_of, encoded, fields_of, header_fields, not_of_the_file, use_threads, vips

if TYPE_CHECKING:
    import pyvips

Array = np.ndarray[Any, np.dtype[Any]]

MAX_PIXELS = 500_000_000
_MAX_SIDE = {"jpeg": 65500, "webp": 16383}  # libjpeg's limit is below the format's
_KINDS = {0, 1, 2, 3, 6}  # of a TIFF's colours: gray, RGB, palette, YCbCr
_OTHER_KINDS = {4: "a mask", 5: "CMYK", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "raw sensor data"}
# Facts about the old file that the new one settles for itself.
_NOT_CARRIED = (
    "bits-per-sample",
    "palette",
    "n-pages",
    "page-height",
    "n-subifds",
    "background",
    "jpeg-",
    "vips-",
    "tiff-",
)


@dataclass(frozen=True)
class Header:
    """What a file says of its picture: rows and columns as stored, and the EXIF orientation (1 to 8) to show it in."""

    stored: tuple[int, int]
    orientation: int = 1

    @property
    def height(self) -> int:
        """Of the picture as it is shown."""
        return self.stored[self.orientation >= 5]

    @property
    def width(self) -> int:
        """Of the picture as it is shown."""
        return self.stored[self.orientation < 5]


def open_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, upright: bool = False) -> Picture:
    """Decode a picture, wholly or not at all.

    Args:
        path: a PNG, JPEG, TIFF, WebP or BMP file, whatever its suffix says.
        max_pixels: refuse larger pictures before decoding them.
        upright: turn the pixels as the orientation tag says, and reset the tag to 1.

    Raises:
        ImageError: no such file, not such a picture, truncated or damaged, too large, or of a kind
            that could only be restored with loss (several frames or pages, CMYK, more than 16 bits).
        BackendError: libvips has no threads: by a limit of the system, or since this process was forked from
            one that had read or written pictures (use multiprocessing's ``spawn``).
    """
    path = Path(path)
    with _reading(path):
        format, extras = _sniff(path)
        image = _loader(format)(os.fsencode(path), access="sequential", fail_on="error")
        _check_header(path, image, max_pixels)
        resolution = (image.xres, image.yres) if extras.resolved else None
        if format == "webp":  # libvips does not look for it in there
            resolution = exif_resolution(extras.tags or {})
        pixels, orientation = _decode(image), _orientation(image, extras)
        image = _with_late_exif(image, extras)
        if upright and orientation != 1:
            pixels = _turned(pixels, orientation)
            resolution = resolution[::-1] if resolution and orientation >= 5 else resolution
            image = image.copy()
            # Said outright: a tag that is merely missing would come back from the EXIF bytes.
            image.set_type(vips().GValue.gint_type, "orientation", 1)
    return Picture(path, format, pixels, resolution, _metadata(image), extras)


def read_header(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Header:
    """Check a file as far as that is possible without decoding it; one that looks truncated is decoded.

    Raises:
        ImageError: what :func:`open_picture` would refuse, but for damage between a file's header and its end.
    """
    path = Path(path)
    with _reading(path):
        format, extras = _sniff(path)
        image = _loader(format)(os.fsencode(path), access="sequential", fail_on="error")
        _check_header(path, image, max_pixels)
        if not is_whole(path):
            open_picture(path, max_pixels=max_pixels)  # a JPEG that lacks nothing but its last marker will pass
    return Header((image.height, image.width), _orientation(image, extras))


def picture_size(path: str | os.PathLike[str], *, upright: bool = False) -> tuple[int, int]:
    """Height and width by the header alone: what :func:`open_picture` would give.

    Raises:
        ImageError: no such file, or not such a picture.
    """
    path = Path(path)
    with _reading(path):
        format, extras = _sniff(path)
        image = _loader(format)(os.fsencode(path), access="sequential")
    header = Header((image.height, image.width), _orientation(image, extras) if upright else 1)
    return header.height, header.width


def save_picture(
    path: str | os.PathLike[str],
    rows: Iterable[Array],
    like: Picture,
    *,
    quality: int | None = None,
    scale: Fraction = Fraction(1),
    channels: int | None = None,
) -> None:
    """Write restored rows as a picture with the alpha channel and the metadata of another.

    What the format cannot hold is found before the first row is asked for.

    Args:
        path: the target; its suffix is the format (:data:`WRITABLE`). It appears whole or not at all.
        rows: strips from top to bottom, as :meth:`Picture.read_rows` gives them and
            ``Restorer.strips`` yields them; together as high as ``like``, times the scale.
        like: where alpha and metadata come from.
        quality: 1 to 100, of JPEG (4:4:4, colour at full resolution) and WebP; 100 is lossless WebP. None
            is 95, and lossless for a WebP that comes from a lossless one.
        scale, channels: of the rows, where they are not those of ``like``; see :meth:`Picture.canvas`.

    Raises:
        ImageError: the target cannot be written, or cannot hold these pixels.
        BackendError: as :func:`open_picture`.
    """
    path = Path(path)
    made = like.canvas(scale, channels)
    format = _check_target(path, made)
    with atomic_write(path) as temporary:
        done = 0
        for strip in rows:
            made.read_rows(done, done + len(strip))[...] = strip
            done += len(strip)
        if done != made.height:
            raise ValueError(f"got {done} rows for a picture of {made.height}")
        try:
            encode(format, temporary, quality, made)
        except (vips().Error, UnicodeDecodeError) as error:
            cause = cause_of(error)
            not_of_the_file(cause)
            raise ImageError(f"cannot write {path}: {cause}") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading a file can raise into one line that names it."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    except (vips().Error, UnicodeDecodeError) as error:
        cause = cause_of(error)
        if not_of_the_file(cause):
            raise ImageError(f"cannot read {path}: {cause}") from error
        raise ImageError(f"cannot read {path}: {cause}; is the file truncated or damaged?") from error


def _check_target(path: Path, like: Picture) -> str:
    format = WRITABLE.get(path.suffix.lower())
    if format is None:
        raise ImageError(f"cannot write {path}: the suffix is none of {', '.join(WRITABLE)}")
    if (limit := _MAX_SIDE.get(format, 0)) and max(like.height, like.width) > limit:
        raise ImageError(
            f"cannot write {path}: {format.upper()} holds at most {limit} pixels a side, "
            f"this picture is {like.width} x {like.height}; write PNG or TIFF"
        )
    if format in ("jpeg", "webp") and like.pixels.dtype != np.uint8:
        raise ImageError(f"cannot write {path}: {format.upper()} holds 8 bits, this picture has 16; write PNG or TIFF")
    if format == "jpeg" and like.alpha is not None:
        raise ImageError(f"cannot write {path}: JPEG holds no transparency; write PNG, TIFF or WebP")
    if format != "tiff" and like.fourth:
        raise ImageError(
            f"cannot write {path}: beside colours the picture has a channel that is no transparency; write TIFF"
        )
    return format


def _metadata(image: pyvips.Image) -> dict[str, pyvips.GValue]:
    """All fields that are not the image's own shape."""
    metadata = {}
    for name in fields_of(image):
        value = vips().GValue()
        known = vips().vips_lib.vips_image_get(image.pointer, encoded(name), value.pointer) == 0
        if known and name not in header_fields() and not name.startswith(_NOT_CARRIED):
            metadata[name] = value
    return metadata


def _sniff(path: Path) -> tuple[str, Extras]:
    """The format of a file by its first bytes, and what libvips does not keep; refuses all else."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # a pipe would be waited for, and cannot be read twice
        raise ImageError(f"cannot read {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
    with open(path, "rb") as file:
        head = file.read(12)
        if not head:
            raise ImageError(f"cannot read {path}: the file is empty")
        format = _format(head)
        if format is None:
            raise ImageError(f"cannot read {path}: no PNG, JPEG, TIFF, WebP or BMP picture, whatever its name says")
        extras = read_extras(file, format)
    if extras.frames > 1:
        raise ImageError(f"cannot read {path}: it holds {extras.frames} frames, of which all but one would be lost")
    photometric = (extras.tags or {}).get(PHOTOMETRIC) if format == "tiff" else None
    if photometric and (kind := photometric.numbers[0]) not in _KINDS:
        raise ImageError(
            f"cannot read {path}: a TIFF of {_OTHER_KINDS.get(kind, f'colour kind {kind}')}; "
            "convert it to gray or RGB of 8 or 16 bits first"
        )
    return format, extras


def _format(head: bytes) -> str | None:
    """By a file's first twelve bytes."""
    if head.startswith(SIGNATURE):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:2] == b"BM":
        return "bmp"
    return "webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else None


def _check_header(path: Path, image: pyvips.Image, max_pixels: int) -> None:
    """Refuse what would be lost or would not fit, before decoding."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"cannot read {path}: {image.width} x {image.height} is more than {max_pixels} pixels (--max-pixels)"
        )
    if image.get_typeof("n-pages") and (pages := image.get("n-pages")) > 1:
        raise ImageError(f"cannot read {path}: it holds {pages} frames or pages, of which all but one would be lost")
    bands = {"srgb": (3, 4), "rgb16": (3, 4), "b-w": (1, 2), "grey16": (1, 2)}
    if image.bands not in bands.get(image.interpretation, ()) or image.format not in ("uchar", "ushort"):
        raise ImageError(
            f"cannot read {path}: {image.interpretation} with {image.bands} channels of type {image.format}; "
            "convert it to gray or RGB of 8 or 16 bits first"
        )


def _decode(image: pyvips.Image) -> Array:
    """All pixels, [H, W, C]."""
    use_threads()
    pixels: Array = image.numpy()
    return pixels.reshape(image.height, image.width, image.bands)


def _orientation(image: pyvips.Image, extras: Extras) -> int:
    tag = (extras.tags or {}).get(ORIENTATION)
    value = image.get("orientation") if image.get_typeof("orientation") else tag.numbers[0] if tag else 1
    return value if 1 <= value <= 8 else 1


def _with_late_exif(image: pyvips.Image, extras: Extras) -> pyvips.Image:
    """A PNG's EXIF where it follows the pixels, which libvips reads too early to see."""
    exif = next((data for kind, data in extras.chunks if kind == b"eXIf"), b"")
    if exif and not image.get_typeof("exif-data"):
        image = image.copy()
        image.set_type(vips().GValue.blob_type, "exif-data", exif)
        image.set_type(vips().GValue.gint_type, "orientation", _orientation(image, extras))
    return image


def _turned(pixels: Array, orientation: int) -> Array:
    """Stored pixels as they are shown; what the eight values mean is in EXIF 2.3, section 4.6.4."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


def _loader(format: str) -> Callable[..., pyvips.Image]:
    image = vips().Image
    return {
        "png": image.pngload,
        "jpeg": image.jpegload,
        "tiff": image.tiffload,
        "webp": image.webpload,
        "bmp": bmpload,
    }[format]
