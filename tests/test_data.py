"""Crops: where they come from, and that they depend on nothing but their number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from echoir.crops import LAYERED, Crops, _reflected
from echoir.data import (
    Picture,
    check_pictures,
    find_pairs,
    list_pictures,
    read_float,
    read_rgb,
    split,
)
from echoir.degradations import TASKS, Task
from echoir.recipe import Stage
from echoir.runtime.errors import ImageError
from echoir.samples import Samples

UNTOUCHED = Task(lambda clean, draw: (clean, clean))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def clean(tmp_path: Path) -> list[Picture]:
    rng = np.random.default_rng(0)
    for index in range(4):
        save(tmp_path / "clean" / f"{index}.png", rng.integers(0, 256, (40, 40, 3)))
    return list_pictures([tmp_path / "clean"])


@pytest.fixture
def pairs(tmp_path: Path) -> list[Picture]:
    """Inputs that are exactly 20 codes brighter than their targets."""
    rng = np.random.default_rng(1)
    for index in range(3):
        target = rng.integers(0, 200, (32, 48, 3))
        save(tmp_path / "pairs" / "target" / f"{index}.png", target)
        save(tmp_path / "pairs" / "input" / f"{index}.png", target + 20)
    return list_pictures([tmp_path / "pairs"])


def crops(pictures: list[Picture], task: Task, folder: Path, seed: int = 0, **options: float) -> Crops:
    return Crops(pictures, task, (seed,), torch.device("cpu"), folder, **options)


def test_crops_depend_on_seed_and_number_alone(clean: list[Picture], tmp_path: Path) -> None:
    first, again = (crops(clean, TASKS["denoise"], tmp_path, seed=3) for _ in range(2))
    again.make(5, 16, (0,))
    for a, b in zip(first.make(5, 16, (7,)), again.make(5, 16, (7,)), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.make(5, 16, (7,))[1], first.make(5, 16, (8,))[1])


def test_batches_of_two_streams_differ(clean: list[Picture], tmp_path: Path) -> None:
    made = crops(clean, UNTOUCHED, tmp_path)
    one, other = (list(made.batches(Stage(9, 16, 2), 3, 6, stream)) for stream in range(2))
    assert len(one) == len(other) == 3
    assert all(degraded.shape == (2, 3, 16, 16) for degraded, _ in one)
    assert not torch.equal(one[0][1], other[0][1])


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_smaller_than_the_crop_is_reflected(clean: list[Picture], tmp_path: Path, task: str) -> None:
    degraded, crop = crops(clean, TASKS[task], tmp_path).make(3, 64, (0,))
    assert degraded.shape == crop.shape == (3, 3, 64, 64)
    assert degraded.dtype == crop.dtype == torch.float32


@given(size=st.integers(1, 9), before=st.integers(0, 20), after=st.integers(0, 20))
def test_places_outside_are_reflected_as_numpy_pads(size: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(size), (before, after), mode="reflect")
    places = _reflected(torch.arange(-before, size + after), torch.tensor(size))
    np.testing.assert_array_equal(places, expected)


def test_every_crop_is_a_window_of_a_picture_turned_or_mirrored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    save(tmp_path / "one.png", pixels)
    windows = {
        np.rot90(window, turns)[:, ::mirror].tobytes()
        for y in range(5)
        for x in range(7)
        for window in (pixels[y : y + 5, x : x + 5],)
        for turns in range(4)
        for mirror in (1, -1)
    }
    made = crops(list_pictures([tmp_path]), UNTOUCHED, tmp_path).make(64, 5, (0,))[1]
    found = {np.rint(255 * crop.permute(1, 2, 0).numpy()).astype(np.uint8).tobytes() for crop in made}
    assert found <= windows
    assert len(found) > 30


def test_both_pictures_of_a_pair_are_cut_turned_and_mirrored_alike(pairs: list[Picture], tmp_path: Path) -> None:
    degraded, target = crops(pairs, UNTOUCHED, tmp_path).make(24, 16, (0,))
    torch.testing.assert_close(degraded - target, torch.full_like(target, 20 / 255), atol=1e-6, rtol=0)


def test_a_task_with_layers_puts_a_pairs_difference_on_clean_pictures(
    clean: list[Picture], pairs: list[Picture], tmp_path: Path
) -> None:
    task = Task(lambda clean, draw: (clean, clean), layered=lambda clean, layer, draw: (clean + layer, clean))
    degraded, target = crops([*clean, *pairs], task, tmp_path, pairs=0.0).make(64, 16, (0,))
    layers = (degraded - target).flatten(1).mean(1)
    assert set(np.rint(255 * layers.numpy())) == {0, 20}
    assert float((layers > 0.01).float().mean()) == pytest.approx(LAYERED, abs=0.15)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_pairs_make_up_their_share(clean: list[Picture], pairs: list[Picture], tmp_path: Path, share: float) -> None:
    degraded, target = crops([*clean, *pairs], UNTOUCHED, tmp_path, pairs=share).make(200, 8, (0,))
    from_pairs = (degraded != target).flatten(1).any(1).float().mean()
    assert float(from_pairs) == pytest.approx(share, abs=0.08)


def test_rain_is_never_turned(tmp_path: Path) -> None:
    down = np.broadcast_to(np.arange(32)[:, None, None] * 8, (32, 32, 3))
    save(tmp_path / "one.png", down)
    made = crops(list_pictures([tmp_path]), TASKS["derain"], tmp_path).make(16, 16, (0,))[1]
    assert (made.diff(dim=2) > 0).all()


def test_pictures_that_do_not_fit_in_memory_are_mapped_from_a_file(
    clean: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = crops(clean, TASKS["denoise"], tmp_path).make(4, 16, (0,))
    monkeypatch.setattr("echoir.crops._free", lambda device: 0)
    mapped = crops(clean, TASKS["denoise"], tmp_path).make(4, 16, (0,))
    assert (tmp_path / "pictures.raw").stat().st_size == 4 * 40 * 40 * 3
    assert torch.equal(fits[0], mapped[0])


def test_a_pair_of_two_sizes_is_named(tmp_path: Path) -> None:
    save(tmp_path / "input" / "a.png", np.zeros((8, 8, 3)))
    save(tmp_path / "target" / "a.png", np.zeros((8, 9, 3)))
    with pytest.raises(ImageError, match=r"a\.png and .*a\.png differ in size"):
        crops(list_pictures([tmp_path]), UNTOUCHED, tmp_path)
    with pytest.raises(ImageError, match=r"a\.png and .*a\.png differ in size, 8 x 8 and 9 x 8"):
        check_pictures(list_pictures([tmp_path]))


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def relative(pictures: list[Picture], folder: Path) -> list[tuple[str | None, str]]:
    return [
        (
            str(picture.degraded.relative_to(folder)) if picture.degraded else None,
            str(picture.clean.relative_to(folder)),
        )
        for picture in pictures
    ]


def test_pairs_are_of_equal_path_below_the_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "input/s1/000.png", "input/s2/000.jpg", "target/s1/000.webp", "target/s2/000.png")
    assert relative(list_pictures([tmp_path]), tmp_path) == [
        ("input/s1/000.png", "target/s1/000.webp"),
        ("input/s2/000.jpg", "target/s2/000.png"),
    ]


@pytest.mark.parametrize(
    ("degraded", "clean"),
    [("input", "target"), ("blur", "sharp"), ("lq", "gt"), ("noisy", "clean"), ("rain", "norain"), ("LQ", "GT"),
     ("input", "gt")],
)  # fmt: skip
def test_the_usual_names_are_taken_and_told(tmp_path: Path, degraded: str, clean: str) -> None:
    touch(tmp_path, f"{degraded}/a.png", f"{clean}/a.png")
    said: list[str] = []
    assert relative(list_pictures([tmp_path], said.append), tmp_path) == [(f"{degraded}/a.png", f"{clean}/a.png")]
    assert said == [f"{tmp_path}: 1 pairs, {degraded}/ and {clean}/"]


def test_pairs_are_found_in_every_scene_and_what_lies_beside_them_is_told(tmp_path: Path) -> None:
    """GoPro's own layout."""
    for scene in ("GOPR0372", "GOPR0374"):
        touch(tmp_path / scene, "blur/1.png", "blur_gamma/1.png", "sharp/1.png")
    said: list[str] = []
    assert relative(find_pairs(tmp_path, said.append), tmp_path) == [
        (f"{scene}/blur/1.png", f"{scene}/sharp/1.png") for scene in ("GOPR0372", "GOPR0374")
    ]
    assert said[0] == f"{tmp_path}: 2 pairs, blur/ and sharp/"
    assert said[1].startswith(f"{tmp_path}: 2 pictures beside the pairs left out")


