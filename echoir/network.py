"""The former place of :mod:`echoir.networks.echoir`."""

from echoir.networks.echoir import (
    ALIGNMENT,
    PRESETS,
    ChannelAttention,
    Downsample,
    EchoIR,
    EchoIRConfig,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    MixAttentionBlock,
    PixelShuffleUpsampler,
    SelfAttention,
    TransposeUpsampler,
    make_upsampler,
    pad_to_multiple,
)

__all__ = [
    "ALIGNMENT",
    "PRESETS",
    "ChannelAttention",
    "Downsample",
    "EchoIR",
    "EchoIRConfig",
    "FeedForward",
    "GatedFeedForward",
    "LayerNorm",
    "MixAttentionBlock",
    "PixelShuffleUpsampler",
    "SelfAttention",
    "TransposeUpsampler",
    "make_upsampler",
    "pad_to_multiple",
]
