"""What goes along with a film: covers, chapters, sound whose time is broken; and names of files that mislead."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from probing import PICTURE, TONE, X264, ffmpeg, ffprobe, film_of, kinds_of, needs_ffmpeg, times_of
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.streams.companions import Lane

av = pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")
pytestmark = needs_ffmpeg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``av.mp4``: half a second with a tone; ``cover.jpg``."""
    folder = tmp_path_factory.mktemp("clips")
    ffmpeg(*PICTURE, *TONE, "-t", 0.5, *X264, "-c:a", "aac", folder / "av.mp4")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=80x80", "-frames:v", 1, folder / "cover.jpg")
    return folder


def restored(source: Path, target: Path, model: Artifact, *options: object, code: int = 0) -> str:
    result = echoir("stream", source, target, "-m", model.model_path, *options)
    assert result.code == code
    return result.err


def boxes(data: bytes) -> list[bytes]:
    """The parts of an MP4, or of one of its parts."""
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def test_a_cover_that_comes_first_is_no_film(folder: Path, identity: Artifact, tmp_path: Path) -> None:
    """As iTunes writes it: what the file is called and its cover come before the tracks."""
    ffmpeg("-i", folder / "av.mp4", "-i", folder / "cover.jpg", "-map", 0, "-map", 1, "-c", "copy",
           "-disposition:v:1", "attached_pic", tmp_path / "plain.mp4")  # fmt: skip
    *rest, moov = boxes((tmp_path / "plain.mp4").read_bytes())
    inside = boxes(moov[8:])
    inside.sort(key=lambda box: (b"mvhd", b"udta").index(box[4:8]) if box[4:8] in (b"mvhd", b"udta") else 2)
    source = tmp_path / "in.mp4"
    source.write_bytes(b"".join([*rest, moov[:8], *inside]))
    assert ffprobe(source)["streams"][0]["disposition"]["attached_pic"] == 1
    for suffix in (".mp4", ".mkv"):
        restored(source, tmp_path / f"out{suffix}", identity)
        assert (film_of(tmp_path / f"out{suffix}")["width"], len(times_of(tmp_path / f"out{suffix}"))) == (64, 13)
        assert ("video", "mjpeg") in kinds_of(tmp_path / f"out{suffix}")
    for suffix in (".mov", ".avi"):
        said = restored(source, tmp_path / f"out{suffix}", identity)
        assert f"left out of out{suffix}: cover 0 (mjpeg, 80 x 80)" in said
        assert len(times_of(tmp_path / f"out{suffix}")) == 13


def test_sound_with_a_cover_is_no_video(folder: Path, identity: Artifact, tmp_path: Path) -> None:
    ffmpeg("-i", folder / "av.mp4", "-i", folder / "cover.jpg", "-map", "0:a", "-map", 1, "-c", "copy",
           "-disposition:v", "attached_pic", tmp_path / "song.m4a")  # fmt: skip
    assert "has no video stream but a cover" in restored(tmp_path / "song.m4a", tmp_path / "out.mp4", identity, code=3)


def test_the_default_or_the_largest_is_the_film_and_others_are_named(
    folder: Path, identity: Artifact, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=32x32:rate=25:duration=0.4", "-i", folder / "av.mp4",
           "-map", 0, "-map", 1, "-c:v:0", "libx264", "-c:v:1", "copy", "-c:a", "copy",
           "-disposition:v:0", "0", "-disposition:v:1", "0",
           source)  # fmt: skip
    assert "left out of out.mkv: video stream 0 (h264, 32 x 32)" in restored(source, target, identity)
    assert film_of(target)["width"] == 64


def test_a_transport_stream_that_changes_its_identifiers_goes_on(
    folder: Path, identity: Artifact, tmp_path: Path
) -> None:
    parts = []
    for number in (256, 512):
        ffmpeg("-i", folder / "av.mp4", "-c", "copy", "-mpegts_start_pid", number, tmp_path / "part.ts")
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "in.ts").write_bytes(b"".join(parts))
    target = tmp_path / "out.mp4"
    # FFmpeg gives the last frame under the old identifier at the end of the file: two places out of order.
    assert "damaged in 2 places" in restored(tmp_path / "in.ts", target, identity, code=3)
    assert len(times_of(target)) == 26
    sound = times_of(target, "a:0", "packet")
    assert sound[-1] - sound[0] > 0.8


