"""Films through networks that enlarge, or whose planes are not the film's: by ffprobe, and by what ffmpeg decodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from probing import PICTURE, TONE, X264, ffmpeg, ffprobe, film_of, needs_ffmpeg, times_of
from running import Result, echoir

from echoir.runtime.descriptor import Descriptor

pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")
pytestmark = needs_ffmpeg

Array = np.ndarray[Any, np.dtype[Any]]
Model = Callable[..., Path]
LOSSLESS = ("--encoder", "ffv1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Artifacts that repeat pixels, by the fields of their network."""
    folder = tmp_path_factory.mktemp("models")

    def made(**fields: Any) -> Path:
        name = "-".join(map(str, fields.values()))
        network = Descriptor("Repeat", "sr", 1, **fields)
        return make_artifact(folder, name.replace(" ", ""), tile=(32, 40), overlap=4, network=network).model_path

    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames with sound and all that a file says of its film."""
    folder = tmp_path_factory.mktemp("clip")
    tags = ("-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "bt709", "-color_range", "tv")
    sited = ("-x264-params", "chromaloc=2")
    ffmpeg(*PICTURE, *TONE, "-t", 0.24, *X264, "-vf", "setsar=4/3", *tags, *sited, "-c:a", "aac", folder / "flat.mp4")
    ffmpeg("-i", folder / "flat.mp4", "-c", "copy", "-metadata:s:v:0", "rotate=90", folder / "clip.mp4")
    return folder / "clip.mp4"


def enlarge(source: object, target: Path | str, artifact: Path, *more: object, code: int = 0) -> Result:
    result = echoir("stream", source, target, "-m", artifact, *more)
    assert result.code == code, result.err
    return result


def decoded(path: Path, pixels: str, shape: tuple[int, ...], *more: str) -> Array:
    """All samples of all frames, by ffmpeg, [frames, *shape]."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), *more, "-f", "rawvideo", "-pix_fmt", pixels, "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, "<u2" if "10" in pixels else np.uint8).reshape(-1, *shape)


@pytest.mark.parametrize(("scale", "suffix"), [(2, ".mp4"), (3, ".mkv"), (4, ".mov")])
def test_a_film_grows_and_keeps_all_that_it_says_of_itself(
    scale: int, suffix: str, clip: Path, model: Model, tmp_path: Path
) -> None:
    target = tmp_path / f"out{suffix}"
    said = enlarge(clip, target, model(scale=scale)).err
    assert f"becomes {64 * scale} x {48 * scale}" in said
    before, after = film_of(clip), film_of(target)
    assert (after["width"], after["height"]) == (64 * scale, 48 * scale)
    for field in ("sample_aspect_ratio", "pix_fmt", "avg_frame_rate", "chroma_location", "color_range", "color_space",
                  "color_primaries", "color_transfer"):  # fmt: skip
        assert after[field] == before[field] not in ("", "unknown")
    assert [item.get("rotation") for item in after["side_data_list"]] == [90]
    assert times_of(target) == pytest.approx(times_of(clip), abs=0.0011)
    sounds = [ffprobe(path, "-select_streams", "a", "-show_packets")["packets"] for path in (clip, target)]
    assert [packet["size"] for packet in sounds[1]] == [packet["size"] for packet in sounds[0]] != []


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize(("pixels", "planes"), [("yuv444p", 3), ("yuv444p10le", 3), ("gray", 1)])
def test_frames_hold_what_the_network_made_of_them(
    pixels: str, planes: int, scale: int, model: Model, tmp_path: Path
) -> None:
    """Pixels that are repeated are codes that are repeated, where chroma is not shared; at an odd size."""
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x96:rate=25", "-frames:v", 2, "-vf",
           f"format={pixels},crop=51:37", "-color_range", "tv", "-c:v", "ffv1", source)  # fmt: skip
    enlarge(source, target, model(scale=scale), *LOSSLESS)
    wanted = decoded(source, pixels, (planes, 37, 51)).repeat(scale, 2).repeat(scale, 3)
    found = decoded(target, pixels, (planes, 37 * scale, 51 * scale))
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_frames_of_shared_chroma_look_as_if_ffmpeg_had_repeated_their_pixels(model: Model, tmp_path: Path) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    ffmpeg("-f", "lavfi", "-i", "gradients=size=64x48:rate=25:seed=3", "-frames:v", 2, "-pix_fmt", "yuv420p", "-c:v",
           "ffv1", source)  # fmt: skip
    enlarge(source, target, model(scale=2), *LOSSLESS)
    luma = decoded(source, "gray", (48, 64)).repeat(2, 1).repeat(2, 2)
    assert np.abs(decoded(target, "gray", (96, 128)).astype(int) - luma).max() <= 2
    theirs = decoded(source, "rgb24", (96, 128, 3), "-vf", "scale=iw*2:ih*2")
    ours = decoded(target, "rgb24", (96, 128, 3)).astype(int)
    assert np.abs(ours - theirs).mean() < 1.5


