"""Containers and what they keep: every cell of the table in docs/streams.md, by what ffprobe sees and what was said."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from probing import PICTURE, TONE, X264, ffmpeg, ffprobe, film_of, needs_ffmpeg, times_of
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.streams.muxing import sets_rates

pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")
pytestmark = needs_ffmpeg

TABLE = Path(__file__).parent.parent / "docs" / "streams.md"
HDR = ("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc", "-color_range", "tv")
GRADED = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"


class Outcome(NamedTuple):
    """A run: what went in, what came out (None: nothing), and what was said."""

    source: Path
    target: Path | None
    said: str


Run = Callable[[str, str], Outcome]


def make_sources(folder: Path) -> None:
    """Clips of a few frames that hold all that is asked for."""
    (folder / "s.srt").write_text("1\n00:00:00,040 --> 00:00:00,200\nHello\n")
    (folder / "chapters").write_text(
        ";FFMETADATA1\n"
        + "".join(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={n}\nEND={n + 120}\ntitle={n}\n" for n in (0, 120))
    )
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=80x80", "-frames:v", 1, folder / "cover.jpg")
    tagged = ("-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "bt709", "-color_range", "tv")
    ffmpeg(*PICTURE, *TONE, "-t", 0.24, *X264, *tagged, "-c:a", "aac", folder / "plain.mp4")
    ffmpeg("-i", folder / "plain.mp4", "-i", folder / "cover.jpg", "-i", folder / "chapters", "-map", 0, "-map", 1,
           "-map_chapters", 2, "-c", "copy", "-disposition:v:1", "attached_pic", folder / "film.mp4")  # fmt: skip
    ffmpeg("-i", folder / "film.mp4", "-map", "0:v:0", "-map", "0:a", "-c:v", "copy", "-c:a", "libopus",
           "-attach", folder / "cover.jpg", "-metadata:s:t", "mimetype=image/jpeg", folder / "opus.mkv")  # fmt: skip
    ffmpeg("-i", folder / "plain.mp4", "-an", "-c", "copy", "-metadata:s:v:0", "rotate=90", folder / "turned.mp4")
    ffmpeg("-i", folder / "plain.mp4", "-i", folder / "s.srt", "-map", 0, "-map", 1, "-an", "-c", "copy",
           folder / "subtitled.mkv")  # fmt: skip
    ffmpeg(*PICTURE, "-t", 0.24, "-vf", "settb=1/1000,setpts=N*40+13*mod(N\\,3)", "-fps_mode", "passthrough",
           "-enc_time_base", "1/1000", *X264, "-bf", 0, folder / "varying.mp4")  # fmt: skip
    ffmpeg(*PICTURE, "-t", 0.24, *X264, "-bf", 0, folder / "even.mp4")
    ffmpeg("-i", folder / "even.mp4", "-c", "copy", "-bsf:v", "setts=duration=if(eq(N\\,5)\\,2/TB\\,DURATION)",
           folder / "lasting.mp4")  # fmt: skip
    ffmpeg(*PICTURE, "-t", 0.2, "-c:v", "libx265", "-pix_fmt", "yuv420p10le", *HDR, "-x265-params",
           f"log-level=none:{GRADED}", folder / "hdr.mp4")  # fmt: skip
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=50", "-t", 0.24, "-vf", "tinterlace=interleave_top",
           "-flags", "+ildct+ilme", "-top", 1, *X264, folder / "fields.mp4")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, identity: Artifact) -> Run:
    folder = tmp_path_factory.mktemp("matrix")
    make_sources(folder)

    @cache
    def once(name: str, kind: str) -> Outcome:
        source, target = folder / name, folder / f"{name}.{kind}"
        if kind not in ("y4m", "raw"):
            result = echoir("stream", source, target, "-m", identity.model_path)
        else:
            saved = os.dup(1)
            with target.open("wb") as file:  # the frames go to standard output
                os.dup2(file.fileno(), 1)
                try:
                    result = echoir("stream", source, "-", "-m", identity.model_path, "--output-format", kind)
                finally:
                    os.dup2(saved, 1)
                    os.close(saved)
        assert result.code in (0, 3)
        if result.code == 3:
            assert not target.exists() or not target.stat().st_size, "refused before any work"
        return Outcome(source, target if result.code == 0 else None, result.err)

    return once


def same(field: Callable[[Path], Any]) -> Callable[[Path, Path], bool]:
    return lambda source, target: bool(field(source) == field(target))


def rising(path: Path) -> list[float]:
    times = times_of(path)
    return [round(time - times[0], 6) for time in times]


def same_times(source: Path, target: Path) -> bool:
    return rising(target) == pytest.approx(rising(source), abs=0.0011)


def same_length(source: Path, target: Path) -> bool:
    """Of all frames and the last one's duration."""
    return float(ffprobe(target)["format"]["duration"]) == pytest.approx(
        float(ffprobe(source)["format"]["duration"]), abs=0.002
    )


