"""What a file carries besides pixels, read back by Pillow, tifffile and walkers of a few lines."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from PIL import ExifTags, Image
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ImageError
from echoir.runtime.images import open_picture, save_picture
from echoir.runtime.picture import Picture

tifffile = pytest.importorskip("tifffile", reason="tifffile comes with scikit-image, pip install '.[dev]'")
Array = np.ndarray[Any, np.dtype[Any]]


def photo(shape: tuple[int, ...] = (20, 30, 3), dtype: Any = np.uint8) -> Array:
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def copy(source: Path, target: Path, **options: Any) -> Picture:
    """What a restoration that changes nothing does."""
    opened = open_picture(source, **options)
    save_picture(target, [opened.read_rows(0, opened.height)], opened)
    return opened


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Of a PNG, after checking their sums."""
    data, place, found = path.read_bytes(), 8, []
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length)[0] == zlib.crc32(kind + body)
        found.append((kind, body))
        place += length + 12
    return found


def png_with(
    path: Path, before: list[tuple[bytes, bytes]], after: tuple[tuple[bytes, bytes], ...] = (), **options: Any
) -> None:
    """A PNG with chunks of one's own before and after the pixels."""
    image = options.pop("image", Image.fromarray(photo()))
    image.save(path, "PNG", **options)
    data = path.read_bytes()
    body, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    joined = [b"".join(chunk(*one) for one in some) for some in (before, after)]
    path.write_bytes(data[:body] + joined[0] + data[body:end] + joined[1] + data[end:])


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """Of a JPEG, up to its first scan."""
    place, found = 2, []
    while data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        found.append((data[place + 1], data[place + 4 : place + 2 + length]))
        place += 2 + length
    return found


def jpeg_with(path: Path, *added: tuple[int, bytes], behind: bytes = b"", **options: Any) -> None:
    buffer = BytesIO()
    Image.fromarray(photo()).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in added)
    path.write_bytes(data[:20] + extra + data[20:] + behind)  # behind JFIF's own segment


def exif(orientation: int = 6) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.Make] = "ACME"
    return tags


COLOUR = [
    (b"cICP", bytes([9, 16, 0, 1])),
    (b"gAMA", struct.pack(">I", 100_000)),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    (b"mDCV", bytes(range(24))),
    (b"cLLI", bytes(range(8))),
    (b"sBIT", bytes([5, 6, 5])),
    (b"bKGD", bytes([0, 10, 0, 20, 0, 30])),
    (b"tIME", struct.pack(">H5B", 2024, 2, 29, 23, 59, 60)),
    (b"pHYs", struct.pack(">IIB", 2, 3, 0)),
    (b"vpAg", bytes(9)),  # a private one, whose name says that it is safe to copy
]


