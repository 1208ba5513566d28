"""A word where a picture is of a kind that a network was not trained on: one line, once a kind, and only then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import make_artifact
from PIL import Image
from running import echoir

from echoir.checkpoint import load_checkpoint, save_checkpoint
from echoir.degradations import TASKS, mixed
from echoir.forms import FORMS as MADE
from echoir.networks.echoir import EchoIR
from echoir.runtime.artifact import Artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.forms import FORMS, form_of_frames, form_of_picture, warning
from echoir.runtime.images import open_picture
from echoir.runtime.streams.pixels import FORMATS

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)


def saved(path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = PIXELS, **wishes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **wishes)
    return path


def artifact(folder: Path, *forms: str) -> Artifact:
    return make_artifact(folder, network=Descriptor("none", "denoise", 1, multiple=(8, 8), forms=forms))


def test_forms_have_the_names_by_which_they_are_made() -> None:
    assert list(FORMS) == list(MADE)


def test_what_a_file_is_can_be_seen(tmp_path: Path) -> None:
    gray = np.repeat(PIXELS[..., :1], 3, axis=2)
    expected = {
        saved(tmp_path / "colour.png"): None,
        saved(tmp_path / "gray.png", PIXELS[..., 0]): "gray",
        saved(tmp_path / "equal.png", gray): "gray",
        saved(tmp_path / "gray.jpg", PIXELS[..., 0]): "gray",
        saved(tmp_path / "444.jpg", subsampling=0): "jpeg444",
        saved(tmp_path / "422.jpg", subsampling=1): "jpeg422",
        saved(tmp_path / "420.jpg", subsampling=2): "jpeg420",
        saved(tmp_path / "lossy.webp"): None,
    }
    assert {path: form_of_picture(open_picture(path)) for path in expected} == expected


def test_frames_with_halved_chroma_are_told_from_others() -> None:
    assert {name: form_of_frames(FORMATS[name]) for name in ("nv12", "yuv420p10le", "yuv444p", "rgb24", "gray")} == {
        "nv12": "yuv420",
        "yuv420p10le": "yuv420",
        "yuv444p": None,
        "rgb24": None,
        "gray": "gray",
    }


def test_there_is_nothing_to_say_of_what_is_known_or_of_what_nobody_knows() -> None:
    knows, silent = Descriptor("A", "denoise", 1, forms=("rgb", "gray")), Descriptor("B", "denoise", 1)
    assert [warning(form, knows) for form in (None, "gray")] == [None, None]
    assert [warning(form, silent) for form in (None, "gray", "jpeg420")] == [None, None, None]
    assert "trained on other kinds (rgb, gray)" in (warning("jpeg420", knows) or "")


def test_restore_says_it_once_a_kind(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        saved(tmp_path / "in" / name, subsampling=2)
    for name in ("c.png", "d.png"):
        saved(tmp_path / "in" / name, PIXELS[..., 0])
    saved(tmp_path / "in" / "e.png")
    model = artifact(tmp_path, "rgb", "clipped").model_path
    arguments = ("restore", tmp_path / "in", "-m", model, "-o", tmp_path / "out", "--exists", "overwrite")
    result = echoir(*arguments)
    lines = [line for line in result.err.splitlines() if "may do little" in line]
    assert result.code == 0
    assert len(lines) == 2
    assert "a.jpg: a JPEG with halved chroma (4:2:0); the network was trained on other kinds (rgb, clipped)" in lines[0]
    assert "c.png: a gray picture; " in lines[1]
    assert "may do little" not in echoir(*arguments, "--quiet").err
    records = echoir(*arguments, "--log-json").records
    assert sum("may do little" in (record["message"] or "") for record in records) == 2
    everything = artifact(tmp_path, *FORMS).model_path
    assert "may do little" not in echoir(*arguments, "-m", everything).err


def test_stream_says_it_of_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("ffv1", 25)
        video.width, video.height, video.pix_fmt = 80, 64, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(PIXELS)))
        container.mux(video.encode(None))
    for forms, said in ((("rgb",), 1), (("rgb", "yuv420"), 0), ((), 0)):
        model = artifact(tmp_path, *forms).model_path
        result = echoir("stream", tmp_path / "a.mkv", tmp_path / "b.mkv", "-m", model, "--force", "--encoder", "ffv1")
        assert result.code == 0, result.err
        assert result.err.count("video with halved chroma (4:2:0); the network was trained on other kinds") == said


def test_checkpoints_and_tasks_say_what_was_trained_on(tmp_path: Path) -> None:
    for name in ("denoise", "realnoise"):
        assert load_checkpoint(name).descriptor.forms == tuple(FORMS)
    assert load_checkpoint("derain").descriptor.forms == ()
    network = EchoIR.from_preset("tiny", width=8, heads=(1, 1, 1, 1), blocks=(1, 1, 1), middle=1)
    save_checkpoint(tmp_path / "denoise.safetensors", network, "denoise", "tiny", {"forms": ["gray"]})
    assert load_checkpoint(tmp_path / "denoise.safetensors").descriptor.forms == ("gray",)
    both = mixed({TASKS["denoise"]: 1, TASKS["derain"]: 1})
    assert (both.forms, TASKS["derain"].forms) == (TASKS["denoise"].forms, ())