def test_a_small_film_that_does_not_say_its_matrix_says_it_when_it_is_large(model: Model, tmp_path: Path) -> None:
    """Players take 1152 lines for BT.709; these are what 288 lines were taken for."""
    source = tmp_path / "in.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x288:rate=25", "-frames:v", 2, *X264, source)
    assert film_of(source).get("color_space", "unknown") == "unknown"
    said = enlarge(source, tmp_path / "out.mp4", model(scale=4)).err
    assert "taken for bt601" in said
    assert film_of(tmp_path / "out.mp4")["color_space"] == "smpte170m"


def test_a_display_matrix_that_moves_the_picture_moves_the_larger_one_as_far(
    clip: Path, model: Model, tmp_path: Path
) -> None:
    """Cameras write by how much a turned picture is moved back into view, in pixels (ISO/IEC 14496-12, 8.3.2)."""
    data, source, target = clip.read_bytes(), tmp_path / "in.mp4", tmp_path / "out.mp4"
    turned = np.array([0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30], ">i4")
    assert data.count(turned.tobytes()) == 1
    moved = turned.copy()
    moved[6:8] = 48 << 16, 5 << 16
    source.write_bytes(data.replace(turned.tobytes(), moved.tobytes()))
    enlarge(source, target, model(scale=2))
    lasts = [film_of(path)["side_data_list"][0]["displaymatrix"].split(":")[-1].split() for path in (source, target)]
    assert lasts == [[str(48 << 16), str(5 << 16), str(1 << 30)], [str(96 << 16), str(10 << 16), str(1 << 30)]]


def test_fields_are_refused_and_made_whole_on_request(model: Model, tmp_path: Path) -> None:
    source = tmp_path / "fields.ts"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=50", "-t", 0.24, "-vf", "tinterlace=interleave_top",
           "-flags", "+ildct+ilme", "-top", 1, *X264, source)  # fmt: skip
    refused = enlarge(source, tmp_path / "out.mkv", model(scale=2), code=2)
    assert "Repeat enlarges 2 times, which the two fields of interlaced frames do not take" in refused.err
    assert not list(tmp_path.glob("out*"))
    enlarge(source, tmp_path / "out.mkv", model(scale=2), "--deinterlace")
    film = film_of(tmp_path / "out.mkv")
    assert (film["width"], film["height"], film.get("field_order", "progressive")) == (128, 96, "progressive")
    whole = tmp_path / "whole.ts"
    ffmpeg(*PICTURE, "-t", 0.24, *X264, whole)
    (tmp_path / "both.ts").write_bytes(whole.read_bytes() + source.read_bytes())
    ended = enlarge(tmp_path / "both.ts", tmp_path / "ended.mkv", model(scale=2), code=3)
    assert "has become interlaced, which cannot be enlarged 2 times" in ended.err
    assert 4 <= len(times_of(tmp_path / "ended.mkv")) <= 6, "what came before is finished"


def test_no_frame_can_pass_and_others_are_dropped(clip: Path, model: Model, tmp_path: Path) -> None:
    refused = enlarge(clip, "null", model(scale=2), "--deadline", 1000, code=2)
    assert "no frame can pass unrestored; with --deadline say --policy drop or slow" in refused.err
    said = enlarge(clip, tmp_path / "out.mp4", model(scale=2), "--deadline", 60_000, "--policy", "drop").err
    assert "frames 6, restored 6, passed 0, dropped 0" in said
    late = enlarge(clip, "null", model(scale=2), "--deadline", 0.001, "--policy", "drop").err
    assert "frames 6, restored 0, passed 0, dropped 6" in late


