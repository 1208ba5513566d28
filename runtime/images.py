"""Reading and writing pictures: PNG, JPEG, TIFF and WebP, 8 and 16 bits, with what else is in the file.

libvips does the work (pyvips): it holds 16-bit colour, which Pillow does not, needs no copy of the
pixels to write them, and carries profiles, EXIF, XMP, IPTC and resolution from file to file. EXIF is
carried tag by tag: its bytes may be laid out anew, and tags in no standard are dropped, as are a
camera's tags inside a *TIFF*. Text goes from PNG to PNG.

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
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.errors import BackendError, ImageError
from echoir.runtime.files import atomic_write
from echoir.runtime.segments import (
    JPEG_BODY,
    PNG_BODY,
    SIGNATURE,
    insert,
    is_whole,
    jfif_segment,
    scan_chunks,
    xmp_chunk,
)

if TYPE_CHECKING:
    import pyvips

Array = np.ndarray[Any, np.dtype[Any]]

# Suffixes that can be written, and the format each stands for. Reading goes by content.
WRITABLE = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}
MAX_PIXELS = 500_000_000
_MAX_SIDE = {"jpeg": 65535, "webp": 16383}
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
class Picture:
    """A decoded picture.

    Attributes:
        path: the file it came from.
        format: ``"png"``, ``"jpeg"``, ``"tiff"`` or ``"webp"``.
        pixels: [H, W, C], uint8 or uint16; C is 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
            Palettes are resolved to RGB, 1, 2 and 4 bits are widened to 8 (white is 255).
        resolution: pixels per millimetre, across and down.
        metadata: everything else in the file, by libvips' field names, as libvips' own values (EXIF
            may hold text of unknown encoding, which Python's strings would change).
        png_text: the text chunks of a PNG as they stood there.
    """

    path: Path
    format: str
    pixels: Array
    resolution: tuple[float, float] = (1.0, 1.0)
    metadata: dict[str, pyvips.GValue] = field(default_factory=dict)
    png_text: bytes = b""

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def gray(self) -> bool:
        return self.pixels.shape[2] < 3

    @property
    def rgb(self) -> Array:
        """The colours [H, W, 3] without alpha; gray in all three. A view."""
        return (
            np.broadcast_to(self.pixels[:, :, :1], (self.height, self.width, 3)) if self.gray else self.pixels[:, :, :3]
        )

    @property
    def alpha(self) -> Array | None:
        """The alpha channel [H, W], or None."""
        return self.pixels[:, :, -1] if self.pixels.shape[2] in (2, 4) else None

    def read_rows(self, y0: int, y1: int) -> Array:
        """Rows y0 to y1 - 1 without alpha: [y1 - y0, W, 3], or [y1 - y0, W] of a gray picture. No copy."""
        rows = self.pixels[y0:y1]
        return rows[:, :, 0] if self.gray else rows[:, :, :3]


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
        path: a PNG, JPEG, TIFF or WebP file, whatever its suffix says.
        max_pixels: refuse larger pictures before decoding them.
        upright: turn the pixels as the orientation tag says, and reset the tag to 1.

    Raises:
        ImageError: no such file, not such a picture, truncated or damaged, too large, or of a kind
            that could only be restored with loss (several frames or pages, CMYK, more than 16 bits).
    """
    path = Path(path)
    with _reading(path):
        format, png_text = _sniff(path)
        image = _loader(format)(os.fsencode(path), access="sequential", fail_on="error")
        _check_header(path, image, max_pixels)
        resolution, pixels = (image.xres, image.yres), _decode(image)
        if upright and (orientation := _orientation(image)) != 1:
            pixels = _turned(pixels, orientation)
            resolution = resolution[::-1] if orientation >= 5 else resolution
            image = image.copy()
            # Said outright: a tag that is merely missing would come back from the EXIF bytes.
            image.set_type(_vips().GValue.gint_type, "orientation", 1)
    return Picture(path, format, pixels, resolution, _metadata(image), png_text)


def read_header(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Header:
    """Check a file as far as that is possible without decoding it; one that looks truncated is decoded.

    Raises:
        ImageError: what :func:`open_picture` would refuse, but for damage between a file's header and its end.
    """
    path = Path(path)
    with _reading(path):
        image = _loader(_sniff(path)[0])(os.fsencode(path), access="sequential", fail_on="error")
        _check_header(path, image, max_pixels)
        if not is_whole(path):
            open_picture(path, max_pixels=max_pixels)  # a JPEG that lacks nothing but its last marker will pass
    return Header((image.height, image.width), _orientation(image))


def picture_size(path: str | os.PathLike[str], *, upright: bool = False) -> tuple[int, int]:
    """Height and width by the header alone: what :func:`open_picture` would give.

    Raises:
        ImageError: no such file, or not such a picture.
    """
    path = Path(path)
    with _reading(path):
        image = _loader(_sniff(path)[0])(os.fsencode(path), access="sequential")
    header = Header((image.height, image.width), _orientation(image) if upright else 1)
    return header.height, header.width


def save_picture(path: str | os.PathLike[str], rows: Iterable[Array], like: Picture, *, quality: int = 95) -> None:
    """Write restored rows as a picture with the alpha channel and the metadata of another.

    What the format cannot hold is found before the first row is asked for.

    Args:
        path: the target; its suffix is the format (:data:`WRITABLE`). It appears whole or not at all.
        rows: strips from top to bottom, as :meth:`Picture.read_rows` gives them and
            ``Restorer.strips`` yields them; together as high as ``like``.
        like: where alpha and metadata come from.
        quality: 1 to 100, of JPEG (4:4:4, colour at full resolution) and WebP; 100 is lossless WebP.

    Raises:
        ImageError: the target cannot be written, or cannot hold these pixels.
    """
    path = Path(path)
    format = _check_target(path, like)
    with atomic_write(path) as temporary:
        pixels = np.empty_like(like.pixels)
        done = 0
        for strip in rows:
            target = pixels[done : done + len(strip)]
            if like.gray:
                target[:, :, 0] = strip
            else:
                target[:, :, :3] = strip
            done += len(strip)
        if done != like.height:
            raise ValueError(f"got {done} rows for a picture of {like.height}")
        if like.alpha is not None:
            pixels[:, :, -1] = like.alpha
        try:
            _encode(_image(pixels, like), format, temporary, quality, like)
        except (_vips().Error, UnicodeDecodeError) as error:
            raise ImageError(f"cannot write {path}: {_cause(error)}") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading a file can raise into one line that names it."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    except (_vips().Error, UnicodeDecodeError) as error:  # a lack of memory comes as Error as well
        raise ImageError(f"cannot read {path}: {_cause(error)}; is the file truncated or damaged?") from error


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
    return format


def _image(pixels: Array, like: Picture) -> pyvips.Image:
    """Pixels as a libvips image (no copy) with the metadata of another picture."""
    height, width, bands = pixels.shape
    deep = pixels.dtype == np.uint16
    image = _vips().Image.new_from_memory(pixels.data, width, height, bands, "ushort" if deep else "uchar")
    kind = ("grey16" if deep else "b-w") if like.gray else ("rgb16" if deep else "srgb")
    xres, yres = like.resolution
    image = image.copy(interpretation=kind, xres=xres, yres=yres)
    for name, value in like.metadata.items():
        _vips().vips_lib.vips_image_set(image.pointer, _encoded(name), value.pointer)
    return image


def _metadata(image: pyvips.Image) -> dict[str, pyvips.GValue]:
    """All fields that are not the image's own shape."""
    metadata = {}
    for name in _fields(image):
        value = _vips().GValue()
        known = _vips().vips_lib.vips_image_get(image.pointer, _encoded(name), value.pointer) == 0
        if known and name not in _header_fields() and not name.startswith(_NOT_CARRIED):
            metadata[name] = value
    return metadata


def _fields(image: pyvips.Image) -> list[str]:
    """Names of fields; pyvips' own way to them fails on names that are not UTF-8, as a PNG's may be."""
    names: list[str] = []
    ffi = _vips().ffi
    array = _vips().vips_lib.vips_image_get_fields(image.pointer)
    while array[len(names)] != ffi.NULL:
        names.append(ffi.string(array[len(names)]).decode("utf-8", "surrogateescape"))
        _vips().glib_lib.g_free(array[len(names) - 1])
    _vips().glib_lib.g_free(array)
    return names


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _png_chunks(like: Picture) -> bytes:
    """The text chunks for a PNG: those of the PNG before, or XMP from another format."""
    if like.format == "png" or "xmp-data" not in like.metadata:
        return like.png_text
    return xmp_chunk(like.metadata["xmp-data"].get())


def _encode(image: pyvips.Image, format: str, path: Path, quality: int, like: Picture) -> None:
    _use_threads()
    # libvips would make up EXIF for a picture that has none. Orientation needs it, outside TIFF.
    exif = "exif-data" in like.metadata or ("orientation" in like.metadata and like.metadata["orientation"].get() != 1)
    kinds = _vips().ForeignKeep
    keep = kinds.ALL if exif else kinds.ALL & ~kinds.EXIF
    if format == "png":
        keep &= ~(kinds.XMP | kinds.OTHER)  # _png_chunks has them
        image.pngsave(os.fsencode(path), filter="all", bitdepth=16 if image.format == "ushort" else 8, keep=keep)
        if chunks := _png_chunks(like):
            insert(path, PNG_BODY, chunks)
    elif format == "jpeg":
        image.jpegsave(os.fsencode(path), Q=quality, subsample_mode="off", keep=keep)
        if not exif:
            insert(path, JPEG_BODY, jfif_segment(*like.resolution))
    elif format == "webp":
        image.webpsave(os.fsencode(path), Q=quality, lossless=quality == 100, exact=True, keep=keep)
    else:
        big = like.pixels.nbytes > 3 << 30  # past 4 GB offsets need 64 bits
        image.tiffsave(os.fsencode(path), compression="deflate", predictor="horizontal", bigtiff=big, keep=keep)


def _sniff(path: Path) -> tuple[str, bytes]:
    """The format of a file by its first bytes, and a PNG's text; refuses all else."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # a pipe would be waited for, and cannot be read twice
        raise ImageError(f"cannot read {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
    with open(path, "rb") as file:
        head = file.read(12)
        if not head:
            raise ImageError(f"cannot read {path}: the file is empty")
        if head.startswith(SIGNATURE):
            frames, text = scan_chunks(file)
            if frames > 1:
                raise ImageError(f"cannot read {path}: it holds {frames} frames, of which all but one would be lost")
            return "png", text
        if head.startswith(b"\xff\xd8\xff"):
            return "jpeg", b""
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return "tiff", b""
        if head[:4] == b"RIFF" and head[8:] == b"WEBP":
            return "webp", b""
    raise ImageError(f"cannot read {path}: no PNG, JPEG, TIFF or WebP picture, whatever its name says")


def _check_header(path: Path, image: pyvips.Image, max_pixels: int) -> None:
    """Refuse what would be lost or would not fit, before decoding."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"cannot read {path}: {image.width} x {image.height} is more than {max_pixels} pixels (--max-pixels)"
        )
    if image.get_typeof("n-pages") and (pages := image.get("n-pages")) > 1:
        raise ImageError(f"cannot read {path}: it holds {pages} frames or pages, of which all but one would be lost")
    kinds = {"srgb", "rgb16", "b-w", "grey16"}
    if image.interpretation not in kinds or image.bands > 4 or image.format not in ("uchar", "ushort"):
        raise ImageError(
            f"cannot read {path}: {image.interpretation} with {image.bands} channels of type {image.format}; "
            "convert it to gray or RGB of 8 or 16 bits first"
        )


def _decode(image: pyvips.Image) -> Array:
    """All pixels, [H, W, C]."""
    _use_threads()
    pixels: Array = image.numpy()
    return pixels.reshape(image.height, image.width, image.bands)


def _orientation(image: pyvips.Image) -> int:
    value = image.get("orientation") if image.get_typeof("orientation") else 1
    return value if 1 <= value <= 8 else 1


def _turned(pixels: Array, orientation: int) -> Array:
    """Stored pixels as they are shown; what the eight values mean is in EXIF 2.3, section 4.6.4."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


def _loader(format: str) -> Callable[..., pyvips.Image]:
    image = _vips().Image
    return {"png": image.pngload, "jpeg": image.jpegload, "tiff": image.tiffload, "webp": image.webpload}[format]


def _cause(error: pyvips.Error | UnicodeDecodeError) -> str:
    """What libvips says in several lines, as one: the system's reason if there is one, else all of it."""
    if isinstance(error, UnicodeDecodeError):  # pyvips cannot quote a file's own words unless they are UTF-8
        return error.object.decode("ascii", "replace")
    lines = [line.strip() for line in str(error.detail or error.message).splitlines()]
    for line in lines:
        if line.startswith("system error: "):
            return line.removeprefix("system error: ")
    return "; ".join(dict.fromkeys(line for line in lines if line))


_threads_ran = _threads_lost = False


def _use_threads() -> None:
    """libvips keeps its threads, does not notice that fork leaves them behind, and would wait for them forever.

    Raises:
        BackendError: in a process that was forked from one where pictures were read or written.
    """
    global _threads_ran
    if _threads_lost:
        raise BackendError(
            "this process was forked from one that had read or written pictures, and libvips' threads stayed there; "
            "start processes with multiprocessing's 'spawn' or 'forkserver'"
        )
    _threads_ran = True


def _note_fork() -> None:
    global _threads_ran, _threads_lost
    _threads_ran, _threads_lost = False, _threads_ran or _threads_lost


os.register_at_fork(after_in_child=_note_fork)


@cache
def _header_fields() -> frozenset[str]:
    """What every libvips image has: its shape and the like, no metadata."""
    return frozenset(_fields(_vips().Image.black(1, 1))) | {"filename"}


@cache
def _vips() -> Any:
    """pyvips, set up once."""
    # No Python runs inside libvips: pyvips would log its warnings there, where an interrupt gets lost and a
    # warning that is not UTF-8 prints a traceback. Errors are raised; warnings are about tolerable files.
    os.environ.setdefault("VIPS_WARNING", "0")
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise BackendError(f"pyvips cannot be imported ({error}); run: pip install 'pyvips[binary]'") from error
    pyvips._remove_log_handler()
    pyvips.cache_set_max(0)  # it would give a file's old pixels after the file has changed
    return pyvips
