"""What frames carry besides pixels: HDR, captions, fields, siting, alpha; told by ffprobe."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from probing import PICTURE, X264, ffmpeg, ffprobe, film_of, needs_ffmpeg, times_of
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.restorer import Restorer

av = pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")
pytestmark = needs_ffmpeg
GRADED = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
HDR = ("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc", "-color_range", "tv")


def restored(source: Path, target: Path, model: Artifact, *options: object, code: int = 0) -> str:
    result = echoir("stream", source, target, "-m", model.model_path, *options)
    assert result.code == code
    return result.err


def first_frame(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = ffprobe(path, "-select_streams", "V:0", "-show_frames", "-read_intervals", "%+#1")[
        "frames"
    ][0]
    return found


def beside(path: Path) -> dict[str, dict[str, Any]]:
    """What lies beside the first frame, by its kind; x265 and x264 sign their streams there too."""
    found = {item["side_data_type"]: item for item in first_frame(path).get("side_data_list", [])}
    return {kind: item for kind, item in found.items() if "Unregistered" not in kind}


def sides_of(path: Path) -> dict[str, list[float]]:
    """HDR's two blocks beside the first frame, as PyAV has them: fractions, or whole numbers."""
    found = {}
    with av.open(str(path)) as file:
        side_data = next(file.decode(video=0)).side_data
    values = np.frombuffer(side_data["MASTERING_DISPLAY_METADATA"], "<i4")[:20].reshape(10, 2)
    found["display"] = (values[:, 0] / values[:, 1]).round(4).tolist()
    found["content"] = np.frombuffer(side_data["CONTENT_LIGHT_LEVEL"], "<u4").tolist()
    return found


@pytest.fixture(scope="module")
def hdr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hdr") / "in.mp4"
    ffmpeg(*PICTURE, "-t", 0.2, "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-tag:v", "hvc1", *HDR,
           "-x265-params", f"log-level=none:chromaloc=2:{GRADED}", path)  # fmt: skip
    return path


@pytest.mark.parametrize("encoder", ["libx265", "libx264", "libsvtav1"])
def test_what_hdr_was_graded_on_and_where_chroma_is_sited_is_kept(
    encoder: str, hdr: Path, identity: Artifact, tmp_path: Path
) -> None:
    target = tmp_path / "out.mkv"
    restored(hdr, target, identity, "--encoder", encoder)
    if encoder == "libx264":  # ffprobe before version 6.1 does not look for it in H.264
        assert sides_of(target) == sides_of(hdr)
        return
    before, after = beside(hdr), beside(target)
    assert len(before) == 2
    assert after.keys() == before.keys()
    for kind, said in before.items():
        for name, value in said.items():
            if name != "side_data_type":
                one, other = (np.divide(*map(float, f"{text}/1".split("/")[:2])) for text in (value, after[kind][name]))
                assert one == pytest.approx(other, abs=1e-4)
    film = film_of(target)
    assert film["chroma_location"] == "topleft"
    assert [film[f"color_{name}"] for name in ("space", "transfer", "primaries")] == ["bt2020nc", "smpte2084", "bt2020"]


def test_what_hdr_was_graded_on_is_told_where_it_goes(hdr: Path, identity: Artifact, tmp_path: Path) -> None:
    said = restored(hdr, tmp_path / "out.mkv", identity, "--encoder", "ffv1")
    assert "left out of out.mkv: what its HDR was graded on" in said


def test_the_name_of_the_codec_stays_and_can_be_chosen(hdr: Path, identity: Artifact, tmp_path: Path) -> None:
    for name, options, tag in (("a.mp4", [], "hvc1"), ("b.mov", ["--encoder-option", "tag=hev1"], "hev1")):
        restored(hdr, tmp_path / name, identity, *options)
        assert film_of(tmp_path / name)["codec_tag_string"] == tag


