"""GRL: attention in windows, and in stripes by way of anchors (Li et al., CVPR 2023, "Efficient and Explicit
Modelling of Image Hierarchies for Image Restoration").

A picture is cut into square windows, in which all pixels attend to each other, and into long stripes. A
stripe has an anchor per block of pixels, the block's mean; anchors attend to the pixels, then pixels to the
anchors, so the cost stays linear in the number of pixels. Blocks alternate horizontal and vertical stripes
and shift both grids cyclically, as Swin does.

Position biases and the masks of shifted grids depend on sizes alone. They are computed in the forward pass
and never stored: as buffers they would come to 739 MB for a 256 x 256 picture and 0.9 M parameters.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoir.runtime.descriptor import Descriptor, Planes

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, RGB; the official networks subtract it
MASKED = 100.0  # what the logit of a pair from two sides of the picture loses
BIAS_LIMIT = 16.0  # position biases lie in (0, 16)


@dataclass(frozen=True)
class GRLConfig:
    """What defines a network.

    Attributes:
        width: channels, half for windows and half for stripes.
        depths: blocks per stage.
        heads: of the windows' attention, and as many of the stripes'.
        window: side of a window in pixels, even.
        stripe: (height, width) of a stripe in the even blocks; the odd ones turn it.
        anchor: an anchor stands for anchor x anchor pixels.
        local: whether blocks have a convolutional branch with channel attention.
        inputs, outputs: channels of the pictures; equal ones (at scale 1) make the network learn a residual.
        scale: output pixels per input pixel, each side.
        head: ``conv`` (scale 1), ``shuffle`` (one convolution and pixel-shuffle), ``staged`` (a factor of 2
            or 3 at a time), ``nearest`` (nearest neighbours and convolutions, x4).
    """

    width: int = 64
    depths: tuple[int, ...] = (4, 4, 4, 4)
    heads: int = 2
    window: int = 16
    stripe: tuple[int, int] = (64, 128)
    anchor: int = 4
    local: bool = False
    inputs: int = 3
    outputs: int = 3
    scale: int = 1
    head: Literal["conv", "shuffle", "staged", "nearest"] = "conv"

    def __post_init__(self) -> None:
        for name in ("depths", "stripe"):  # TOML and JSON have lists alone
            object.__setattr__(self, name, tuple(getattr(self, name)))
        scales = {"conv": (1,), "shuffle": (2, 3, 4), "staged": (2, 3, 4), "nearest": (4,)}
        if self.head not in scales:
            raise ValueError(f"head must be one of {', '.join(scales)}, got {self.head!r}")
        if self.scale not in scales[self.head]:
            allowed = ", ".join(map(str, scales[self.head]))
            raise ValueError(f"a {self.head!r} head has scale {allowed}, not {self.scale}")
        if self.width % (2 * self.heads):
            raise ValueError(f"{self.heads} heads do not divide half of {self.width} channels")
        if self.window % 2 or any(self.multiple % side for side in (self.window, *self.stripe)):
            raise ValueError(f"window {self.window} and stripe {self.stripe} must divide their largest side")
        if any(side % (2 * self.anchor) for side in self.stripe):
            raise ValueError(f"sides of the stripe {self.stripe} must be multiples of {2 * self.anchor}, two anchors")

    @property
    def multiple(self) -> int:
        """Both sides of a picture are padded to multiples of this, in pixels."""
        return max(self.window, *self.stripe)

    @classmethod
    def from_preset(cls, size: str, *, task: str = "denoise", **switches: Any) -> GRLConfig:
        """The sizes of the paper.

        Args:
            size: ``"t"``, ``"s"`` or ``"b"``.
            task: a key of ``TASKS``.
            **switches: fields to change.

        Raises:
            ValueError: an unknown size or task, or values that do not fit each other.
        """
        for value, kind, table in ((size, "size", SIZES), (task, "task", TASKS)):
            if value not in table:
                raise ValueError(f"unknown {kind} {value!r} of GRL; there are {', '.join(table)}")
        return cls(**SIZES[size] | TASKS[task] | SPECIAL.get((size, task), {}) | switches)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GRLConfig:
        """Rebuild a configuration from :meth:`to_dict`'s output (JSON turns tuples into lists)."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


