"""Video files: what is kept, what is resumed, and what happens to damaged ones. Clips are made by PyAV alone."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.streams.videofile import SEGMENT, partial_folder

av = pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")

Array = np.ndarray[Any, np.dtype[Any]]
COMMAND = [sys.executable, "-c", "from echoir.cli import main; main()", "stream"]


def picture(index: int, height: int, width: int) -> Array:
    """A frame that tells its number: a ramp that moves, [H, W] of 64 to 190."""
    rows, columns = np.mgrid[:height, :width]
    return np.uint8(64 + (rows + columns + 5 * index) % 127)


def write_clip(
    path: Path,
    count: int = 20,
    *,
    size: tuple[int, int] = (48, 64),
    stamps: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 30000),
    step: int = 1001,
    pixels: str = "yuv420p",
    codec: str = "libx264",
    tags: tuple[int, int, int, int] = (1, 1, 1, 1),
    aspect: Fraction | None = None,
    turn: int = 0,
    sound: bool = False,
    subtitles: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """A clip with everything that is to be kept; ``tags`` are matrix, range, primaries, transfer of H.273."""
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "a clip"
        video = out.add_stream(codec, rate=Fraction(30000, 1001), options=options or {"crf": "5"})
        video.height, video.width, video.pix_fmt = *size, pixels
        context = video.codec_context
        context.time_base = video.time_base = time_base
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        if aspect is not None:
            video.sample_aspect_ratio = aspect
        if turn:
            video.set_display_rotation(turn)
        audio = out.add_stream("aac", rate=48000, layout="mono") if sound else None
        if audio is not None:
            audio.metadata["language"] = "deu"
        text = out.add_mux_stream("subrip") if subtitles else None
        for index in range(count):
            frame = av.VideoFrame(size[1], size[0], pixels)
            for plane_index, plane in enumerate(frame.planes):
                array = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
                array[:] = 128
                if plane_index == 0:
                    array[: size[0], : size[1]] = picture(index, *size)
            frame.pts = stamps[index] if stamps else index * step
            frame.time_base = time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            for index in range(round(count * 48000 / 30 / 1024)):
                samples = np.float32(0.3 * np.sin(np.arange(1024) * 0.05 + index))[None]
                block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = 48000, index * 1024, Fraction(1, 48000)
                out.mux(audio.encode(block))
            out.mux(audio.encode(None))
        if text is not None:
            packet = av.Packet(b"Hello")
            packet.stream, packet.pts, packet.dts, packet.duration = text, 100, 100, 300
            packet.time_base = Fraction(1, 1000)
            out.mux(packet)
    return path


def stamps_of(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts * stream.time_base for frame in container.decode(stream)]


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(streams) if p.size] if streams else []


def luma_of(path: Path) -> list[Array]:
    """The codes of Y as they are; FFmpeg's own gray would stretch them."""
    with av.open(str(path)) as container:
        planes = [(frame.planes[0], frame.width) for frame in container.decode(video=0)]
        arrays = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, :width] for plane, width in planes]
        return [array.astype(int) for array in arrays]


def tags_of(path: Path) -> tuple[int, ...]:
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        named = context.colorspace, context.color_range, context.color_primaries, context.color_trc
        return tuple(int(value) for value in named)


