"""``echoir restore``: which file becomes which, what is skipped, refused and reported."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import echoir

from echoir.runtime.artifact import Artifact
from echoir.runtime.images import open_picture
from echoir.runtime.picture import WRITABLE
from echoir.runtime.plans import Job, Naming, PlanError, plan


def write(path: Path, seed: int = 0, size: tuple[int, int] = (40, 50), **options: Any) -> np.ndarray[Any, Any]:
    """An image file of noise; returns its pixels [H, W, 3]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def read(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def halved(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the ``gain`` artifact makes of pixels."""
    return np.rint(pixels.astype(np.float32) / 255 * 0.5 * 255).astype(np.uint8)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_becomes_the_named_file(gain: Artifact, tmp_path: Path) -> None:
    pixels = write(tmp_path / "a.png", size=(150, 90))
    result = echoir("restore", tmp_path / "a.png", "-m", gain.model_path, "-o", tmp_path / "b.png")
    assert (result.code, result.out) == (0, "restored 1, skipped 0, failed 0\n")
    np.testing.assert_allclose(read(tmp_path / "b.png").astype(int), halved(pixels), atol=1)


def test_the_identity_changes_no_pixel_of_any_format(identity: Artifact, tmp_path: Path) -> None:
    for name, options in {"a.png": {}, "b.tif": {}, "c.webp": {"lossless": True}}.items():
        write(tmp_path / "in" / name, **options)
    result = echoir("restore", tmp_path / "in", "-m", identity.model_path, "-o", tmp_path / "out", "--format", "png")
    assert result.code == 0
    for name in ("a.png", "b.tif", "c.webp"):
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{name[0]}.png"), read(tmp_path / "in" / name))


def test_folders_and_patterns_keep_their_tree(identity: Artifact, tmp_path: Path) -> None:
    for name in ("shots/a.png", "shots/day/b.jpg", "shots/day/deep/c.PNG"):
        write(tmp_path / name)
    for name in ("shots/notes.txt", "shots/.hidden.png", "shots/.cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    out = tmp_path / "out"
    assert echoir("restore", tmp_path / "shots", "-m", identity.model_path, "-o", out / "folder").code == 0
    assert files_below(out / "folder") == ["a.png", "day/b.jpg", "day/deep/c.PNG"]
    assert echoir("restore", f"{tmp_path}/shots/**/*.png", "-m", identity.model_path, "-o", out / "glob").code == 0
    assert files_below(out / "glob") == ["a.png"]
    assert echoir("restore", f"{tmp_path}/sho*/**/*.jpg", "-m", identity.model_path, "-o", out / "wide").code == 0
    assert files_below(out / "wide") == ["shots/day/b.jpg"]


def test_a_name_with_brackets_is_a_name_if_it_exists(identity: Artifact, tmp_path: Path) -> None:
    write(tmp_path / "a[1].png")
    assert echoir("restore", tmp_path / "a[1].png", "-m", identity.model_path, "-o", tmp_path / "out").code == 0
    assert files_below(tmp_path / "out") == ["a[1].png"]


def test_a_second_run_skips_what_is_there_and_does_the_rest(gain: Artifact, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / "in" / name)
    arguments = ("restore", tmp_path / "in", "-m", gain.model_path, "-o", tmp_path / "out")
    echoir(*arguments)
    stamp = (tmp_path / "out/b.png").stat().st_mtime_ns
    (tmp_path / "out/a.png").unlink()
    assert echoir(*arguments).out == "restored 1, skipped 1, failed 0\n"
    assert (tmp_path / "out/b.png").stat().st_mtime_ns == stamp
    assert (tmp_path / "out/a.png").is_file()


def test_an_interrupted_run_resumes_where_it_stopped(
    gain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / "in" / name)
    from echoir.runtime.restorer import Restorer

    calls = 0
    strips = Restorer.strips

    def interrupted(self: Restorer, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        for rows in strips(self, *arguments, **options):
            yield rows
            if calls == 2:  # a part of the second picture is done
                raise KeyboardInterrupt

    arguments = ("restore", tmp_path / "in", "-m", gain.model_path, "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Restorer, "strips", interrupted)
        result = echoir(*arguments)
    assert (result.code, result.out) == (130, "restored 1, skipped 0, failed 0\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"], "no part of b.png, under any name"
    assert echoir(*arguments).out == "restored 2, skipped 1, failed 0\n"


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_picture_is_written_stops_the_run_and_leaves_no_part(
    identity: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt lands inside libvips; were Python called from there, to log, it would be swallowed."""
    from echoir.runtime import images

    written = {name: write(tmp_path / "in" / name, size=(1200, 1200)) for name in ("a.png", "b.png")}
    encode = images.encode

    def interrupted(*arguments: Any) -> None:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            encode(*arguments)
        finally:
            timer.join()

    monkeypatch.setattr(images, "encode", interrupted)
    result = echoir("restore", tmp_path / "in", "-m", identity.model_path, "-o", tmp_path / "out")
    made = files_below(tmp_path / "out")  # what was being encoded is finished
    assert (result.code, result.out) == (130, f"restored {len(made)}, skipped 0, failed 0\n")
    for path in made:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / path)), written[str(path)])


