"""The manifest and its file: whatever does not match is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_artifact, make_manifest

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, ImageError
from echoir.runtime.files import atomic_write, sha256_file
from echoir.runtime.manifest import Calibration, Engine, Manifest, Model, Precision

ENGINE = Engine("10.16.0", ("8.7", "8.9"), 12.5, gpu="Orin", details={"plugin": False, "layers": [1, 2]})


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path, "denoise")


def edit(artifact: Artifact, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the manifest on disk and give its path."""
    path = artifact.model_path.with_suffix(".json")
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    written = make_artifact(
        tmp_path,
        precision=Precision("fp16", {"float32": ("norm1", "softmax")}),
        calibration=Calibration("ab12", "entropy", 64, 12, ("normalization",), 0.1, 0.05, 0.9),
        parity={"psnr": 61.25, "gate": {"passed": True, "reasons": []}},
    )
    assert Artifact.open(written.model_path) == written
    assert Manifest.from_json(written.manifest.to_json()) == written.manifest


def test_an_engine_comes_back(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"engine")
    manifest = make_manifest(model=Model("tensorrt"), engine=ENGINE, onnx_sha256="1" * 64)
    assert write_artifact(manifest, tmp_path / "x.engine").manifest.engine == ENGINE
    assert Artifact.open(tmp_path).manifest.onnx_sha256 == "1" * 64


def test_name_size_and_hash_are_those_of_the_file(artifact: Artifact) -> None:
    model = artifact.manifest.model
    assert model.file == "denoise.onnx"
    assert model.bytes == os.path.getsize(artifact.model_path)
    assert model.sha256 == sha256_file(artifact.model_path) == artifact.manifest.onnx_sha256


def test_an_artifact_opens_by_model_manifest_or_folder(artifact: Artifact) -> None:
    for path in (artifact.model_path, artifact.model_path.with_suffix(".json"), artifact.model_path.parent):
        assert Artifact.open(path) == artifact
        assert Artifact.open(str(path)) == artifact


def test_a_folder_prefers_its_onnx_and_ignores_other_json(artifact: Artifact) -> None:
    folder = artifact.model_path.parent
    (folder / "rtx.engine").write_bytes(b"engine")
    write_artifact(
        make_manifest(model=Model("tensorrt-rtx"), engine=ENGINE, onnx_sha256="1" * 64), folder / "rtx.engine"
    )
    (folder / "parity.json").write_text("{}")
    (folder / "stray.onnx").write_text("no manifest beside it")
    assert Artifact.open(folder) == artifact


def test_a_folder_with_several_or_no_artifacts_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    make_artifact(tmp_path, "second")
    with pytest.raises(ArtifactError, match=r"2 artifacts in .* \(denoise.onnx, second.onnx\), needed one"):
        Artifact.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="no artifact in"):
        Artifact.open(tmp_path / "empty")


def test_a_manifest_of_format_1_still_opens(artifact: Artifact) -> None:
    network = {"preset": "tiny", "parameters": 983_000, "config": {"width": 16}}
    first = {
        "format": 1,
        "task": "derain",
        "network": network,
        "tile": {"height": 64, "width": 64, "overlap": 8, "alignment": 16, "batch": None},
    }
    opened = Artifact.open(edit(artifact, lambda values: values.update(first))).manifest
    assert opened.task == "derain"
    assert opened.network == Descriptor("EchoIR", "derain", 983_000, "tiny", {"width": 16}, multiple=(16, 16))
    assert opened == replace(artifact.manifest, network=opened.network)
    assert Manifest.from_json(opened.to_json()) == opened


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task": None}, "network.task"),
        ({"network": {"preset": "tiny", "parameters": 0.5, "config": {}}}, "network.parameters"),
        ({"network": {"parameters": 1, "config": {}}}, "network.variant"),
        ({"network": []}, "network"),
        ({"tile": {"height": 64, "width": 64, "overlap": 8, "alignment": 0, "batch": None}}, "network.multiple"),
        ({"tile": {"height": 64, "width": 64, "overlap": 8, "alignment": 48, "batch": None}}, "tile.height"),
    ],
)
def test_a_bad_manifest_of_format_1_is_refused_by_name(artifact: Artifact, change: dict[str, Any], field: str) -> None:
    first = {
        "format": 1,
        "task": "denoise",
        "network": {"preset": "tiny", "parameters": 1, "config": {}},
        "tile": {"height": 64, "width": 64, "overlap": 8, "alignment": 16, "batch": None},
    }

    def write(values: dict[str, Any]) -> None:
        values.update(first | change)

    with pytest.raises(ArtifactError) as caught:
        Artifact.open(edit(artifact, write))
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("need", "overlap", "field"),
    [
        ({"multiple": (16, 48)}, 8, "tile.width"),
        ({"overlap": 9}, 8, "tile.overlap"),
        ({"phase": (64, 32)}, 8, "tile.overlap"),
        ({"phase": (32, 32)}, 33, "tile.overlap"),
        ({"phase": (32, 32)}, 32, None),
    ],
)
def test_the_tile_is_held_to_what_the_network_needs(
    tmp_path: Path, need: dict[str, Any], overlap: int, field: str | None
) -> None:
    network = replace(Descriptor("none", "denoise", 1), **need)
    with nullcontext() if field is None else pytest.raises(ArtifactError) as caught:
        make_artifact(tmp_path, network=network, overlap=overlap)
    assert caught is None or caught.value.field == field