def with_captions(path: Path) -> Path:
    """An MP4 with A/53 captions, written by hand into every picture: ITU-T H.264 annex D.1.6, ATSC A/53 part 4."""
    plain = path.with_suffix(".h264")
    ffmpeg(*PICTURE, "-t", 0.4, *X264, "-bf", 0, plain)  # raw H.264 has no times, and B-frames would need some
    captions = bytes([0xFC, 0x94, 0x20, 0xFD, 0x80, 0x80])
    payload = b"\xb5\x00\x31GA94\x03" + bytes([0x40 | len(captions) // 3, 0xFF]) + captions + b"\xff"
    message = b"\0\0\1\x06\x04" + bytes([len(payload)]) + payload + b"\x80"
    first, *units = plain.read_bytes().split(b"\0\0\1")
    slices = [message if unit[0] & 31 in (1, 5) else b"" for unit in units]  # one to a picture
    joined = (before + b"\0\0\1" + unit for before, unit in zip(slices, units, strict=True))
    plain.write_bytes(first + b"".join(joined))
    ffmpeg("-r", 25, "-i", plain, "-c", "copy", path)
    return path


def test_captions_stay_or_are_told(identity: Artifact, tmp_path: Path) -> None:
    source = with_captions(tmp_path / "in.mp4")
    kind = "ATSC A53 Part 4 Closed Captions"
    assert kind in beside(source)
    restored(source, tmp_path / "out.mp4", identity)
    assert kind in beside(tmp_path / "out.mp4")
    twice = make_artifact(tmp_path, "twice", network=Descriptor("Repeat", "sr", 1, scale=2))
    restored(source, tmp_path / "large.mp4", twice)
    assert kind in beside(tmp_path / "large.mp4")
    for number, model in enumerate((identity, twice)):
        said = restored(source, tmp_path / f"{number}.mkv", model, "--encoder", "ffv1")
        assert said.count("left out: closed captions (A/53), which ffv1 does not take") == 1


@pytest.fixture(scope="module")
def interlaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fields") / "in.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=50", "-t", 0.4, "-vf", "tinterlace=interleave_top",
           "-flags", "+ildct+ilme", "-top", 1, *X264, path)  # fmt: skip
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
def test_the_order_of_fields_is_kept(suffix: str, interlaced: Path, identity: Artifact, tmp_path: Path) -> None:
    assert film_of(interlaced)["field_order"] == "tt"
    target = tmp_path / f"out{suffix}"
    restored(interlaced, target, identity)
    assert film_of(target)["field_order"] == "tt"
    frame = first_frame(target)
    assert (frame["interlaced_frame"], frame["top_field_first"]) == (1, 1)


def test_fields_are_restored_one_by_one(interlaced: Path, identity: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []
    call = Restorer.__call__

    def seen(self: Restorer, image: Any, **more: Any) -> Any:
        heights.append(image.shape[0])
        return call(self, image, **more)

    monkeypatch.setattr(Restorer, "__call__", seen)
    assert echoir("stream", interlaced, "null", "-m", identity.model_path).code == 0
    assert heights == [24] * 20


def test_whole_frames_are_made_of_fields_if_asked(interlaced: Path, identity: Artifact, tmp_path: Path) -> None:
    said = restored(interlaced, tmp_path / "h265.mp4", identity, "--encoder", "libx265")
    assert "left out of h265.mp4: that it is interlaced (--deinterlace makes whole frames)" in said
    target = tmp_path / "out.mp4"
    assert "interlaced" not in restored(interlaced, target, identity, "--deinterlace")
    assert film_of(target)["field_order"] == "progressive"
    assert times_of(target) == pytest.approx(times_of(interlaced))


def test_alpha_is_told(identity: Artifact, tmp_path: Path) -> None:
    ffmpeg(*PICTURE, "-t", 0.2, "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", tmp_path / "in.webm")
    ffmpeg(*PICTURE, "-t", 0.2, "-c:v", "png", "-pix_fmt", "rgba", tmp_path / "in.mov")
    assert film_of(tmp_path / "in.webm")["tags"]["alpha_mode"] == "1"
    said = restored(tmp_path / "in.webm", tmp_path / "out.webm", identity)
    assert "left out of out.webm: its alpha plane" in said
    assert "alpha_mode" not in film_of(tmp_path / "out.webm")["tags"]
    assert "takes no RGB: frames become yuv420p, bt709, limited range, without their alpha channel" in restored(
        tmp_path / "in.mov", tmp_path / "out.mp4", identity
    )


def test_full_range_of_jpeg_stays_full(identity: Artifact, tmp_path: Path) -> None:
    ffmpeg(*PICTURE, "-t", 0.2, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", 2, tmp_path / "in.mkv")
    restored(tmp_path / "in.mkv", tmp_path / "out.mkv", identity, "--encoder-option", "crf=1")
    assert film_of(tmp_path / "out.mkv")["color_range"] == "pc"
    raw = []
    for name in ("in", "out"):
        ffmpeg(
            "-i",
            tmp_path / f"{name}.mkv",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "yuvj420p",
            "-fps_mode",
            "passthrough",
            tmp_path / f"{name}.raw",
        )
        raw.append(np.fromfile(tmp_path / f"{name}.raw", np.uint8).astype(int))
    assert np.abs(raw[0] - raw[1]).mean() < 1.5


def test_damage_in_motion_jpeg_is_counted(identity: Artifact, tmp_path: Path) -> None:
    source = tmp_path / "in.avi"
    ffmpeg(*PICTURE, "-t", 0.4, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", source)
    data = bytearray(source.read_bytes())
    third = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"][3]
    data[third + 700 : third + 800] = np.random.default_rng(1).bytes(100)
    source.write_bytes(data)
    said = restored(source, tmp_path / "out.mkv", identity, code=3)
    assert "frame 3 is damaged" in said
    assert said.splitlines()[-1].endswith("is damaged in 1 places; the rest was restored")
    assert len(times_of(tmp_path / "out.mkv")) == 10


def with_clean_aperture(data: bytes, width: int, height: int, right: int, down: int) -> bytes:
    """An MP4 whose index lies at its end, with a ``clap`` box (ISO/IEC 14496-12, 12.1.4): the size of the part to show,
    and how far its centre is from that of the frame, in half pixels."""
    box = struct.pack(">I4sIIIIiIiI", 40, b"clap", width, 1, height, 1, right, 2, down, 2)
    start, end, boxes = 0, len(data), []
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        while (found := struct.unpack_from(">I4s", data, start))[1] != name:
            start += found[0]
            assert start < end
        boxes.append(start)
        start, end = start + (16 if name == b"stsd" else 8), start + found[0]
    grown = bytearray(data)
    for at in boxes:
        struct.pack_into(">I", grown, at, struct.unpack_from(">I", grown, at)[0] + len(box))
    grown[end:end] = box
    return bytes(grown)


def test_what_a_container_leaves_out_of_the_frame_is_left_out(identity: Artifact, tmp_path: Path) -> None:
    plain, source, target = tmp_path / "plain.mp4", tmp_path / "in.mp4", tmp_path / "out.mkv"
    ffmpeg(*PICTURE, "-t", 0.2, *X264, plain)
    source.write_bytes(with_clean_aperture(plain.read_bytes(), 40, 32, 4, -6))
    with av.open(str(source)) as file:
        assert "Frame Cropping: 14/10/5/11" in lines_of(file)
    restored(source, target, identity, "--encoder", "ffv1")
    assert (film_of(target)["width"], film_of(target)["height"]) == (40, 32)
    frames = []
    for path, more in ((plain, ("-vf", "crop=40:32:14:5")), (target, ())):
        ffmpeg("-i", path, *more, "-f", "rawvideo", "-pix_fmt", "yuv420p", tmp_path / "raw")
        frames.append((tmp_path / "raw").read_bytes())
    assert len(frames[0]) == 5 * 40 * 32 * 3 // 2
    assert frames[0] == frames[1]
    with av.open(str(target)) as file:
        assert "Cropping" not in lines_of(file)


def test_a_crop_that_leaves_nothing_is_said(identity: Artifact, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    ffmpeg(*PICTURE, "-t", 0.2, *X264, source)
    source.write_bytes(with_clean_aperture(source.read_bytes(), 1, 1, 0, 0))
    said = restored(source, tmp_path / "out.mp4", identity, code=3)
    assert "in.mp4 cannot be cropped as it says" in said
    assert not (tmp_path / "out.mp4").exists()


def lines_of(file: Any) -> str:
    """FFmpeg's own lines about a file."""
    av.logging.set_libav_level(av.logging.VERBOSE)
    av.logging.set_level(av.logging.VERBOSE)
    try:
        lines: str = file.dumps_format()
        return lines
    finally:
        av.logging.set_level(av.logging.PANIC)
        av.logging.set_libav_level(av.logging.INFO)