def test_a_clip_with_sound_keeps_all_but_its_pixels(gain: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 70, sound=True)
    result = echoir("stream", source, tmp_path / "out.mp4", "-m", gain.model_path)
    assert result.code == 0
    target = tmp_path / "out.mp4"
    assert stamps_of(target) == stamps_of(source)
    assert len(stamps_of(target)) == 70 > SEGMENT, "across a seam of segments"
    assert packets_of(target, "audio") == packets_of(source, "audio") != []
    assert tags_of(target) == tags_of(source) == (1, 1, 1, 1)
    with av.open(str(target)) as out:
        assert out.metadata["title"] == "a clip"
        assert out.streams.audio[0].metadata["language"] == "deu"
    assert not partial_folder(target).exists()
    for index, luma in enumerate(luma_of(target)):  # limited range: 16 + half of what is above 16
        wanted = 16 + (picture(index, 48, 64).astype(int) - 16) / 2
        assert np.abs(luma - wanted).mean() < 3


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts", ".nut"])
def test_variable_frame_rates_and_b_frames_keep_every_time_stamp(
    suffix: str, identity: Artifact, tmp_path: Path, rng: np.random.Generator
) -> None:
    stamps = [0, *np.cumsum(rng.integers(1, 9, 80)) * 500]
    source = write_clip(tmp_path / f"in{suffix}", 81, stamps=[int(s) for s in stamps], time_base=Fraction(1, 10000))
    target = tmp_path / f"out{suffix}"
    assert echoir("stream", source, target, "-m", identity.model_path).code == 0
    assert stamps_of(target) == stamps_of(source)
    assert len(set(stamps_of(target))) == 81


