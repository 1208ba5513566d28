"""The former place of :mod:`echoir.networks.echoir`."""

from echoir.networks.echoir import (
    PRESETS,
    ChannelAttention,
    Downsample,
    EchoIR,
    EchoIRConfig,
    Embedding,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    MixAttentionBlock,
    Output,
    PixelShuffleUpsampler,
    SelfAttention,
    TransposeUpsampler,
    make_upsampler,
    pad_to_multiple,
)

__all__ = [
    "PRESETS",
    "ChannelAttention",
    "Downsample",
    "EchoIR",
    "EchoIRConfig",
    "Embedding",
    "FeedForward",
    "GatedFeedForward",
    "LayerNorm",
    "MixAttentionBlock",
    "Output",
    "PixelShuffleUpsampler",
    "SelfAttention",
    "TransposeUpsampler",
    "make_upsampler",
    "pad_to_multiple",
]
