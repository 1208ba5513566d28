"""EchoUpsample: joint bilateral upsampling guided by encoder features (EchoIR paper, Eq. 4-6).

The operator has one definition and several carriers: the PyTorch function below, which also
defines the operator ``torch.ops.echoir.echo_upsample``; the Triton kernel of :mod:`echoir.networks.kernel`,
which is what runs on CUDA and inside a TensorRT plugin; and the ONNX function of the same name in
``echoir.export.echo.function``. The first and the last use the block form below.

A naive evaluation visits (2r+1)^2 taps and makes an image-sized temporary for each. Here the
low-resolution plane is cut into blocks of B x B cells (B = 2r). All 4B^2 output pixels of a
block draw on the same (B+2r)^2 = (2B)^2 window of cells, so the distances between guides and
the weighted sums are two small matrix products per block, as in blocked local attention
(HaloNet, arXiv:2103.12731). Cells of the window outside a pixel's own neighbourhood get weight
zero. This costs (2B)^2 / (2r+1)^2 = 16/9 of the multiplications for r = 1, all of them in GEMMs.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoir.runtime.errors import needs_extra

Combine = Literal["sum", "product"]


def echo_upsample(
    down: Tensor,
    guide: Tensor,
    sigma_spatial: Tensor | float,
    sigma_range: Tensor | float,
    radius: int = 1,
    combine: Combine = "sum",
) -> Tensor:
    """Upsample ``down`` by two, each output pixel averaging the cells around it (Eq. 4).

    For an output pixel p with home cell c, over the cells c + d, d in [-radius, radius]^2::

        f = exp(-|c + d - p|^2 / (2 sigma_spatial^2))        p in low-resolution units, c +- 0.25
        g = exp(-|guide[p] - mean2x2(guide)[c + d]|^2 / (2 sigma_range^2))
        out[p] = sum (f + g) * down[c + d] / sum (f + g)     "sum"; f * g for "product"

    Cells outside the image repeat the border cell but keep their own distance. Half-precision
    inputs are accumulated in float32. CUDA tensors take the Triton kernel, which is differentiable
    once.

    Args:
        down: [N, C, h, w] features to upsample; any floating dtype, any h, w >= 1.
        guide: [N, K, 2h, 2w] features that steer the weights.
        sigma_spatial: standard deviation of f in low-resolution pixels, > 0; number or 1-element tensor.
        sigma_range: standard deviation of g in units of the guide, > 0; number or 1-element tensor.
        radius: neighbourhood radius in cells, >= 0.
        combine: ``"sum"`` (the paper) or ``"product"`` (classical joint bilateral upsampling,
            Kopf et al. 2007, kept as an ablation).

    Returns:
        [N, C, 2h, 2w] in the dtype of ``down``.

    Raises:
        ValueError: shapes that do not fit each other, a negative radius, or an unknown ``combine``.
        MissingExtraError: the tensors are on CUDA, and Triton is not installed.
    """
    n, _, h, w = down.shape
    if guide.shape[0] != n or guide.shape[2:] != (2 * h, 2 * w):
        raise ValueError(f"guide must be [{n}, K, {2 * h}, {2 * w}], twice the size of down, got {tuple(guide.shape)}")
    if radius < 0:
        raise ValueError(f"radius must be >= 0, got {radius}")
    if combine not in ("sum", "product"):
        raise ValueError(f"combine must be 'sum' or 'product', got {combine!r}")
    if not down.is_cuda:
        return _in_blocks(down, guide, sigma_spatial, sigma_range, radius, combine)
    sigmas = (
        s if isinstance(s, Tensor) else down.new_full((1,), s, dtype=torch.float32)
        for s in (sigma_spatial, sigma_range)
    )
    return torch.ops.echoir.echo_upsample(down, guide, *sigmas, radius, combine)


def _in_blocks(
    down: Tensor, guide: Tensor, sigma_spatial: Tensor | float, sigma_range: Tensor | float, radius: int, combine: str
) -> Tensor:
    """:func:`echo_upsample` in plain PyTorch, on any device; ``torch.compile`` and autograd see through it."""
    n, channels, h, w = down.shape
    dtype = down.dtype
    compute = torch.promote_types(torch.promote_types(dtype, guide.dtype), torch.float32)
    with torch.autocast(device_type=down.device.type, enabled=False):
        down, guide = down.to(compute), guide.to(compute)
        block = 2 * max(radius, 1)
        halo = block // 2  # r = 0 still uses a window of two blocks, all but the home cell masked
        grown_h, grown_w = -h % block, -w % block
        cells = torch.cat([down, F.avg_pool2d(guide, 2)], dim=1)
        cells = _repeat_edge(_repeat_edge(cells, -2, halo, halo + grown_h), -1, halo, halo + grown_w)
        window = _windows(cells, block)  # [N, blocks, (2B)^2, C + K]
        values, means = window.split([channels, guide.shape[1]], dim=-1)
        if grown_h or grown_w:
            guide = F.pad(guide, (0, 2 * grown_w, 0, 2 * grown_h))
        pixels = _blocks(guide, 2 * block)  # [N, blocks, (2B)^2, K]

        distance = torch.baddbmm(
            means.square().sum(-1).flatten(0, 1).unsqueeze(1),
            pixels.flatten(0, 1),
            means.flatten(0, 1).transpose(1, 2),
            alpha=-2.0,
        ) + pixels.square().sum(-1).flatten(0, 1).unsqueeze(-1)
        spatial, inside = (t.to(device=down.device, dtype=compute) for t in block_tables(radius))
        g = -distance / (2 * sigma_range**2)
        f = -spatial / (2 * sigma_spatial**2)
        weights = inside * (f.exp() + g.exp() if combine == "sum" else (f + g).exp())
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.bmm(weights, values.flatten(0, 1))  # [N * blocks, (2B)^2, C]
        out = _unblocks(out.view(n, -1, *out.shape[1:]), 2 * block, 2 * (h + grown_h), 2 * (w + grown_w))
        return out[..., : 2 * h, : 2 * w].to(dtype)


def block_tables(radius: int) -> tuple[Tensor, Tensor]:
    """Squared distance and membership for every (pixel, window cell) of one block.

    Pixels run row-major over the 2B x 2B outputs of a block; cells run over the window in the
    order of :func:`_windows`: block row, block column, row, column within the block.

    Returns:
        ``(squared distance, inside)``, both [(2B)^2, (2B)^2]; distance in squared low-resolution
        pixels from the unclamped cell, ``inside`` 1 where the cell belongs to the pixel's
        neighbourhood and 0 elsewhere.
    """
    block = 2 * max(radius, 1)
    along = torch.arange(2 * block)
    home = along.div(2, rounding_mode="floor")  # cell of the pixel, within the block
    place = (along - 0.5) / 2
    cell = along - block // 2  # window cell, relative to the block's first cell
    square = (cell[None, :] - place[:, None]) ** 2  # [pixel, cell] along one axis
    near = (cell[None, :] - home[:, None]).abs() <= radius

    def outer(a: Tensor, b: Tensor) -> Tensor:  # [py, px, cy, cx], cells regrouped as in _windows
        table = a[:, None, :, None] + b[None, :, None, :]
        table = table.view(2 * block, 2 * block, 2, block, 2, block).permute(0, 1, 2, 4, 3, 5)
        return table.reshape(4 * block**2, 4 * block**2)

    return outer(square, square), (outer(near.float(), near.float()) == 2).float()


def _repeat_edge(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Replication padding along one axis, by concatenation.

    ``F.pad(mode="replicate")`` would do, but under ``torch.compile`` (2.13, CPU) its backward
    returns a memory format that Inductor does not expect, and training stops.
    """
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    return torch.cat([*[first] * before, x, *[last] * after], dim=axis)


