"""Pixel formats: codes to pixels and back, against the standards' own figures and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoir.runtime.streams.conversion import Converter
from echoir.runtime.streams.pixels import FORMATS, SHARES, Colour, Format

Array = np.ndarray[Any, np.dtype[Any]]
SIZES = st.integers(1, 70)
COLOURS = st.builds(
    Colour,
    st.sampled_from(list(SHARES)),
    st.sampled_from(["limited", "full"]),
    st.sampled_from(["left", "center", "topleft"]),
)


def random_planes(format: Format, height: int, width: int, seed: int, spare: int = 0) -> list[Array]:
    """A frame of random codes, all of them legal, in rows that are longer by ``spare`` samples."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, columns + spare) for rows, columns in format.shapes(height, width)]
    return [rng.integers(0, format.peak, shape, format.dtype, endpoint=True) << format.shift for shape in shapes]


def worst(format: Format, got: list[Array], wanted: list[Array], height: int, width: int) -> int:
    """The largest difference in code values, over the picture."""
    pairs = zip(format.components(got, height, width), format.components(wanted, height, width), strict=True)
    return max(int(np.abs((a >> format.shift).astype(int) - (b >> format.shift).astype(int)).max()) for a, b in pairs)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(height=SIZES, width=SIZES, seed=st.integers(0, 99), colour=COLOURS, eight_bit=st.booleans())
def test_a_model_that_changes_nothing_changes_no_code(
    name: str, height: int, width: int, seed: int, colour: Colour, eight_bit: bool
) -> None:
    format = FORMATS[name]
    planes = random_planes(format, height, width, seed, spare=3 * len(format.places))
    out = [np.zeros_like(plane) for plane in planes]
    converter = Converter(format, height, width, colour, eight_bit=eight_bit)
    converter.restore([converter.image(planes).copy()], planes, out)
    assert worst(format, out, planes, height, width) == 0


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.kind != "rgb"])
@settings(max_examples=15, deadline=None)
@given(height=SIZES, width=SIZES, seed=st.integers(0, 99), colour=COLOURS)
def test_down_is_the_inverse_of_up(name: str, height: int, width: int, seed: int, colour: Colour) -> None:
    """A model that turns one frame into another gives the other's codes: no chroma of the first stays behind."""
    format = FORMATS[name]
    first, second = (random_planes(format, height, width, seed + i) for i in range(2))
    converter = Converter(format, height, width, colour, eight_bit=False)
    other = converter.image(second).copy()
    converter.image(first)
    out = format.empty(height, width)
    converter.restore([other], first, out)
    # Where a size is odd, the border's chroma has lost a luma sample that the filter would need.
    for component in (1, 2) if format.kind == "yuv" else ():
        for planes in (out, second):
            view = format.components(planes, height, width)[component]
            if height % 2 and format.shared[1]:
                view[-1] = 0
            if width % 2 and format.shared[0]:
                view[:, -1] = 0
    assert worst(format, out, second, height, width) <= 1


# Codes of the primaries, from the standards' equations: 8-bit limited range (BT.709: SMPTE RP 219's bars).
PRIMARIES = {
    ("bt601", "limited"): {"red": (81, 90, 240), "green": (145, 54, 34), "blue": (41, 240, 110)},
    ("bt709", "limited"): {"red": (63, 102, 240), "green": (173, 42, 26), "blue": (32, 240, 118)},
    ("bt2020", "limited"): {"red": (74, 97, 240), "green": (164, 47, 25), "blue": (29, 240, 119)},
    ("bt601", "full"): {"red": (76, 85, 255), "green": (150, 44, 21), "blue": (29, 255, 107)},
}
RGB = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