# What can happen to the files, and the field that must be named.


def truncate(artifact: Artifact) -> None:
    with open(artifact.model_path, "r+b") as file:
        file.truncate(100)


def flip_a_bit(artifact: Artifact) -> None:
    data = bytearray(artifact.model_path.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.model_path.write_bytes(data)


def grow(artifact: Artifact) -> None:
    artifact.model_path.write_bytes(artifact.model_path.read_bytes() + b"\0")


def lose(artifact: Artifact) -> None:
    artifact.model_path.unlink()


@pytest.mark.parametrize(
    ("damage", "field", "hint"),
    [
        (truncate, "model.bytes", "truncated"),
        (grow, "model.bytes", "edited"),
        (flip_a_bit, "model.sha256", "edited, damaged or swapped"),
        (lose, "model.file", "copy the model beside its manifest"),
    ],
)
def test_a_damaged_model_is_refused(
    artifact: Artifact, damage: Callable[[Artifact], None], field: str, hint: str
) -> None:
    damage(artifact)
    with pytest.raises(ArtifactError, match=hint) as caught:
        Artifact.open(artifact.model_path.with_suffix(".json"))
    assert caught.value.field == field
    assert caught.value.exit_code == 4


def test_a_renamed_pair_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    for suffix in (".onnx", ".json"):
        (tmp_path / f"denoise{suffix}").rename(tmp_path / f"other{suffix}")
    with pytest.raises(
        ArtifactError, match=r"model.file: found other.onnx, needed denoise.onnx; the model was renamed"
    ):
        Artifact.open(tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match=r"model.file"):
        Artifact.open(tmp_path / "other.json")


def test_swapped_models_are_refused(tmp_path: Path) -> None:
    for name, gain in (("a", 1.0), ("b", 0.5)):
        (tmp_path / name).mkdir()
        make_artifact(tmp_path / name, "model", gain=gain)
    shutil.copy(tmp_path / "b" / "model.onnx", tmp_path / "a" / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model.sha256: .*swapped"):
        Artifact.open(tmp_path / "a")


def test_a_model_without_its_manifest_is_refused(artifact: Artifact) -> None:
    artifact.model_path.with_suffix(".json").unlink()
    with pytest.raises(ArtifactError, match=r"the manifest belongs beside denoise\.onnx"):
        Artifact.open(artifact.model_path)


@pytest.mark.parametrize("name", ["absent.onnx", "absent"])
def test_a_missing_artifact_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="no file at"):
        Artifact.open(tmp_path / name)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is this a model"):
        Artifact.open(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("version", "hint"),
    [(5, "upgrade"), (0, "again"), ("1", "again"), (True, "again"), (1.0, "again"), (None, "again")],
)
def test_another_format_version_is_refused(artifact: Artifact, version: Any, hint: str) -> None:
    path = edit(artifact, lambda values: values.update(format=version))
    with pytest.raises(ArtifactError, match=hint) as caught:
        Artifact.open(path)
    assert caught.value.field == "format"


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "[]", "null", '"text"', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_what_is_no_json_object_is_refused(artifact: Artifact, text: str | bytes) -> None:
    path = artifact.model_path.with_suffix(".json")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError):
        Artifact.open(path)


