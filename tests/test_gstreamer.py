"""GStreamer: pipelines as source and sink, the element ``echoirrestore``, and the two together with real programs."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import make_artifact
from probing import needs_ffmpeg, times_of

from echoir.runtime.artifact import Artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.streams.gstreamer import NAMES, plugin_path

DEBIAN = "/usr/lib/python3/dist-packages"
WITH = "video/x-raw,width=48,height=36,framerate=30/1"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where programs find GStreamer's binding, this Python's packages, and the element.

    Debian's binding is for Debian's Python; it is used by a Python of the same version elsewhere too, through a
    folder that holds it alone, so that Debian's numpy does not come along.
    """
    if shutil.which("gst-launch-1.0") is None:
        pytest.skip("needs gst-launch-1.0 (make packages)")
    folder = tmp_path_factory.mktemp("gi")
    paths = [str(folder), *site.getsitepackages()]
    if importlib.util.find_spec("gi") is None:
        if not glob.glob(f"{DEBIAN}/gi/_gi.cpython-{sys.version_info[0]}{sys.version_info[1]}-*.so"):
            pytest.skip("needs GStreamer's Python binding for this Python (make packages)")
        (folder / "gi").symlink_to(f"{DEBIAN}/gi")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "GST_PLUGIN_PATH": plugin_path(),
        "GST_REGISTRY": str(folder / "registry.bin"),
    }


@pytest.fixture(scope="module")
def loader(environment: dict[str, str]) -> dict[str, str]:
    """The same, where GStreamer's Python plug-in loader runs a Python that can use this one's packages."""
    if subprocess.run(["gst-inspect-1.0", "python"], env=environment, capture_output=True).returncode:
        pytest.skip("needs GStreamer's Python plug-in loader (make packages)")
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
    )
    if version.stdout.split() != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(f"GStreamer's loader runs Python {version.stdout.strip()}, these packages are for another")
    return environment


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, timeout=60)
    print(done.stdout.decode(errors="replace")[-2000:], done.stderr.decode(), file=sys.stderr)
    return done


