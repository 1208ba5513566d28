"""Pictures in and out, against Pillow, tifffile, and a PNG codec of thirty lines."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from echoir.runtime.errors import BackendError, ImageError
from echoir.runtime.images import open_picture, picture_size, save_picture
from echoir.runtime.picture import WRITABLE, Picture

Array = np.ndarray[Any, np.dtype[Any]]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = "<x:xmpmeta>Jérôme 漢字</x:xmpmeta>".encode()


def photo(shape: tuple[int, ...] = (40, 50, 3), dtype: Any = np.uint8) -> Array:
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def picture(pixels: Array) -> Picture:
    return Picture(Path("memory.png"), "png", pixels if pixels.ndim == 3 else pixels[..., None])


def copy(source: Path, target: Path, **options: Any) -> Picture:
    """What a restoration that changes nothing does."""
    opened = open_picture(source)
    save_picture(target, [opened.read_rows(0, 7), opened.read_rows(7, opened.height)], opened, **options)
    return opened


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encode_png16(pixels: Array, kind: int) -> bytes:
    """A 16-bit PNG of colour type ``kind``, every row with filter 0."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decode_png16(data: bytes, bands: int) -> Array:
    """The pixels of a 16-bit PNG; the filters as PNG's specification has them (section 9.2)."""
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    assert depth == 16
    packed, place = b"", 8
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        packed += data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += length + 12
    raw, step, stride = zlib.decompress(packed), 2 * bands, 2 * bands * width
    above, rows = bytearray(stride), []
    for y in range(height):
        kind, row = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for i in range(stride):
            a, b, c = row[i - step] if i >= step else 0, above[i], above[i - step] if i >= step else 0
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row[i] = (row[i] + (0, a, b, (a + b) // 2, paeth)[kind]) % 256
        above = row
        rows.append(np.frombuffer(bytes(row), ">u2").reshape(width, bands))
    return np.stack(rows).astype(np.uint16)


# Pixels.


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_8_bit_pixels_and_alpha_survive_unchanged(tmp_path: Path, mode: str, suffix: str) -> None:
    pixels = photo((40, 50, len(mode)))  # transparent pixels have colours too, and keep them
    Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0]).save(tmp_path / "in.png")
    opened = copy(tmp_path / "in.png", tmp_path / f"out{suffix}", quality=100)
    np.testing.assert_array_equal(opened.pixels, pixels)
    with Image.open(tmp_path / f"out{suffix}") as written:
        if suffix == ".webp":  # knows no gray
            pixels = np.asarray(Image.open(tmp_path / "in.png").convert("RGBA" if "A" in mode else "RGB"))
        else:
            assert written.mode == mode
        np.testing.assert_array_equal(np.asarray(written).reshape(pixels.shape), pixels)


