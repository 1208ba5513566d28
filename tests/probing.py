"""What ffprobe, not this project, sees in a file; and clips that ffmpeg makes."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="needs ffmpeg and ffprobe (make packages)"
)
PICTURE = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25")
TONE = ("-f", "lavfi", "-i", "sine")
X264 = ("-c:v", "libx264", "-threads", "1", "-bf", "2", "-pix_fmt", "yuv420p")


def ffmpeg(*arguments: object) -> None:
    """Run ffmpeg; the last argument is the file it writes."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def ffprobe(path: Path, *arguments: str) -> dict[str, Any]:
    """What ffprobe says of format, streams, chapters, and with more ``arguments`` of packets or frames."""
    return _probed(path, path.stat().st_mtime_ns, *arguments)


@cache
def _probed(path: Path, changed: int, *arguments: str) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", "-show_chapters"]
    done = subprocess.run([*command, *arguments, str(path)], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def film_of(path: Path) -> dict[str, Any]:
    """The stream of frames, by ffprobe."""
    return next(
        stream
        for stream in ffprobe(path)["streams"]
        if stream["codec_type"] == "video" and not stream["disposition"]["attached_pic"]
    )


def times_of(path: Path, stream: str = "V:0", kind: str = "frame") -> list[float]:
    """When every frame is shown, or every packet, in the order of the file; without an N/A there is none."""
    entry = "best_effort_timestamp_time" if kind == "frame" else "pts_time"
    found = ffprobe(path, "-select_streams", stream, "-show_entries", f"{kind}={entry}")
    return [float(item[entry]) for item in found[f"{kind}s"]]


def kinds_of(path: Path) -> list[tuple[str, str]]:
    """Kind and codec of every stream."""
    return [(stream["codec_type"], stream.get("codec_name", "")) for stream in ffprobe(path)["streams"]]