SIZES: dict[str, dict[str, Any]] = {
    "t": {"width": 64, "depths": (4, 4, 4, 4), "heads": 2},
    "s": {"width": 128, "depths": (4, 4, 4, 4), "heads": 2},
    "b": {"width": 180, "depths": (4, 4, 8, 8, 8, 4, 4), "heads": 3, "local": True},
}
TASKS: dict[str, dict[str, Any]] = {
    "denoise": {"window": 16, "stripe": (64, 128)},
    "sr": {"window": 32, "stripe": (64, 64), "scale": 4},
    "realsr": {"window": 16, "stripe": (32, 64), "scale": 4, "head": "nearest"},
    "deblur": {"window": 12, "stripe": (48, 96)},  # motion
    "defocus": {"window": 16, "stripe": (48, 96)},
    "dual-defocus": {"window": 16, "stripe": (48, 96), "inputs": 6},  # left and right view of a dual-pixel sensor
    "jpeg": {"window": 36, "stripe": (72, 144)},
    "demosaic": {"window": 8, "stripe": (32, 32)},  # of pictures already interpolated to RGB
}
SPECIAL: dict[tuple[str, str], dict[str, Any]] = {
    ("b", "denoise"): {"window": 32, "anchor": 2},
    ("b", "sr"): {"anchor": 2, "head": "staged"},
    ("s", "sr"): {"head": "staged"},
    ("t", "sr"): {"head": "shuffle"},
}