def count(kind: str, cover: int) -> Callable[[Path], int]:
    return lambda path: sum(
        stream["codec_type"] == kind and stream["disposition"]["attached_pic"] == cover
        for stream in ffprobe(path)["streams"]
    )


def sound(path: Path) -> tuple[str, int] | None:
    found = ffprobe(path, "-select_streams", "a", "-show_packets")
    return (found["streams"][0]["codec_name"], len(found["packets"])) if found["streams"] else None


def chapters(path: Path) -> list[tuple[float, str]]:
    return [(float(chapter["start_time"]), chapter["tags"]["title"]) for chapter in ffprobe(path)["chapters"]]


def colours(path: Path) -> list[Any]:
    return [film_of(path).get(f"color_{name}") for name in ("space", "primaries", "transfer", "range")]


def light(path: Path) -> list[str]:
    frame = ffprobe(path, "-select_streams", "V:0", "-show_frames")["frames"][0]
    kinds = [item["side_data_type"] for item in frame.get("side_data_list", [])]
    return sorted({kind for kind in kinds if "Unregistered" not in kind})


def rotation(path: Path) -> list[Any]:
    return [item.get("rotation") for item in film_of(path).get("side_data_list", []) if "rotation" in item]


def fields(path: Path) -> tuple[int, int]:
    frame = ffprobe(path, "-select_streams", "V:0", "-show_frames")["frames"][0]
    return frame["interlaced_frame"], frame["top_field_first"]


# What a feature is called: the clip that has it, whether it is kept, and what is said where it is not.
FEATURES: dict[str, tuple[str, Callable[[Path, Path], bool], str]] = {
    "rate": ("plain.mp4", same(lambda path: film_of(path)["avg_frame_rate"]), "size, format and rate"),
    "stamps": ("varying.mp4", same_times, r"frames at a constant rate|times of frames are lost"),
    "last duration": ("lasting.mp4", same_length, r"how long the last frame|times of frames are lost"),
    "audio": ("plain.mp4", same(sound), r"audio stream 1 \(aac"),
    "subtitles": ("subtitled.mkv", same(count("subtitle", 0)), r"subtitles 1 \(srt|subtitles 1 \(subrip"),
    "chapters": ("film.mp4", same(chapters), "2 chapters"),
    "cover": ("film.mp4", same(count("video", 1)), r"cover \d \(mjpeg"),
    "colours": ("plain.mp4", same(colours), "its colours"),
    "HDR": ("hdr.mp4", same(light), "what its HDR was graded on"),
    "rotation": ("turned.mp4", same(rotation), "shown turned or mirrored"),
    "fields": ("fields.mp4", same(fields), "that it is interlaced"),
}


def word_for(feature: str, kind: str, run: Run) -> str:
    """``kept``, ``said`` or ``refused``; fails where a thing is lost without a word."""
    clip, kept, words = FEATURES[feature]
    if kind == "webm" and clip in ("plain.mp4", "film.mp4"):  # which takes no AAC
        clip = "opus.mkv"
    outcome = run(clip, kind)
    if outcome.target is None:
        assert "error:" in outcome.said
        return "refused"
    if kind != "raw" and kept(outcome.source, outcome.target):
        return "kept"
    assert re.search(words, outcome.said), f"{feature} is lost in {kind} without a word: {outcome.said}"
    return "said"


def table() -> dict[tuple[str, str], str]:
    """The table of the documentation, by container and feature."""
    lines = TABLE.read_text().split("## What each container keeps")[1].splitlines()
    lines = lines[next(index for index, line in enumerate(lines) if line.startswith("|")) :]
    lines = lines[: lines.index("")]
    rows = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]
    head, _, *body = rows
    return {(row[0], feature): word for row in body for feature, word in zip(head[1:], row[1:], strict=True)}


def test_the_table_has_every_container_and_feature() -> None:
    kinds = ("mp4", "mov", "mkv", "webm", "avi", "ts", "nut", "y4m", "raw")
    assert set(table()) == {(kind, feature) for kind in kinds for feature in FEATURES}
    assert set(table().values()) <= {"kept", "said", "refused"}


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "webm", "avi", "ts", "nut", "y4m", "raw"])
@pytest.mark.parametrize("feature", FEATURES)
def test_what_a_container_does_to_a_feature_is_what_the_table_says(feature: str, kind: str, run: Run) -> None:
    if (feature, kind) == ("rate", "mkv") and not sets_rates():
        pytest.skip("PyAV before 18 does not give a copied stream its rate (Python 3.10)")
    assert word_for(feature, kind, run) == table()[kind, feature]
