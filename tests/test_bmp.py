"""Windows bitmaps, against Pillow, and as the standard lays them out byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ImageError
from echoir.runtime.images import open_picture, picture_size, read_header

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def bitmap(
    rows: bytes, width: int, height: int, bits: int, compression: int = 0, more: bytes = b"", length: int = 40
) -> bytes:
    """A file with its header; ``more`` stands between the header's forty bytes and the pixels."""
    offset = 14 + 40 + len(more)
    file = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", length, width, height, 1, bits, compression, len(rows), 2835, 2835, 0, 0)
    return file + info + more + rows


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 9), height=st.integers(1, 5), mode=st.sampled_from(["RGB", "L", "P"]), seed=st.integers(0, 99)
)
def test_what_pillow_writes_is_read(width: int, height: int, mode: str, seed: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    image = image.quantize(7) if mode == "P" else image.convert(mode)
    path = tmp_path / "a.bmp"
    image.save(path)
    expected = np.asarray(image.convert("RGB"))
    picture = open_picture(path)
    assert picture.format == "bmp"
    assert np.array_equal(picture.rgb, expected)
    assert picture_size(path) == (height, width)
    assert (read_header(path).height, read_header(path).width) == (height, width)
    if mode == "L":
        assert picture.gray


def test_rows_from_the_top_down_and_a_fourth_byte_that_means_nothing(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "a.bmp"
    path.write_bytes(bitmap(pixels.tobytes(), 3, -2, 32))
    picture = open_picture(path)
    assert picture.alpha is None
    assert np.array_equal(picture.pixels, pixels[:, :, 2::-1])


def test_alpha_where_the_header_has_a_mask_for_it(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    path = tmp_path / "a.bmp"
    path.write_bytes(bitmap(pixels.tobytes(), 3, 2, 32, 3, masks + bytes(68), 124))
    picture = open_picture(path)
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, pixels[::-1, :, 3])
    assert np.array_equal(picture.rgb, pixels[::-1, :, 2::-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bitmap(bytes(64), 4, 4, 8, 1), "a bitmap of RLE8; save it as PNG first"),
        (bitmap(bytes(64), 4, 4, 4), "a bitmap of 4 bits a pixel"),
        (bitmap(bytes(64), 4, 4, 16), "a bitmap of 16 bits a pixel"),
        (
            bitmap(bytes(64), 4, 4, 32, 3, struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0)),
            "channels in an order of its own",
        ),
        (bitmap(bytes(47), 4, 4, 24), "is it truncated"),
        (bitmap(bytes(48), 4, 4, 24)[:30], "ends in its header"),
        (bitmap(b"", 0, 4, 24), "is it truncated"),
    ],
)
def test_what_is_not_read_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        open_picture(path)
    with pytest.raises(ImageError, match=message):
        read_header(path)


def test_a_folder_of_bitmaps_is_restored_to_png(gain: Artifact, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((9, 7, 3), 100, np.uint8)).save(tmp_path / "in" / "a.bmp")
    assert echoir("restore", tmp_path / "in", "-m", gain.model_path, "-o", tmp_path / "out").code == 0
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).max() == 50
