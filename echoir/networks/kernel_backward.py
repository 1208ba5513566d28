"""Gradients of EchoUpsample as Triton kernels: three that gather, so that results are deterministic.

The first computes what every output pixel says about every tap: the normalised weight, and the
gradient of the squared distance. Both are images, one per tap. The other two kernels belong to a
low-resolution cell each and read the entries of the pixels that reach it. In between, entries of
taps outside the image are added to those of the border cell that they had read.

Conventions are those of :mod:`echoir.networks.kernel`. A slope is a derivative of the loss.
"""

# ruff: noqa: N803, N806, RUF005  # compile-time constants are upper case in Triton; its tuples grow by +
from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from echoir.networks.kernel import (
    Tiling,
    compile_time,
    compute_type,
    guide_distances,
    launch_options,
    look_around,
    place_threads,
    spatial_and_range,
    squared_place,
    sum_lanes,
)


@triton.jit(do_not_specialize=["height", "width"])
def echo_upsample_slopes(
    down, guide, sigma_spatial, sigma_range, slope_of_out, height, width, weights, slopes, sigma_slopes,
    C: tl.constexpr, K: tl.constexpr, RADIUS: tl.constexpr, PRODUCT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """First step backward: what every output pixel has to say about every tap.

    Outputs, in the type to compute in: ``weights``, normalised, and ``slopes``, the gradient of the
    squared distance, both [N, taps, 2h, 2w]; ``sigma_slopes`` [programs, 2], each program's share
    of the gradients of sigma_spatial and sigma_range.
    """
    HOME: tl.constexpr = (2 * RADIUS + 1) * (2 * RADIUS + 1) // 2
    plane = height * width
    far = plane.to(tl.int64)  # a plane fits 32 bits, all of them together may not
    image = tl.program_id(2) * far
    below = 2 * width
    y, x, valid, lane = place_threads(height, width, ROWS, COLUMNS, LANES)
    cells, pixels, _ = look_around(y, x, height, width, RADIUS)
    distances = guide_distances(guide + image * (4 * K), pixels, below, 4 * plane, lane, K, RADIUS, LANES, COMPUTE)[0]
    sigma_spatial = tl.load(sigma_spatial).to(COMPUTE)
    sigma_range = tl.load(sigma_range).to(COMPUTE)
    spatial, range_, total = spatial_and_range(distances, sigma_spatial, sigma_range, RADIUS, PRODUCT, COMPUTE)

    products = ()  # of the output's gradient with the tap's cell, summed over channels
    for _ in tl.static_range(len(distances)):
        products = products + (tl.zeros([lane.shape[0], 2], COMPUTE),)
    for start in tl.range(0, C, LANES):
        inside = start + lane < C
        here = down + image * C + start * far + lane * plane
        there = slope_of_out + image * (4 * C) + start * (4 * far) + lane * (4 * plane) + pixels[HOME]
        upper = tl.load(there, mask=inside, other=0.0).to(COMPUTE)
        lower = tl.load(there + below, mask=inside, other=0.0).to(COMPUTE)
        new_products = ()
        for tap in tl.static_range(len(cells)):
            value = tl.load(here + cells[tap], mask=inside, other=0.0).to(COMPUTE)
            new_products = new_products + (products[2 * tap] + upper * value, products[2 * tap + 1] + lower * value)
        products = new_products

    averages = (tl.zeros([1, 1], COMPUTE), tl.zeros([1, 1], COMPUTE))
    summed, normalised = (), ()
    for index in tl.static_range(len(distances)):
        summed = summed + (sum_lanes(products[index], LANES),)
        normalised = normalised + ((spatial[index] + range_[index]) / total[index % 2],)
        share = normalised[index] * summed[index]
        averages = (averages[0] + share, averages[1]) if index % 2 == 0 else (averages[0], averages[1] + share)
    first = valid & (lane == 0)
    of_spatial = tl.zeros([lane.shape[0], 2], COMPUTE)
    of_range = tl.zeros([lane.shape[0], 2], COMPUTE)
    for index in tl.static_range(len(distances)):
        slope = (summed[index] - averages[index % 2]) / total[index % 2]
        range_slope = slope * range_[index]
        spatial_slope = range_slope if PRODUCT else slope * spatial[index]
        of_spatial += spatial_slope * squared_place(index, RADIUS, COMPUTE)
        of_range += range_slope * distances[index]
        at = image * (4 * len(cells)) + (index // 2) * 4 * plane + index % 2 * below + pixels[HOME]
        tl.store(weights + at, normalised[index], mask=first)
        tl.store(slopes + at, range_slope * (-0.5 / (sigma_range * sigma_range)), mask=first)
    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    of_spatial = tl.sum(tl.sum(tl.where(first, of_spatial, 0.0), 1), 0)
    of_range = tl.sum(tl.sum(tl.where(first, of_range, 0.0), 1), 0)
    tl.store(sigma_slopes + 2 * program, of_spatial / (sigma_spatial * sigma_spatial * sigma_spatial))
    tl.store(sigma_slopes + 2 * program + 1, of_range / (sigma_range * sigma_range * sigma_range))


@triton.jit
def _reaching(field, pixels, within, below, plane):
    """What the pixels around say about this cell: of every tap's pixels, the entry of the opposite tap."""
    entries = ()
    for tap in tl.static_range(len(pixels)):
        at = field + (len(pixels) - 1 - tap) * 4 * plane + pixels[tap]
        entries = entries + (
            tl.load(at, mask=within[tap], other=0.0),
            tl.load(at + below, mask=within[tap], other=0.0),
        )
    return entries


@triton.jit(do_not_specialize=["height", "width"])
def echo_upsample_down_gradient(
    weights, slope_of_out, height, width, slope_of_down,
    C: tl.constexpr, RADIUS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of ``down`` from the folded ``weights``."""
    HOME: tl.constexpr = (2 * RADIUS + 1) * (2 * RADIUS + 1) // 2
    plane = height * width
    far = plane.to(tl.int64)  # a plane fits 32 bits, all of them together may not
    image = tl.program_id(2) * far
    below = 2 * width
    y, x, valid, lane = place_threads(height, width, ROWS, COLUMNS, LANES)
    cells, pixels, within = look_around(y, x, height, width, RADIUS)
    entries = _reaching(weights + image * (4 * len(cells)), pixels, within, below, plane)
    for start in tl.range(0, C, LANES):
        inside = start + lane < C
        here = slope_of_out + image * (4 * C) + start * (4 * far) + lane * (4 * plane)
        slope = tl.zeros([lane.shape[0], 2], COMPUTE)
        for tap in tl.static_range(len(cells)):
            slope += entries[2 * tap] * tl.load(here + pixels[tap], mask=inside, other=0.0).to(COMPUTE)
            slope += entries[2 * tap + 1] * tl.load(here + pixels[tap] + below, mask=inside, other=0.0).to(COMPUTE)
        slope = tl.sum(slope, 1, keep_dims=True).to(slope_of_down.dtype.element_ty)
        there = slope_of_down + image * C + start * far + lane * plane + cells[HOME]
        tl.store(there, slope, mask=inside & valid)


@triton.jit(do_not_specialize=["height", "width"])
def echo_upsample_guide_gradient(
    slopes, guide, height, width, slope_of_guide,
    K: tl.constexpr, RADIUS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of the guide from the folded ``slopes``: of its pixels, and through the means of its cells."""
    HOME: tl.constexpr = (2 * RADIUS + 1) * (2 * RADIUS + 1) // 2
    plane = height * width
    far = plane.to(tl.int64)  # a plane fits 32 bits, all of them together may not
    image = tl.program_id(2) * far
    below = 2 * width
    y, x, valid, lane = place_threads(height, width, ROWS, COLUMNS, LANES)
    cells, pixels, within = look_around(y, x, height, width, RADIUS)
    slopes += image * (4 * len(cells))
    entries = _reaching(slopes, pixels, within, below, plane)
    own = ()
    total = (tl.zeros([1, 1], COMPUTE), tl.zeros([1, 1], COMPUTE))
    for tap in tl.static_range(len(cells)):
        at = slopes + tap * 4 * plane + pixels[HOME]
        upper = tl.load(at, mask=within[tap], other=0.0)
        lower = tl.load(at + below, mask=within[tap], other=0.0)
        own = own + (upper, lower)
        total = (total[0] + upper, total[1] + lower)
    for start in tl.range(0, K, LANES):
        inside = start + lane < K
        step = start * (4 * far) + lane * (4 * plane)
        here = guide + image * (4 * K) + step
        upper = tl.load(here + pixels[HOME], mask=inside, other=0.0).to(COMPUTE)
        lower = tl.load(here + pixels[HOME] + below, mask=inside, other=0.0).to(COMPUTE)
        home = tl.sum(upper + lower, 1, keep_dims=True) * 0.25
        upper = total[0] * (upper - home)  # relative to the home cell's mean, as the distances are
        lower = total[1] * (lower - home)
        of_mean = tl.zeros([lane.shape[0], 2], COMPUTE)
        for tap in tl.static_range(len(cells)):
            above = tl.load(here + pixels[tap], mask=inside, other=0.0).to(COMPUTE) - home
            under = tl.load(here + pixels[tap] + below, mask=inside, other=0.0).to(COMPUTE) - home
            mean = tl.sum(above + under, 1, keep_dims=True) * 0.25
            upper -= own[2 * tap] * mean
            lower -= own[2 * tap + 1] * mean
            of_mean += entries[2 * tap] * above + entries[2 * tap + 1] * under
        through_mean = tl.sum(of_mean, 1, keep_dims=True) * 0.5
        there = slope_of_guide + image * (4 * K) + step + pixels[HOME]
        tl.store(there, (2 * upper - through_mean).to(slope_of_guide.dtype.element_ty), mask=inside & valid)
        tl.store(there + below, (2 * lower - through_mean).to(slope_of_guide.dtype.element_ty), mask=inside & valid)


def backward(
    gradient: Tensor,
    down: Tensor,
    guide: Tensor,
    sigma_spatial: Tensor,
    sigma_range: Tensor,
    radius: int,
    combine: str,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`echoir.networks.kernel.forward` with respect to its four tensors, deterministic.

    Args:
        gradient: [N, C, 2h, 2w], of the output; the rest as given to that function, stacks aside.
    """
    n, channels, height, width = down.shape
    gradient, down, guide = gradient.contiguous(), down.contiguous(), guide.contiguous()
    compute = compute_type(down, guide)
    tiling = tiling or Tiling.for_plane(n, height, width, radius)
    tiling = replace(tiling, rows=tiling.rows // tiling.stack, stack=1)  # there is no register to spare
    grid = tiling.grid(n, height, width)
    taps = (2 * radius + 1) ** 2
    wide = torch.float64 if compute == tl.float64 else torch.float32
    fields = down.new_empty(2, n, taps, 2 * height, 2 * width, dtype=wide)
    sigma_slopes = down.new_empty(math.prod(grid), 2, dtype=wide)
    of_down, of_guide = torch.empty_like(down), torch.empty_like(guide)
    constants = compile_time(channels, guide.shape[1], radius, combine, tiling, compute)
    shared = {name: constants[name] for name in ("RADIUS", "ROWS", "COLUMNS", "LANES", "COMPUTE")}
    shared |= launch_options(tiling)
    forward = {name: constants[name] for name in ("C", "K", "PRODUCT")}
    with torch.cuda.device_of(down):
        echo_upsample_slopes[grid](
            *(down, guide, sigma_spatial, sigma_range, gradient, height, width, *fields, sigma_slopes),
            **forward,
            **shared,
        )
        _fold(fields.view(2 * n, 2 * radius + 1, 2 * radius + 1, 2 * height, 2 * width), radius)
        echo_upsample_down_gradient[grid](fields[0], gradient, height, width, of_down, C=channels, **shared)
        echo_upsample_guide_gradient[grid](fields[1], guide, height, width, of_guide, K=guide.shape[1], **shared)
    of_spatial, of_range = sigma_slopes[:, 0].sum(), sigma_slopes[:, 1].sum()  # an operator's outputs share no memory
    return (
        of_down,
        of_guide,
        of_spatial.to(sigma_spatial.dtype).view_as(sigma_spatial),
        of_range.to(sigma_range.dtype).view_as(sigma_range),
    )


def _fold(field: Tensor, radius: int) -> None:
    """Add the entries of taps outside the image to those of the border cells that they read, in place.

    Args:
        field: [N, taps along y, taps along x, 2h, 2w].
    """
    for taps, pixels in ((1, 3), (2, 4)):
        size = field.shape[pixels] // 2
        for cell in range(min(radius, size)):  # counted from either edge
            for side, at in ((-1, cell), (1, size - 1 - cell)):
                band = field.narrow(pixels, 2 * at, 2)
                for beyond in range(cell + 1, radius + 1):
                    band.select(taps, radius + side * cell).add_(band.select(taps, radius + side * beyond))
