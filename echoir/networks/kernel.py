"""EchoUpsample as a Triton kernel; its gradients are in :mod:`echoir.networks.kernel_backward`.

The operator does little arithmetic on the bytes it moves: its floor is reading ``down`` and the
guide once and writing the output once. So one thread owns one low-resolution cell, or two below
each other (``STACK``):

1. it walks the guide's channels once and accumulates, in float32, the squared distances between
   a cell's four pixels and the means of the (2r+1)^2 cells around it,
2. turns them into 4 (2r+1)^2 weights per cell that stay in registers,
3. walks the channels of ``down``; each value it loads serves four output pixels per cell.

Means are never stored: threads recompute them from guide pixels that neighbours have just brought
into the cache. Where the plane has too few cells to fill a GPU, several threads (``LANES``) share
a cell and take every ``LANES``-th channel each.

Distances are accumulated around the mean of the cell itself, with a = pixel - mean(home) and
b = mean(neighbour) - mean(home): |a - b|^2 = |a|^2 + |b|^2 - 2 a.b costs one multiply-add per
pixel and tap, and does not cancel where the guide is far from zero.

Tensors in the kernels are [thread, pixel of a row], thread = lane * cells + cell, or of size 1
where they do not depend on one: so neighbouring threads hold neighbouring cells, whatever layout a
version of Triton prefers. What there is per tap is a tuple: index ``tap``, or ``2 * tap + row``
where the upper and the lower row of pixels have their own.
"""

# ruff: noqa: N803, N806, RUF005  # compile-time constants are upper case in Triton; its tuples grow by +
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_THREADS = 128  # of a program
_PROGRAMS = 512  # wanted at least: four for each multiprocessor of a large GPU
_MOST_LANES = 16