BAD_VALUES = [
    ("name", ""),
    ("name", None),
    ("network.task", 3),
    ("network.parameters", "many"),
    ("network.parameters", -1),
    ("network.parameters", True),
    ("network.config", []),
    ("checkpoint.sha256", "0" * 63),
    ("checkpoint.sha256", "G" * 64),
    ("model.backend", "openvino"),
    ("model.file", "../denoise.onnx"),
    ("model.file", "/etc/passwd"),
    ("model.file", "denoise.engine"),
    ("model.bytes", -1),
    ("model.bytes", 10.5),
    ("precision.name", "bf16"),
    ("precision.higher", {"float32": "norm"}),
    ("precision.higher", {"float32": [1]}),
    ("tile.height", 0),
    ("tile.height", 60),
    ("tile.width", "64"),
    ("tile.overlap", 64),
    ("tile.overlap", -1),
    ("network.multiple", [0, 8]),
    ("network.multiple", 8),
    ("network.scale", 5),
    ("network.input", "RGBA"),
    ("network.local", 1),
    ("tile.batch", 0),
    ("tile.batch", 1.5),
    ("input.layout", "CHW"),
    ("input.dtype", "float16"),
    ("input.range", [0, 255]),
    ("input.range", [0]),
    ("input.range", [0, "1"]),
    ("input.colour", "BGR"),
    ("input.colour", "gray"),
    ("output.name", ""),
    ("versions", {"torch": 2}),
    ("onnx_sha256", "1" * 64),
    ("engine", {"tensorrt": "10"}),
    ("calibration", {"fingerprint": "a", "method": "b", "tiles": 0}),
    ("parity", []),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_bad_value_is_refused_by_name_reading_and_writing(artifact: Artifact, field: str, value: Any) -> None:
    *parents, last = field.split(".")

    def change(values: dict[str, Any]) -> None:
        for parent in parents:
            values = values[parent]
        values[last] = value

    with pytest.raises(ArtifactError) as caught:
        Artifact.open(edit(artifact, change))
    assert caught.value.field.startswith(field)
    assert field in str(caught.value)

    manifest = artifact.manifest
    section = getattr(manifest, parents[0]) if parents else manifest
    changed = replace(section, **{last: value})
    with pytest.raises(ArtifactError, match=field):
        (replace(manifest, **{parents[0]: changed}) if parents else changed).to_json()


@pytest.mark.parametrize("field", ["name", "tile", "parity", "tile.batch", "model.sha256"])
def test_a_missing_field_is_refused_by_name(artifact: Artifact, field: str) -> None:
    *parents, last = field.split(".")
    path = edit(artifact, lambda values: (values[parents[0]] if parents else values).pop(last))
    with pytest.raises(ArtifactError, match="found nothing") as caught:
        Artifact.open(path)
    assert caught.value.field == field


def test_an_unknown_field_is_refused_by_name(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"tile.halo: found an unknown field"):
        Artifact.open(edit(artifact, lambda values: values["tile"].update(halo=3)))


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_figures_that_json_cannot_hold_are_refused(figure: float) -> None:
    manifest = make_manifest(
        model=Model("onnxruntime", "x.onnx", "0" * 64, 1), onnx_sha256="0" * 64, parity={"a": [figure]}
    )
    with pytest.raises(ArtifactError, match=r"parity.a\[0\]"):
        manifest.to_json()


def test_a_manifest_for_an_engine_needs_the_engines_record(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"engine")
    with pytest.raises(ArtifactError, match="engine: found nothing"):
        write_artifact(make_manifest(model=Model("tensorrt"), onnx_sha256="1" * 64), tmp_path / "x.engine")
    assert [p.name for p in tmp_path.iterdir()] == ["x.engine"]


def test_write_artifact_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file at"):
        write_artifact(make_manifest(), tmp_path / "absent.onnx")


# Files that appear whole or not at all.


def test_atomic_write_replaces_the_target_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt"
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_write_leaves_nothing_behind_when_its_body_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with atomic_write(tmp_path / "file.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_atomic_write_names_the_target_and_the_cause(tmp_path: Path) -> None:
    def write(path: Path, cause: str) -> None:
        with pytest.raises(ImageError, match=cause) as caught, atomic_write(path):
            raise OSError(28, "No space left on device")
        assert str(path) in str(caught.value)

    write(tmp_path / "file.txt", "No space left on device")
    write(tmp_path / "absent" / "file.txt", "No such file or directory")
    write(tmp_path, "it is a folder")
    write(tmp_path / ("x" * 300), "File name too long")
    write(Path("/dev/null"), "not a regular file")
    assert os.listdir(tmp_path) == []


def test_atomic_write_follows_links_and_the_umask(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "link") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_process_left_goes_with_the_next_one_but_not_what_is_in_use(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from echoir.runtime.files import atomic_write
with atomic_write({str(tmp_path / "a.png")!r}) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""
    busy, killed = (
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    with busy, killed:
        assert busy.stdout is not None
        assert killed.stdout is not None
        in_use, left = busy.stdout.readline().strip(), killed.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert set(os.listdir(tmp_path)) == {in_use, left}
        (tmp_path / ".echoir-notes").touch()
        with atomic_write(tmp_path / "b.png"):
            assert in_use in os.listdir(tmp_path)
            assert left not in os.listdir(tmp_path)
        busy.communicate("")
    assert sorted(os.listdir(tmp_path)) == [".echoir-notes", "a.png", "b.png"]


def test_sha256_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
