"""``echoir stream`` on pipes: raw frames and YUV4MPEG2, with real descriptors and real programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echoir.runtime.artifact import Artifact
from echoir.runtime.streams.pixels import FORMATS

Array = np.ndarray[Any, np.dtype[Any]]
WIDTH, HEIGHT = 50, 38


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from echoir.cli import main; main()", "stream", *map(str, arguments)]


def stream(*arguments: object, data: bytes = b"", stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run ``echoir stream`` as a process of its own, with ``data`` on standard input."""
    done = subprocess.run(command(*arguments), input=data, stdout=stdout, stderr=subprocess.PIPE, timeout=60)
    print(done.stderr.decode(), file=sys.stderr)
    return done


def raw_frames(name: str, count: int = 3, seed: int = 0) -> bytes:
    rng, format = np.random.default_rng(seed), FORMATS[name]
    planes = [plane for _ in range(count) for plane in format.empty(HEIGHT, WIDTH)]
    for plane in planes:
        plane[...] = rng.integers(0, format.peak, plane.shape, np.uint16, endpoint=True) << format.shift
    return b"".join(plane.tobytes() for plane in planes)


@pytest.mark.parametrize("name", ["nv12", "bgr24", "bgr0", "gray", "p010le", "yuv420p10le"])
def test_raw_frames_come_through_an_identity_as_they_are(name: str, identity_uint8: Artifact) -> None:
    data = raw_frames(name)
    size = f"{WIDTH}x{HEIGHT}"
    done = stream("-", "-", "-m", identity_uint8.model_path, "--size", size, "--pixel-format", name, data=data)
    assert done.returncode == 0
    assert done.stdout == data


def y4m(
    count: int = 4, header: bytes = b"W50 H38 F30000:1001 Ip A4:3 C420mpeg2 XYSCSS=420MPEG2 XCOLORRANGE=LIMITED"
) -> bytes:
    frames = raw_frames("yuv420p", count)
    size = len(frames) // count
    return b"YUV4MPEG2 %s\n" % header + b"".join(
        b"FRAME\n" + frames[start : start + size] for start in range(0, len(frames), size)
    )


def test_yuv4mpeg2_keeps_its_header_and_its_frames(identity: Artifact) -> None:
    data = y4m()
    done = stream("-", "-", "-m", identity.model_path, data=data)
    assert (done.returncode, done.stdout) == (0, data)
    assert b"does not say its colour matrix" in done.stderr, "what is assumed is said"
    assert b"range: taken" not in done.stderr, "what the header says is not assumed"


def test_half_of_what_a_model_changes_can_be_asked_for(gain: Artifact) -> None:
    data = raw_frames("gray")
    size = ("--size", f"{WIDTH}x{HEIGHT}", "--pixel-format", "gray", "--range", "full")
    done = stream("-", "-", "-m", gain.model_path, *size, "--strength", 0.5, data=data)
    got = np.frombuffer(done.stdout, np.uint8).astype(float)
    assert np.abs(got - np.frombuffer(data, np.uint8) * 0.75).max() <= 0.5


def test_a_model_that_halves_shows_in_the_output(gain: Artifact) -> None:
    """Full-range gray: half of a code is half the code."""
    data = raw_frames("gray")
    size = f"{WIDTH}x{HEIGHT}"
    done = stream(
        "-", "-", "-m", gain.model_path, "--size", size, "--pixel-format", "gray", "--range", "full", data=data
    )
    got = np.frombuffer(done.stdout, np.uint8).astype(float)
    assert np.abs(got - np.frombuffer(data, np.uint8) / 2).max() <= 0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"RIFF....AVI ", "no YUV4MPEG2"),
        (b"YUV4MPEG2 W0 H38 F30:1\n", "no size of video"),
        (b"YUV4MPEG2 W50 F30:1\n", "header"),
        (b"YUV4MPEG2 W50 H38 F30:0\n", "header"),
        (b"YUV4MPEG2 W50 H38 F30:1 C411\n", "C411 is not supported"),
        (b"YUV4MPEG2 W50 H38 F30:1 C420jpeg\n", "has no frame"),
        (y4m()[:-100], "ends inside frame 3: 2750 of its 2850 bytes"),
        (y4m(2) + b"GARBAGE\n" + bytes(2850), "frame 2 of the YUV4MPEG2 input does not begin with FRAME"),
    ],
    ids=["empty", "another", "no size", "no height", "no rate", "unknown space", "no frame", "cut", "damaged"],
)
def test_bad_yuv4mpeg2_ends_with_a_line_and_code_3(data: bytes, message: str, identity: Artifact) -> None:
    done = stream("-", "-", "-m", identity.model_path, data=data)
    assert done.returncode == 3
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    if "inside frame 3" in message:
        assert done.stdout == y4m(4)[: -2850 - 6], "whole frames are kept"