def test_a_folder_of_clean_pictures_may_say_so(tmp_path: Path) -> None:
    touch(tmp_path, "clean/a.png", "b.png")
    assert relative(list_pictures([tmp_path]), tmp_path) == [(None, "b.png"), (None, "clean/a.png")]
    touch(tmp_path, "other/input/a.png")
    assert relative(list_pictures([tmp_path / "other/input"]), tmp_path) == [(None, "other/input/a.png")]


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["input/a.png", "target/b.png"], r"target: no picture for a\.png of input/"),
        (["input/a.png", "target/a.png", "target/b.png"], r"input: no picture for b\.png of target/"),
        (["input/s1/0.png", "target/s2/0.png"], r"no picture for s1/0\.png of input/"),
        (["input/a.png", "target/a.png", "target/a.jpg"], r"a\.jpg and .*a\.png are of one name"),
        (["input/a.png", "other/a.png"], r"input: half of the pairs.*gt, norain, sharp, target"),
        (["deep/gt/a.png"], r"gt: half of the pairs.*blur, input, lq, noisy, rain"),
        (["input/a.png", "lq/a.png", "gt/a.png"], "holds gt/, input/, lq/, and which two are the pairs is not known"),
    ],
)
def test_pairs_that_are_lonely_or_ambiguous_are_refused(tmp_path: Path, names: list[str], cause: str) -> None:
    with pytest.raises(ImageError, match=cause):
        list_pictures([touch(tmp_path, *names)])


