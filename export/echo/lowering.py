"""The deployed form of a network: the same function of the image, in fewer passes over it.

Every rewrite is exact algebra on the weights of a trained network, so the result differs by
rounding alone; ``docs/export.md`` says what each one saves.

- The scale and bias of a layer normalization fold into the 1x1 convolutions behind it.
- Queries, keys, values and the two branches of the gated feed-forward come from convolutions of
  their own: no image-sized tensor is split. Hidden channels grow to a multiple of 16 by zero
  weights, a width that vector units and tensor cores like.
- Attention over channels is a small matrix per image. Its normalization by the lengths of q and k,
  the output convolution and the channel attention's gate act on that matrix, not on pixels.
- A 3x3 convolution and its pixel-unshuffle are one 4x4 convolution of stride 2; a pixel-unshuffle and the
  3x3 convolution behind it (a stem of 2) are one 6x6 convolution of stride 2.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoir.calibration.graph import Layer
from echoir.export.echo.function import DOMAIN, NAME, node_attributes
from echoir.networks.echoir import (
    ChannelAttention,
    Downsample,
    EchoIR,
    Embedding,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    MixAttentionBlock,
    SelfAttention,
)
from echoir.networks.upsampler import EchoUpsampler

LANES = 16  # channels per vector in ONNX Runtime's blocked layout (AVX-512); a multiple of tensor cores' 8
# Queries and keys are made this much smaller, so that their product over all pixels of a tile fits
# float16. Their lengths shrink alike, so it cancels; a power of two, so it rounds nothing.
SHRINK = 2.0**-8


@torch.no_grad()
def deployed(network: EchoIR) -> EchoIR:
    """A copy of ``network`` in deployed form, for inference only; ``network`` is left as it is."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for name, child in list(network.named_children()):
        if isinstance(child, Downsample):
            setattr(network, name, _strided(child))
        elif isinstance(child, Embedding) and child.stem > 1:
            setattr(network, name, _gathered(child))
        elif type(child) is nn.Sequential:
            blocks = (Block(block) if isinstance(block, MixAttentionBlock) else block for block in child)
            setattr(network, name, nn.Sequential(*blocks))
    return network


def lowered(network: nn.Module) -> nn.Module:
    """The deployed form, with each EchoUpsample as one node of its own in an exported graph."""
    assert isinstance(network, EchoIR)
    network = deployed(network)
    for name, child in list(network.named_children()):
        if isinstance(child, EchoUpsampler):
            setattr(network, name, OpaqueUpsampler(child))
    return network


# Nodes of the attention matrix: they have no pixels, so they cost nothing, and everything hangs on them.
MATRIX = "/attention/mix/"


def in_matrix(name: str) -> bool:
    """Whether a node, by name, belongs to :class:`Mix`."""
    return MATRIX in name


def divided_by_length(name: str) -> bool:
    """Whether a node gives queries or keys, whose channels :class:`Mix` divides by their lengths."""
    return any(part in name for part in ("/attention/query/1/", "/attention/key/1/"))


def stage(layer: Layer) -> str:
    """The layers of one kind in one part of the network's blocks: some seventy groups, whatever its depth.

    The convolutions of residual blocks are groups of their own, since they are few and large.
    """
    first, *path, node = layer.name.split("/")
    if "attention" in path:
        # Its two products apart: that of queries and keys costs nothing, the mixing of values does.
        path = ["attention", node if layer.kind == "product" else layer.kind]
    elif "feed_forward" in path:
        path = ["feed_forward", "out" if path[-1] == "out" else layer.kind]
    return "/".join([first, *path])


class OpaqueUpsampler(EchoUpsampler):
    """An upsampler whose operator is a single node of the exported graph, for a plugin or a function to take."""

    def __init__(self, upsampler: EchoUpsampler) -> None:
        nn.Module.__init__(self)
        self.radius, self.combine = upsampler.radius, upsampler.combine
        for name, child in (*upsampler.named_children(), *upsampler.named_parameters(recurse=False)):
            setattr(self, name, child)

    def upsample(self, down: Tensor, guide: Tensor) -> Tensor:
        n, c, h, w = down.shape
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME}",
            (down, guide, self.log_sigma_spatial.exp(), self.log_sigma_range.exp()),
            attrs={**node_attributes(self.radius, self.combine)},
            dtype=down.dtype,
            shape=(n, c, 2 * h, 2 * w),
            version=1,
        )


