"""Every bad input gets one clear line and its exit code; the good ones are still done, and no partial file stays."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from PIL import Image
from running import Result, echoir

from echoir.runtime.artifact import Artifact

NOBODY = 65534


def noise(path: Path, height: int = 60, width: int = 70, **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return noise(tmp_path / "good.png")


def assert_only_good(result: Result, out: Path, cause: str, failed: int = 1) -> None:
    """One failure with its cause on one line; the good picture alone was written."""
    assert result.code == 3
    lines = [line for line in result.err.splitlines() if line.startswith("failed: ")]
    assert len(lines) == failed
    assert cause in lines[0]
    assert "Traceback" not in result.err
    assert result.out == f"restored 1, skipped 0, failed {failed}\n"
    assert files_below(out) == {"good.png"}


def truncated(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def missing(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("This is no picture.\n")


def folder(path: Path) -> None:
    path.mkdir()


def half(path: Path) -> None:
    truncated(noise(path), 0.5)


def nearly_whole(path: Path) -> None:
    truncated(noise(path, 300, 300), 0.97)


def header_only(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n")


def bomb(path: Path) -> None:
    path.write_bytes(png_header(60_000, 60_000))


def no_pixels(path: Path) -> None:
    path.write_bytes(png_header(0, 0))


def animation(path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cmyk(path: Path) -> None:
    Image.new("CMYK", (8, 8)).save(path)


@pytest.mark.parametrize(
    ("name", "make", "cause"),
    [
        ("a.png", missing, "No such file or directory"),
        ("a.png", folder, "holds no image"),
        ("a.png", empty, "the file is empty"),
        ("a.png", text, "no PNG, JPEG, TIFF, WebP or BMP picture, whatever its name says"),
        ("a.png", header_only, "cannot read"),
        ("a.png", half, "is the file truncated or damaged?"),
        ("a.jpg", half, "is the file truncated or damaged?"),
        ("a.tif", half, "cannot read"),
        ("a.webp", half, "cannot read"),
        ("a.png", nearly_whole, "is the file truncated or damaged?"),
        ("a.jpg", nearly_whole, "is the file truncated or damaged?"),
        ("a.png", no_pixels, "cannot read"),
        ("a.png", bomb, "60000 x 60000 is more than 500000000 pixels (--max-pixels)"),
        ("a.webp", animation, "2 frames or pages"),
        ("a.tif", cmyk, "convert it to gray or RGB"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_file_fails_by_name_and_the_good_one_is_done(
    identity: Artifact, tmp_path: Path, good: Path, name: str, make: Any, cause: str
) -> None:
    bad, out = tmp_path / name, tmp_path / "out"
    make(bad)
    result = echoir("restore", bad, good, "-m", identity.model_path, "-o", out)
    assert str(bad) in result.err
    assert_only_good(result, out, cause)


def test_a_pixel_limit_refuses_by_size(identity: Artifact, tmp_path: Path, good: Path) -> None:
    big = noise(tmp_path / "big.png", 100, 100)
    arguments = ("-m", identity.model_path, "-o", tmp_path / "out", "--max-pixels", 9999)
    assert_only_good(echoir("restore", big, good, *arguments), tmp_path / "out", "100 x 100 is more than 9999 pixels")


def test_one_pixel_and_long_strips_are_restored(identity: Artifact, tmp_path: Path) -> None:
    sources = [noise(tmp_path / "dot.png", 1, 1), noise(tmp_path / "wide.png", 3, 65_000)]
    sources.append(noise(tmp_path / "tall.tif", 65_000, 1))
    result = echoir("restore", *sources, "-m", identity.model_path, "-o", tmp_path / "out")
    assert result.code == 0
    for source in sources:
        with Image.open(source) as before, Image.open(tmp_path / "out" / source.name) as after:
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


def test_a_strip_too_wide_for_the_format_fails_before_any_work(identity: Artifact, tmp_path: Path, good: Path) -> None:
    wide = noise(tmp_path / "wide.png", 1, 20_000)
    result = echoir("restore", wide, "-m", identity.model_path, "-o", tmp_path / "out", "--format", "webp")
    assert result.code == 3
    assert "WEBP holds at most 16383 pixels a side, this picture is 20000 x 1" in result.err
    assert files_below(tmp_path / "out") == set()


def test_nan_from_the_model_is_never_written(tmp_path: Path, good: Path) -> None:
    artifact = make_artifact(tmp_path, "broken", bias=float("nan"))
    result = echoir("restore", good, "-m", artifact.model_path, "-o", tmp_path / "out")
    assert result.code == 3
    assert f"failed: {good}: the model returned NaN pixels" in result.err
    assert files_below(tmp_path / "out") == set()


def test_an_output_name_taken_by_a_folder_fails_by_name(identity: Artifact, tmp_path: Path, good: Path) -> None:
    other, out = noise(tmp_path / "other.png"), tmp_path / "out"
    (out / "other.png").mkdir(parents=True)
    result = echoir("restore", other, good, "-m", identity.model_path, "-o", out)
    assert_only_good(result, out, f"cannot write {out / 'other.png'}: it is a folder")


def test_an_output_folder_below_a_file_fails_by_name(identity: Artifact, tmp_path: Path, good: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    noise(tmp_path / "in/sub/a.png")
    shutil.copy(good, tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").write_text("in the way")
    result = echoir("restore", tmp_path / "in", "-m", identity.model_path, "-o", out)
    assert result.code == 3
    assert f"cannot create the folder {out / 'sub'}: File exists" in result.err
    assert files_below(out) == {"good.png", "sub"}
    result = echoir("restore", good / "a.png", "-m", identity.model_path, "-o", tmp_path / "out2")
    assert (result.code, "Not a directory" in result.err) == (3, True)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own are the user's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root ignores permissions, so act as a user who does not."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)


@pytest.fixture
def reachable(identity: Artifact, public: Path, good: Path) -> Path:
    """The identity artifact where any user can read it; all code it needs is loaded."""
    for path in (identity.model_path, identity.model_path.with_suffix(".json")):
        shutil.copy(path, public)
    assert echoir("restore", good, "-m", public, "-o", public / "warm").code == 0
    return public / identity.model_path.name


def test_an_unreadable_folder_and_file_fail_by_name(reachable: Path, public: Path) -> None:
    for name in ("open", "closed"):
        (public / "in" / name).mkdir(parents=True)
        noise(public / "in" / name / "a.png")
    noise(public / "in/secret.png").chmod(0)
    noise(public / "in/good.png")
    (public / "in/closed").chmod(0)
    with unprivileged():
        result = echoir("restore", public / "in", "-m", reachable, "-o", public / "out")
    (public / "in/closed").chmod(0o700)
    assert result.code == 3
    assert f"{public / 'in/closed'}: the folder cannot be read: Permission denied" in result.err
    assert f"cannot read {public / 'in/secret.png'}: Permission denied" in result.err
    assert files_below(public / "out") == {"good.png", "open/a.png"}


def test_an_unwritable_folder_fails_by_name(reachable: Path, public: Path) -> None:
    noise(public / "good.png")
    (public / "out").mkdir(mode=0o555)
    with unprivileged():
        flat = echoir("restore", public / "good.png", "-m", reachable, "-o", public / "out")
        nested = echoir("restore", public / "good.png", "-m", reachable, "-o", public / "out/deep")
    assert (flat.code, nested.code) == (3, 3)
    assert f"cannot write {public / 'out/good.png'}: Permission denied" in flat.err
    assert f"cannot create the folder {public / 'out/deep'}: Permission denied" in nested.err
    assert files_below(public / "out") == set()


def test_a_full_disk_fails_by_name(identity: Artifact, tmp_path: Path, good: Path) -> None:
    """The kernel refuses to let a file grow past a limit, as it does when the disk is full."""
    big, out = noise(tmp_path / "big.png", 300, 300), tmp_path / "out"
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
from echoir.cli import main
main()
"""
    arguments = ["restore", str(big), str(good), "-m", str(identity.model_path), "-o", str(out)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert_only_good(
        Result(done.returncode, done.stdout, done.stderr), out, f"cannot write {out / 'big.png'}: File too large"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_fails_by_name(identity: Artifact, tmp_path: Path, good: Path) -> None:
    big, out = noise(tmp_path / "big.png", 300, 300), tmp_path / "out"
    out.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)], capture_output=True)
    if mount.returncode:
        pytest.skip("this root may not mount")
    try:
        # One after the other: the file that fills the disk would take its room from one that is written beside it.
        result = echoir("restore", big, "-m", identity.model_path, "-o", out)
        assert result.code == 3
        assert f"cannot write {out / 'big.png'}: No space left on device" in result.err
        result = echoir("restore", good, "-m", identity.model_path, "-o", out)  # nothing of it was left behind
        assert result.code == 0, result.err
        assert [path.name for path in out.iterdir()] == [good.name]
    finally:
        subprocess.run(["umount", str(out)], check=True)


