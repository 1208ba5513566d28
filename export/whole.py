"""A picture in one piece through a module: what tiles are measured against."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from echoir.export.probe import Behaviour
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.tiling import reflect

Floats = NDArray[np.float32]
# Numbers in the largest activation that one pass over a whole picture may make, 2.7 GB: 4 megapixels of a network
# with 170 per pixel.
WHOLE_BUDGET = 4_000_000 * 170


def in_one_piece(module: nn.Module, network: Descriptor, behaviour: Behaviour, image: Floats) -> Floats | None:
    """A picture [H, W, C] restored, [scale * H, scale * W, C'], not clipped; None where it is too large for memory."""
    height, width, _ = image.shape
    if height * width * behaviour.activation > WHOLE_BUDGET:
        return None
    if not behaviour.any_size:
        down, across = (
            reflect(size, -(-size // multiple) * multiple)
            for size, multiple in zip((height, width), network.multiple, strict=True)
        )
        image = image[down][:, across]
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        restored = np.asarray(module(batch))[0].transpose(1, 2, 0)
    scale = network.scale
    return np.ascontiguousarray(restored[: scale * height, : scale * width])
