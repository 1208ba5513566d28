"""GRL written out from its formulas, with every table, index and mask stored; parameters by their official names.

Independent of ``echoir.networks.grl``: nothing is shared but the configuration's numbers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echoir.networks.grl import GRLConfig

Pair = tuple[int, int]


@dataclass
class Stored:
    """What one kind of attention stores: its coordinates, which of them belongs to which pair, its mask."""

    table: Tensor  # [offsets, 2]
    index: Tensor  # [queries, keys]
    mask: Tensor | None  # [cells, queries, keys]


def official_shapes(config: GRLConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of an official checkpoint."""
    c, heads = config.width, config.heads
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, outputs: int, inputs: int, kernel: int | None = None, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel) if kernel else (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (c,)

    layer("conv_first", c, config.inputs, 3)
    norm("norm_start")
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            layer(f"{block}.attn.qkv.body", 3 * c, c)
            layer(f"{block}.attn.anchor.body.0.reduction", c // 2, c)
            for part in ("window_attn.attn_transform", "stripe_attn.attn_transform1", "stripe_attn.attn_transform2"):
                shapes[f"{block}.attn.{part}.logit_scale"] = (heads, 1, 1)
                layer(f"{block}.attn.{part}.cpb_mlp.0", 512, 2)
                layer(f"{block}.attn.{part}.cpb_mlp.2", heads, 512, bias=False)
            layer(f"{block}.attn.proj", c, c)
            norm(f"{block}.norm1")
            if config.local:
                layer(f"{block}.conv.cab.0", c // 4, c, 3)
                layer(f"{block}.conv.cab.2", c, c // 4, 3)
                layer(f"{block}.conv.cab.3.attention.1", c // 18, c, 1)
                layer(f"{block}.conv.cab.3.attention.3", c, c // 18, 1)
            layer(f"{block}.mlp.fc1", 2 * c, c)
            layer(f"{block}.mlp.fc2", c, 2 * c)
            norm(f"{block}.norm2")
        layer(f"layers.{i}.conv", c, c, 3)
    norm("norm_end")
    layer("conv_after_body", c, c, 3)
    if config.head == "shuffle":
        layer("upsample.up.0", config.outputs * config.scale**2, c, 3)
        return shapes
    if config.head in ("staged", "nearest"):
        layer("conv_before_upsample.0", 64, c, 3)
    if config.head == "staged":
        for step, factor in enumerate([3] if config.scale == 3 else [2] * (config.scale // 2)):
            layer(f"upsample.up.{2 * step}", 64 * factor**2, 64, 3)
    if config.head == "nearest":
        for name in ("conv_up1", "conv_up2", "conv_hr"):
            layer(name, 64, 64, 3)
    layer("conv_last", config.outputs, c if config.head == "conv" else 64, 3)
    return shapes


def random_state(config: GRLConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights of an even, lively scale under their official names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in official_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("logit_scale"):
            state[name] = math.log(10) + noise  # some of them beyond log(100), where it is held
        elif "norm" in name:
            state[name] = (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
        elif name.endswith("bias"):
            state[name] = 0.1 * noise
        else:
            state[name] = noise / math.sqrt(math.prod(shape[1:])) * (3 if "cpb_mlp" in name else 0.7)
    state["layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale"][0] = 5.0  # above log(100) = 4.6
    return state


def naive_grl(state: dict[str, Tensor], config: GRLConfig, image: Tensor) -> Tensor:
    """[N, inputs, H, W] -> [N, outputs, scale H, scale W]."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (config.width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    height, width = image.shape[-2:]
    right, bottom = -width % config.multiple, -height % config.multiple
    try:
        x = F.pad(image, (0, right, 0, bottom), "reflect")
    except RuntimeError:
        x = F.pad(image, (0, right, 0, bottom))
    mean = torch.tensor((0.4488, 0.4371, 0.4040) if config.inputs == 3 else (0.0,)).to(image).view(1, -1, 1, 1)
    x = x - mean
    features = conv("conv_first", x)
    y = norm("norm_start", features.permute(0, 2, 3, 1))
    for i, depth in enumerate(config.depths):
        z = y
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            attention = norm(f"{block}.norm1", mixed_attention(state, f"{block}.attn", config, j, z))
            local = 0
            if config.local:
                t = conv(f"{block}.conv.cab.2", F.gelu(conv(f"{block}.conv.cab.0", z.permute(0, 3, 1, 2))))
                gate = conv(f"{block}.conv.cab.3.attention.1", t.mean((2, 3), keepdim=True)).relu()
                local = (t * conv(f"{block}.conv.cab.3.attention.3", gate).sigmoid()).permute(0, 2, 3, 1)
            z = z + attention + local
            hidden = F.gelu(linear(state, f"{block}.mlp.fc1", z))
            z = z + norm(f"{block}.norm2", linear(state, f"{block}.mlp.fc2", hidden))
        y = y + conv(f"layers.{i}.conv", z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    y = conv("conv_after_body", norm("norm_end", y).permute(0, 3, 1, 2)) + features
    if config.head == "conv":
        restored = conv("conv_last", y) + (x if config.inputs == config.outputs else 0)
    elif config.head == "shuffle":
        restored = F.pixel_shuffle(conv("upsample.up.0", y), config.scale)
    else:
        y = F.leaky_relu(conv("conv_before_upsample.0", y), 0.01)
        if config.head == "staged":
            for step in range(1 if config.scale == 3 else int(math.log2(config.scale))):
                y = F.pixel_shuffle(conv(f"upsample.up.{2 * step}", y), 3 if config.scale == 3 else 2)
        else:
            for name in ("conv_up1", "conv_up2"):
                y = F.leaky_relu(conv(name, y.repeat_interleave(2, -1).repeat_interleave(2, -2)), 0.2)
            y = F.leaky_relu(conv("conv_hr", y), 0.2)
        restored = conv("conv_last", y)
    return (restored + mean)[..., : height * config.scale, : width * config.scale]


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def mixed_attention(state: dict[str, Tensor], name: str, config: GRLConfig, j: int, x: Tensor) -> Tensor:
    _, height, width, c = x.shape
    df = config.anchor
    qkv = linear(state, f"{name}.qkv.body", x)
    q, k, v, sq, sk, sv = qkv.split(c // 2, dim=-1)
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), df).permute(0, 2, 3, 1)
    anchor = linear(state, f"{name}.anchor.body.0.reduction", pooled)

    window = (config.window, config.window)
    shift = config.window // 2 if j % 2 == 0 else 0
    stored = Stored(
        coordinates(window, window), offsets(window, window), mask((height, width), window, (shift, shift), 1, 1)
    )
    q, k, v = (cells(roll(t, (shift, shift)), window, config.heads) for t in (q, k, v))
    inside = attend(state, f"{name}.window_attn.attn_transform", stored, q, k, v)
    inside = roll(back(inside, window, (height, width)), (-shift, -shift))

    stripe = config.stripe if j % 2 == 0 else (config.stripe[1], config.stripe[0])
    shifts = (stripe[0] // 2, stripe[1] // 2) if j % 4 in (2, 3) else (0, 0)
    few, few_shifts = (stripe[0] // df, stripe[1] // df), (shifts[0] // df, shifts[1] // df)
    sq, sk, sv = (cells(roll(t, shifts), stripe, config.heads) for t in (sq, sk, sv))
    a = cells(roll(anchor, few_shifts), few, config.heads)
    table = coordinates(stripe, few)
    to_anchors = Stored(table, offsets(few, stripe), mask((height, width), stripe, shifts, df, 1))
    from_anchors = Stored(table, offsets(stripe, few), mask((height, width), stripe, shifts, 1, df))
    gathered = attend(state, f"{name}.stripe_attn.attn_transform1", to_anchors, a, sk, sv)
    along = attend(state, f"{name}.stripe_attn.attn_transform2", from_anchors, sq, a, gathered)
    along = roll(back(along, stripe, (height, width)), (-shifts[0], -shifts[1]))
    return linear(state, f"{name}.proj", torch.cat([inside, along], -1))


def roll(x: Tensor, shift: Pair) -> Tensor:
    """Up and left, cyclically, by hand."""
    if shift[0]:
        x = torch.cat([x[:, shift[0] :], x[:, : shift[0]]], 1)
    return torch.cat([x[:, :, shift[1] :], x[:, :, : shift[1]]], 2) if shift[1] else x


def cells(x: Tensor, size: Pair, heads: int) -> Tensor:
    """[N, H, W, C] -> [cells, N, heads, tokens, C / heads], one slice after the other."""
    h, w = size
    tops, lefts = range(0, x.shape[1], h), range(0, x.shape[2], w)
    parts = [x[:, t : t + h, left : left + w].reshape(x.shape[0], h * w, heads, -1) for t in tops for left in lefts]
    return torch.stack(parts).transpose(2, 3)


def back(x: Tensor, size: Pair, whole: Pair) -> Tensor:
    """The inverse of :func:`cells`."""
    (h, w), (height, width) = size, whole
    result = x.new_empty(x.shape[1], height, width, x.shape[2] * x.shape[4])
    for cell, (t, left) in zip(x, itertools.product(range(0, height, h), range(0, width, w)), strict=True):
        result[:, t : t + h, left : left + w] = cell.transpose(1, 2).reshape(-1, h, w, result.shape[-1])
    return result


def attend(state: dict[str, Tensor], name: str, stored: Stored, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[cells, N, heads, tokens, d] each."""
    q = q / q.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    k = k / k.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    logits = q @ k.transpose(-2, -1) * state[f"{name}.logit_scale"].clamp(max=math.log(100)).exp()
    first, last = f"{name}.cpb_mlp.0", f"{name}.cpb_mlp.2"
    values = F.linear(stored.table.to(q), state[f"{first}.weight"], state[f"{first}.bias"])
    values = F.linear(values.relu(), state[f"{last}.weight"])  # [offsets, heads]
    logits = logits + 16 * values[stored.index].permute(2, 0, 1).sigmoid()
    if stored.mask is not None:
        logits = logits + stored.mask[:, None, None].to(q)
    return logits.softmax(-1) @ v


def coordinates(pixels: Pair, anchors: Pair) -> Tensor:
    """[offsets, 2]: sign(u) log2(|u| + 1) / 3, u = 8 t / m, t = -m..m, m = (s + a) / 2 - 1."""
    axes = []
    for s, a in zip(pixels, anchors, strict=True):
        m = (s + a) // 2 - 1
        u = [8 * t / m for t in range(-m, m + 1)]
        axes.append([math.copysign(math.log2(abs(value) + 1) / 3, value) for value in u])
    return torch.tensor([(y, x) for y in axes[0] for x in axes[1]], dtype=torch.float64)


def offsets(queries: Pair, keys: Pair) -> Tensor:
    """[queries, keys]: (ih - jh + keys_h - 1) C + (iw - jw + keys_w - 1), C = queries_w + keys_w - 1."""
    across = queries[1] + keys[1] - 1
    i, j = (torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in (queries, keys))
    difference = i[:, None] - j[None, :]
    return (difference[..., 0] + keys[0] - 1) * across + difference[..., 1] + keys[1] - 1


def mask(whole: Pair, size: Pair, shift: Pair, query_factor: int, key_factor: int) -> Tensor | None:
    """[cells, queries, keys]: -100 where the two lie in different regions; None without a shift."""
    if not any(shift):
        return None

    def regions(factor: int) -> Tensor:
        (height, width), (h, w), (y, x) = ((a // factor, b // factor) for a, b in (whole, size, shift))
        ids = torch.zeros(1, height, width, 1)
        rows = (slice(0, -h), slice(-h, -y), slice(-y, None))
        columns = (slice(0, -w), slice(-w, -x), slice(-x, None))
        for number, (row, column) in enumerate(itertools.product(rows, columns)):
            ids[:, row, column] = number
        return cells(ids, (h, w), 1)[:, 0, 0, :, 0]  # [cells, tokens]

    q, k = regions(query_factor), regions(key_factor)
    return torch.where(q[:, :, None] == k[:, None, :], 0.0, -100.0)
