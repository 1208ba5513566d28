"""Weights of the official GRL (github.com/ofsoundof/GRL-Image-Restoration) under the names used here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PARTS = {  # of names there, and here
    "conv_first": "embed",
    "norm_start": "norm_in",
    "norm_end": "norm_out",
    "conv_after_body": "body",
    "conv_before_upsample.0": "head.reduce",
    "upsample.up.0": "head.up1",
    "upsample.up.2": "head.up2",
    "conv_up1": "head.up1",
    "conv_up2": "head.up2",
    "conv_hr": "head.refine",
    "conv_last": "head.output",
    "layers": "stages",
    "conv.cab.3.attention.1": "local.gate.0",
    "conv.cab.3.attention.3": "local.gate.2",
    "conv.cab": "local.body",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "attn.qkv.body": "attention.qkv",
    "attn.anchor.body.0.reduction": "attention.anchor",
    "attn.proj": "attention.proj",
    "attn.window_attn.attn_transform": "attention.within",
    "attn.stripe_attn.attn_transform1": "attention.gather",
    "attn.stripe_attn.attn_transform2": "attention.spread",
    "logit_scale": "log_scale",
    "cpb_mlp": "position",
}
BUFFERS = ("table_", "index_", "mask_", "relative_", "attn_mask", "mean")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an official checkpoint under the names used here, for ``GRL.load_state_dict``.

    Args:
        state: the ``state_dict`` of a checkpoint, with or without the prefix ``model.`` or ``model_g.``. Its
            tables, indices and masks are left out.
    """
    weights = {}
    for name, tensor in state.items():
        name = name.removeprefix("model_g.").removeprefix("model.")
        if name.rpartition(".")[2].startswith(BUFFERS):
            continue
        padded = f".{name}."
        for theirs, ours in PARTS.items():
            padded = padded.replace(f".{theirs}.", f".{ours}.")
        weights[padded[1:-1]] = tensor
    return weights