@pytest.mark.parametrize(("kind", "bands"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_16_bit_png_survives_unchanged(tmp_path: Path, kind: int, bands: int) -> None:
    pixels = photo((9, 11, bands), np.uint16)
    (tmp_path / "in.png").write_bytes(encode_png16(pixels, kind))
    opened = copy(tmp_path / "in.png", tmp_path / "out.png")
    np.testing.assert_array_equal(opened.pixels, pixels)
    np.testing.assert_array_equal(decode_png16((tmp_path / "out.png").read_bytes(), bands), pixels)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_16_bit_tiff_survives_unchanged(tmp_path: Path, bands: int) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile comes with scikit-image, pip install '.[dev]'")
    pixels = photo((9, 11, bands) if bands > 1 else (9, 11), np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb" if bands > 1 else "minisblack")
    copy(tmp_path / "in.tif", tmp_path / "out.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), pixels)


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_becomes_its_colours(tmp_path: Path, transparent: bool) -> None:
    image = Image.fromarray(photo()).quantize(16)
    image.save(tmp_path / "in.png", **({"transparency": 3} if transparent else {}))
    opened = copy(tmp_path / "in.png", tmp_path / "out.png")
    expected = np.asarray(Image.open(tmp_path / "in.png").convert("RGBA" if transparent else "RGB"))
    np.testing.assert_array_equal(opened.pixels, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)


@pytest.mark.parametrize("name", ["in.png", "in.tif"])
def test_one_bit_becomes_black_and_white(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(photo((40, 50))).convert("1")
    image.save(tmp_path / name)
    opened = open_picture(tmp_path / name)
    np.testing.assert_array_equal(opened.read_rows(0, 40), np.asarray(image.convert("L")))


def test_jpeg_is_decoded_as_others_do_and_written_with_full_colour_resolution(tmp_path: Path) -> None:
    gradient = np.stack([*np.meshgrid(np.arange(0, 200, 4), np.arange(0, 160, 4)), np.full((40, 50), 90)], -1)
    Image.fromarray(gradient.astype(np.uint8)).save(tmp_path / "in.jpg", quality=95)
    opened = copy(tmp_path / "in.jpg", tmp_path / "out.jpeg")
    with Image.open(tmp_path / "in.jpg") as theirs, Image.open(tmp_path / "out.jpeg") as written:
        assert np.abs(opened.pixels.astype(int) - np.asarray(theirs)).max() <= 1
        assert [layer[1:3] for layer in written.layer] == [(1, 1)] * 3  # 4:4:4
        assert np.abs(opened.pixels - np.asarray(written).astype(int)).max() <= 4


def test_quality_sets_the_size(tmp_path: Path) -> None:
    for suffix in (".jpg", ".webp"):
        sizes = []
        for quality in (40, 95):
            save_picture(tmp_path / f"out{suffix}", [photo()], picture(photo()), quality=quality)
            sizes.append(os.path.getsize(tmp_path / f"out{suffix}"))
        assert sizes[0] < 0.6 * sizes[1]


def test_rows_are_views_without_alpha() -> None:
    rgba, gray = picture(photo((6, 5, 4))), picture(photo((6, 5, 2)))
    assert rgba.read_rows(2, 4).shape == (2, 5, 3)
    assert gray.read_rows(2, 4).shape == (2, 5)
    for opened in (rgba, gray):
        assert np.shares_memory(opened.read_rows(0, 6), opened.pixels)
        assert opened.alpha is not None
        np.testing.assert_array_equal(opened.alpha, opened.pixels[..., -1])


@pytest.mark.parametrize("size", [(1, 1), (1, 65000), (65000, 2)])
def test_extreme_sizes_pass(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = photo((*size, 3))
    for suffix in (".png", ".tif", ".jpg"):
        save_picture(tmp_path / f"out{suffix}", [pixels], picture(pixels))
        assert open_picture(tmp_path / f"out{suffix}").pixels.shape == pixels.shape
        assert picture_size(tmp_path / f"out{suffix}") == size


# Metadata.


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "ACME (Tokyo) Ltd"
    tags[ExifTags.Base.Artist] = "Jérôme"
    tags[ExifTags.Base.Orientation] = 6
    camera = tags.get_ifd(ExifTags.IFD.Exif)
    camera[ExifTags.Base.ExposureTime] = (1, 125)
    camera[ExifTags.Base.UserComment] = b"ASCII\0\0\0hello (world)"
    camera[ExifTags.Base.MakerNote] = b"MAKER\0\x01\x02\xff"
    place = tags.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSLatitudeRef], place[ExifTags.GPS.GPSLatitude] = "N", (48.0, 51.0, 29.5)
    return tags


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_exif_survives_tag_by_tag(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(photo()).save(tmp_path / f"in{suffix}", exif=exif())
    copy(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"in{suffix}") as before, Image.open(tmp_path / f"out{suffix}") as after:
        old, new = before.getexif(), after.getexif()
        pointers = {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
        assert {tag: new.get(tag) for tag in set(old) - pointers} == {tag: old[tag] for tag in set(old) - pointers}
        for pointer in pointers:
            kept = new.get_ifd(pointer)
            assert {tag: kept.get(tag) for tag in old.get_ifd(pointer)} == old.get_ifd(pointer)


@pytest.mark.parametrize("source", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif"])
def test_profile_xmp_and_orientation_survive_between_formats(tmp_path: Path, source: str, target: str) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    options: dict[str, Any] = {"icc_profile": PROFILE, "exif": tags, "xmp": XMP}
    if source == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if source == ".tif":
        tags[ExifTags.Base.XMLPacket] = XMP
    Image.fromarray(photo()).save(tmp_path / f"in{source}", **options)
    copy(tmp_path / f"in{source}", tmp_path / f"out{target}")
    with Image.open(tmp_path / f"out{target}") as after:
        assert after.getexif()[ExifTags.Base.Orientation] == 6  # before load(), which turns a TIFF
        assert after.info["icc_profile"] == PROFILE
        assert (after.tag_v2[ExifTags.Base.XMLPacket] if target == ".tif" else after.info["xmp"]) == XMP


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_resolution_survives(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(photo()).save(tmp_path / f"in{suffix}", dpi=(300, 200))
    copy(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as after:
        assert tuple(round(float(dots)) for dots in after.info["dpi"]) == (300, 200)


def test_png_text_survives_in_any_script(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Jérôme")
    info.add_text("Long", "text " * 100, zip=True)
    info.add_itxt("Title", "漢字")
    Image.fromarray(photo()).save(tmp_path / "in.png", pnginfo=info)
    copy(tmp_path / "in.png", tmp_path / "out.png")
    with Image.open(tmp_path / "in.png") as before, Image.open(tmp_path / "out.png") as after:
        after.load()  # type: ignore[no-untyped-call]
        before.load()  # type: ignore[no-untyped-call]
        assert len(before.text) == 3
        assert after.text == before.text
        np.testing.assert_array_equal(np.asarray(after), photo())
    assert sorted(os.listdir(tmp_path)) == ["in.png", "out.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_no_exif_is_made_up(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(photo()).save(tmp_path / f"in{suffix}")
    copy(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as after:
        assert "exif" not in after.info


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_turns_the_pixels_and_drops_the_tag(tmp_path: Path, orientation: int) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    Image.fromarray(photo()).save(tmp_path / "in.png", exif=tags)
    opened = open_picture(tmp_path / "in.png", upright=True)
    with Image.open(tmp_path / "in.png") as image:
        np.testing.assert_array_equal(opened.pixels, np.asarray(ImageOps.exif_transpose(image)))
    assert picture_size(tmp_path / "in.png", upright=True) == opened.pixels.shape[:2]
    save_picture(tmp_path / "out.png", [opened.read_rows(0, opened.height)], opened)
    with Image.open(tmp_path / "out.png") as after:
        assert after.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    for value in (10, 20):
        Image.new("L", (4, 4), value).save(tmp_path / "in.png")
        assert (open_picture(tmp_path / "in.png").pixels == value).all()


def test_text_in_any_encoding_neither_fails_nor_prints(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A PNG's keyword, a camera's text and a file's name that are not UTF-8."""
    png = encode_png16(photo((9, 11, 3), np.uint16), 2)
    png = png[:33] + chunk(b"tEXt", b"Gr\xf6\xdfe\0gro\xdf") + png[33:]
    tags = Image.Exif()
    tags[ExifTags.Base.Artist] = "JXrXme"
    jpeg = saved("JPEG", exif=tags).replace(b"JXrXme", b"J\xe9r\xf4me")
    for name, content, text in ((b"\xff.png", png, b"Gr\xf6\xdfe\0gro\xdf"), (b"\xff.jpg", jpeg, b"J\xe9r\xf4me")):
        source = tmp_path / os.fsdecode(name)
        source.write_bytes(content)
        target = tmp_path / f"out{source.name}"
        copy(source, target)
        assert open_picture(target).pixels.shape == open_picture(source).pixels.shape
        assert text in target.read_bytes()
    assert capfd.readouterr() == ("", "")


# Processes.


FORKED = """
import os, sys
from echoir.runtime.errors import BackendError
from echoir.runtime.images import open_picture, read_header, save_picture
path, first = sys.argv[1:]
opened = {"decode": open_picture, "header": read_header}[first](path)
if os.fork() == 0:
    try:
        again = open_picture(path)
        save_picture(path, [again.pixels], again)
    except BackendError as error:
        print(error)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize(
    ("first", "says"), [("header", ""), ("decode", "start processes with multiprocessing's 'spawn'")]
)
def test_a_forked_process_works_or_fails_at_once(tmp_path: Path, first: str, says: str) -> None:
    """WebP, since libvips needs its threads for the whole of it."""
    Image.fromarray(photo()).save(tmp_path / "in.webp")
    arguments = [sys.executable, "-c", FORKED, str(tmp_path / "in.webp"), first]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert says in done.stdout if says else done.stdout == ""


# Bad input.


def saved(format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(photo()).save(buffer, format, **options)
    return buffer.getvalue()


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "anim.gif").write_bytes(saved("GIF"))
    for name, cause in {
        "absent.png": "No such file or directory",
        ".": "it is a folder",
        "empty.png": "the file is empty",
        "text.png": "no PNG, JPEG, TIFF, WebP or BMP picture, whatever its name says",
        "anim.gif": "no PNG, JPEG, TIFF, WebP or BMP picture",
        "text.png/x.png": "Not a directory",
    }.items():
        for read in (open_picture, picture_size):
            with pytest.raises(ImageError, match=cause) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
            assert caught.value.exit_code == 3


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_truncated_file_is_never_half_decoded(tmp_path: Path, format: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(format)
    path = tmp_path / "in"
    path.write_bytes(data)
    whole = open_picture(path).pixels
    refused = 0
    cuts = [13, 40, *range(100, len(data), 97), len(data) - 2]
    for length in cuts:
        path.write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(open_picture(path).pixels, whole)  # all but what follows the last pixel
        except ImageError:
            refused += 1
    assert refused >= len(cuts) - 3
    assert capfd.readouterr() == ("", "")


def test_damaged_png_pixels_are_refused(tmp_path: Path) -> None:
    data = bytearray(saved("PNG"))
    data[len(data) // 2] ^= 255
    (tmp_path / "in.png").write_bytes(data)
    with pytest.raises(ImageError, match="truncated or damaged"):
        open_picture(tmp_path / "in.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(ImageError, match="60000 x 60000 is more than 500000000 pixels"):
        open_picture(tmp_path / "bomb.png")


def test_the_limit_of_pixels_is_inclusive(tmp_path: Path) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "in.png")
    assert open_picture(tmp_path / "in.png", max_pixels=100).width == 10
    with pytest.raises(ImageError, match="more than 99 pixels"):
        open_picture(tmp_path / "in.png", max_pixels=99)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(tmp_path: Path, format: str) -> None:
    second = Image.fromarray(photo()[::-1])
    (tmp_path / "in").write_bytes(saved(format, save_all=True, append_images=[second]))
    with pytest.raises(ImageError, match=r"it holds 2 frames.*would be lost"):
        open_picture(tmp_path / "in")


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "in.jpg"), ("CMYK", "in.tif"), ("F", "in.tif"), ("I", "in.tif")])
def test_kinds_that_would_lose_something_are_refused(tmp_path: Path, mode: str, name: str) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / name)
    with pytest.raises(ImageError, match="convert it to gray or RGB of 8 or 16 bits first"):
        open_picture(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everywhere")
def test_permissions_are_named(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "in.png")
    (tmp_path / "in.png").chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        open_picture(tmp_path / "in.png")
    tmp_path.chmod(0o500)
    with pytest.raises(ImageError, match="Permission denied"):
        save_picture(tmp_path / "out.png", [photo()], picture(photo()))


def test_a_missing_libvips_gives_the_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from echoir.runtime.vips import vips

    Image.new("L", (8, 8)).save(tmp_path / "in.png")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    vips.cache_clear()
    with pytest.raises(BackendError, match=r"pip install 'pyvips\[binary\]'"):
        open_picture(tmp_path / "in.png")


# Bad output.


def never() -> Iterator[Array]:
    pytest.fail("rows were asked for although the target cannot hold them")
    yield


@pytest.mark.parametrize(
    ("name", "pixels", "cause"),
    [
        ("out.bmp", photo(), r"the suffix is none of \.png"),
        ("out", photo(), "the suffix is none of"),
        ("out.jpg", photo((4, 4, 4)), "JPEG holds no transparency"),
        ("out.jpg", photo(dtype=np.uint16), "JPEG holds 8 bits"),
        ("out.webp", photo(dtype=np.uint16), "WEBP holds 8 bits"),
        ("out.webp", photo((1, 16384, 3)), "WEBP holds at most 16383 pixels a side"),
        ("out.jpg", photo((65501, 1, 3)), "JPEG holds at most 65500 pixels a side"),
        ("absent/out.png", photo(), "No such file or directory"),
    ],
)
def test_what_a_target_cannot_hold_is_known_before_any_work(
    tmp_path: Path, name: str, pixels: Array, cause: str
) -> None:
    with pytest.raises(ImageError, match=cause) as caught:
        save_picture(tmp_path / name, never(), picture(pixels))
    assert str(tmp_path / name) in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", sorted(WRITABLE))
def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path, suffix: str) -> None:
    """In a process that may write 2000 bytes per file."""
    target = tmp_path / f"out{suffix}"
    target.write_text("old")
    code = f"""
import resource, sys
import numpy as np
from echoir.runtime.errors import ImageError
from echoir.runtime.images import save_picture
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_images import photo, picture
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    save_picture({str(target)!r}, [photo((90, 90, 3))], picture(photo((90, 90, 3))))
except ImageError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == f"cannot write {target}: File too large\n"
    assert run.stderr == ""
    assert os.listdir(tmp_path) == [target.name]
    assert target.read_text() == "old"


def test_an_error_while_restoring_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[Array]:
        yield photo()[:10]
        raise ImageError("rejected")

    with pytest.raises(ImageError, match="rejected"):
        save_picture(tmp_path / "out.png", rows(), picture(photo()))
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_libvips_works_is_not_lost(tmp_path: Path) -> None:
    pixels = photo((2000, 1500, 3))  # a fraction of a second to write
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))

    def save() -> None:
        timer.start()
        try:
            save_picture(tmp_path / "out.png", [pixels], picture(pixels))
        finally:
            timer.join()

    with pytest.raises(KeyboardInterrupt):
        save()
    assert os.listdir(tmp_path) == []


def test_missing_rows_are_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 10 rows for a picture of 40"):
        save_picture(tmp_path / "out.png", [photo()[:10]], picture(photo()))


def test_xmp_goes_from_one_format_to_png(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "in.webp", xmp=XMP, lossless=True)
    opened = copy(tmp_path / "in.webp", tmp_path / "out.png")
    again = open_picture(tmp_path / "out.png")
    assert again.metadata["xmp-data"].get() == XMP
    assert replace(opened, pixels=again.pixels).read_rows(0, 1).shape == (1, 50, 3)
