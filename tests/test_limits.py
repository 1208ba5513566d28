"""Requests beyond what a machine has, and things that only look whole."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import make_artifact, make_manifest, make_model
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from running import echoir

from echoir.runtime import images
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.errors import ArtifactError, BackendError, ImageError
from echoir.runtime.external import has_external_data
from echoir.runtime.machine import all_cores
from echoir.runtime.onnx_session import OnnxSession
from echoir.runtime.restorer import Restorer
from echoir.runtime.vips import vips


@pytest.mark.parametrize("threads", [0, all_cores() + 1, 100_000, 3_000_000_000])
def test_threads_beyond_the_cores_are_a_usage_error(identity: Artifact, tmp_path: Path, threads: int) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    model = identity.model_path
    for command in (
        ["restore", tmp_path / "a.png", "-m", model, "-o", tmp_path / "out"],
        ["bench", "-m", model],
        ["stream", tmp_path / "a.mp4", tmp_path / "b.mp4", "-m", model],
        ["train", "--task", "denoise", "--data", tmp_path],
        ["evaluate", model, "--data", tmp_path],
        ["parity", "-m", model],
        ["export"],
    ):
        result = echoir(*command, "--threads", threads)
        assert result.code == 2
        assert f"{threads} is not in the range 1<=x<={all_cores()}" in result.err
    with pytest.raises(ValueError, match=f"threads must be from 1 to {all_cores()}"):
        OnnxSession(identity, threads=threads)


@pytest.mark.parametrize(
    ("cause", "error", "says"),
    [
        ("GThread: Error creating thread: No room", BackendError, "libvips cannot start its threads"),
        ("VipsImage: out of memory --- size == 4000MB", ImageError, "out of memory"),
        ("VipsJpeg: premature end of JPEG image", ImageError, "is the file truncated or damaged"),
    ],
)  # fmt: skip
def test_want_of_memory_or_threads_is_no_fault_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: Artifact, cause: str, error: type[Exception], says: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise vips().Error("unable to call", cause)

    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    picture = images.open_picture(path)
    monkeypatch.setattr(images, "_decode", fail)
    with pytest.raises(error, match=says) as caught:
        images.open_picture(path)
    assert ("truncated" in str(caught.value)) == ("premature" in cause)
    result = echoir("restore", path, "-m", identity.model_path, "-o", tmp_path / "out")
    assert result.code == getattr(error, "exit_code", None)
    if "premature" not in cause:
        monkeypatch.setattr(images, "encode", fail)
        with pytest.raises(error, match=says):
            images.save_picture(tmp_path / "b.png", [picture.pixels], picture)


class TestOut:
    @pytest.fixture
    def restorer(self, identity: Artifact) -> Restorer:
        return Restorer.open(identity.model_path)

    def test_memory_in_common_with_the_image_is_refused(self, restorer: Restorer) -> None:
        room = np.random.default_rng(0).integers(0, 256, (200, 90, 3), np.uint8)
        for image, out in ((room[:150], room[50:]), (room, room), (room, room[::-1]), (room[:, :80], room[:, 10:])):
            with pytest.raises(ImageError, match="out shares memory with the image"):
                restorer(image, out=out)

    def test_neighbours_in_one_buffer_have_nothing_in_common(self, restorer: Restorer) -> None:
        room = np.random.default_rng(0).integers(0, 256, (90, 80, 6), np.uint8)
        restorer(room[..., :3], out=room[..., 3:])
        np.testing.assert_array_equal(room[..., 3:], room[..., :3])


class TestExternalData:
    def split(self, folder: Path) -> Path:
        """An artifact's model whose weights lie in a file of their own."""
        make_model(folder / "one.onnx")
        model = onnx.load(folder / "one.onnx")
        onnx.save(model, folder / "one.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        return folder / "one.onnx"

    def test_a_model_in_several_files_is_refused(self, tmp_path: Path) -> None:
        path = self.split(tmp_path)
        with pytest.raises(ArtifactError, match="weights in other files"):
            write_artifact(make_manifest(), path)
        (tmp_path / "whole").mkdir()
        artifact = make_artifact(tmp_path / "whole", "one")
        manifest = artifact.model_path.with_suffix(".json").read_text()
        old, new = artifact.manifest.model, path.read_bytes()
        shutil.copy(path, artifact.model_path)
        manifest = manifest.replace(old.sha256, hashlib.sha256(new).hexdigest()).replace(
            f'"bytes": {old.bytes}', f'"bytes": {len(new)}'
        )
        artifact.model_path.with_suffix(".json").write_text(manifest)
        for command in (["inspect", artifact.model_path], ["bench", "-m", artifact.model_path]):
            result = echoir(*command)
            assert result.code == 4
            assert "save the model in one file" in result.err

    @pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "sparse", "function"])
    def test_external_weights_are_found_wherever_they_hide(self, tmp_path: Path, place: str) -> None:
        def tensor(external: bool) -> TensorProto:
            made = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
            if external:
                made.ClearField("raw_data")
                made.data_location = TensorProto.EXTERNAL
                made.external_data.add(key="location", value="weights.bin")
            return made

        for external in (False, True):
            inner = tensor(external)
            node = helper.make_node("Constant", [], ["w"], value=inner)
            graph = helper.make_graph([], "g", [], [])
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
            if place == "initializer":
                model.graph.initializer.append(inner)
            elif place == "constant":
                model.graph.node.append(node)
            elif place == "subgraph":
                branch = helper.make_graph([node], "b", [], [])
                model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))
            elif place == "sparse":
                sparse = model.graph.sparse_initializer.add()
                sparse.values.CopyFrom(inner)
            else:
                opsets = [helper.make_opsetid("", 17)]
                model.functions.append(helper.make_function("d", "f", [], ["w"], [node], opsets))
            (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
            assert has_external_data(tmp_path / "m.onnx") == external

    @pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"\x3a\xff\xff\xff\xff\x0f", bytes(range(256))])
    def test_what_is_no_model_has_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        assert not has_external_data(tmp_path / "m.onnx")
