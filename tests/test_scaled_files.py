"""Files through networks that enlarge, or whose channels are not the picture's; read back with Pillow."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import IFDRational
from running import echoir

from echoir.runtime.descriptor import Descriptor

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def restore(folder: Path, source: Path, target: str, **fields: Any) -> tuple[int, str]:
    """``echoir restore`` with a network that repeats pixels; exit code and standard error."""
    network = Descriptor("Repeat", "sr", 1, **fields)
    artifact = make_artifact(folder, "repeat", tile=(16, 24), overlap=4, network=network)
    done = echoir("restore", source, "-m", artifact.model_path, "-o", folder / target)
    return done.code, done.err


def photo(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(5).integers(0, 255, shape, np.uint8, endpoint=True)


def saved(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_picture_is_enlarged_with_its_alpha(tmp_path: Path, scale: int, mode: str) -> None:
    pixels = photo(37, 29, len(mode))
    pixels[..., -1:] = pixels[..., -1:] if mode in ("L", "RGB") else 200
    Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0]).save(tmp_path / "in.png")
    code, output = restore(tmp_path, tmp_path / "in.png", "out.png", scale=scale)
    assert code == 0, output
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == mode
        made = np.asarray(written).reshape(37 * scale, 29 * scale, -1)
    np.testing.assert_array_equal(made, pixels.repeat(scale, 0).repeat(scale, 1))


@pytest.mark.parametrize("source", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif"])
def test_resolution_and_size_are_said_of_the_new_picture_and_all_else_as_before(
    tmp_path: Path, source: str, target: str
) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Make], tags[ExifTags.Base.Orientation] = "ACME", 3
    tags[ExifTags.Base.XResolution], tags[ExifTags.Base.YResolution] = 72.0, 36.0
    camera = tags.get_ifd(ExifTags.IFD.Exif)
    camera[ExifTags.Base.ExifImageWidth], camera[ExifTags.Base.ExifImageHeight] = 30, 20
    camera[ExifTags.Base.ExposureTime] = IFDRational(1, 125)
    options: dict[str, Any] = {"exif": tags, "icc_profile": PROFILE, "dpi": (72, 36)}
    Image.fromarray(photo(20, 30, 3)).save(tmp_path / f"in{source}", **options)
    code, output = restore(tmp_path, tmp_path / f"in{source}", f"out{target}", scale=3)
    assert code == 0, output
    with Image.open(tmp_path / f"out{target}") as after:
        assert after.size == (90, 60)
        found = after.getexif()
        assert (found[ExifTags.Base.Make], found[ExifTags.Base.Orientation]) == ("ACME", 3)
        if target != ".tif" or source == ".tif":  # a TIFF's own are its tags
            assert float(found[ExifTags.Base.XResolution]) == pytest.approx(216, rel=1e-4)
            assert float(found[ExifTags.Base.YResolution]) == pytest.approx(108, rel=1e-4)
        if source != ".tif":  # where Pillow writes none
            inner = found.get_ifd(ExifTags.IFD.Exif)
            assert (inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight]) == (90, 60)
            assert float(inner[ExifTags.Base.ExposureTime]) == pytest.approx(1 / 125)
        assert after.info["icc_profile"] == PROFILE
        if target != ".webp":
            dots = tuple(round(float(dots)) for dots in after.info["dpi"])
            # Pillow takes both from the first in a JPEG's EXIF, where there is no JFIF.
            assert dots == ((216, 216) if target == ".jpg" != source else (216, 108))


def test_the_size_of_a_pixel_shrinks_as_the_picture_grows(tmp_path: Path) -> None:
    body, data = b"sCAL\x010.5\x000.25", saved(photo(20, 30, 3))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "in.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    assert restore(tmp_path, tmp_path / "in.png", "out.png", scale=2)[0] == 0
    assert b"sCAL\x010.25\x000.125" in (tmp_path / "out.png").read_bytes()


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_gray_that_becomes_colour_leaves_its_gray_profile_behind(tmp_path: Path, mode: str) -> None:
    pixels = photo(20, 30, len(mode))
    image = Image.fromarray(pixels if mode == "LA" else pixels[..., 0])
    image.save(tmp_path / "in.png", icc_profile=PROFILE)
    code, output = restore(tmp_path, tmp_path / "in.png", "out.png", input="gray", output="RGB")
    assert code == 0, output
    with Image.open(tmp_path / "out.png") as after:
        assert after.mode == ("RGBA" if mode == "LA" else "RGB")
        assert "icc_profile" not in after.info
        np.testing.assert_array_equal(np.asarray(after)[..., 0], pixels[..., 0])
        if mode == "LA":
            np.testing.assert_array_equal(np.asarray(after)[..., 3], pixels[..., 1])


def test_colours_go_through_a_network_for_gray_plane_by_plane(tmp_path: Path) -> None:
    pixels = photo(41, 30, 4)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    assert restore(tmp_path, tmp_path / "in.png", "out.png", input="gray", output="gray")[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), pixels)


def test_colour_that_becomes_gray_is_a_gray_file(tmp_path: Path) -> None:
    pixels = photo(41, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    assert restore(tmp_path, tmp_path / "in.png", "out.png", output="gray")[0] == 0
    made = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.abs(made - pixels.mean(axis=2)).max() <= 0.51


def test_a_gray_file_is_a_mosaic_for_a_network_of_mosaics(tmp_path: Path) -> None:
    mosaic = photo(40, 60)
    Image.fromarray(mosaic).save(tmp_path / "in.png")
    code, output = restore(tmp_path, tmp_path / "in.png", "out.png", input="RGGB", scale=2)
    assert code == 0, output
    made = np.asarray(Image.open(tmp_path / "out.png"))
    cells = mosaic.reshape(20, 2, 30, 2).astype(float).mean(axis=(1, 3))
    assert made.shape == (40, 60, 3)
    assert np.abs(made - cells.repeat(2, 0).repeat(2, 1)[..., None]).max() <= 0.51


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((8, 8, 3), {"input": "gray", "output": "RGB"}, "takes gray pictures"),
        ((8, 8, 3), {"input": "RGGB"}, "takes the mosaic of a sensor"),
        ((7, 8), {"input": "RGGB"}, "a mosaic repeats every 2 pixels, and this one is 8 x 7"),
        ((8, 8, 3), {"input": "RGB pair"}, "takes two pictures at once"),
    ],
)
def test_a_file_that_the_network_does_not_take_fails_by_name_and_the_others_are_done(
    tmp_path: Path, shape: tuple[int, ...], fields: dict[str, Any], message: str
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(photo(*shape)).save(tmp_path / "in" / "bad.png")
    Image.fromarray(photo(8, 8)).save(tmp_path / "in" / "good.png")
    code, output = restore(tmp_path, tmp_path / "in", "out", **fields)
    assert code == 3
    assert f"{tmp_path}/in/bad.png" in output
    assert message in output
    assert (tmp_path / "out" / "good.png").is_file() == (fields["input"] != "RGB pair")
    assert not (tmp_path / "out" / "bad.png").exists()


def test_what_a_format_cannot_hold_is_known_of_the_enlarged_picture(tmp_path: Path) -> None:
    Image.fromarray(photo(4, 5000, 3)).save(tmp_path / "in.png")
    code, output = restore(tmp_path, tmp_path / "in.png", "out.webp", scale=4)
    assert code == 3
    assert "WEBP holds at most 16383 pixels a side, this picture is 20000 x 16" in output
