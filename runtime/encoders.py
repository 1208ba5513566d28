"""Writing PNG, JPEG, TIFF and WebP: libvips codes the pixels and what it knows; the rest is put in afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echoir.runtime.jpeg import jfif_segment, put_segments
from echoir.runtime.png import comment_chunk, fitting_chunks, put_chunks, resolution_chunk, xmp_chunk
from echoir.runtime.tags import EXTRA_SAMPLES, RESOLUTION_UNIT, Tag, add_tags, carried, to_exif, with_orientation
from echoir.runtime.vips import encoded, use_threads, vips

if TYPE_CHECKING:
    import pyvips

    from echoir.runtime.picture import Picture

Array = np.ndarray[Any, np.dtype[Any]]
QUALITY = 95


def encode(format: str, path: Path, quality: int | None, picture: Picture) -> None:
    """Write a picture with all else that it carries.

    Args:
        format: ``"png"``, ``"jpeg"``, ``"tiff"`` or ``"webp"``.
        path: a file that may be replaced.
        quality: as for :func:`echoir.runtime.images.save_picture`.
        picture: the picture; its pixels are contiguous.

    Raises:
        pyvips.Error: libvips could not write it.
        OSError: the file could not be changed.
    """
    use_threads()
    image = _image(picture)
    target = os.fsencode(path)
    # libvips would make up EXIF for a picture that has none. Orientation needs it, outside TIFF.
    orientation = picture.metadata["orientation"].get() if "orientation" in picture.metadata else 1
    exif = "exif-data" in picture.metadata or orientation != 1
    if picture.format == "tiff" and format != "tiff" and (tags := carried(picture.extras.tags or {})):
        image.set_type(vips().GValue.blob_type, "exif-data", to_exif(tags))
        exif = True
    kinds = vips().ForeignKeep
    keep = kinds.ALL if exif else kinds.ALL & ~kinds.EXIF
    if format == "png":
        # Text is never libvips' work: nothing beyond ASCII would survive.
        keep = kinds.NONE if picture.format == "png" else keep & ~(kinds.XMP | kinds.OTHER)
        image.pngsave(target, filter="all", bitdepth=16 if image.format == "ushort" else 8, keep=keep)
        put_chunks(path, _png_chunks(picture, orientation))
    elif format == "jpeg":
        same = picture.format == "jpeg"
        image.jpegsave(target, Q=quality or QUALITY, subsample_mode="off", keep=kinds.NONE if same else keep)
        if same:
            segments = picture.extras.segments
            put_segments(
                path, [(m, with_orientation(data, orientation) if m == 0xE1 else data) for m, data in segments]
            )
        elif not exif:
            put_segments(path, [jfif_segment(picture.resolution)])
    elif format == "webp":
        lossless = quality == 100 or (quality is None and picture.extras.lossless)
        image.webpsave(target, Q=quality or QUALITY, lossless=lossless, exact=True, keep=keep)
    else:
        big = picture.pixels.nbytes > 3 << 30  # past 4 GB offsets need 64 bits
        image.tiffsave(target, compression="deflate", predictor="horizontal", bigtiff=big, keep=keep)
        with open(path, "r+b") as file:
            add_tags(file, _tiff_tags(picture))


def _png_chunks(picture: Picture, orientation: int) -> list[tuple[bytes, bytes]]:
    """The chunks for a PNG: those of the PNG before, or what another format has in their stead."""
    if picture.format == "png":
        return [
            (kind, with_orientation(data, orientation) if kind == b"eXIf" else data)
            for kind, data in fitting_chunks(picture.extras.chunks, picture.pixels.shape[2])
        ]
    chunks = []
    if picture.resolution is not None:
        chunks.append(resolution_chunk(*picture.resolution))
    if "xmp-data" in picture.metadata:
        chunks.append(xmp_chunk(picture.metadata["xmp-data"].get()))
    if comment := picture.extras.comment:
        chunks.append(comment_chunk(comment))
    return chunks


def _tiff_tags(picture: Picture) -> dict[int, Tag]:
    """The tags for a TIFF: those of the TIFF or the EXIF before, and what libvips would say wrongly."""
    tags = dict(carried(picture.extras.tags or {}))
    if picture.resolution is None:
        tags[RESOLUTION_UNIT] = Tag(3, 1, b"\1\0")  # none
    if picture.fourth:
        tags[EXTRA_SAMPLES] = Tag(3, 1, b"\0\0")  # unspecified
    return tags


def _image(picture: Picture) -> pyvips.Image:
    """A picture as a libvips image with its metadata; no copy."""
    pixels = picture.pixels
    height, width, bands = pixels.shape
    deep = pixels.dtype == np.uint16
    image = vips().Image.new_from_memory(pixels.data, width, height, bands, "ushort" if deep else "uchar")
    kind = ("grey16" if deep else "b-w") if picture.gray else ("rgb16" if deep else "srgb")
    xres, yres = picture.resolution or (1.0, 1.0)
    image = image.copy(interpretation=kind, xres=xres, yres=yres)
    for name, value in picture.metadata.items():
        vips().vips_lib.vips_image_set(image.pointer, encoded(name), value.pointer)
    return image