class TestPng:
    def test_what_says_how_colours_look_goes_on_as_it_stands(self, tmp_path: Path) -> None:
        png_with(tmp_path / "in.png", COLOUR)
        copy(tmp_path / "in.png", tmp_path / "out.png")
        assert [one for one in chunks(tmp_path / "out.png") if one[0] not in (b"IHDR", b"IDAT", b"IEND")] == COLOUR
        with Image.open(tmp_path / "out.png") as after:
            assert after.info["gamma"] == 1.0
            np.testing.assert_array_equal(np.asarray(after), photo())

    def test_srgb_and_a_profile_go_on_as_they_stand(self, tmp_path: Path) -> None:
        profile = (b"iCCP", b"Mine\0\0" + zlib.compress(bytes(200)))
        for one in ((b"sRGB", b"\1"), profile):
            png_with(tmp_path / "in.png", [one])
            copy(tmp_path / "in.png", tmp_path / "out.png")
            assert chunks(tmp_path / "out.png")[1] == one

    def test_nothing_is_made_up(self, tmp_path: Path) -> None:
        png_with(tmp_path / "in.png", [])
        copy(tmp_path / "in.png", tmp_path / "out.png")
        assert {kind for kind, _ in chunks(tmp_path / "out.png")} == {b"IHDR", b"IDAT", b"IEND"}

    def test_exif_behind_the_pixels_goes_on_and_turns_them(self, tmp_path: Path) -> None:
        block = exif().tobytes().removeprefix(b"Exif\0\0")
        png_with(tmp_path / "in.png", [], ((b"eXIf", block),))
        copy(tmp_path / "in.png", tmp_path / "out.png")
        assert (b"eXIf", block) in chunks(tmp_path / "out.png")
        for target in ("turned.png", "turned.tif", "turned.webp"):
            copy(tmp_path / "in.png", tmp_path / target, upright=True)
            with Image.open(tmp_path / target) as after:
                assert after.getexif()[ExifTags.Base.Make] == "ACME"
                assert after.getexif()[ExifTags.Base.Orientation] == 1
        with Image.open(tmp_path / "turned.png") as after:
            np.testing.assert_array_equal(np.asarray(after), np.rot90(photo(), -1))

    @pytest.mark.parametrize("transparent", [False, True])
    def test_a_palettes_background_becomes_its_colour(self, tmp_path: Path, transparent: bool) -> None:
        image = Image.fromarray(photo()).quantize(16)
        png_with(
            tmp_path / "in.png",
            [(b"bKGD", b"\5")],
            image=image,
            **({"transparency": 3} if transparent else {}),
        )
        copy(tmp_path / "in.png", tmp_path / "out.png")
        red, green, blue = image.getpalette()[15:18]  # type: ignore[index]
        assert dict(chunks(tmp_path / "out.png"))[b"bKGD"] == bytes([0, red, 0, green, 0, blue])

    def test_significant_bits_are_given_for_every_channel(self, tmp_path: Path) -> None:
        image = Image.fromarray(photo()).quantize(16)
        png_with(tmp_path / "in.png", [], image=image, transparency=3)
        data = (tmp_path / "in.png").read_bytes()
        (tmp_path / "in.png").write_bytes(data[:33] + chunk(b"sBIT", b"\5\6\5") + data[33:])  # before the palette
        copy(tmp_path / "in.png", tmp_path / "out.png")
        assert dict(chunks(tmp_path / "out.png"))[b"sBIT"] == b"\5\6\5\x08"

    def test_large_pictures_keep_their_pixels_behind_moved_chunks(self, tmp_path: Path) -> None:
        pixels = photo((900, 1000, 3))
        png_with(tmp_path / "in.png", COLOUR, image=Image.fromarray(pixels))
        copy(tmp_path / "in.png", tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as after:
            np.testing.assert_array_equal(np.asarray(after), pixels)

    @pytest.mark.parametrize(
        ("added", "said"),
        [
            ([(b"gAMA", struct.pack(">I", 100_000))], "how its colours look (gAMA)"),
            ([(b"cICP", bytes([9, 16, 0, 1]))], "how its colours look (cICP)"),
            ([(b"gAMA", struct.pack(">I", 45455))], ""),
            ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))], ""),
        ],
    )
    def test_colours_that_another_format_cannot_tell_are_named(
        self, tmp_path: Path, identity: Artifact, added: list[tuple[bytes, bytes]], said: str
    ) -> None:
        png_with(tmp_path / "in.png", added)
        arguments = ("restore", tmp_path / "in.png", "-m", identity.model_path, "-o", tmp_path / "out")
        result = echoir(*arguments, "--format", "tiff")
        assert (result.code, "not carried over" in result.err) == (0, bool(said))
        assert said in result.err
        assert "not carried over" not in echoir(*arguments).err