def _blocks(x: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> [N, H/size * W/size, size^2, C]: pixels of each block, row-major."""
    n, c, height, width = x.shape
    x = x.view(n, c, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, size * size, c)


def _unblocks(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of :func:`_blocks`."""
    n, c = x.shape[0], x.shape[-1]
    x = x.view(n, height // size, width // size, size, size, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, c, height, width)


def _windows(padded: Tensor, size: int) -> Tensor:
    """[N, C, (a+1) size, (b+1) size] -> [N, a*b, (2 size)^2, C]: 2 x 2 neighbouring blocks each."""
    n, c, height, width = padded.shape
    rows, columns = height // size, width // size
    x = padded.view(n, c, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    corners = [x[:, i : i + rows - 1, j : j + columns - 1] for i in (0, 1) for j in (0, 1)]
    return torch.stack(corners, dim=3).reshape(n, (rows - 1) * (columns - 1), 4 * size * size, c)


# torch.ops.echoir.echo_upsample, an operator that torch.compile and autograd take as one. On a CPU
# the traced form above is faster under torch.compile, so there it only serves as the definition.
_INPUTS = "Tensor down, Tensor guide, Tensor sigma_spatial, Tensor sigma_range, int radius, str combine"


@torch.library.custom_op("echoir::echo_upsample", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _operator(
    down: Tensor, guide: Tensor, sigma_spatial: Tensor, sigma_range: Tensor, radius: int, combine: str
) -> Tensor:
    return _in_blocks(down, guide, sigma_spatial, sigma_range, radius, combine).contiguous()


@_operator.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> Tensor:
    with needs_extra("kernel"):
        from echoir.networks.kernel import forward
    return forward(*arguments)


@_operator.register_fake
def _shape(down: Tensor, *_: Any) -> Tensor:
    n, channels, h, w = down.shape
    return down.new_empty(n, channels, 2 * h, 2 * w)


@torch.library.custom_op(
    "echoir::echo_upsample_backward",
    mutates_args=(),
    device_types="cuda",
    schema=f"(Tensor gradient, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _gradients(*arguments: Any) -> tuple[Tensor, ...]:
    with needs_extra("kernel"):
        from echoir.networks.kernel_backward import backward
    return backward(*arguments)


@_gradients.register_fake
def _gradient_shapes(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:4])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.radius, ctx.combine = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    if gradient.is_cuda:
        slopes = torch.ops.echoir.echo_upsample_backward(gradient, *ctx.saved_tensors, ctx.radius, ctx.combine)
    else:
        with torch.enable_grad():
            down, guide, *sigmas = leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            out = _in_blocks(down, guide, sigmas[0], sigmas[1], ctx.radius, ctx.combine)
            slopes = torch.autograd.grad(out, leaves, gradient)
    return (*slopes, None, None)


_operator.register_autograd(_differentiate, setup_context=_remember)


class EchoUpsampler(nn.Module):
    """The Echo-Upsampler at a level with C channels: ``out(EchoUpsample(reduce(x), mlp(reference)))``.

    Both sigmas are learned as logarithms, so they stay positive under any optimizer.

    Args:
        channels: C, the channels of the output; the input has 2C.
        reference_channels: channels of the reference (C for an encoder feature, 3 for the image).
        radius: neighbourhood radius in low-resolution cells.
        combine: how the spatial and the range kernel are joined; see :func:`echo_upsample`.
    """

    def __init__(
        self, channels: int, reference_channels: int | None = None, radius: int = 1, combine: Combine = "sum"
    ) -> None:
        super().__init__()
        self.radius, self.combine = radius, combine
        self.reduce = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.mlp = nn.Sequential(
            nn.Conv2d(reference_channels or channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1)
        )
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        self.log_sigma_spatial = nn.Parameter(torch.zeros(1))
        self.log_sigma_range = nn.Parameter(torch.full((1,), 0.5 * math.log(channels)))

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """x: [N, 2C, h, w]; reference: [N, R, 2h, 2w] -> [N, C, 2h, 2w]."""
        return self.out(self.upsample(self.reduce(x), self.mlp(reference)))

    def upsample(self, down: Tensor, guide: Tensor) -> Tensor:
        """The bare operator with this module's sigmas."""
        return echo_upsample(
            down, guide, self.log_sigma_spatial.exp(), self.log_sigma_range.exp(), self.radius, self.combine
        )
