"""Time: what ffprobe says of a source, it says of the result; clips are made by ffmpeg."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probing import PICTURE, TONE, X264, ffmpeg, ffprobe, film_of, needs_ffmpeg, times_of
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.streams.muxing import sets_rates
from echoir.runtime.streams.truncation import announced_bytes

pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")
pytestmark = needs_ffmpeg


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of film with B-frames and a tone, as MP4 and as MPEG-TS."""
    folder = tmp_path_factory.mktemp("clips")
    ffmpeg(*PICTURE, *TONE, "-t", 1, *X264, "-c:a", "aac", folder / "av.mp4")
    ffmpeg("-i", folder / "av.mp4", "-c", "copy", folder / "av.ts")
    return folder


@pytest.fixture(scope="module", params=["mp4", "mkv", "avi"])
def whole(request: pytest.FixtureRequest, clips: Path) -> Path:
    path = clips / f"whole.{request.param}"
    ffmpeg("-i", clips / "av.mp4", "-c", "copy", path)
    return path


def restored(source: Path | str, target: Path, model: Artifact, *options: object, code: int = 0) -> str:
    result = echoir("stream", source, target, "-m", model.model_path, *options)
    assert result.code == code
    return result.err


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".ts", ".nut"])
def test_the_frame_rate_is_that_of_the_source(suffix: str, clips: Path, identity: Artifact, tmp_path: Path) -> None:
    if suffix == ".mkv" and not sets_rates():
        pytest.skip("PyAV before 18 does not give a copied stream its rate (Python 3.10)")
    target = tmp_path / f"out{suffix}"
    restored(clips / "av.mp4", target, identity)
    assert film_of(target)["avg_frame_rate"] == film_of(target)["r_frame_rate"] == "25/1"
    times = times_of(target)
    assert [time - times[0] for time in times] == pytest.approx(times_of(clips / "av.mp4"), abs=0.0011)
    first = ffprobe(target, "-select_streams", "V:0", "-show_packets")["packets"][0]
    assert -1 < float(first.get("dts_time", 0)) < 1, "no decoding time has wrapped"


def test_a_file_with_a_time_code_keeps_it(identity: Artifact, tmp_path: Path) -> None:
    source = tmp_path / "in.mov"
    ffmpeg(*PICTURE, "-t", 0.4, *X264, "-timecode", "10:00:00:00", source)
    for suffix in (".mov", ".mp4"):
        said = restored(source, tmp_path / f"out{suffix}", identity)
        if sets_rates():
            assert film_of(tmp_path / f"out{suffix}")["tags"]["timecode"] == "10:00:00:00"
        else:
            assert "left out: the time code" in said


def test_stamps_that_restart_inside_a_file_go_on(clips: Path, identity: Artifact, tmp_path: Path) -> None:
    source, target = tmp_path / "twice.ts", tmp_path / "out.mp4"
    source.write_bytes((clips / "av.ts").read_bytes() * 2)
    said = restored(source, target, identity)
    assert "time falls back from" in said
    times = times_of(target)
    assert len(times) == 50
    assert [after - before for before, after in itertools.pairwise(times)] == pytest.approx([0.04] * 49)
    sound = times_of(target, "a:0", "packet")
    assert sound == sorted(set(sound))
    assert sound[-1] - sound[0] == pytest.approx(2, abs=0.1)


def test_the_last_frame_is_shown_for_as_long_as_it_was(identity: Artifact, tmp_path: Path) -> None:
    gif, slides = tmp_path / "in.gif", tmp_path / "slides.mp4"
    ffmpeg(*PICTURE, "-t", 0.4, "-final_delay", 200, gif)
    pictures = tmp_path / "list.txt"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=1", "-t", 3, tmp_path / "%d.png")
    pictures.write_text(
        "".join(f"file {n}.png\nduration {t}\n" for n, t in ((1, 2), (2, 3.7), (3, 2.3))) + "file 3.png\n"
    )
    ffmpeg("-f", "concat", "-i", pictures, "-fps_mode", "vfr", *X264, slides)
    for source, seconds in ((gif, 2.36), (slides, 8.04)):
        assert float(ffprobe(source)["format"]["duration"]) == pytest.approx(seconds, abs=0.001)
        for suffix in (".mp4", ".mov", ".mkv"):
            target = tmp_path / f"{source.stem}{suffix}.out{suffix}"
            restored(source, target, identity)
            assert float(ffprobe(target)["format"]["duration"]) == pytest.approx(seconds, abs=0.005)
            assert times_of(target) == pytest.approx(times_of(source), abs=0.001)
    said = restored(gif, tmp_path / "out.ts", identity)
    assert "does not say how long the last frame is shown: 2.000 s become" in said


