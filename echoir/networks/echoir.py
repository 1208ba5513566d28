"""EchoIR: a four-level U-Net of mix-attention blocks with guided upsampling (EchoIR paper, Fig. 2).

The paper's text leaves details open; its parameter counts (Tables 4 and 5) fix them, see
``docs/network.md`` and ``tests/test_network.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoir.networks.upsampler import EchoUpsampler
from echoir.runtime.descriptor import Descriptor

HALVINGS = 3


@dataclass(frozen=True)
class EchoIRConfig:
    """What defines a network: sizes, and the switches of the paper's ablations (Tables 4 and 5).

    ``stem`` is the factor between the image's resolution and that of the first level: 1 is the paper's;
    2 folds 2 x 2 pixels into channels at the entry and unfolds them at the exit, as FFDNet does
    (Zhang et al. 2018), since layers of few channels at full resolution are what costs time everywhere.
    ``radius`` is that of the upsamplers' neighbourhood Ω in cells, which the paper does not tell.
    ``residual_blocks`` come last, at the first level: pairs of dense 3 x 3 convolutions, which the paper does not have.
    Fine detail needs many multiply-adds there, and a mix-attention block does less than half as many in the
    same time (docs/network.md).
    """

    width: int = 48
    blocks: tuple[int, int, int] = (4, 6, 6)
    middle: int = 8
    refinement: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    expansion: float = 2.66
    upsampler: Literal["echo", "pixelshuffle", "transpose"] = "echo"
    reference: Literal["encoder", "image"] = "encoder"
    channel_attention: bool = True
    feed_forward: Literal["gdfn", "mlp"] = "gdfn"
    stem: Literal[1, 2] = 1
    radius: int = 1
    residual_blocks: int = 0

    def __post_init__(self) -> None:
        for name in ("blocks", "heads"):  # TOML and JSON have lists alone
            object.__setattr__(self, name, tuple(getattr(self, name)))
        allowed = {
            "upsampler": ("echo", "pixelshuffle", "transpose"),
            "reference": ("encoder", "image"),
            "feed_forward": ("gdfn", "mlp"),
            "stem": (1, 2),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")
        if type(self.radius) is not int or not 0 <= self.radius <= 3:
            raise ValueError(f"radius must be an integer from 0 to 3, got {self.radius!r}")
        counts = [(name, getattr(self, name)) for name in ("middle", "refinement", "residual_blocks")]
        for name, count in (*counts, *(("each of blocks", count) for count in self.blocks)):
            if type(count) is not int or count < 0:
                raise ValueError(f"{name} must be an integer from 0 up, got {count!r}")
        for level, heads in enumerate(self.heads):
            channels = self.width * 2**level
            if channels % heads:
                raise ValueError(f"{heads} heads do not divide the {channels} channels of level {level + 1}")

    @property
    def alignment(self) -> int:
        """What the sides of an image are padded to multiples of."""
        return self.stem * 2**HALVINGS

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EchoIRConfig:
        """Rebuild a configuration from :meth:`to_dict`'s output."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PRESETS: dict[str, EchoIRConfig] = {
    "base": EchoIRConfig(),
    "small": EchoIRConfig(width=24, blocks=(2, 2, 2), middle=4, refinement=2),
    # For cameras and CPUs: at half resolution, in about FFDNet's time; all hidden channels multiples of eight.
    "tiny": EchoIRConfig(width=32, blocks=(1, 1, 2), middle=2, refinement=0, expansion=2.75, stem=2, residual_blocks=2),
}