class GRL(nn.Module):
    """Restores a degraded picture, at ``scale`` times its size.

    Args:
        config: sizes; :meth:`from_preset` gives those of the paper.
    """

    mean: Tensor

    def __init__(self, config: GRLConfig) -> None:
        super().__init__()
        self.config = config
        c = config.width
        self.embed = nn.Conv2d(config.inputs, c, 3, padding=1)
        self.norm_in = nn.LayerNorm(c)
        self.stages = nn.ModuleList(Stage(depth, config) for depth in config.depths)
        self.norm_out = nn.LayerNorm(c)
        self.body = nn.Conv2d(c, c, 3, padding=1)
        self.head = make_head(config)
        mean = torch.tensor(MEAN if config.inputs == 3 else (0.0,)).view(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.apply(_initialize)

    @classmethod
    def from_preset(cls, size: str, *, task: str = "denoise", **switches: Any) -> GRL:
        """A network by name, e.g. ``GRL.from_preset("s", task="sr", scale=2)``; see :meth:`GRLConfig.from_preset`."""
        return cls(GRLConfig.from_preset(size, task=task, **switches))

    def describe(self, task: str, preset: str) -> Descriptor:
        """What a chain that deploys it needs to know. Windows and stripes are laid out from the upper left corner, so
        tiles see those of the whole picture if they start on multiples of the padding's."""
        config = self.config
        planes: dict[int, Planes] = {1: "gray", 3: "RGB", 4: "RGGB", 6: "RGB pair"}
        return Descriptor(
            architecture="GRL",
            task=task,
            parameters=sum(parameter.numel() for parameter in self.parameters()),
            variant=preset.removeprefix("grl-"),
            config=config.to_dict(),
            scale=config.scale,
            input=planes[config.inputs],
            output=planes[config.outputs],
            multiple=(config.multiple, config.multiple),
            phase=(config.multiple, config.multiple),
            overlap=min(64, config.multiple),
            tile=(2 * config.multiple, 2 * config.multiple),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Restore a batch.

        Args:
            image: [N, inputs, H, W], nominally in [0, 1]; any H, W >= 1. They are padded at the bottom and
                right to multiples of ``config.multiple``, by reflection or, where the picture is too small
                for it, by zeros.

        Returns:
            [N, outputs, scale * H, scale * W], not clipped.
        """
        height, width = (side * self.config.scale for side in image.shape[-2:])
        x = pad_to_multiple(image, self.config.multiple) - self.mean
        features = self.embed(x)
        y = self.norm_in(features.permute(0, 2, 3, 1))  # [N, H, W, C] from here on
        for stage in self.stages:
            y = stage(y)
        restored = self.head(self.body(self.norm_out(y).permute(0, 3, 1, 2)) + features)
        if self.config.scale == 1 and self.config.inputs == self.config.outputs:
            restored = restored + x
        return (restored + self.mean)[..., :height, :width]


class Stage(nn.Module):
    """``x + conv(blocks(x))`` of [N, H, W, C]."""

    def __init__(self, depth: int, config: GRLConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(index, config) for index in range(depth)))
        self.conv = nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """``x + LN(attention(x)) + local(x)``, then ``x + LN(mlp(x))``."""

    def __init__(self, index: int, config: GRLConfig) -> None:
        super().__init__()
        c = config.width
        self.attention = MixedAttention(index, config)
        self.norm1 = nn.LayerNorm(c)
        self.local = LocalBranch(c) if config.local else None
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))
        self.norm2 = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.norm1(self.attention(x))
        if self.local is not None:
            y = y + self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y + self.norm2(self.mlp(y))


class LocalBranch(nn.Module):
    """Two convolutions with a quarter of the channels between, gated per channel by the mean of the picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = channels // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels, few, 3, padding=1), nn.GELU(), nn.Conv2d(few, channels, 3, padding=1)
        )
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels // 18, 1), nn.ReLU(), nn.Conv2d(channels // 18, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * self.gate(y.mean((2, 3), keepdim=True))


@dataclass(frozen=True)
class Grid:
    """Cells of ``size`` (height, width) that tile a map after it was rolled up and left by ``shift``."""

    size: tuple[int, int]
    shift: tuple[int, int]

    def over(self, factor: int) -> Grid:
        """The same cells on a map ``factor`` times smaller."""
        (h, w), (y, x) = self.size, self.shift
        return Grid((h // factor, w // factor), (y // factor, x // factor))

    def split(self, x: Tensor) -> Tensor:
        """[N, H, W, heads, D] -> [N * cells, heads, tokens, D], tokens row by row in a cell."""
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        (h, w), (n, height, width, heads, d) = self.size, x.shape
        x = x.reshape(n, height // h, h, width // w, w, heads, d).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(-1, heads, h * w, d)

    def join(self, x: Tensor, height: int, width: int) -> Tensor:
        """What :meth:`split` made, back as [N, H, W, heads * D]."""
        (h, w), (_, heads, _, d) = self.size, x.shape
        x = x.reshape(-1, height // h, width // w, heads, h, w, d).permute(0, 1, 4, 2, 5, 3, 6)
        return x.reshape(-1, height, width, heads * d).roll(self.shift, (1, 2))

    def sides(self, height: int, width: int, like: Tensor) -> Tensor:
        """Which pixels of a rolled map really are neighbours: [cells, 1, tokens, 3] of signs.

        Rolling brings opposite borders of the map together in the last row and column of cells. With s = -1
        for what came round and 1 for the rest, (s_y, s_x, s_y s_x) of two tokens of a cell have the product
        3 if they come from the same side in both directions, else -1.
        """
        y, x = (
            torch.where(torch.arange(length, device=like.device) < length - shift, 1, -1).to(like.dtype)
            for length, shift in zip((height, width), self.shift, strict=True)
        )
        y, x = y[:, None].expand(height, width), x[None, :].expand(height, width)
        return replace(self, shift=(0, 0)).split(torch.stack([y, x, y * x], -1)[None, :, :, None])


class MixedAttention(nn.Module):
    """Half of the channels attend in windows, half in stripes by way of anchors; of [N, H, W, C]."""

    def __init__(self, index: int, config: GRLConfig) -> None:
        super().__init__()
        c, half = config.width, config.window // 2
        h, w = config.stripe if index % 2 == 0 else config.stripe[::-1]
        self.heads = config.heads
        self.windows = Grid((config.window, config.window), (half, half) if index % 2 == 0 else (0, 0))
        self.stripes = Grid((h, w), (h // 2, w // 2) if index % 4 >= 2 else (0, 0))
        self.factor = config.anchor
        self.qkv = nn.Linear(c, 3 * c)  # q, k, v of the windows, then of the stripes
        self.anchor = nn.Linear(c, c // 2)
        self.within = Attend(config.heads)
        self.gather = Attend(config.heads)  # anchors from pixels
        self.spread = Attend(config.heads)  # pixels from anchors
        self.proj = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, _ = x.shape
        qkv = self.qkv(x).view(n, height, width, 2, 3, self.heads, -1)
        q, k, v = (self.windows.split(t) for t in qkv[:, :, :, 0].unbind(3))
        sides = self.windows.sides(height, width, x) if any(self.windows.shift) else None
        windows = self.within((q, self.windows, sides), (k, self.windows, sides), v)

        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.factor).permute(0, 2, 3, 1)
        coarse = self.stripes.over(self.factor)
        a = coarse.split(self.anchor(pooled).unflatten(-1, (self.heads, -1)))
        q, k, v = (self.stripes.split(t) for t in qkv[:, :, :, 1].unbind(3))
        sides = a_sides = None
        if any(self.stripes.shift):
            sides = self.stripes.sides(height, width, x)
            a_sides = coarse.sides(height // self.factor, width // self.factor, x)
        anchors = self.gather((a, coarse, a_sides), (k, self.stripes, sides), v)
        stripes = self.spread((q, self.stripes, sides), (a, coarse, a_sides), anchors)
        return self.proj(
            torch.cat([self.windows.join(windows, height, width), self.stripes.join(stripes, height, width)], -1)
        )


class Attend(nn.Module):
    """Cosine attention: ``softmax(scale * cos(q, k) + bias - 100 [not the same side]) v``.

    The scale is learned per head, at most 100. The bias is learned as a function of the distance between
    query and key, on a logarithmic axis (Swin V2).
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.position = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))

    def forward(
        self, queries: tuple[Tensor, Grid, Tensor | None], keys: tuple[Tensor, Grid, Tensor | None], v: Tensor
    ) -> Tensor:
        """Queries and keys come with their grid and sides; [cells, heads, tokens, D] each, and so is the result."""
        (q, q_grid, q_sides), (k, k_grid, k_sides) = queries, keys
        q = F.normalize(q, dim=-1) * self.log_scale.clamp(max=math.log(100)).exp()
        k = F.normalize(k, dim=-1)
        bias = self.bias(q_grid.size, k_grid.size)[None]
        if q_sides is None or k_sides is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        # Four more coordinates add 0 or -100 to a product: no mask as large as the logits is needed. PyTorch's
        # fused kernels want four dimensions of the bias, and as many coordinates of v.
        q, k = _append(q, q_sides * (MASKED / 4), -0.75 * MASKED), _append(k, k_sides, 1.0)
        return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 4)), attn_mask=bias, scale=1.0)[..., :-4]

    def bias(self, queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """[heads, queries, keys] of cells of these sizes: a function of the index of the query minus the key's.

        Anchors count their own index, not the pixels they stand for, as the official networks do.
        """
        # table[y, x] is for an offset of (y - keys[0] + 1, x - keys[1] + 1), so windows of it slide by the query
        table = self.table(queries, keys)
        (h, w), (m, n) = queries, keys
        return table.unfold(1, m, 1).unfold(2, n, 1).flip(-2, -1).reshape(-1, h * w, m * n)

    def table(self, queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """The bias by offset: [heads, h + m - 1, w + n - 1] for cells of h x w queries and m x n keys."""
        weight = self.log_scale
        axes = []
        for q, k in zip(queries, keys, strict=True):
            most = (q + k) // 2 - 1
            u = torch.arange(-most, most + 1, device=weight.device, dtype=weight.dtype) * (8 / most)
            axes.append(u.sign() * (u.abs() + 1).log2() / 3)
        y, x = torch.meshgrid(*axes, indexing="ij")
        return (BIAS_LIMIT * self.position(torch.stack([y, x], -1)).sigmoid()).permute(2, 0, 1)


def _append(x: Tensor, sides: Tensor, constant: float) -> Tensor:
    """x [N * cells, heads, tokens, D] with the three signs of its tokens and a constant: D + 4."""
    repeats = x.shape[0] // sides.shape[0]
    sides = F.pad(sides, (0, 1), value=constant).expand(-1, x.shape[1], -1, -1).repeat(repeats, 1, 1, 1)
    return torch.cat([x, sides], -1)


def make_head(config: GRLConfig) -> nn.Module:
    """[N, width, H, W] -> [N, outputs, scale * H, scale * W]."""

    def conv(inputs: int, outputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    c, outputs, scale = config.width, config.outputs, config.scale
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if config.head == "conv":
        layers["output"] = conv(c, outputs)
        return nn.Sequential(layers)
    if config.head == "shuffle":
        layers |= {"up1": conv(c, outputs * scale**2), "shuffle1": nn.PixelShuffle(scale)}
        return nn.Sequential(layers)
    layers |= {"reduce": conv(c, 64), "act0": nn.LeakyReLU()}
    for i, factor in enumerate([3] if scale == 3 else [2] * int(math.log2(scale)), start=1):
        if config.head == "staged":
            layers |= {f"up{i}": conv(64, 64 * factor**2), f"shuffle{i}": nn.PixelShuffle(factor)}
        else:
            layers |= {f"nearest{i}": nn.Upsample(scale_factor=factor), f"up{i}": conv(64, 64)}
            layers[f"act{i}"] = nn.LeakyReLU(0.2)
    if config.head == "nearest":
        layers |= {"refine": conv(64, 64), "act3": nn.LeakyReLU(0.2)}
    layers["output"] = conv(64, outputs)
    return nn.Sequential(layers)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Grow H and W at the bottom and right to a multiple: by reflection, or by zeros where a side is too short."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    mode = "reflect" if bottom < height and right < width else "constant"
    return F.pad(image, (0, right, 0, bottom), mode)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