def test_overwrite_replaces_and_error_refuses(gain: Artifact, tmp_path: Path) -> None:
    pixels = write(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out/a.png"
    target.write_bytes(b"old")
    arguments = ("restore", tmp_path / "a.png", "-m", gain.model_path, "-o", tmp_path / "out", "--exists")
    result = echoir(*arguments, "error")
    assert result.code == 3
    assert f"failed: {tmp_path / 'a.png'}: the output {target} exists already" in result.err
    assert target.read_bytes() == b"old"
    assert echoir(*arguments, "overwrite").code == 0
    np.testing.assert_allclose(read(target).astype(int), halved(pixels), atol=1)


def test_suffix_and_format_name_the_outputs(identity: Artifact, tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    options = ("-o", tmp_path / "out", "--suffix", "_clean", "--format", "tiff")
    assert echoir("restore", tmp_path / "a.jpg", "-m", identity.model_path, *options).code == 0
    assert files_below(tmp_path / "out") == ["a_clean.tif"]
    assert open_picture(tmp_path / "out/a_clean.tif").format == "tiff"


def test_every_format_option_names_a_suffix_that_writes_it() -> None:
    from echoir.runtime.commands import EXTENSIONS

    assert {WRITABLE[extension] for extension in EXTENSIONS.values()} == set(WRITABLE.values())
    assert all(WRITABLE[extension] == format for format, extension in EXTENSIONS.items())


def test_the_documented_pixel_limit_is_the_one_in_force() -> None:
    from echoir.runtime.images import MAX_PIXELS

    assert f"[default: {MAX_PIXELS}]" in " ".join(echoir("restore", "--help").out.split())


def test_orientation_is_kept_or_applied(identity: Artifact, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to look right
    pixels = write(tmp_path / "a.png", exif=exif)
    arguments = ("restore", tmp_path / "a.png", "-m", identity.model_path, "--orientation")
    assert echoir(*arguments, "keep", "-o", tmp_path / "keep").code == 0
    with Image.open(tmp_path / "keep/a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert image.getexif()[0x0112] == 6
    assert echoir(*arguments, "apply", "-o", tmp_path / "apply").code == 0
    with Image.open(tmp_path / "apply/a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels, -1))
        assert image.getexif().get(0x0112, 1) == 1


def test_overlap_and_batch_reach_the_tiles(identity: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echoir.runtime.onnx_session import OnnxSession

    batches: list[int] = []
    run = OnnxSession.run_into

    def counted(self: OnnxSession, tiles: Any, out: Any) -> None:
        batches.append(len(tiles))
        run(self, tiles, out)

    monkeypatch.setattr(OnnxSession, "run_into", counted)
    write(tmp_path / "a.png", size=(64, 64 + 3 * 32))  # with 64-pixel tiles that share 32: four of them
    options = ("--overlap", 32, "--batch", 3, "--threads", 1)
    result = echoir("restore", tmp_path / "a.png", "-m", identity.model_path, "-o", tmp_path / "out", *options)
    assert (result.code, batches) == (0, [3, 1])


def test_json_lines_count_tiles_and_name_failures(identity: Artifact, tmp_path: Path) -> None:
    write(tmp_path / "a.png", size=(64, 120))
    (tmp_path / "b.png").write_bytes(b"")
    arguments = ("restore", tmp_path / "a.png", tmp_path / "b.png", f"{tmp_path}/*.none", "-m", identity.model_path)
    result = echoir(*arguments, "-o", tmp_path / "out", "--log-json")
    assert result.code == 3
    start, *notes, end = result.records
    assert (start["event"], start["total"], start["unit"]) == ("start", 2, "tiles")
    assert [note["fields"]["source"] for note in notes] == [f"{tmp_path}/*.none", str(tmp_path / "b.png")]
    assert (end["event"], end["done"]) == ("end", 2)
    assert end["fields"] == {"restored": 1, "skipped": 0, "failed": 2}


def test_quiet_says_nothing_but_failures(identity: Artifact, tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    arguments = ("-m", identity.model_path, "-o", tmp_path / "out", "--quiet")
    result = echoir("restore", tmp_path / "a.png", *arguments)
    assert (result.code, result.out, result.err) == (0, "", "")
    result = echoir("restore", tmp_path / "none.png", *arguments)
    assert (result.code, result.out) == (3, "")
    assert result.err == f"failed: cannot read {tmp_path / 'none.png'}: No such file or directory\n"


class TestPlan:
    """Requests that are refused before anything is read."""

    def test_two_inputs_with_one_output_are_refused(self, identity: Artifact, tmp_path: Path) -> None:
        for name in ("x/a.png", "y/a.png", "y/a.tif"):
            write(tmp_path / name)
        clash = ("restore", tmp_path / "x/a.png", tmp_path / "y/a.png")
        result = echoir(*clash, "-m", identity.model_path, "-o", tmp_path / "out")
        assert result.code == 2
        assert "x/a.png and" in result.err
        assert "would both become" in result.err
        assert not (tmp_path / "out").exists()
        with pytest.raises(PlanError, match="would both become"):
            plan([str(tmp_path / "y")], str(tmp_path / "out"), Naming(extension=".png"))

    def test_an_input_given_twice_is_done_once(self, tmp_path: Path) -> None:
        write(tmp_path / "x/a.png")
        jobs, failures = plan([str(tmp_path / "x"), str(tmp_path / "x/a.png")], str(tmp_path / "out"))
        assert (jobs, failures) == ([Job(tmp_path / "x/a.png", tmp_path / "out/a.png")], [])

    def test_an_input_is_never_replaced_by_accident(self, gain: Artifact, tmp_path: Path) -> None:
        write(tmp_path / "a.png")
        before = (tmp_path / "a.png").read_bytes()
        (tmp_path / "link").symlink_to(tmp_path)
        for source, output, exists in (
            (tmp_path, tmp_path, "overwrite"),
            (tmp_path / "a.png", tmp_path, "overwrite"),
            (tmp_path / "a.png", tmp_path / "link", "overwrite"),
            (tmp_path / "a.png", tmp_path / "a.png", "skip"),
        ):
            result = echoir("restore", source, "-m", gain.model_path, "-o", output, "--exists", exists)
            assert result.code == 2
            assert "is an input and would be replaced" in result.err
            assert (tmp_path / "a.png").read_bytes() == before

    def test_an_input_named_as_output_replaces_itself_on_request(self, gain: Artifact, tmp_path: Path) -> None:
        pixels = write(tmp_path / "a.png")
        path = tmp_path / "a.png"
        assert echoir("restore", path, "-m", gain.model_path, "-o", path, "--exists", "overwrite").code == 0
        np.testing.assert_allclose(read(path).astype(int), halved(pixels), atol=1)

    def test_the_output_folder_inside_the_input_is_no_input(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png")
        write(tmp_path / "out/a.png")
        for given in (str(tmp_path), f"{tmp_path}/**/*.png"):
            jobs, _ = plan([given], str(tmp_path / "out"))
            assert jobs == [Job(tmp_path / "a.png", tmp_path / "out/a.png")]

    @pytest.mark.parametrize("output", ["b.png", "b.bmp", "notes"])
    def test_a_file_is_no_output_for_a_folder(self, tmp_path: Path, output: str) -> None:
        write(tmp_path / "in/a.png")
        (tmp_path / output).write_bytes(b"")
        with pytest.raises(PlanError, match="is a file"):
            plan([str(tmp_path / "in")], str(tmp_path / output))

    def test_a_name_that_is_no_image_is_refused_unless_it_is_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png")
        with pytest.raises(PlanError, match=r"b\.bmp is no image that can be written"):
            plan([str(tmp_path / "a.png")], str(tmp_path / "b.bmp"))
        jobs, _ = plan([str(tmp_path / "a.png")], f"{tmp_path / 'v1.5'}{os.sep}")
        assert jobs == [Job(tmp_path / "a.png", tmp_path / "v1.5/a.png")]

    def test_a_suffix_for_a_file_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="applies to outputs in a folder"):
            plan(["a.png"], str(tmp_path / "b.png"), Naming("_x"))

    @pytest.mark.parametrize("given", [("", "out"), ("a.png", ""), ("", "")])
    def test_empty_names_are_refused(self, given: tuple[str, str]) -> None:
        """As a shell gives for a variable that is not set; they would mean the current folder."""
        with pytest.raises(PlanError, match="is empty"):
            plan([given[0]], given[1])

    def test_inputs_that_hold_nothing_are_failures(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        jobs, failures = plan([str(tmp_path / "empty"), f"{tmp_path}/*.webp"], str(tmp_path / "out"))
        assert jobs == []
        assert [failure.cause for failure in failures] == ["holds no image", "matches no image"]

    def test_outputs_beside_their_inputs_are_no_inputs_of_the_next_run(self, gain: Artifact, tmp_path: Path) -> None:
        for name in ("a.png", "sub/b.png", "c.png"):
            write(tmp_path / "s" / name)
        arguments = ("restore", tmp_path / "s", "-m", gain.model_path, "-o", tmp_path / "s", "--suffix", "_clean")
        assert echoir(*arguments).out == "restored 3, skipped 0, failed 0\n"
        (tmp_path / "s/c_clean.png").unlink()
        result = echoir(*arguments)
        assert (result.code, result.out) == (0, "restored 1, skipped 2, failed 0\n")
        assert "2 left out as outputs of this very command" in result.err
        expected = ["a.png", "a_clean.png", "c.png", "c_clean.png", "sub/b.png", "sub/b_clean.png"]
        assert files_below(tmp_path / "s") == expected

    def test_a_format_beside_its_inputs_resumes_too(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png", "a.jpg"):
            write(tmp_path / name)
        jobs, _ = plan([str(tmp_path)], str(tmp_path), Naming(extension=".jpg"))
        assert jobs == [Job(tmp_path / f"{name}.png", tmp_path / f"{name}.jpg") for name in "ab"]

    def test_a_named_input_is_an_input_even_if_another_becomes_it(self, tmp_path: Path) -> None:
        for name in ("a.png", "a_x.png"):
            write(tmp_path / name)
        with pytest.raises(PlanError, match=r"a_x\.png is an input and would be replaced"):
            plan([str(tmp_path / "a.png"), str(tmp_path / "a_x.png")], str(tmp_path), Naming("_x"))

    @pytest.mark.parametrize("pattern", ["*.png", "./*.png", "{}/*.png", "../w/*.png", "**/*.png"])
    @pytest.mark.parametrize("output", [".", "{}", "../w", "./"])
    def test_a_pattern_may_write_beside_its_matches_or_above_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, output: str
    ) -> None:
        here = tmp_path / "w"
        write(here / "a.png")
        monkeypatch.chdir(here)
        jobs, failures = plan([pattern.format(here)], output.format(here), Naming("_x"))
        assert failures == []
        assert [os.path.realpath(job.target) for job in jobs] == [str(here / "a_x.png")]

    @pytest.mark.parametrize("output", ["out", "{}/out", "in/../out", "link"])
    @pytest.mark.parametrize("given", [".", "{}", "in/..", "**/*.png", "{}/**/*.png", "*"])
    def test_the_output_folder_is_known_however_it_is_spelt(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, output: str
    ) -> None:
        for name in ("in/a.png", "out/in/a.png"):
            write(tmp_path / name)
        (tmp_path / "link").symlink_to("out")
        monkeypatch.chdir(tmp_path)
        jobs, _ = plan([given.format(tmp_path)], output.format(tmp_path))
        assert [os.path.realpath(job.source) for job in jobs] == [str(tmp_path / "in/a.png")]

    def test_one_file_in_two_spellings_is_one_job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "in/a.png")
        monkeypatch.chdir(tmp_path)
        jobs, _ = plan(["in", str(tmp_path / "in"), "in/../in/a.png"], "out")
        assert jobs == [Job(Path("in/a.png"), Path("out/a.png"))]

    @pytest.mark.parametrize("suffix", ["a/b", "/", "x\0y"])
    def test_a_suffix_that_is_no_part_of_a_name_is_refused(
        self, identity: Artifact, tmp_path: Path, suffix: str
    ) -> None:
        write(tmp_path / "a.png")
        arguments = ("-m", identity.model_path, "-o", tmp_path / "out", "--suffix", suffix)
        result = echoir("restore", tmp_path / "a.png", *arguments)
        assert result.code == 2
        assert "cannot be part of a file's name" in result.err
        assert not (tmp_path / "out").exists()


def test_types_that_are_not_read_are_counted_in_a_line(identity: Artifact, tmp_path: Path) -> None:
    write(tmp_path / "in/a.png")
    for name in ("b.heic", "c.HEIC", "sub/d.gif", "sub/e.txt", ".f.bmp"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    line = "2 .heic, 1 .gif left out, of types that are not read"
    for given in (tmp_path / "in", f"{tmp_path}/in/**"):
        arguments = ("restore", given, "-m", identity.model_path, "-o", tmp_path / "out")
        result = echoir(*arguments)
        assert (result.code, result.err.splitlines()[0]) == (0, line)
        assert echoir(*arguments, "--log-json").records[1]["message"] == line
        assert echoir(*arguments, "--quiet").err == ""
    result = echoir("restore", tmp_path / "in/sub", "-m", identity.model_path, "-o", tmp_path / "out")
    assert result.code == 3
    assert "sub: holds no image that is read (1 .gif left out)" in result.err


def test_what_is_no_regular_file_is_refused_and_not_waited_for(identity: Artifact, tmp_path: Path) -> None:
    write(tmp_path / "in/a.png")
    os.mkfifo(tmp_path / "in/pipe.png")
    result = echoir("restore", tmp_path / "in", "/dev/zero", "-m", identity.model_path, "-o", tmp_path / "out")
    assert (result.code, result.out) == (3, "restored 1, skipped 0, failed 2\n")
    assert f"cannot read {tmp_path / 'in/pipe.png'}: it is no regular file" in result.err
    assert "cannot read /dev/zero: it is no regular file" in result.err