class TestJpeg:
    def test_comments_and_unknown_segments_go_on(self, tmp_path: Path) -> None:
        added = [(0xFE, b"first"), (0xFE, "zw\u00f6lf".encode("latin-1")), (0xEC, b"Ducky\0\1"), (0xE4, b"maker's own")]
        jpeg_with(tmp_path / "in.jpg", *added)
        copy(tmp_path / "in.jpg", tmp_path / "out.jpg")
        assert [one for one in segments((tmp_path / "out.jpg").read_bytes()) if one in added] == added
        copy(tmp_path / "in.jpg", tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as after:
            after.load()  # type: ignore[no-untyped-call]
            assert after.text["Comment"] == "first"

    def test_exif_goes_on_byte_for_byte(self, tmp_path: Path) -> None:
        tags = exif()
        tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"OLYMP\0" + bytes(range(200))
        jpeg_with(tmp_path / "in.jpg", exif=tags)
        copy(tmp_path / "in.jpg", tmp_path / "out.jpg")
        before, after = (
            [data for marker, data in segments((tmp_path / name).read_bytes()) if marker == 0xE1]
            for name in ("in.jpg", "out.jpg")
        )
        assert before == after
        copy(tmp_path / "in.jpg", tmp_path / "turned.jpg", upright=True)
        with Image.open(tmp_path / "turned.jpg") as turned:
            assert (turned.size, turned.getexif()[ExifTags.Base.Orientation]) == ((20, 30), 1)
            assert turned.getexif()[ExifTags.Base.Make] == "ACME"

    @pytest.mark.parametrize("target", [".jpg", ".png", ".webp"])
    def test_no_resolution_is_made_up(self, tmp_path: Path, target: str) -> None:
        jpeg_with(tmp_path / "in.jpg")
        copy(tmp_path / "in.jpg", tmp_path / f"out{target}")
        with Image.open(tmp_path / f"out{target}") as after:
            assert "dpi" not in after.info
            assert "exif" not in after.info
            assert after.info.get("jfif_unit", 0) == 0

    def test_what_a_phone_appends_is_named_and_the_picture_restored(self, tmp_path: Path, identity: Artifact) -> None:
        frames = [Image.fromarray(photo()[::step]) for step in (1, -1)]
        frames[0].save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=frames[1:])
        film = struct.pack(">I", 24) + b"ftypmp42" + bytes(100)
        xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta GCamera:MotionPhoto='1'/>"
        jpeg_with(tmp_path / "film.jpg", (0xE1, xmp), behind=film)
        gain = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta hdrgm:Version='1.0'/>"
        jpeg_with(tmp_path / "gain.jpg", (0xE1, gain), behind=(tmp_path / "two.jpg").read_bytes())
        jpeg_with(tmp_path / "plain.jpg")
        result = echoir("restore", tmp_path, "-m", identity.model_path, "-o", tmp_path / "out")
        assert (result.code, result.out) == (0, "restored 4, skipped 0, failed 0\n")
        for name, what in {
            "two.jpg": "1 further picture",
            "film.jpg": "the film of a motion photo",
            "gain.jpg": "its gain map (HDR)",
        }.items():
            assert f"{tmp_path / name}: not carried over: {what}\n" in result.err
            with Image.open(tmp_path / "out" / name) as after:
                assert (after.format, after.size) == ("JPEG", (30, 20))
        assert "plain.jpg: not carried over" not in result.err

    def test_a_side_beyond_what_jpeg_codecs_take_is_known_before_any_work(self, tmp_path: Path) -> None:
        wide = Picture(Path("memory.png"), "png", photo((1, 65501, 3)))
        with pytest.raises(ImageError, match="JPEG holds at most 65500 pixels a side"):
            save_picture(tmp_path / "out.jpg", iter(()), wide)
        save_picture(tmp_path / "out.jpg", [wide.pixels[:, :65500]], Picture(Path("a"), "png", wide.pixels[:, :65500]))
        with Image.open(tmp_path / "out.jpg") as after:
            assert after.size == (65500, 1)