def stream(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[bytes]:
    return run(environment, sys.executable, "-c", "from echoir.cli import main; main()", "stream", *arguments)


def launch(environment: dict[str, str], text: str) -> subprocess.CompletedProcess[bytes]:
    return run(environment, "gst-launch-1.0", "-q", *text.split())


def refusal(environment: dict[str, str], text: str) -> str:
    """What gst-launch says of a pipeline that fails.

    It does not always end then (GStreamer 1.22): where the end of the stream that follows the error has prerolled the
    sink, its main loop waits for a message that it has read before.
    """
    with subprocess.Popen(["gst-launch-1.0", "-q", *text.split()], env=environment, stderr=subprocess.PIPE) as process:
        try:
            _, said = process.communicate(timeout=30)
            assert process.returncode != 0
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
    return said.decode(errors="replace")


def frames_of(environment: dict[str, str], text: str, path: Path) -> bytes:
    """What a pipeline makes, without rows being padded: 48 pixels need none."""
    assert launch(environment, f"{text} ! filesink location={path}").returncode == 0
    return path.read_bytes()


def test_formats_are_named_alike_in_the_element() -> None:
    source = Path(plugin_path(), "python", "echoirrestore.py").read_text()
    start = source.index("FORMATS = (")
    listed = "".join(part for part in source[start : source.index(")", start)].split('"')[1::2])
    assert listed.split(",") == list(NAMES)


@pytest.mark.parametrize("name", ["NV12", "BGRx", "GRAY8", "P010_10LE", "I420_10LE"])
def test_a_pipeline_is_a_source(name: str, environment: dict[str, str], identity: Artifact, tmp_path: Path) -> None:
    text = f"videotestsrc num-buffers=5 ! {WITH},format={name}"
    done = stream(environment, text, "-", "--output-format", "raw", "-m", identity.model_path, "--quiet")
    assert done.returncode == 0
    assert done.stdout == frames_of(environment, text, tmp_path / "alone")


def test_fields_of_a_pipeline_are_known_and_go_on(
    environment: dict[str, str], identity: Artifact, tmp_path: Path
) -> None:
    caps = "video/x-raw,interlace-mode=interleaved,field-order=bottom-field-first"
    text = f"videotestsrc num-buffers=2 ! {WITH},format=I420 ! capssetter caps={caps}"
    sink = f"gst:{caps} ! filesink location={tmp_path}/out"
    done = stream(environment, text, sink, "-m", identity.model_path)
    assert done.returncode == 0
    assert b"interlaced, bottom field first" in done.stderr
    assert b"left out" not in done.stderr
    assert (tmp_path / "out").read_bytes() == frames_of(environment, text, tmp_path / "alone")
    done = stream(environment, text.replace("=interleaved", "=mixed"), "null", "-m", identity.model_path)
    assert done.returncode == 0


def test_the_element_says_that_it_takes_fields_for_one_picture(loader: dict[str, str], identity: Artifact) -> None:
    text = f"videotestsrc num-buffers=2 ! {WITH},format=I420 ! capssetter caps=video/x-raw,interlace-mode=interleaved"
    arguments = f"{text} ! echoirrestore artifact={identity.model_path} ! fakesink".split()
    done = run(loader, "gst-launch-1.0", *arguments)
    assert done.returncode == 0
    assert b"put deinterlace before" in done.stdout + done.stderr


@needs_ffmpeg
def test_stamps_that_begin_anew_in_a_pipeline_go_on(
    environment: dict[str, str], identity: Artifact, tmp_path: Path
) -> None:
    """``concat``: every source counts from 0, in a segment of its own."""
    pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")
    part = f"videotestsrc num-buffers=5 ! {WITH},format=I420 ! c."
    target = tmp_path / "out.mp4"
    done = stream(environment, f"{part} {part} concat name=c ! identity", target, "-m", identity.model_path)
    assert done.returncode == 0
    assert times_of(target) == pytest.approx([index / 30 for index in range(10)], abs=0.001)


@pytest.mark.parametrize("name", ["NV12", "RGB", "I420"])
def test_a_pipeline_is_a_sink(name: str, environment: dict[str, str], identity: Artifact, tmp_path: Path) -> None:
    text = f"videotestsrc num-buffers=5 ! {WITH},format={name}"
    sink = f"gst:filesink location={tmp_path}/out"
    assert stream(environment, text, sink, "-m", identity.model_path).returncode == 0
    assert (tmp_path / "out").read_bytes() == frames_of(environment, text, tmp_path / "alone")


def test_colours_of_the_caps_are_taken_and_not_guessed(environment: dict[str, str], identity: Artifact) -> None:
    text = f"videotestsrc num-buffers=2 ! {WITH},format=I420,colorimetry=bt709,chroma-site=jpeg"
    done = stream(environment, text, "null", "-m", identity.model_path)
    assert b"bt709, limited range, chroma center" in done.stderr
    assert b"does not say" not in done.stderr
    silent = f"videotestsrc num-buffers=2 ! {WITH},format=I420 ! capssetter replace=true caps={WITH},format=I420"
    done = stream(environment, silent, "null", "-m", identity.model_path)
    assert b"does not say its colour matrix" in done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("videotestsrc ! nosuchelement", "nosuchelement"),
        ("filesrc location=/nowhere ! decodebin", "/nowhere"),
        ("videotestsrc num-buffers=0 ! video/x-raw,format=NV12", "ended without a frame"),
    ],
)
def test_a_pipeline_that_fails_is_named(
    source: str, message: str, environment: dict[str, str], identity: Artifact
) -> None:
    done = stream(environment, source, "null", "-m", identity.model_path, "--timeout", "5")
    assert done.returncode == 3
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_sink_that_fails_is_named(environment: dict[str, str], identity: Artifact) -> None:
    source = f"videotestsrc num-buffers=50 ! {WITH},format=NV12"
    done = stream(environment, source, "gst:identity error-after=3 ! fakesink", "-m", identity.model_path)
    assert done.returncode == 3
    assert b"the pipeline failed after" in done.stderr