@pytest.mark.parametrize(("matrix", "range_"), PRIMARIES)
@pytest.mark.parametrize("name", ["yuv420p", "nv12", "yuyv422", "yuv420p10le", "p010le"])
def test_the_primaries_have_the_codes_of_the_standards(name: str, matrix: Any, range_: Any) -> None:
    format = FORMATS[name]
    for primary, codes in PRIMARIES[matrix, range_].items():
        planes = format.empty(6, 8)
        for view, code in zip(format.components(planes, 6, 8), codes, strict=True):
            deep = code * format.peak / 255 if range_ == "full" else code << (format.depth - 8)
            view[...] = round(deep) << format.shift
        image = Converter(format, 6, 8, Colour(matrix, range_), eight_bit=False).image(planes)
        np.testing.assert_allclose(image, np.broadcast_to(RGB[primary], image.shape), atol=0.012)


@pytest.mark.parametrize(("siting", "x", "y"), [("left", 0, 0.5), ("center", 0.5, 0.5), ("topleft", 0, 0)])
def test_chroma_is_read_from_where_it_is_sited(siting: Any, x: float, y: float) -> None:
    """A plane that rises linearly over the luma grid, sampled at the sites, comes back as that plane inside."""
    format, height, width = FORMATS["yuv420p10le"], 40, 60
    planes = format.empty(height, width)
    planes[0][:], planes[1][:] = 500, 512
    rows, columns = np.mgrid[: height // 2, : width // 2]
    planes[2][:] = 512 + 4 * (2 * columns + x) + 2 * (2 * rows + y) - 4
    image = Converter(format, height, width, Colour("bt709", "full", siting), eight_bit=False).image(planes)
    rows, columns = np.mgrid[:height, :width]
    expected = 500 / 1023 + 2 * (1 - 0.2126) * (4 * columns + 2 * rows - 4) / 1023
    inside = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(image[..., 0][inside], expected[inside], atol=1e-5)


def test_pixels_agree_with_another_library() -> None:
    """FFmpeg's swscale, whose fast path is good to two codes, on a picture with its chroma at full resolution."""
    av = pytest.importorskip("av", reason="needs PyAV (pip install '.[video]')")
    rows, columns = np.mgrid[:48, :64]
    planes = [np.uint8(60 + 2 * columns), np.uint8(100 + rows), np.uint8(150 - columns // 2)]
    frame = av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
    for matrix, number in (("bt601", "ITU601"), ("bt709", "ITU709")):
        theirs = frame.reformat(format="rgb24", src_colorspace=number, src_color_range="MPEG").to_ndarray()
        ours = Converter(FORMATS["yuv444p"], 48, 64, Colour(matrix), eight_bit=True).image(planes)
        assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("name", ["rgb24", "bgr24", "bgr0", "0rgb", "rgba"])
def test_rgb_is_taken_in_its_order_and_the_fourth_sample_is_kept(name: str) -> None:
    format = FORMATS[name]
    planes = random_planes(format, 5, 7, 1)
    image = Converter(format, 5, 7, Colour(), eight_bit=True).image(planes)
    pixels = planes[0].reshape(5, 7, -1)
    order = name.replace("24", "")
    for channel, letter in enumerate("rgb"):
        np.testing.assert_array_equal(image[..., channel], pixels[..., order.index(letter)])
    out = format.empty(5, 7)
    Converter(format, 5, 7, Colour(), eight_bit=True).restore([255 - image], planes, out)
    changed = out[0].reshape(5, 7, -1)
    for index, letter in enumerate(order):
        wanted = 255 - pixels[..., index] if letter in "rgb" else pixels[..., index]
        np.testing.assert_array_equal(changed[..., index], wanted)


def test_a_change_of_brightness_moves_luma_alone() -> None:
    """Adding 0.1 to R, G and B adds 0.1 of the swing to Y, and nothing to chroma: up to rounding."""
    for name in ("nv12", "yuv420p10le", "gray"):
        format = FORMATS[name]
        planes = [plane // 2 for plane in random_planes(format, 30, 40, 3)]
        converter = Converter(format, 30, 40, Colour(), eight_bit=False)
        out = format.empty(30, 40)
        converter.restore([converter.image(planes) + np.float32(0.1)], planes, out)
        for index, (a, b) in enumerate(
            zip(format.components(out, 30, 40), format.components(planes, 30, 40), strict=True)
        ):
            step = 0.1 * 219 * (1 << (format.depth - 8)) if index == 0 else 0
            assert np.abs(a.astype(int) - b.astype(int) - step).max() <= 0.51


def test_ten_bits_keep_their_depth_through_an_eight_bit_model() -> None:
    format = FORMATS["p010le"]
    planes = random_planes(format, 16, 16, 5)
    converter = Converter(format, 16, 16, Colour(), eight_bit=True)
    image = converter.image(planes)
    assert image.dtype == np.uint8
    out = format.empty(16, 16)
    converter.restore([np.where(image < 255, image + 1, image).astype(np.uint8)], planes, out)
    assert len(np.unique(out[0])) > 100, "codes between those of 8 bits"


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=10, deadline=None)
@given(
    size=st.tuples(SIZES, SIZES),
    scale=st.integers(2, 4),
    step=st.integers(1, 80),
    seed=st.integers(0, 99),
    colour=COLOURS,
    eight_bit=st.booleans(),
)
def test_an_even_frame_has_the_same_codes_when_it_is_larger(
    name: str, size: tuple[int, int], scale: int, step: int, seed: int, colour: Colour, eight_bit: bool
) -> None:
    """Of every pixel alike, in codes that RGB can hold, at any size, in strips of any height."""
    format, deep, rng = FORMATS[name], FORMATS[name].depth - 8, np.random.default_rng(seed)
    codes = rng.integers(100, 150, len(format.places)) << deep
    if format.kind != "rgb" and eight_bit:
        codes = codes >> deep << deep
    planes, out = format.empty(*size), format.empty(scale * size[0], scale * size[1])
    for view, code in zip(format.components(planes, *size), codes, strict=True):
        view[...] = code << format.shift
    converter = Converter(format, *size, colour, eight_bit=eight_bit, scale=scale)
    large = converter.image(planes).repeat(scale, 0).repeat(scale, 1)
    converter.restore([large[start : start + step] for start in range(0, len(large), step)], planes, out)
    worst = (2 << deep) if eight_bit else 0  # codes: pixels are rounded, and chroma is up to twice their difference
    views = format.components(out, scale * size[0], scale * size[1])
    fourth = 255 if format.kind == "rgb" and not format.alpha else codes[-1]
    for component, view in enumerate(views):
        wanted = fourth if component == 3 else codes[component]
        assert np.abs((view >> format.shift).astype(int) - wanted).max() <= (0 if format.kind == "rgb" else worst)


@pytest.mark.parametrize(("siting", "x", "y"), [("left", 0, 0.5), ("center", 0.5, 0.5), ("topleft", 0, 0)])
@pytest.mark.parametrize("name", ["yuv420p10le", "p010le", "yuv422p10le"])
def test_chroma_of_a_larger_frame_is_what_lies_at_its_sites(name: str, siting: Any, x: float, y: float) -> None:
    """Red rises linearly over the large picture: so does its share of chroma, sampled at the sites of that picture."""
    format, height, width, scale = FORMATS[name], 20, 30, 2
    planes, out = format.empty(height, width), format.empty(scale * height, scale * width)
    for plane in planes:
        plane[...] = 512 << format.shift
    converter = Converter(format, height, width, Colour("bt709", "full", siting), eight_bit=False, scale=scale)
    converter.image(planes)
    rows, columns = np.mgrid[: scale * height, : scale * width]
    large = np.full((scale * height, scale * width, 3), 0.5, np.float32)
    large[..., 0] += (4 * columns + 2 * rows - 150) / 1023
    converter.restore([large], planes, out)
    red = format.components(out, scale * height, scale * width)[2] >> format.shift
    rows, columns = np.mgrid[: red.shape[0], : red.shape[1]]
    if format.shared[1]:
        rows = 2 * rows + y
    risen = 4 * (2 * columns + x) + 2 * rows - 150
    inside = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(red[inside], (512 + 0.5 * risen)[inside], atol=1.01)