def test_pairs_and_clean_pictures_are_not_measured_together(tmp_path: Path) -> None:
    touch(tmp_path, "scene/input/a.png", "scene/target/a.png", "b.png")
    assert len(list_pictures([tmp_path])) == 2
    with pytest.raises(ImageError, match=r"holds pairs, and pictures besides \(.*b\.png\)"):
        find_pairs(tmp_path)


def tagged(path: Path, pixels: np.ndarray, orientation: int) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(pixels.astype(np.uint8)).save(path, exif=tags, **options)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_picture_is_read_as_it_is_shown(tmp_path: Path, suffix: str) -> None:
    stored = np.broadcast_to(np.arange(24)[:, None, None] * 10, (24, 16, 3))
    tagged(tmp_path / f"a{suffix}", stored, 6)
    np.testing.assert_allclose(read_rgb(tmp_path / f"a{suffix}").astype(int), np.rot90(stored, -1), atol=1)


def test_a_turned_pair_is_laid_on_each_other_or_refused(tmp_path: Path) -> None:
    wide, square = np.zeros((8, 12, 3)), np.zeros((8, 8, 3))
    tagged(tmp_path / "a.jpg", np.rot90(wide), 6)
    save(tmp_path / "a.png", wide)
    check_pictures([Picture(tmp_path / "a.png", tmp_path / "a.jpg")])
    tagged(tmp_path / "b.tif", square, 6)
    tagged(tmp_path / "b.jpg", square, 6)
    save(tmp_path / "b.png", square)
    check_pictures([Picture(tmp_path / "b.jpg", tmp_path / "b.tif")])
    with pytest.raises(ImageError, match="differ in orientation, 6 and 1, but not in size"):
        check_pictures([Picture(tmp_path / "b.png", tmp_path / "b.tif")])


def test_16_bit_pictures_keep_their_tones(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile comes with scikit-image, pip install '.[dev]'")
    ramp = np.linspace(0, 65535, 256 * 4).round().astype(np.uint16).reshape(4, 256)
    tifffile.imwrite(tmp_path / "gray.tif", ramp, photometric="minisblack")
    expected = np.rint(ramp / 257.0)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(read_rgb(tmp_path / "gray.tif"), expected)
    np.testing.assert_allclose(read_float(tmp_path / "gray.tif")[..., 1], ramp / 65535.0, atol=1e-7)


def test_alpha_and_palettes_are_read_as_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), pixels[..., :3])
    palette = Image.fromarray(pixels[..., :3]).quantize(16)
    palette.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "b.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_picture_is_known_by_its_header(tmp_path: Path, suffix: str, progressive: bool) -> None:
    path = tmp_path / f"a{suffix}"
    options = {"progressive": progressive} if suffix == ".jpg" else {}
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    check_pictures([Picture(path)])
    content = path.read_bytes()
    for keep in (0.3, 0.6, 0.97):
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(ImageError, match=r"cannot read .*a\."):
            check_pictures([Picture(path)])
    path.write_bytes(content + b"a film")
    check_pictures([Picture(path)])


def test_folders_without_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a folder"):
        list_pictures([tmp_path / "missing"])
    with pytest.raises(ImageError, match="no picture"):
        list_pictures([tmp_path])
    (tmp_path / "text.png").write_text("no picture at all")
    with pytest.raises(ImageError, match=r"cannot read .*text\.png: no PNG, JPEG, TIFF, WebP or BMP"):
        crops(list_pictures([tmp_path]), UNTOUCHED, tmp_path)


def test_split_is_disjoint_and_fixed_by_the_seed() -> None:
    paths = [Path(str(i)) for i in range(20)]
    training, held = split(paths, 5, seed=1)
    assert len(held) == 5
    assert set(training) | set(held) == set(paths)
    assert not set(training) & set(held)
    assert split(paths, 5, seed=1) == (training, held)
    assert split(paths, 5, seed=2) != (training, held)


def test_pictures_of_one_file_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    scenes = [f"pairs/{scene}/{half}/1.png" for scene in "ab" for half in ("blur", "sharp")]
    for name in ("clean/a/1.png", "clean/b/1.png", "flat/lq/a/1.png", "flat/gt/a/1.png", *scenes):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    names = {folder: [picture.name for picture in list_pictures([tmp_path / folder])] for folder in ("clean", "flat")}
    assert names == {"clean": ["a/1.png", "b/1.png"], "flat": ["a/1.png"]}
    pairs = find_pairs(tmp_path / "pairs")
    assert [pair.name for pair in pairs] == ["a/blur/1.png", "b/blur/1.png"]
    scored = Samples(tuple(pairs), None, "pairs")
    assert [sample.name for sample in scored] == ["a/blur/1.png", "b/blur/1.png"]
