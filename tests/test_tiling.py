"""Where tiles lie and how they blend: properties over all sizes, and a naive count as the truth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoir.runtime.tiling import reflect, tile_axis, tile_starts, tile_weights


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    phase = draw(st.sampled_from([1, 1, 2, 3, 8]))
    tile = draw(st.integers(phase, 40))
    return draw(st.integers(1, 300)), tile, draw(st.integers(0, tile - phase)), phase


@given(axes())
def test_tiles_cover_the_axis_from_border_to_border_and_share_the_overlap(axis: tuple[int, int, int, int]) -> None:
    size, tile, overlap, phase = axis
    starts = tile_starts(*axis)
    assert starts[0] == 0
    assert 0 <= starts[-1] - max(size - tile, 0) < phase
    assert all(start % phase == 0 for start in starts)
    assert all(start + tile < size for start in starts[:-1])  # so the last alone may hang over the border
    assert starts == sorted(set(starts))
    assert all(before + tile - after >= overlap for before, after in pairwise(starts))


@given(axes())
def test_no_fewer_tiles_would_do(axis: tuple[int, int, int, int]) -> None:
    size, tile, overlap, phase = axis
    starts = tile_starts(*axis)
    reach = tile + (len(starts) - 2) * ((tile - overlap) // phase * phase)  # of one tile less
    assert len(starts) == 1 or reach < size


@given(axes())
def test_tiles_spread_evenly(axis: tuple[int, int, int, int]) -> None:
    steps = np.diff(tile_starts(*axis))
    assert len(steps) == 0 or steps.max() - steps.min() <= axis[3]


@given(axes())
def test_weights_of_every_pixel_sum_to_one(axis: tuple[int, int, int, int]) -> None:
    size, tile, _, _ = axis
    starts = tile_starts(*axis)
    total = [0.0] * size
    for start, weights in zip(starts, tile_weights(size, tile, starts), strict=True):
        assert len(weights) == min(tile, size - start)
        assert weights.dtype == np.float32
        assert (weights > 0).all()
        for i, weight in enumerate(weights.tolist()):
            total[start + i] += weight
    np.testing.assert_allclose(total, 1, rtol=0, atol=3e-7)


@given(axes(), st.integers(0, 30))
def test_what_lies_within_a_margin_of_a_cut_edge_has_no_weight_where_a_neighbour_has_it(
    axis: tuple[int, int, int, int], margin: int
) -> None:
    size, tile, _, _ = axis
    starts = tile_starts(*axis)
    total = np.zeros(size)
    for i, (start, weights) in enumerate(zip(starts, tile_weights(size, tile, starts, margin), strict=True)):
        total[start : start + len(weights)] += weights
        for place, weight in enumerate(weights.tolist()):
            before = i > 0 and place < min(margin, (starts[i - 1] + tile - start) // 2)
            after = i + 1 < len(starts) and tile - 1 - place < min(margin, (start + tile - starts[i + 1]) // 2)
            assert (weight == 0) == (before or after)
    np.testing.assert_allclose(total, 1, rtol=0, atol=3e-7)


def test_two_margins_that_fill_the_overlap_leave_a_step_in_its_middle() -> None:
    first, second = tile_weights(12, 8, [0, 4], margin=2)
    np.testing.assert_array_equal(first, [1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(second, first[::-1])


def test_two_tiles_cross_fade_linearly_where_they_overlap() -> None:
    first, second = tile_weights(12, 8, [0, 4])
    np.testing.assert_allclose(first, [1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(second, first[::-1])


@given(axes(), st.integers(1, 4))
def test_an_axis_behind_the_network_is_the_one_before_it_at_scale(axis: tuple[int, int, int, int], scale: int) -> None:
    size, tile, overlap, phase = axis
    made = tile_axis(size, tile, overlap, phase, scale)
    assert made.starts == tile_starts(*axis)
    assert [len(weights) for weights in made.weights] == [
        scale * (end - start) for start, end in zip(made.starts, made.ends, strict=True)
    ]
    total = np.zeros(scale * size)
    for start, weights in zip(made.starts, made.weights, strict=True):
        total[scale * start : scale * start + len(weights)] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=3e-7)


@given(st.integers(1, 30), st.integers(1, 120))
def test_reflection_is_numpys(size: int, length: int) -> None:
    length = max(length, size)
    expected = np.pad(np.arange(size), (0, length - size), mode="reflect")
    np.testing.assert_array_equal(reflect(size, length), expected)


@pytest.mark.parametrize(
    "axis", [(0, 8, 2, 1), (9, 8, 8, 1), (9, 8, -1, 1), (9, 0, 0, 1), (9, 8, 5, 4), (9, 8, 0, 0), (9, 4, 0, 8)]
)
def test_impossible_axes_are_refused(axis: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="need size >= 1 and 0 <= overlap <= tile - phase"):
        tile_starts(*axis)