class EchoIR(nn.Module):
    """Restores a degraded image: ``output = input + correction(input)``.

    Args:
        config: sizes and switches; :meth:`from_preset` gives the usual ones.
    """

    def __init__(self, config: EchoIRConfig) -> None:
        super().__init__()
        self.config = config
        c1, c2, c3, c4 = (config.width * 2**level for level in range(4))
        n1, n2, n3 = config.blocks
        h1, h2, h3, h4 = config.heads

        def blocks(count: int, channels: int, heads: int) -> nn.Sequential:
            return nn.Sequential(*(MixAttentionBlock(channels, heads, config) for _ in range(count)))

        self.embed = Embedding(c1, config.stem)
        self.encoder1, self.down1 = blocks(n1, c1, h1), Downsample(c1)
        self.encoder2, self.down2 = blocks(n2, c2, h2), Downsample(c2)
        self.encoder3, self.down3 = blocks(n3, c3, h3), Downsample(c3)
        self.middle = blocks(config.middle, c4, h4)
        self.up3, self.skip3 = make_upsampler(c3, config), nn.Conv2d(c4, c3, 1, bias=False)
        self.decoder3 = blocks(n3, c3, h3)
        self.up2, self.skip2 = make_upsampler(c2, config), nn.Conv2d(c3, c2, 1, bias=False)
        self.decoder2 = blocks(n2, c2, h2)
        # Level 1 and the refinement keep the 2C channels of the concatenation.
        self.up1, self.decoder1 = make_upsampler(c1, config), blocks(n1, c2, h1)
        self.refinement = blocks(config.refinement, c2, h1)
        self.residuals = nn.Sequential(*(ResidualBlock(c2) for _ in range(config.residual_blocks)))
        self.output = Output(c2, config.stem)

    @classmethod
    def from_preset(cls, name: str, **switches: Any) -> EchoIR:
        """A network by name, e.g. ``EchoIR.from_preset("tiny", upsampler="pixelshuffle")``.

        Args:
            name: ``"tiny"``, ``"small"`` or ``"base"``.
            **switches: fields of :class:`EchoIRConfig` to change.

        Raises:
            ValueError: an unknown preset or an unknown value of a switch.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(replace(PRESETS[name], **switches))

    @property
    def multiple(self) -> int:
        """What both sides of a tile are multiples of, in pixels.

        The network halves the tile several times, and the deployed form of EchoUpsample works on blocks of twice
        its radius.
        """
        radii = [module.radius for module in self.modules() if isinstance(module, EchoUpsampler)]
        return self.config.alignment * max((2 * max(radius, 1) for radius in radii), default=1)

    def describe(self, task: str, preset: str) -> Descriptor:
        """What a chain that deploys it needs to know; its attention makes it depend on the whole tile.

        Tiles start where the stem's windows do: at half resolution a network sees even and odd places differently.
        """
        return Descriptor(
            architecture="EchoIR",
            task=task,
            parameters=sum(parameter.numel() for parameter in self.parameters()),
            variant=preset,
            config=self.config.to_dict(),
            multiple=(self.multiple, self.multiple),
            phase=(self.config.stem, self.config.stem),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Restore a batch.

        Args:
            image: [N, 3, H, W] RGB, nominally in [0, 1]; any H, W >= 1. Sizes that are not a
                multiple of ``config.alignment`` are padded by reflection and cropped again.

        Returns:
            [N, 3, H, W], not clipped.
        """
        height, width = image.shape[-2:]
        padded = pad_to_multiple(image, self.config.alignment)
        return self.decode(padded, *self.encode(padded))[..., :height, :width]

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 3, H, W], sides multiples of the alignment -> the features that skip to the decoder and guide it."""
        # H and W below are the image's, divided by the stem.
        e1 = self.encoder1(self.embed(image))  # [N, C, H, W]
        e2 = self.encoder2(self.down1(e1))  # [N, 2C, H/2, W/2]
        e3 = self.encoder3(self.down2(e2))  # [N, 4C, H/4, W/4]
        return e1, e2, e3

    def decode(self, image: Tensor, e1: Tensor, e2: Tensor, e3: Tensor) -> Tensor:
        """The restored image, from what :meth:`encode` gave for it."""
        x = self.middle(self.down3(e3))  # [N, 8C, H/8, W/8]
        r1, r2, r3 = self.references(image, e1, e2, e3)
        x = self.decoder3(self.skip3(torch.cat([self.up3(x, r3), e3], 1)))
        x = self.decoder2(self.skip2(torch.cat([self.up2(x, r2), e2], 1)))
        x = self.decoder1(torch.cat([self.up1(x, r1), e1], 1))
        return self.output(self.residuals(self.refinement(x))) + image

    def losslessness(self, image: Tensor, e1: Tensor, e2: Tensor, e3: Tensor) -> Tensor:
        """How far upsampling is from undoing downsampling: the lower level of AS-BLO asks for it.

        Returns:
            The sum over levels of mean |up(down(e), reference) - e|, a scalar.
        """
        downs, ups = (self.down1, self.down2, self.down3), (self.up1, self.up2, self.up3)
        features = (e1, e2, e3)
        levels = zip(features, downs, ups, self.references(image, e1, e2, e3), strict=True)
        return torch.stack([(up(down(e), reference) - e).abs().mean() for e, down, up, reference in levels]).sum()

    def references(self, image: Tensor, *encoded: Tensor) -> tuple[Tensor, ...]:
        """What guides each upsampler: the encoder's features, or the image at their sizes (Table 4)."""
        if self.config.reference == "encoder":
            return encoded
        sizes = (self.config.stem * 2**level for level in range(HALVINGS))
        return tuple(F.avg_pool2d(image, size) if size > 1 else image for size in sizes)