def test_a_source_that_vanishes_is_tried_again_and_reported(environment: dict[str, str], identity: Artifact) -> None:
    """A live source that ends has been lost: it comes back each time, until it does not."""
    source = f"videotestsrc is-live=true num-buffers=4 ! {WITH},format=NV12"
    arguments = ["-m", identity.model_path, "--deadline", "1000", "--log-json", "--retries", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from echoir.cli import main; main()", "stream", source, "null", *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(json.loads(line))
        if sum(str(record["message"]).startswith("source back") for record in told) == 2:
            process.terminate()
            break
    told += [json.loads(line) for line in process.stderr]
    process.stderr.close()
    assert process.wait(30) == 0, "stopping a camera is no failure"
    assert sum(str(record["message"]).startswith("source lost") for record in told) >= 2
    fields = told[-1]["fields"]
    assert fields["frames"] >= 8
    assert fields["frames"] == fields["restored"] + fields["passed"] + fields["dropped"]


def test_gstreamer_pipes_into_echoir_into_gstreamer(
    environment: dict[str, str], identity: Artifact, tmp_path: Path
) -> None:
    """``gst-launch-1.0 ... ! fdsink | echoir stream - - | gst-launch-1.0 fdsrc ! ...``"""
    make = f"gst-launch-1.0 -q videotestsrc num-buffers=6 ! {WITH},format=I420 ! y4menc ! fdsink"
    own = f"{sys.executable} -c 'from echoir.cli import main; main()' stream - - -m {identity.model_path} --quiet"
    take = f"gst-launch-1.0 -q fdsrc ! filesink location={tmp_path}/out"
    for text in (f"{make} | {own} | {take}", f"{make} > {tmp_path}/alone"):
        assert run(environment, "bash", "-o", "pipefail", "-c", text).returncode == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize("name", ["NV12", "I420", "P010_10LE", "I420_10LE", "RGB", "BGR", "BGRx", "GRAY8"])
def test_the_element_with_an_identity_changes_nothing(
    name: str, loader: dict[str, str], identity: Artifact, tmp_path: Path
) -> None:
    text = f"videotestsrc num-buffers=3 ! {WITH},format={name}"
    ours = frames_of(loader, f"{text} ! echoirrestore artifact={identity.model_path}", tmp_path / "ours")
    assert ours == frames_of(loader, text, tmp_path / "alone")


def test_the_element_restores_between_others(loader: dict[str, str], gain: Artifact, tmp_path: Path) -> None:
    """A model that halves: full-range gray of 200 becomes 100, and odd sizes pass converters on both sides."""
    text = f"videotestsrc num-buffers=2 pattern=white ! {WITH},format=GRAY8"
    white = frames_of(loader, text, tmp_path / "alone")[0]
    halved = frames_of(loader, f"{text} ! echoirrestore artifact={gain.model_path} range=full", tmp_path / "ours")
    assert set(halved) <= {white // 2, white // 2 + 1}
    odd = "videotestsrc num-buffers=3 ! video/x-raw,width=51,height=37 ! videoconvert"
    done = launch(loader, f"{odd} ! echoirrestore artifact={gain.model_path} ! videoconvert ! fakesink")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ("", "say which artifact"),
        ("artifact=/nowhere.onnx", "/nowhere"),
        ("artifact={} policy=hurry", "the policy is pass or drop"),
        ("artifact={} overlap=4000", "overlap"),
    ],
)
def test_the_element_puts_errors_on_the_bus(
    properties: str, message: str, loader: dict[str, str], identity: Artifact
) -> None:
    text = f"videotestsrc num-buffers=3 ! {WITH},format=NV12 ! echoirrestore {properties.format(identity.model_path)}"
    assert message in refusal(loader, f"{text} ! fakesink")