class Block(nn.Module):
    """:class:`echoir.networks.echoir.MixAttentionBlock`, deployed."""

    def __init__(self, block: MixAttentionBlock) -> None:
        super().__init__()
        self.norm1 = Normalize(block.norm1)
        self.attention = Attention(block.norm1, block.attention, block.channel_attention)
        self.norm2 = Normalize(block.norm2)
        if isinstance(block.feed_forward, GatedFeedForward):
            self.feed_forward: nn.Module = Gated(block.norm2, block.feed_forward)
        else:
            assert isinstance(block.feed_forward, FeedForward)
            self.feed_forward = Plain(block.norm2, block.feed_forward)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Normalize(nn.Module):
    """Zero mean and unit variance over channels: :class:`echoir.networks.echoir.LayerNorm` without its affine part."""

    one: Tensor

    def __init__(self, norm: LayerNorm) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones_like(norm.weight))  # ONNX's LayerNormalization wants a scale

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.one.shape, self.one, None, 1e-5)
        return x.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention and channel attention: values times one matrix [C, C] per image.

    With A the attention of each head, W the output convolution and g the gate, the block computes
    g * (W (A v)) = (diag(g) W A) v.
    """

    def __init__(self, norm: LayerNorm, attention: SelfAttention, gate: nn.Module) -> None:
        super().__init__()
        c = norm.weight.numel()
        projections, filters = attention.qkv.weight.split(c), attention.depthwise.weight.split(c)
        self.heads = attention.heads
        self.query, self.key, self.value = (
            nn.Sequential(_folded(norm, weight), _depthwise(taps * shrink))
            for weight, taps, shrink in zip(projections, filters, (SHRINK, SHRINK, 1.0), strict=True)
        )
        self.mix = Mix(attention, gate)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        q = self.query(x).reshape(n, self.heads, c // self.heads, height * width)
        k = self.key(x).reshape(n, self.heads, c // self.heads, height * width)
        v = self.value(x).reshape(n, c, height * width)
        lengths = [torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (q, k)]
        mix = self.mix(q @ k.transpose(-2, -1), *lengths, v.mean(-1, keepdim=True))
        return (mix @ v).reshape(n, c, height, width)


class Mix(nn.Module):
    """The matrix of :class:`Attention`; nothing in here has pixels."""

    def __init__(self, attention: SelfAttention, gate: nn.Module) -> None:
        super().__init__()
        c, heads = attention.out.weight.shape[0], attention.heads
        self.temperature = attention.temperature
        per_head = attention.out.weight.view(c, heads, c // heads).transpose(0, 1)
        self.out = nn.Parameter(per_head.contiguous(), requires_grad=False)  # [heads, C, C / heads]
        self.gate = gate.mlp if isinstance(gate, ChannelAttention) else None

    def forward(self, products: Tensor, q_length: Tensor, k_length: Tensor, mean: Tensor) -> Tensor:
        """products: [N, heads, c, c]; lengths: [N, heads, c, 1]; mean of the values: [N, C, 1] -> [N, C, C]."""
        n, c = mean.shape[:2]
        q_length, k_length = (length.clamp_min(1e-12 * SHRINK) for length in (q_length, k_length))
        cosines = products / (q_length * k_length.transpose(-2, -1))
        attention = (cosines * self.temperature).softmax(dim=-1)
        mix = (self.out @ attention).transpose(1, 2).reshape(n, c, c)
        if self.gate is None:
            return mix
        # The gate looks at the mean of W A v over pixels, which is W A times the mean of v.
        return mix * self.gate((mix @ mean).unsqueeze(-1)).sigmoid().reshape(n, c, 1)


class Gated(nn.Module):
    """:class:`echoir.networks.echoir.GatedFeedForward`, its branches apart."""

    def __init__(self, norm: LayerNorm, feed_forward: GatedFeedForward) -> None:
        super().__init__()
        hidden = feed_forward.out.weight.shape[1]
        projections, filters = feed_forward.expand.weight.split(hidden), feed_forward.depthwise.weight.split(hidden)
        self.content, self.gate = (
            nn.Sequential(_folded(norm, _grown(weight, 0)), _depthwise(_grown(taps, 0)))
            for weight, taps in zip(projections, filters, strict=True)
        )
        self.out = _convolution(_grown(feed_forward.out.weight, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.content(x)) * self.gate(x))


class Plain(nn.Module):
    """:class:`echoir.networks.echoir.FeedForward` with the normalization's affine part folded in."""

    def __init__(self, norm: LayerNorm, feed_forward: FeedForward) -> None:
        super().__init__()
        self.expand = _folded(norm, _grown(feed_forward.expand.weight, 0))
        self.out = _convolution(_grown(feed_forward.out.weight, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.expand(x)))


def _convolution(
    weight: Tensor, bias: Tensor | None = None, *, padding: int = 0, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    out_channels, in_channels, *kernel = weight.shape
    layer = nn.utils.skip_init(
        nn.Conv2d,
        in_channels * groups,
        out_channels,
        tuple(kernel),
        padding=padding,
        stride=stride,
        groups=groups,
        bias=bias is not None,
        dtype=weight.dtype,
    )
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer.requires_grad_(False)


def _folded(norm: LayerNorm, weight: Tensor) -> nn.Conv2d:
    """W (s * x + b) = (W diag(s)) x + W b, for a 1x1 convolution W."""
    return _convolution(weight * norm.weight[:, None, None], weight[:, :, 0, 0] @ norm.bias)


def _depthwise(weight: Tensor) -> nn.Conv2d:
    return _convolution(weight, padding=1, groups=weight.shape[0])


def _grown(weight: Tensor, axis: int) -> Tensor:
    """Zeros appended along an axis up to a multiple of ``LANES``; gelu(0) * 0 = 0, so nothing changes."""
    shape = list(weight.shape)
    shape[axis] = -shape[axis] % LANES
    return torch.cat([weight, weight.new_zeros(shape)], dim=axis)


def _strided(down: Downsample) -> nn.Conv2d:
    """Output channel 4c + 2i + j of conv-then-unshuffle is channel c of the convolution at (2y + i, 2x + j)."""
    convolution = down[0]
    assert isinstance(convolution, nn.Conv2d)
    c_out, c_in = convolution.weight.shape[:2]
    weight = convolution.weight.new_zeros(c_out, 2, 2, c_in, 4, 4)
    for i in (0, 1):
        for j in (0, 1):
            weight[:, i, j, :, i : i + 3, j : j + 3] = convolution.weight
    return _convolution(weight.reshape(4 * c_out, c_in, 4, 4), padding=1, stride=2)


def _gathered(embedding: Embedding) -> nn.Conv2d:
    """Input channel s^2 c + s i + j of unshuffle-then-conv at tap (u, v) is channel c at (s u + i, s v + j)."""
    s, weight = embedding.stem, embedding.weight
    c_out, _, height, width = weight.shape
    taps = weight.view(c_out, 3, s, s, height, width).permute(0, 1, 4, 2, 5, 3)
    return _convolution(taps.reshape(c_out, 3, s * height, s * width), padding=s, stride=s)