class TestTiff:
    TAGS = (
        (271, "s", 0, "ACME", True),
        (272, "s", 0, "Scanner 3000", True),
        (305, "s", 0, "scan 1.0", True),
        (306, "s", 0, "2024:02:29 12:34:56", True),
        (315, "s", 0, "J\u00e9r\u00f4me".encode(), True),
        (316, "s", 0, "host", True),
        (318, "2I", 2, (31270, 100000, 32900, 100000), True),
        (319, "2I", 6, (64, 100, 33, 100, 30, 100, 60, 100, 15, 100, 6, 100), True),
        (33432, "s", 0, "(c) ACME", True),
        (33550, "d", 3, (0.5, 0.5, 0.0), True),  # GeoTIFF's scale
        (65000, "H", 3, (1, 2, 3), True),  # a private one
    )  # fmt: skip

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("big", [False, True])
    def test_tags_that_do_not_concern_the_layout_go_on(self, tmp_path: Path, order: str, big: bool) -> None:
        options: dict[str, Any] = {"byteorder": order, "bigtiff": big, "metadata": None, "photometric": "rgb"}
        tifffile.imwrite(tmp_path / "in.tif", photo(), extratags=self.TAGS, software=False, **options)
        copy(tmp_path / "in.tif", tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "in.tif") as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
            old, new = before.pages[0].tags, after.pages[0].tags
            for code, *_ in self.TAGS:
                assert new[code].value == old[code].value, code
                assert new[code].dtype == old[code].dtype
            np.testing.assert_array_equal(after.asarray(), photo())
        with Image.open(tmp_path / "out.tif") as again:
            np.testing.assert_array_equal(np.asarray(again), photo())

    @pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif"])
    def test_what_exif_has_too_goes_to_every_format(self, tmp_path: Path, target: str) -> None:
        tags = exif()
        tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.008
        tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
        for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            tags[folder] = dict(tags.get_ifd(folder))  # else Pillow would not write them into a TIFF
        Image.fromarray(photo()).save(tmp_path / "in.tif", exif=tags)
        copy(tmp_path / "in.tif", tmp_path / f"out{target}")
        with Image.open(tmp_path / f"out{target}") as after:
            read = after.getexif()
            assert (read[ExifTags.Base.Make], read[ExifTags.Base.Orientation]) == ("ACME", 6)
            assert float(read.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime]) == pytest.approx(1 / 125)
            assert read.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"

    @pytest.mark.parametrize("source", [".png", ".jpg", ".webp"])
    def test_exif_becomes_tags(self, tmp_path: Path, source: str) -> None:
        tags = exif()
        tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = (1, 125)
        Image.fromarray(photo()).save(tmp_path / f"in{source}", exif=tags)
        copy(tmp_path / f"in{source}", tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "out.tif") as after:
            assert after.pages[0].tags[271].value == "ACME"
            assert after.pages[0].tags[34665].value["ExposureTime"] == (1, 125)
            assert after.pages[0].tags[296].value == 1  # no resolution: none is made up

    def test_a_fourth_channel_that_is_no_transparency_stays_none(self, tmp_path: Path) -> None:
        pixels = photo((20, 30, 4), np.uint16)
        tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", extrasamples=("unspecified",))
        opened = copy(tmp_path / "in.tif", tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "out.tif") as after:
            assert [int(sample) for sample in after.pages[0].extrasamples] == [0]
            np.testing.assert_array_equal(after.asarray(), pixels)
        with pytest.raises(ImageError, match="a channel that is no transparency; write TIFF"):
            save_picture(tmp_path / "out.png", [], opened)

    def test_transparency_stays_transparency(self, tmp_path: Path) -> None:
        pixels = photo((20, 30, 4))
        tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", extrasamples=("unassalpha",))
        copy(tmp_path / "in.tif", tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "out.tif") as after:
            assert [int(sample) for sample in after.pages[0].extrasamples] == [2]
            np.testing.assert_array_equal(after.asarray(), pixels)

    def test_gray_with_further_channels_is_refused(self, tmp_path: Path) -> None:
        tifffile.imwrite(
            tmp_path / "in.tif", photo(), photometric="minisblack", planarconfig="contig", extrasamples=(0, 0)
        )
        with pytest.raises(ImageError, match="b-w with 3 channels"):
            open_picture(tmp_path / "in.tif")

    def test_other_colours_are_named(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "in.tif", photo(), photometric="cielab")
        with pytest.raises(ImageError, match="a TIFF of CIELAB; convert it to gray or RGB") as caught:
            open_picture(tmp_path / "in.tif")
        assert "truncated" not in str(caught.value)

    def test_a_list_of_tags_that_leads_nowhere_does_no_harm(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "in.tif", photo(), photometric="rgb", metadata=None)
        data = bytearray((tmp_path / "in.tif").read_bytes())
        place = data.index(struct.pack("<HHI", 305, 2, 12)) + 8  # Software: a text outside the list
        struct.pack_into("<I", data, place, 2**32 - 5)
        (tmp_path / "in.tif").write_bytes(data)
        copy(tmp_path / "in.tif", tmp_path / "out.tif")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), photo())


def test_lossless_webp_stays_lossless_and_lossy_stays_lossy(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "one")
    smooth = np.kron(photo((6, 8, 3)), np.ones((16, 16, 1), np.uint8))
    for name, lossless in (("a", True), ("b", False)):
        Image.fromarray(smooth).save(tmp_path / f"{name}.webp", lossless=lossless, quality=90)
        out = tmp_path / f"out-{name}.webp"
        assert echoir("restore", tmp_path / f"{name}.webp", "-m", artifact.model_path, "-o", out).code == 0
        assert (b"VP8L" in out.read_bytes()[:64]) == lossless
    with Image.open(tmp_path / "out-a.webp") as after:
        np.testing.assert_array_equal(np.asarray(after), smooth)