def test_the_element_lets_late_frames_pass_and_counts_them(loader: dict[str, str], identity: Artifact) -> None:
    """A deadline of a microsecond, on a live source: every frame is late."""
    script = f"""
import gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
pipeline = Gst.parse_launch(
    "videotestsrc is-live=true num-buffers=10 ! {WITH},format=NV12 ! "
    "echoirrestore name=e artifact={identity.model_path} deadline=0.001 policy=POLICY ! "
    "fakesink name=s sync=false signal-handoffs=true"
)
arrived = []
pipeline.get_by_name("s").connect("handoff", lambda *arguments: arrived.append(1))
pipeline.set_state(Gst.State.PLAYING)
pipeline.get_bus().timed_pop_filtered(20 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
print(pipeline.get_by_name("e").get_property("stats"))
print(len(arrived))
pipeline.set_state(Gst.State.NULL)
"""
    for policy, counted in (("pass", "passed"), ("drop", "dropped")):
        done = run(loader, sys.executable, "-c", script.replace("POLICY", policy))
        told, arrived = done.stdout.splitlines()
        counts = json.loads(told)
        assert int(arrived) == counts["frames"] - counts["dropped"], "what is said to be dropped does not arrive"
        assert b"AttributeError" not in done.stderr
        assert counts["frames"] == 10 == counts["restored"] + counts[counted]
        assert counts[counted] >= 9  # the first may be as old as the clock


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that repeats pixels."""
    network = Descriptor("Repeat", "sr", 1, scale=2)
    return make_artifact(tmp_path_factory.mktemp("twice"), network=network).model_path


@pytest.mark.parametrize("name", ["GRAY8", "RGB", "Y444"])
def test_the_element_gives_larger_frames(
    name: str, loader: dict[str, str], identity: Artifact, twice: Path, tmp_path: Path
) -> None:
    """Of every pixel four alike; sizes are found on both of its sides."""
    text = f"videotestsrc num-buffers=3 ! {WITH},format={name}"
    before = np.frombuffer(frames_of(loader, text, tmp_path / "alone"), np.uint8)
    caps = f"video/x-raw,format={name},width=96,height=72,framerate=30/1"
    after = frames_of(loader, f"{text} ! echoirrestore artifact={twice} ! {caps}", tmp_path / "ours")
    planes, samples = (3, 1) if name == "Y444" else (1, 3 if name == "RGB" else 1)
    wanted = before.reshape(3, planes, 36, 48, samples).repeat(2, 2).repeat(2, 3)
    found = np.frombuffer(after, np.uint8).reshape(wanted.shape)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_the_size_behind_the_element_settles_that_before_it(
    loader: dict[str, str], twice: Path, tmp_path: Path
) -> None:
    text = f"videotestsrc num-buffers=1 ! echoirrestore artifact={twice} ! video/x-raw,format=GRAY8"
    assert len(frames_of(loader, f"{text},width=80,height=60", tmp_path / "even")) == 80 * 60
    assert "not-negotiated" in refusal(loader, f"{text},width=81,height=60 ! fakesink")
    either = f"{text},width=(int){{81,84}},height=(int)[41,43]"
    assert len(frames_of(loader, either, tmp_path / "either")) == 84 * 42


def test_larger_frames_of_the_element_are_of_the_colours_that_smaller_ones_were_taken_for(
    loader: dict[str, str], twice: Path
) -> None:
    """Downstream would take 720 lines that say nothing for BT.709."""
    silent = "video/x-raw,format=I420,width=64,height=360,framerate=30/1"
    text = f"videotestsrc num-buffers=1 ! {silent} ! capssetter replace=true caps={silent}"
    done = run(loader, "gst-launch-1.0", "-v", *f"{text} ! echoirrestore artifact={twice} ! fakesink name=end".split())
    (line,) = {line for line in done.stdout.decode().splitlines() if "end.GstPad:sink: caps" in line}
    assert "width=(int)128, height=(int)720" in line
    assert "colorimetry=(string)bt601" in line


@pytest.mark.parametrize(
    ("caps", "properties", "message"),
    [
        ("format=I420", "deadline=50", "enlarges 2 times, so that no frame can pass unrestored"),
        ("format=I420,interlace-mode=interleaved", "", "which the two fields of interlaced frames do not take"),
    ],
)
def test_what_cannot_be_enlarged_is_an_error_on_the_bus(
    caps: str, properties: str, message: str, loader: dict[str, str], twice: Path
) -> None:
    text = f"videotestsrc num-buffers=3 ! {WITH} ! capssetter caps=video/x-raw,{caps}"
    assert message in refusal(loader, f"{text} ! echoirrestore artifact={twice} {properties} ! fakesink")


def test_late_frames_are_dropped_by_an_element_that_enlarges(loader: dict[str, str], twice: Path) -> None:
    text = f"videotestsrc is-live=true num-buffers=5 ! {WITH},format=GRAY8"
    late = "deadline=0.001 policy=drop"
    done = launch(loader, f"{text} ! echoirrestore artifact={twice} {late} ! filesink location=/dev/stdout")
    assert done.returncode == 0
    assert len(done.stdout) in (0, 96 * 72), "the first may be as old as the clock"


def test_pipelines_on_both_sides_of_a_stream_that_grows(
    environment: dict[str, str], twice: Path, tmp_path: Path
) -> None:
    text = f"videotestsrc num-buffers=3 ! {WITH},format=GRAY8"
    sink = f"gst:video/x-raw,width=96,height=72 ! filesink location={tmp_path}/out"
    assert stream(environment, text, sink, "-m", twice).returncode == 0
    before = np.frombuffer(frames_of(environment, text, tmp_path / "alone"), np.uint8).reshape(3, 36, 48)
    after = np.frombuffer((tmp_path / "out").read_bytes(), np.uint8).reshape(3, 72, 96)
    assert np.abs(after.astype(int) - before.repeat(2, 1).repeat(2, 2)).max() <= 1