def test_raw_frames_that_end_inside_a_frame_are_named(identity: Artifact) -> None:
    data = raw_frames("nv12")[:-1]
    done = stream("-", "null", "-m", identity.model_path, "--size", "50x38", "--pixel-format", "nv12", data=data)
    assert done.returncode == 3
    assert b"ends inside frame 2: 2849 of its 2850 bytes are there" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-", "-", "--size", "50x38"],
        ["-", "-", "--size", "fifty", "--pixel-format", "nv12"],
        ["a.mp4", "-", "--size", "50x38", "--pixel-format", "nv12"],
        ["-", "-", "--policy", "hurry"],
        ["-", "-", "--deadline", "0"],
    ],
)
def test_requests_that_make_no_sense_are_usage_errors(arguments: list[str], identity: Artifact) -> None:
    assert stream(*arguments, "-m", identity.model_path).returncode == 2


def test_an_unknown_pixel_format_is_named(identity: Artifact) -> None:
    done = stream("-", "-", "-m", identity.model_path, "--size", "50x38", "--pixel-format", "yuv9000")
    assert done.returncode == 3
    assert b"unknown pixel format yuv9000" in done.stderr


def test_a_reader_that_leaves_ends_the_run(identity: Artifact, tmp_path: Path) -> None:
    (tmp_path / "in.y4m").write_bytes(y4m(400))
    own = " ".join(f"'{part}'" for part in command("-", "-", "-m", identity.model_path))
    text = f'{own} < {tmp_path}/in.y4m | head -c 9; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", text], capture_output=True, timeout=60)
    assert done.stdout == b"YUV4MPEG2 3\n"
    assert b"the program that read the output closed it after" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_named(identity: Artifact) -> None:
    with open("/dev/full", "wb") as full:
        done = stream("-", "-", "-m", identity.model_path, data=y4m(), stdout=full)
    assert done.returncode == 3
    assert b"No space left on device" in done.stderr


def test_sigterm_lets_out_what_is_in_while_the_source_is_stalled(identity: Artifact) -> None:
    process = subprocess.Popen(
        command("-", "-", "-m", identity.model_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    data = y4m(3)
    process.stdin.write(data)
    process.stdin.flush()
    out = process.stdout.read(len(data))
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert out + rest == data
    process.stdin.close()
    process.stderr.close()  # type: ignore[union-attr]
    process.stdout.close()


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg (make packages)")


@needs_ffmpeg
@pytest.mark.parametrize("depth", ["yuv420p", "yuv422p10le", "gray"])
def test_ffmpeg_pipes_in_and_out(depth: str, identity: Artifact, tmp_path: Path) -> None:
    """``ffmpeg ... | echoir stream - - | ffmpeg ...`` against ``ffmpeg ...`` alone, by the frames' checksums."""
    make = "ffmpeg -v error -f lavfi -i testsrc2=size=64x48:rate=30:duration=0.5"
    make += f" -pix_fmt {depth} -strict -1 -f yuv4mpegpipe -"
    check = "ffmpeg -v error -f yuv4mpegpipe -i - -f framemd5 -"
    own = " ".join(f"'{part}'" for part in command("-", "-", "-m", identity.model_path, "--quiet"))
    with_ours, alone = (
        subprocess.run(["bash", "-o", "pipefail", "-c", text], check=True, capture_output=True, timeout=60).stdout
        for text in (f"{make} | {own} | {check}", f"{make} | {check}")
    )
    assert with_ours == alone
    assert alone.count(b"\n0,") == 15


def test_a_deadline_is_kept_on_a_pipe_and_told_as_json(identity: Artifact) -> None:
    import json

    arguments = ["--deadline", "1000", "--log-json"]
    done = stream("-", "null", "-m", identity.model_path, *arguments, data=y4m(30))
    records = [json.loads(line) for line in done.stderr.decode().splitlines()]
    fields = records[-1]["fields"]
    assert records[-1]["event"] == "end"
    assert fields["frames"] == 30 == fields["restored"] + fields["passed"] + fields["dropped"]
    assert 0 < fields["p50_ms"] <= fields["p99_ms"]


def test_real_time_takes_as_long_as_the_time_stamps_say(identity: Artifact) -> None:
    header = b"W50 H38 F10:1 Ip A0:0 C420jpeg"
    start = time.monotonic()
    stream("-", "null", "-m", identity.model_path, "--realtime", data=y4m(6, header))
    assert time.monotonic() - start >= 0.5