def copied_with(source: Path, target: Path, stamps: Any) -> Path:
    """A copy whose sound has other decoding times; Matroska takes what does not rise."""
    with av.open(str(source)) as file, av.open(str(target), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in file.streams}
        counts = dict.fromkeys(streams, 0)
        for packet in file.demux():
            if packet.size:
                index = packet.stream.index
                if packet.stream.type == "audio":
                    packet.pts = packet.dts = stamps(counts[index], packet.dts)
                counts[index] += 1
                packet.stream = streams[index]
                out.mux(packet)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".nut", ".avi"])
def test_sound_whose_time_stands_still_is_moved_and_told(
    suffix: str, folder: Path, identity: Artifact, tmp_path: Path
) -> None:
    source = copied_with(
        folder / "av.mp4",
        tmp_path / "in.mkv",
        lambda index, dts: 1024 * (index - index % 3) + 48,  # three at a time
    )
    target = tmp_path / f"out{suffix}"
    restored(source, target, identity)
    assert len(times_of(target)) == 13
    packets = ffprobe(target, "-select_streams", "a:0", "-show_packets")["packets"]
    assert len(packets) == len(ffprobe(source, "-select_streams", "a:0", "-show_packets")["packets"])


def test_what_a_transport_stream_calls_private_data_is_refused_before_the_work(
    folder: Path, identity: Artifact, tmp_path: Path
) -> None:
    ffmpeg("-i", folder / "av.mp4", "-c:v", "copy", "-c:a", "pcm_s16le", tmp_path / "in.mkv")
    said = restored(tmp_path / "in.mkv", tmp_path / "out.ts", identity, code=3)
    assert "audio stream 1 (pcm_s16le) comes back as another); name it .mkv, or leave" in said
    assert sorted(os.listdir(tmp_path)) == ["in.mkv"]


def test_frames_are_not_lost_to_a_packet_that_is_refused(
    folder: Path, identity: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, seen = Lane.fit, []

    def broken(lane: Lane, packet: Any) -> None:
        fit(lane, packet)
        seen.append(packet)
        if len(seen) == 35:  # past those that the container is tried with
            packet.dts = packet.pts = 0

    monkeypatch.setattr(Lane, "fit", broken)
    target = tmp_path / "out.mp4"
    said = restored(folder / "av.mp4", target, identity, code=3)
    assert said.splitlines()[-1].endswith("but for 1 packets of audio stream 1 (aac), which it does not take")
    assert len(times_of(target)) == 13


def test_remedies_do_not_name_what_is_there(folder: Path, identity: Artifact, tmp_path: Path) -> None:
    source = tmp_path / "in.mov"
    ffmpeg("-i", folder / "av.mp4", "-c:v", "copy", "-c:a", "pcm_s16be", source)
    (tmp_path / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nHello\n")
    subtitled = tmp_path / "in.mp4"
    ffmpeg("-i", folder / "av.mp4", "-i", tmp_path / "s.srt", "-c", "copy", "-c:s", "mov_text", subtitled)
    said = restored(subtitled, tmp_path / "out.mkv", identity, code=3)
    assert "name it .mkv" not in said
    assert "--video-only" in said


@pytest.mark.parametrize("name", ["cam-2024-05-01T12:30:00.mp4", "a ! b.mp4", "100%d.mp4"])
def test_a_file_that_is_there_is_a_file(name: str, folder: Path, identity: Artifact, tmp_path: Path) -> None:
    before = os.getcwd()
    os.chdir(tmp_path)  # names without a folder are the ones that are misread
    try:
        Path(name).write_bytes((folder / "av.mp4").read_bytes())
        restored(Path(name), Path("plain.mp4"), identity)
        restored(Path("plain.mp4"), Path(name), identity, "--force")
    finally:
        os.chdir(before)
    assert len(times_of(tmp_path / "plain.mp4")) == len(times_of(tmp_path / name)) == 13


def test_data_streams_are_named(folder: Path, identity: Artifact, tmp_path: Path) -> None:
    """As of a drone or an action camera: where it was, in a stream of its own."""
    source = tmp_path / "in.ts"
    with av.open(str(folder / "av.mp4")) as file, av.open(str(source), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in file.streams}
        places = out.add_data_stream("klv")
        for packet in file.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
        place = av.Packet(b"\x06\x0e\x2b\x34 52 N 13 E")
        place.stream, place.pts, place.dts, place.time_base = places, 0, 0, places.time_base
        out.mux(place)
    assert ("data", "klv") in kinds_of(source)
    for suffix in (".mp4", ".ts"):
        said = restored(source, tmp_path / f"out{suffix}", identity)
        assert f"left out of out{suffix}: data stream 2 (klv)" in said