class TestArtifact:
    """A broken artifact ends the command with 4 before anything is written."""

    @pytest.fixture
    def copy(self, identity: Artifact, tmp_path: Path) -> Path:
        (tmp_path / "artifact").mkdir()
        for path in (identity.model_path, identity.model_path.with_suffix(".json")):
            shutil.copy(path, tmp_path / "artifact")
        return tmp_path / "artifact" / identity.model_path.name

    def edit(self, model: Path, *keys: str, value: object) -> None:
        manifest = json.loads(model.with_suffix(".json").read_text())
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        model.with_suffix(".json").write_text(json.dumps(manifest))

    def refused(self, model: Path, good: Path, *words: str) -> None:
        out = good.parent / "out"
        for arguments in (("restore", good, "-m", model, "-o", out), ("bench", "-m", model, "--iterations", 2)):
            result = echoir(*arguments)
            assert result.code == 4
            assert result.err.startswith("error: ")
            assert result.err.count("\n") == 1
            assert all(word in result.err for word in words), result.err
        assert not out.exists()

    def test_an_edited_model(self, copy: Path, good: Path) -> None:
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
        self.refused(copy, good, "model.sha256", "edited, damaged or swapped")

    def test_a_truncated_model(self, copy: Path, good: Path) -> None:
        truncated(copy, 0.5)
        self.refused(copy, good, "model.bytes", "truncated")

    def test_another_format_version(self, copy: Path, good: Path) -> None:
        self.edit(copy, "format", value=99)
        self.refused(copy, good, "format: found 99, needed 4", "newer echoir")

    def test_another_tile(self, copy: Path, good: Path) -> None:
        self.edit(copy, "tile", "width", value=128)
        self.refused(copy, good, "input.shape", "128", "wrong tile")

    def test_a_manifest_that_is_not_json(self, copy: Path, good: Path) -> None:
        copy.with_suffix(".json").write_text("{")
        self.refused(copy, good, "manifest", "not JSON")

    def test_no_artifact_at_all(self, tmp_path: Path, good: Path) -> None:
        self.refused(tmp_path / "none.onnx", good, "artifact: found no file at", "none.onnx")

    def test_an_engine_runs_elsewhere(
        self, identity: Artifact, tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A backend that is not here is 6, not 4: the artifact is sound."""
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        from dataclasses import replace

        from echoir.runtime.artifact import write_artifact
        from echoir.runtime.manifest import Engine

        engine = tmp_path / "test.engine"
        engine.write_bytes(b"engine")
        manifest = identity.manifest
        model = replace(manifest.model, backend="tensorrt-rtx")
        write_artifact(replace(manifest, model=model, engine=Engine("1.7.1", ("89",), 4.0)), engine)
        result = echoir("restore", good, "-m", engine, "-o", tmp_path / "out")
        assert result.code == 6
        assert "tensorrt_rtx is not installed; run: pip install 'echoir[rtx]'" in result.err