def test_frames_that_a_header_counts_and_nobody_sees_are_not_missed(
    clips: Path, identity: Artifact, tmp_path: Path
) -> None:
    """An edit list that begins inside a group of pictures, and AVI's empty chunks that show a frame again."""
    trimmed, sparse, late = tmp_path / "trimmed.mp4", tmp_path / "sparse.avi", tmp_path / "late.mp4"
    ffmpeg("-itsoffset", 1.5, "-i", clips / "av.mp4", "-c", "copy", late)
    restored(late, tmp_path / "late-out.mp4", identity)
    assert times_of(tmp_path / "late-out.mp4") == pytest.approx(times_of(late), abs=0.001)
    ffmpeg("-ss", 0.5, "-i", clips / "av.mp4", "-c", "copy", trimmed)
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10", "-t", 1, "-c:v", "mpeg4", "-fps_mode", "passthrough",
           "-enc_time_base", "1/30", "-r", 30, sparse)  # fmt: skip
    for source in (trimmed, sparse):
        assert int(film_of(source)["nb_frames"]) > len(times_of(source))
        for suffix in (".mp4", ".avi"):
            target = tmp_path / f"{source.stem}-out{suffix}"
            restored(source, target, identity)
            assert times_of(target) == pytest.approx(times_of(source), abs=0.001)


def test_b_frames_in_avi_are_shown_at_the_times_of_the_packets_as_they_rise(identity: Artifact, tmp_path: Path) -> None:
    source, target = tmp_path / "in.avi", tmp_path / "out.mp4"
    ffmpeg(*PICTURE, "-t", 1, *X264, source)
    restored(source, target, identity)
    assert times_of(target) == pytest.approx([index / 25 for index in range(25)])


def test_a_rate_that_varies_is_told_where_a_container_counts_frames(identity: Artifact, tmp_path: Path) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / "out.avi"
    ffmpeg(*PICTURE, "-t", 1, "-vf", "settb=1/1000,setpts=PTS+13*mod(N\\,3)", "-fps_mode", "passthrough",
           "-enc_time_base", "1/1000", *X264, source)  # fmt: skip
    assert "holds frames at a constant rate: the times of" in restored(source, target, identity)
    assert len(times_of(target)) == 25


class Camera(BaseHTTPRequestHandler):
    """Gives the same film to each of the first callers, from its start, and then nothing."""

    film, calls, most = b"", 0, 2

    def do_GET(self) -> None:
        type(self).calls += 1
        if self.calls > self.most:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.film)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def camera(clips: Path) -> Iterator[str]:
    Camera.film, Camera.calls = (clips / "av.ts").read_bytes(), 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/live"
        server.shutdown()


def test_a_camera_that_comes_back_with_its_clock_at_0_goes_on(
    camera: str, identity: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real connection that ends and is made again: the time that passed, and then the camera's own steps."""
    monkeypatch.setattr("echoir.runtime.streams.endpoints.time.sleep", lambda seconds: None)
    target = tmp_path / "out.mkv"
    said = restored(camera, target, identity, "--retries", 1, code=3)
    assert "source back after attempt 1" in said
    times = times_of(target)
    assert len(times) == 50
    steps = [after - before for before, after in itertools.pairwise(times)]
    gap = steps.pop(24)
    assert steps == pytest.approx([0.04] * 48, abs=0.0011)
    assert 0 < gap < 10


class Shelf(BaseHTTPRequestHandler):
    """A server with one film, which it gives as often as it is asked."""

    film, calls = b"", 0

    def do_GET(self) -> None:
        type(self).calls += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.film)))
        self.end_headers()
        self.wfile.write(self.film)

    def log_message(self, *arguments: object) -> None: ...


def test_a_film_on_a_server_is_read_once(clips: Path, identity: Artifact, tmp_path: Path) -> None:
    ffmpeg("-i", clips / "av.mp4", "-c", "copy", "-movflags", "faststart", tmp_path / "in.mp4")
    Shelf.film = (tmp_path / "in.mp4").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        restored(f"http://127.0.0.1:{server.server_port}/film.mp4", tmp_path / "out.mp4", identity)
        server.shutdown()
    assert times_of(tmp_path / "out.mp4") == pytest.approx(times_of(clips / "av.mp4"), abs=0.001)


class Stills(BaseHTTPRequestHandler):
    """A network camera: one JPEG after another, every tenth of a second."""

    picture = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=frame")
        self.end_headers()
        for _ in range(8):
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self.picture)}\r\n\r\n"
            self.wfile.write(head.encode() + self.picture + b"\r\n")
            time.sleep(0.1)

    def log_message(self, *arguments: object) -> None: ...


def test_pictures_of_a_network_camera_are_shown_when_they_come(identity: Artifact, tmp_path: Path) -> None:
    ffmpeg(*PICTURE, "-frames:v", 1, tmp_path / "one.jpg")
    Stills.picture = (tmp_path / "one.jpg").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Stills) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/mjpeg"
        said = restored(address, tmp_path / "out.mkv", identity, "--retries", 0, code=3)
        server.shutdown()
    assert "source lost" in said
    times = times_of(tmp_path / "out.mkv")
    assert len(times) >= 6
    assert times[-1] - times[2] > 0.06 * (len(times) - 3), "not a 25th of a second each"


@settings(deadline=None)
@given(st.integers(2, 400))
def test_a_file_that_was_cut_is_shorter_than_it_says(whole: Path, cut: int) -> None:
    data = whole.read_bytes()
    assert announced_bytes(str(whole)) == len(data)
    short = whole.with_name(f"short-{whole.name}")
    short.write_bytes(data[:-cut])
    announced = announced_bytes(str(short))
    assert announced is not None
    assert announced > len(data) - cut