class Embedding(nn.Conv2d):
    """[N, 3, H, W] -> [N, C, H/stem, W/stem]: pixel-unshuffle, then a 3x3 convolution."""

    def __init__(self, channels: int, stem: int) -> None:
        super().__init__(3 * stem**2, channels, 3, padding=1, bias=False)
        self.stem = stem

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(F.pixel_unshuffle(image, self.stem) if self.stem > 1 else image)


class Output(nn.Conv2d):
    """[N, C, H/stem, W/stem] -> [N, 3, H, W]: a 3x3 convolution, then pixel-shuffle."""

    def __init__(self, channels: int, stem: int) -> None:
        super().__init__(channels, 3 * stem**2, 3, padding=1, bias=False)
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.pixel_shuffle(x, self.stem) if self.stem > 1 else x


class MixAttentionBlock(nn.Module):
    """``x + CA(SA(LN(x)))``, then ``x + FF(LN(x))`` (Eq. 1-3)."""

    def __init__(self, channels: int, heads: int, config: EchoIRConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attention = SelfAttention(channels, heads)
        self.channel_attention = ChannelAttention(channels) if config.channel_attention else nn.Identity()
        self.norm2 = LayerNorm(channels)
        feed_forward = GatedFeedForward if config.feed_forward == "gdfn" else FeedForward
        self.feed_forward = feed_forward(channels, config.expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.channel_attention(self.attention(self.norm1(x)))
        return x + self.feed_forward(self.norm2(x))


class SelfAttention(nn.Module):
    """Transposed attention: channels attend to channels, pixels are the feature axis (Restormer, Eq. 1)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        qkv = self.depthwise(self.qkv(x)).reshape(n, 3 * self.heads, c // self.heads, height * width)
        q, k, v = qkv.chunk(3, dim=1)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)  # [N, heads, c, c]
        attention = (logits * self.temperature).softmax(dim=-1)
        return self.out((attention @ v).reshape(n, c, height, width))


class ChannelAttention(nn.Module):
    """A gate per channel from the mean of the whole input (Eq. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mlp(x.mean((2, 3), keepdim=True)).sigmoid()


class GatedFeedForward(nn.Module):
    """Gated depthwise feed-forward (GDFN; Restormer): ``out(gelu(a) * b)``."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.depthwise(self.expand(x)).chunk(2, dim=1)
        return self.out(F.gelu(a) * b)


class FeedForward(nn.Module):
    """Two projections and a GELU: the ablation of Table 5, at half the gated network's expansion."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion / 2)
        self.expand = nn.Conv2d(channels, hidden, 1, bias=False)
        self.out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.expand(x)))


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, 3 x 3 (EDSR; Lim et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class LayerNorm(nn.Module):
    """Layer normalization over the channels of [N, C, H, W], biased variance, eps 1e-5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-5)
        return x.permute(0, 3, 1, 2)


class Downsample(nn.Sequential):
    """[N, C, H, W] -> [N, 2C, H/2, W/2]: 3x3 convolution to C/2, then pixel-unshuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))


class PixelShuffleUpsampler(nn.Sequential):
    """Restormer's upsampler, the baseline of Table 4; ignores the reference."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(2 * channels, 4 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class TransposeUpsampler(nn.ConvTranspose2d):
    """A transposed 2x2 convolution, the second baseline of Table 4; ignores the reference."""

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, channels, 2, stride=2)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def make_upsampler(channels: int, config: EchoIRConfig) -> nn.Module:
    """[N, 2 * channels, h, w] and a reference -> [N, channels, 2h, 2w], of the configured kind."""
    if config.upsampler == "pixelshuffle":
        return PixelShuffleUpsampler(channels)
    if config.upsampler == "transpose":
        return TransposeUpsampler(channels)
    return EchoUpsampler(channels, channels if config.reference == "encoder" else 3, config.radius)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Grow H and W at the bottom and right to a multiple, by reflection without repeating the edge.

    Reflection bounces as often as needed, so that 1 x 1 works too (it can only repeat).
    """
    for axis in (-2, -1):
        size = image.shape[axis]
        grown = -(-size // multiple) * multiple
        if grown != size:
            period = max(2 * (size - 1), 1)
            index = torch.arange(grown, device=image.device) % period
            image = image.index_select(axis, torch.minimum(index, period - index) if size > 1 else index)
    return image