def test_rotation_pixel_aspect_and_odd_tags_are_kept(identity: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", turn=90, aspect=Fraction(4, 3), tags=(6, 1, 5, 6))
    target = tmp_path / "out.mp4"
    result = echoir("stream", source, target, "-m", identity.model_path)
    assert result.code == 0
    assert "shown turned" in result.err
    assert "bt601, limited range" in result.err
    with av.open(str(source)) as a, av.open(str(target)) as b:
        assert a.streams.video[0].sample_aspect_ratio == b.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        turned = [next(c.decode(video=0)).rotation for c in (a, b)]
        assert turned[0] == turned[1] != 0
    assert tags_of(target) == tags_of(source) == (6, 1, 5, 6)


def test_tags_that_are_not_said_stay_unsaid(identity: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", tags=(2, 0, 2, 2))
    result = echoir("stream", source, tmp_path / "out.mkv", "-m", identity.model_path)
    assert result.code == 0
    assert "does not say its colour matrix: taken for bt601" in result.err
    assert tags_of(tmp_path / "out.mkv") == tags_of(source)
    told = echoir("stream", source, "null", "-m", identity.model_path, "--matrix", "bt709", "--range", "limited")
    assert "bt709, limited range" in told.err
    assert "taken for" not in told.err


@pytest.mark.parametrize(("pixels", "codec"), [("yuv420p10le", "libx265"), ("gray", "ffv1"), ("yuv444p", "libx264")])
def test_depth_and_subsampling_are_kept(pixels: str, codec: str, identity: Artifact, tmp_path: Path) -> None:
    lossless = {"libx265": {"x265-params": "lossless=1:log-level=none"}, "libx264": {"qp": "0"}, "ffv1": {}}[codec]
    source = write_clip(tmp_path / "in.mkv", 4, pixels=pixels, codec=codec, options=lossless)
    options = [item for pair in lossless.items() for item in ("--encoder-option", "=".join(pair))]
    target = tmp_path / "out.mkv"
    assert echoir("stream", source, target, "-m", identity.model_path, "--encoder", codec, *options).code == 0
    with av.open(str(source)) as a, av.open(str(target)) as b:
        for before, after in zip(a.decode(video=0), b.decode(video=0), strict=True):
            assert before.format.name == after.format.name == pixels
            for one, other in zip(before.planes, after.planes, strict=True):
                assert bytes(one) == bytes(other), "an identity and a lossless encoder change nothing"


def test_subtitles_are_copied_and_refused_where_the_container_cannot(identity: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", subtitles=True, sound=True)
    assert echoir("stream", source, tmp_path / "out.mkv", "-m", identity.model_path).code == 0
    assert packets_of(tmp_path / "out.mkv", "subtitle") == packets_of(source, "subtitle") != []
    refused = echoir("stream", source, tmp_path / "out.mp4", "-m", identity.model_path)
    assert refused.code == 3
    assert "--video-only" in refused.err
    assert sorted(os.listdir(tmp_path)) == ["in.mkv", "out.mkv"], "before any work was done"
    assert echoir("stream", source, tmp_path / "out.mp4", "-m", identity.model_path, "--video-only").code == 0
    assert packets_of(tmp_path / "out.mp4", "audio") == []


def test_what_is_there_is_not_replaced_unasked(identity: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 3)
    (tmp_path / "out.mp4").write_bytes(b"precious")
    result = echoir("stream", source, tmp_path / "out.mp4", "-m", identity.model_path)
    assert (result.code, (tmp_path / "out.mp4").read_bytes()) == (2, b"precious")
    assert "--force" in result.err
    assert echoir("stream", source, source, "-m", identity.model_path, "--force").code == 3
    assert echoir("stream", source, tmp_path / "out.mp4", "-m", identity.model_path, "--force").code == 0
    assert len(stamps_of(tmp_path / "out.mp4")) == 3


def interrupted(source: Path, target: Path, model: Path, number: signal.Signals, *more: str) -> tuple[int, str]:
    """Start a run, send a signal when one segment is done; its exit code and what it said."""
    arguments = [source, target, "-m", model, "--realtime", "--queue", 1, *more]
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (partial_folder(target) / "000000.nut").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments and a bit, shown at 90 frames a second so that a run in real time lasts 2 s."""
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(folder / "in.mp4", 3 * SEGMENT + 5, step=333, sound=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_file_and_the_same_command_resumes(
    number: signal.Signals, long_clip: Path, gain: Artifact, tmp_path: Path
) -> None:
    target = tmp_path / "out.mp4"
    code, errors = interrupted(long_clip, target, gain.model_path, number)
    assert code == 128 + number
    assert "Traceback" not in errors
    stamps = stamps_of(long_clip)
    done = stamps_of(target)
    assert SEGMENT <= len(done) < len(stamps)
    assert done == stamps[: len(done)], "what was done plays"
    assert max(stamp for stamp, _ in packets_of(target, "audio")) <= done[-1] + Fraction(1, 10)
    assert partial_folder(target).exists()
    result = echoir("stream", long_clip, target, "-m", gain.model_path)
    assert result.code == 0
    assert "resuming after" in result.err
    assert stamps_of(target) == stamps
    assert packets_of(target, "audio") == packets_of(long_clip, "audio")
    assert not partial_folder(target).exists()


def test_a_killed_run_leaves_segments_that_play_and_resumes_to_the_same_frames(
    long_clip: Path, gain: Artifact, tmp_path: Path
) -> None:
    """With an encoder that loses nothing, packet by packet."""
    whole, target = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    assert echoir("stream", long_clip, whole, "-m", gain.model_path, "--encoder", "ffv1").code == 0
    code, _ = interrupted(long_clip, target, gain.model_path, signal.SIGKILL, "--encoder", "ffv1")
    assert code == -signal.SIGKILL
    assert not target.exists(), "nothing has the name of a whole file"
    assert len(stamps_of(partial_folder(target) / "000000.nut")) == SEGMENT
    result = echoir("stream", long_clip, target, "-m", gain.model_path, "--encoder", "ffv1")
    assert (result.code, "resuming after" in result.err) == (0, True)
    assert packets_of(target, "video") == packets_of(whole, "video"), "as if nothing had happened"
    assert packets_of(target, "audio") == packets_of(whole, "audio") != []


def test_segments_of_another_run_are_not_used(
    long_clip: Path, gain: Artifact, identity: Artifact, tmp_path: Path
) -> None:
    target = tmp_path / "out.mp4"
    interrupted(long_clip, target, gain.model_path, signal.SIGKILL)
    result = echoir("stream", long_clip, target, "-m", identity.model_path)
    assert result.code == 0
    assert "other settings: starting anew" in result.err
    assert abs(luma_of(target)[0].mean() - luma_of(long_clip)[0].mean()) < 2, "the identity's frames alone"


def bad_inputs(folder: Path) -> Iterator[tuple[str, Path, str, int]]:
    """What it is, the file, what is said, and the frames that come out at least."""
    clip = write_clip(folder / "clip.mkv", 60, options={"crf": "5", "g": "10"})
    data = clip.read_bytes()
    (folder / "short.mkv").write_bytes(data[: len(data) // 2])
    yield "truncated", folder / "short.mkv", "ends early", 10
    broken = bytearray(data)
    rng = np.random.default_rng(3)
    for start in range(len(data) // 3, len(data) // 2, 400):
        broken[start : start + 60] = rng.bytes(60)
    (folder / "broken.mkv").write_bytes(broken)
    yield "corrupted", folder / "broken.mkv", "broken.mkv", 10
    mp4 = write_clip(folder / "clip.mp4", 60, options={"crf": "5", "movflags": "faststart"})
    (folder / "cut.mp4").write_bytes(mp4.read_bytes()[:-200])
    yield "cut at its end, where the index is", folder / "cut.mp4", "cannot read", 0
    (folder / "text.mp4").write_text("no video at all")
    yield "no video", folder / "text.mp4", "cannot read", 0
    (folder / "empty.mp4").write_bytes(b"")
    yield "empty", folder / "empty.mp4", "cannot read", 0
    yield "missing", folder / "nowhere.mp4", "No such file", 0
    with av.open(str(folder / "sound.mp4"), "w") as out:
        audio = out.add_stream("aac", rate=48000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        block.sample_rate = 48000
        out.mux([*audio.encode(block), *audio.encode(None)])
    yield "sound alone", folder / "sound.mp4", "no video stream", 0


def test_bad_video_ends_with_a_line_and_code_3_and_keeps_what_could_be_read(identity: Artifact, tmp_path: Path) -> None:
    for what, source, message, least in bad_inputs(tmp_path):
        target = tmp_path / f"out-{source.name}"
        result = echoir("stream", source, target, "-m", identity.model_path)
        assert result.code == 3, what
        assert message in result.err.splitlines()[-1], what
        assert (len(stamps_of(target)) if target.exists() else 0) >= least, what


def test_a_resolution_that_changes_is_named_and_what_came_before_is_kept(identity: Artifact, tmp_path: Path) -> None:
    """Two MPEG transport streams, one after the other: the format allows it, an encoder does not."""
    first = write_clip(tmp_path / "a.ts", 30)
    second = write_clip(tmp_path / "b.ts", 30, size=(64, 96), stamps=[(30 + i) * 1001 for i in range(30)])
    (tmp_path / "in.ts").write_bytes(first.read_bytes() + second.read_bytes())
    result = echoir("stream", tmp_path / "in.ts", tmp_path / "out.ts", "-m", identity.model_path)
    assert result.code == 3
    assert "is 96 x 64 yuv420p and the stream began as 64 x 48 yuv420p" in result.err
    assert len(stamps_of(tmp_path / "out.ts")) >= 25


def test_a_folder_that_is_in_the_way_is_not_cleared(identity: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 3)
    folder = partial_folder(tmp_path / "out.mp4")
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for more in ([], ["--force"]):
        result = echoir("stream", source, tmp_path / "out.mp4", "-m", identity.model_path, *more)
        assert (result.code, "holds other files" in result.err) == (3, True)
    assert (folder / "thesis.txt").read_text() == "precious"


def test_odd_sizes_go_through(identity: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", 3, size=(37, 51), codec="ffv1", options={})
    target = tmp_path / "out.mkv"
    assert echoir("stream", source, target, "-m", identity.model_path, "--encoder", "ffv1").code == 0
    for before, after in zip(luma_of(source), luma_of(target), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("share", [0.1, 0.85])
def test_a_full_disk_is_named_and_leaves_nothing_with_the_files_name(
    share: float, identity: Artifact, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk: once a segment does not fit, once the whole."""
    source = write_clip(tmp_path / "in.mp4", 90, size=(96, 128))
    target = tmp_path / "out.mp4"
    assert echoir("stream", source, tmp_path / "fits.mp4", "-m", identity.model_path).code == 0
    limit = int(share * (tmp_path / "fits.mp4").stat().st_size)
    done = subprocess.run(
        [*COMMAND, str(source), str(target), "-m", str(identity.model_path)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {target}")
    assert not target.exists()


def test_encoders_that_are_missing_or_unfit_are_named_before_any_work(identity: Artifact, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 3)
    for options, message in (
        (["--encoder", "nosuch"], "no encoder nosuch"),
        (["--encoder", "aac"], "no encoder of video"),
        (["--encoder", "ffv1", "--quality", "5"], "no constant quality"),
    ):
        result = echoir("stream", source, tmp_path / "out.mkv", "-m", identity.model_path, *options)
        assert (result.code, message in result.err) == (3, True)
    result = echoir("stream", source, tmp_path / "out.xyz", "-m", identity.model_path)
    assert (result.code, "the suffix is none of" in result.err) == (3, True)


def test_frames_from_a_pipe_become_a_file(identity: Artifact, tmp_path: Path) -> None:
    frames = b"".join(picture(i, 48, 64).tobytes() for i in range(10))
    arguments = ["-", tmp_path / "out.mkv", "-m", identity.model_path, "--size", "64x48", "--pixel-format", "gray"]
    arguments += ["--rate", "10", "--encoder", "ffv1"]
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=frames, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert [float(stamp) for stamp in stamps_of(tmp_path / "out.mkv")] == [i / 10 for i in range(10)]
    for index, luma in enumerate(luma_of(tmp_path / "out.mkv")):
        np.testing.assert_array_equal(luma, picture(index, 48, 64))
    assert os.listdir(tmp_path) == ["out.mkv"]


def test_a_recording_that_is_killed_plays_under_its_partial_name(identity: Artifact, tmp_path: Path) -> None:
    arguments = ["-", tmp_path / "out.mp4", "-m", identity.model_path, "--size", "64x48", "--pixel-format", "gray"]
    options = ["--encoder-option", "g=10", "--encoder-option", "tune=zerolatency"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--rate", "30", "--quiet", *options], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    partial = tmp_path / "out.partial.mp4"
    deadline = time.monotonic() + 30
    for index in range(2000):
        process.stdin.write(picture(index, 48, 64).tobytes())
        if (partial.exists() and partial.stat().st_size > 6000) or time.monotonic() > deadline:
            break
    process.kill()
    process.wait()
    with suppress(BrokenPipeError):
        process.stdin.close()
    assert os.listdir(tmp_path) == ["out.partial.mp4"]
    assert len(stamps_of(partial)) >= 10


def test_rgb_from_a_pipe_becomes_yuv_that_says_what_it_is(identity: Artifact, tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    arguments = ["-", tmp_path / "out.mp4", "-m", identity.model_path, "--size", "64x48", "--pixel-format", "rgb24"]
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=red.tobytes() * 3, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert b"frames become yuv420p, bt709, limited range" in done.stderr
    assert tags_of(tmp_path / "out.mp4")[:2] == (1, 1)
    with av.open(str(tmp_path / "out.mp4")) as container:
        planes = [np.frombuffer(plane, np.uint8)[0] for plane in next(container.decode(video=0)).planes]
    np.testing.assert_allclose(np.array(planes, int), (63, 102, 240), atol=3)


def test_a_deadline_on_a_file_counts_what_it_leaves_out(identity: Artifact, tmp_path: Path) -> None:
    """A deadline that cannot be met, and frames that pass: as many come out as went in, none restored."""
    source = write_clip(tmp_path / "in.mp4", 30, step=500)
    arguments = ["--deadline", "0.001", "--realtime"]
    result = echoir("stream", source, tmp_path / "out.mp4", "-m", identity.model_path, *arguments)
    assert result.code == 0
    assert "frames 30, restored 0, passed 30, dropped 0, late 30" in result.err
    assert stamps_of(tmp_path / "out.mp4") == stamps_of(source)
    dropped = echoir("stream", source, "null", "-m", identity.model_path, *arguments, "--policy", "drop")
    assert "frames 30, restored 0, passed 0, dropped 30" in dropped.err