@dataclass(frozen=True)
class Tiling:
    """How the cells of a plane are dealt out to programs; all numbers are powers of two.

    ``rows // stack * columns * lanes`` threads make a program, a multiple of 32.

    Attributes:
        rows: of cells in a program's block.
        columns: of cells in a program's block.
        lanes: threads that share a cell, each with its part of the channels.
        stack: cells below each other that a thread owns. Two share much of their neighbourhoods,
            and need many registers.
        unroll: channels of the guide that a thread loads at a time.
    """

    rows: int
    columns: int
    lanes: int = 1
    stack: int = 1
    unroll: int = 1

    @property
    def num_warps(self) -> int:
        return self.rows // self.stack * self.columns * self.lanes // 32

    def grid(self, n: int, height: int, width: int) -> tuple[int, int, int]:
        """Programs along x, y, z for ``n`` images of ``height`` x ``width`` low-resolution cells."""
        return -(-width // self.columns), -(-height // self.rows), n

    @classmethod
    def for_plane(cls, n: int, height: int, width: int, radius: int) -> Tiling:
        """Wide blocks on large planes, of stacks where registers allow; on small planes several lanes per cell."""
        stack, lanes = 2 if radius <= 1 else 1, 1
        while True:
            threads = _THREADS // lanes
            columns = min(32, threads, triton.next_power_of_2(width))
            tiling = cls(threads // columns * stack, columns, lanes, stack)
            across, down, images = tiling.grid(n, height, width)
            if across * down * images >= _PROGRAMS or lanes == _MOST_LANES:
                return tiling
            stack, lanes = 1, lanes if stack > 1 else 2 * lanes


@triton.jit
def place_threads(
    height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, STACK: tl.constexpr = 1
):
    """Row and column of each thread's first cell, moved onto the edge if past it; whether it was inside; its lane."""
    DOWN: tl.constexpr = ROWS // STACK
    thread = tl.arange(0, LANES * DOWN * COLUMNS)[:, None]
    y = tl.program_id(1) * ROWS + thread // COLUMNS % DOWN * STACK
    x = tl.program_id(0) * COLUMNS + thread % COLUMNS
    inside = (y < height) & (x < width)
    return tl.minimum(y, height - 1), tl.minimum(x, width - 1), inside, thread // (DOWN * COLUMNS)


@triton.jit
def look_around(y, x, height, width, RADIUS: tl.constexpr, STACK: tl.constexpr = 1):
    """For every place of the window: offsets of its cell and that cell's upper pixels, clamped; is it in the image?

    Places run row by row, so tap t of the stack's cell s is at ``t + s * (2 * RADIUS + 1)``.
    """
    cells, pixels, within = (), (), ()
    for dy in tl.static_range(-RADIUS, RADIUS + STACK):
        for dx in tl.static_range(-RADIUS, RADIUS + 1):
            cy = tl.minimum(tl.maximum(y + dy, 0), height - 1)
            cx = tl.minimum(tl.maximum(x + dx, 0), width - 1)
            cells = cells + (cy * width + cx,)
            pixels = pixels + (cy * 4 * width + cx * 2 + tl.arange(0, 2)[None, :],)
            within = within + ((cy == y + dy) & (cx == x + dx),)
    return cells, pixels, within


@triton.jit
def sum_lanes(x, LANES: tl.constexpr):
    """Sum over the lanes of each cell, given to all of them."""
    if LANES == 1:
        return x
    CELLS: tl.constexpr = x.shape[0] // LANES
    total = tl.sum(tl.reshape(x, [LANES, CELLS, 2]), 0, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, [LANES, CELLS, 2]), [LANES * CELLS, 2])


@triton.jit
def guide_distances(
    guide, pixels, below, plane, lane,
    K: tl.constexpr, RADIUS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr,
    STACK: tl.constexpr = 1, UNROLL: tl.constexpr = 1, KEEP: tl.constexpr = False,
):  # fmt: skip
    """|pixel - mean|^2 for every tap and row: a tuple for each cell of the stack."""
    SIDE: tl.constexpr = 2 * RADIUS + 1
    TAPS: tl.constexpr = SIDE * SIDE
    zero = tl.zeros([lane.shape[0], 1], COMPUTE)
    zeros = tl.zeros([lane.shape[0], 2], COMPUTE)
    squares, norms, products = (), (), ()
    for _ in tl.static_range(STACK):
        squares = squares + (zeros, zeros)
    for _ in tl.static_range(STACK * TAPS):
        norms, products = norms + (zero,), products + (zeros, zeros)
    for start in tl.range(0, K, LANES, loop_unroll_factor=UNROLL):
        inside = start + lane < K
        here = guide + start * plane.to(tl.int64) + lane * plane
        uppers, lowers, means = (), (), ()
        for place in tl.static_range(len(pixels)):
            upper = tl.load(here + pixels[place], mask=inside, other=0.0).to(COMPUTE)
            # A sum of 32-bit offsets is made once and kept in a register; one of pointers is made for every channel.
            under = here + (pixels[place] + below) if KEEP else here + pixels[place] + below
            lower = tl.load(under, mask=inside, other=0.0).to(COMPUTE)
            means = means + (tl.sum(upper + lower, 1, keep_dims=True) * 0.25,)
            uppers, lowers = uppers + (upper,), lowers + (lower,)
        new_squares, new_norms, new_products = (), (), ()
        for cell in tl.static_range(STACK):
            home = means[TAPS // 2 + cell * SIDE]
            upper = uppers[TAPS // 2 + cell * SIDE] - home
            lower = lowers[TAPS // 2 + cell * SIDE] - home
            new_squares = new_squares + (squares[2 * cell] + upper * upper, squares[2 * cell + 1] + lower * lower)
            for index in tl.static_range(cell * TAPS, (cell + 1) * TAPS):
                if index % TAPS == TAPS // 2:
                    new_norms = new_norms + (norms[index],)
                    new_products = new_products + (products[2 * index], products[2 * index + 1])
                else:
                    mean = means[index % TAPS + cell * SIDE] - home
                    new_norms = new_norms + (norms[index] + mean * mean,)
                    new_products = new_products + (
                        products[2 * index] + upper * mean,
                        products[2 * index + 1] + lower * mean,
                    )
        squares, norms, products = new_squares, new_norms, new_products
    stack = ()
    for cell in tl.static_range(STACK):
        distances = ()
        for index in tl.static_range(2 * cell * TAPS, 2 * (cell + 1) * TAPS):
            distance = squares[2 * cell + index % 2] + norms[index // 2] - 2 * products[index]
            distances = distances + (sum_lanes(distance, LANES),)
        stack = stack + (distances,)
    return stack


@triton.jit
def squared_place(index: tl.constexpr, RADIUS: tl.constexpr, COMPUTE: tl.constexpr):
    """Squared distance between the pixels of a row and a tap's cell, in low-resolution pixels: [1, pixel]."""
    SIDE: tl.constexpr = 2 * RADIUS + 1
    across = tl.arange(0, 2)[None, :].to(COMPUTE) * 0.5 - 0.25 - (index // 2 % SIDE - RADIUS)
    down = index % 2 * 0.5 - 0.25 - (index // 2 // SIDE - RADIUS)
    return across * across + down * down


@triton.jit
def spatial_and_range(
    distances, sigma_spatial, sigma_range, RADIUS: tl.constexpr, PRODUCT: tl.constexpr, COMPUTE: tl.constexpr
):
    """Spatial and range kernel for every tap and row, and the sums of their weights for both rows.

    A weight is their sum. With ``PRODUCT`` the range kernel is the product, and the spatial kernel zero.
    """
    spatial, range_ = (), ()
    total = (0.0, 0.0)
    for index in tl.static_range(len(distances)):
        f = squared_place(index, RADIUS, COMPUTE) * (-0.5 / (sigma_spatial * sigma_spatial))
        g = distances[index] * (-0.5 / (sigma_range * sigma_range))
        if PRODUCT:
            spatial, range_ = spatial + (0.0,), range_ + (tl.exp(f + g),)
        else:
            spatial, range_ = spatial + (tl.exp(f),), range_ + (tl.exp(g),)
        weight = spatial[index] + range_[index]
        total = (total[0] + weight, total[1]) if index % 2 == 0 else (total[0], total[1] + weight)
    return spatial, range_, total


@triton.jit(do_not_specialize=["height", "width"])
def echo_upsample_forward(
    down, guide, sigma_spatial, sigma_range, height, width, out,
    C: tl.constexpr, K: tl.constexpr, RADIUS: tl.constexpr, PRODUCT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr,
    STACK: tl.constexpr, UNROLL: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """The operator: pointers to inputs, size of the low-resolution plane, pointer to the output.

    All tensors are contiguous NCHW. The program ids are the block's column, its row, and the image.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    TAPS: tl.constexpr = SIDE * SIDE
    plane = height * width
    far = plane.to(tl.int64)  # a plane fits 32 bits, all of them together may not
    image = tl.program_id(2) * far
    below = 2 * width
    y, x, valid, lane = place_threads(height, width, ROWS, COLUMNS, LANES, STACK)
    cells, pixels, _ = look_around(y, x, height, width, RADIUS, STACK)
    stack = guide_distances(
        guide + image * (4 * K), pixels, below, 4 * plane, lane, K, RADIUS, LANES, COMPUTE, STACK, UNROLL, KEEP
    )
    sigma_spatial = tl.load(sigma_spatial).to(COMPUTE)
    sigma_range = tl.load(sigma_range).to(COMPUTE)
    weights = ()
    for cell in tl.static_range(STACK):
        spatial, range_, total = spatial_and_range(stack[cell], sigma_spatial, sigma_range, RADIUS, PRODUCT, COMPUTE)
        for index in tl.static_range(2 * TAPS):
            weights = weights + ((spatial[index] + range_[index]) / total[index % 2],)

    for start in tl.range(0, C, LANES):
        inside = start + lane < C
        here = down + image * C + start * far + lane * plane
        there = out + image * (4 * C) + start * (4 * far) + lane * (4 * plane)
        values = ()
        for place in tl.static_range(len(cells)):
            values = values + (tl.load(here + cells[place], mask=inside, other=0.0).to(COMPUTE),)
        for cell in tl.static_range(STACK):
            upper = tl.zeros([lane.shape[0], 2], COMPUTE)
            lower = tl.zeros([lane.shape[0], 2], COMPUTE)
            for tap in tl.static_range(TAPS):
                upper += weights[2 * (cell * TAPS + tap)] * values[tap + cell * SIDE]
                lower += weights[2 * (cell * TAPS + tap) + 1] * values[tap + cell * SIDE]
            at = there + pixels[TAPS // 2 + cell * SIDE]
            mask = inside & valid & (y + cell < height)
            tl.store(at, upper.to(out.dtype.element_ty), mask=mask)
            tl.store(at + below, lower.to(out.dtype.element_ty), mask=mask)


def compile_time(
    channels: int,
    guide_channels: int,
    radius: int,
    combine: str,
    tiling: Tiling,
    compute: Any = tl.float32,
    capability: int = 80,
) -> dict[str, Any]:
    """The compile-time parameters of :func:`echo_upsample_forward`, in its order; ``capability`` as in 87 for 8.7."""
    return {
        "C": channels,
        "K": guide_channels,
        "RADIUS": radius,
        "PRODUCT": combine == "product",
        "ROWS": tiling.rows,
        "COLUMNS": tiling.columns,
        "LANES": tiling.lanes,
        "COMPUTE": compute,
        "STACK": tiling.stack,
        "UNROLL": tiling.unroll,
        # By count (docs/kernel.md): fewer instructions of stacks before 11.0, more elsewhere.
        "KEEP": tiling.stack > 1 and capability < 110,
    }


def compute_type(*tensors: Tensor) -> Any:
    """Type of all sums: float64 where a tensor is, else float32."""
    return tl.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else tl.float32


def launch_options(tiling: Tiling) -> dict[str, Any]:
    """Options of a launch."""
    # Sums are meant to fuse with products. Triton 3.9 warns where that is not said, and 3.10 stops doing it.
    return {"num_warps": tiling.num_warps, "enable_fp_fusion": True}


def forward(
    down: Tensor,
    guide: Tensor,
    sigma_spatial: Tensor,
    sigma_range: Tensor,
    radius: int,
    combine: str,
    tiling: Tiling | None = None,
) -> Tensor:
    """Launch the kernel on tensors that fit each other; see :func:`echoir.networks.upsampler.echo_upsample`.

    The tensors are on one CUDA device, or anywhere in Triton's interpreter. Sums are float32, or
    float64 where ``down`` or the guide is.

    Args:
        tiling: how cells are dealt out to programs, if not what suits the plane.

    Returns:
        [N, C, 2h, 2w] in the dtype of ``down``, contiguous.
    """
    n, channels, height, width = down.shape
    down, guide = down.contiguous(), guide.contiguous()
    out = down.new_empty(n, channels, 2 * height, 2 * width)
    tiling = tiling or Tiling.for_plane(n, height, width, radius)
    major, minor = torch.cuda.get_device_capability(down.device) if down.is_cuda else (8, 0)
    compute = compute_type(down, guide)
    constants = compile_time(channels, guide.shape[1], radius, combine, tiling, compute, 10 * major + minor)
    with torch.cuda.device_of(down):
        echo_upsample_forward[tiling.grid(n, height, width)](
            down, guide, sigma_spatial, sigma_range, height, width, out, **constants, **launch_options(tiling)
        )
    return out