@pytest.mark.parametrize(
    ("fields", "pixels", "message"),
    [
        ({"input": "gray"}, "yuv420p", "makes RGB of gray; frames of yuv420p are colour, and stay so"),
        ({"input": "gray"}, "gray", "makes RGB of gray; frames of gray are gray, and stay so"),
        ({"output": "gray"}, "yuv420p", "makes gray of RGB; frames of yuv420p are colour, and stay so"),
        ({"input": "RGGB"}, "gray", "makes RGB of RGGB; frames of gray are gray, and stay so"),
        ({"input": "RGGB", "output": "gray"}, "gray", "makes gray of RGGB"),
        ({"input": "RGB pair"}, "yuv420p", "makes RGB of RGB pair"),
    ],
)
def test_a_network_of_other_planes_than_the_films_is_refused(
    fields: dict[str, Any], pixels: str, message: str, model: Model, tmp_path: Path
) -> None:
    source = tmp_path / "in.mkv"
    ffmpeg(*PICTURE, "-frames:v", 1, "-c:v", "ffv1", "-pix_fmt", pixels, source)
    result = enlarge(source, tmp_path / "out.mkv", model(**fields), code=2)
    assert message in result.err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(("planes", "pixels"), [("gray", "rgb24"), ("gray", "gray"), ("RGB", "gray")])
def test_a_network_for_gray_takes_colours_plane_by_plane_and_one_for_colours_gray(
    planes: str, pixels: str, model: Model, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    ffmpeg(*PICTURE, "-frames:v", 2, "-c:v", "ffv1", "-pix_fmt", "gbrp" if pixels == "rgb24" else pixels, source)
    enlarge(source, target, model(input=planes, output="gray", scale=2), *LOSSLESS)
    depth = (3,) if pixels == "rgb24" else ()
    wanted = decoded(source, pixels, (48, 64, *depth)).repeat(2, 1).repeat(2, 2)
    assert np.abs(decoded(target, pixels, (96, 128, *depth)).astype(int) - wanted).max() <= 1


def test_a_header_of_yuv4mpeg2_is_that_of_larger_frames(model: Model) -> None:
    frame = np.random.default_rng(0).integers(16, 235, (3, 10, 14), np.uint8)
    data = b"YUV4MPEG2 W14 H10 F30000:1001 Ip A4:3 C444 XCOLORRANGE=LIMITED XOTHER=1\nFRAME\n" + frame.tobytes()
    command = [sys.executable, "-c", "from echoir.cli import main; main()", "stream", "-", "-", "-m", model(scale=3)]
    done = subprocess.run([str(part) for part in command], input=data, capture_output=True, timeout=60)
    header, body = done.stdout.split(b"\nFRAME\n", 1)
    assert header == b"YUV4MPEG2 W42 H30 F30000:1001 Ip A4:3 C444 XCOLORRANGE=LIMITED XOTHER=1"
    found = np.frombuffer(body, np.uint8).reshape(3, 30, 42)
    assert np.abs(found.astype(int) - frame.repeat(3, 1).repeat(3, 2)).max() <= 1


def test_frames_that_are_too_many_pixels_are_refused_by_the_option(clip: Path, model: Model, tmp_path: Path) -> None:
    result = enlarge(clip, tmp_path / "out.mp4", model(scale=2), "--max-pixels", 64 * 48 - 1, code=3)
    assert "are 64 x 48, more than 3071 pixels (--max-pixels)" in result.err
    enlarge(clip, tmp_path / "out.mp4", model(scale=2), "--max-pixels", 64 * 48)


def test_sides_that_an_encoder_does_not_take_are_named_before_any_work(model: Model, tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    ffmpeg(*PICTURE, "-frames:v", 1, "-vf", "format=yuv444p,crop=51:37,format=yuv420p", "-c:v", "ffv1", source)
    result = enlarge(source, tmp_path / "out.mp4", model(scale=3), code=3)
    assert "libx264 takes no 153 x 111 yuv420p: width not divisible by 2" in result.err
    assert "ffv1 (in .mkv) and libvpx-vp9 take odd sides" in result.err
    assert list(tmp_path.iterdir()) == [source]
    enlarge(source, tmp_path / "out.mp4", model(scale=2))
    assert film_of(tmp_path / "out.mp4")["width"] == 102


def test_codes_of_motion_jpeg_are_full_ones_in_a_larger_film_too(model: Model, tmp_path: Path) -> None:
    source, target = tmp_path / "in.avi", tmp_path / "out.mkv"
    ffmpeg(*PICTURE, "-frames:v", 2, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", 2, source)
    enlarge(source, target, model(scale=2), "--encoder", "libx264", "--encoder-option", "qp=0")
    assert film_of(target)["color_range"] == "pc"
    luma = decoded(source, "gray", (48, 64)).repeat(2, 1).repeat(2, 2)
    assert luma.min() < 10
    assert np.abs(decoded(target, "gray", (96, 128)).astype(int) - luma).mean() < 0.3
