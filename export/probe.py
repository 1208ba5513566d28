"""What a network was said to be, held to what it does: two runs on noise before anything is exported."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echoir.runtime.descriptor import CHANNELS, MAX_SCALE, Descriptor, Pair, Planes
from echoir.runtime.errors import ArtifactError

LEAST = (40, 56)  # pixels of the first run, at least; not square, so that a network that turns pictures is found
MULTIPLES = (2, 4, 8, 16, 32, 64)
EDITED = "the network is not what its description says"


@dataclass(frozen=True)
class Behaviour:
    """What the runs showed.

    Attributes:
        any_size: whether it takes sides that are no multiples of ``Descriptor.multiple``.
        activation: numbers per pixel of the input in the largest output of any layer.
    """

    any_size: bool
    activation: float


def probe(module: nn.Module, descriptor: Descriptor) -> Behaviour:
    """Run a network in PyTorch on noise, and refuse a descriptor that says something else than it does.

    Args:
        module: [N, C, H, W] -> [N, C', scale * H, scale * W], in evaluation mode.
        descriptor: what was declared.

    Raises:
        ArtifactError: names the field of the descriptor that is wrong: exit code 4.
    """
    height, width = (_odd(multiple, least) for multiple, least in zip(descriptor.multiple, LEAST, strict=True))
    sizes: list[float] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.numel()) if _is_tensor(output) else None)
        for layer in module.modules()
        if next(layer.children(), None) is None
    ]
    try:
        output = _run(module, descriptor.input, height, width)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(output, Exception):
        raise _cause(module, descriptor, height, width, output)
    _check(module, descriptor, output, height, width)
    activation = max(sizes, default=0) / (height * width)
    other = _run(module, descriptor.input, height + 1, width + 1)
    any_size = isinstance(other, Tensor) and other.shape[2:] == _scaled(descriptor.scale, height + 1, width + 1)
    if not any_size:
        height, width = height + 2 * descriptor.multiple[0], width + 2 * descriptor.multiple[1]
        output = _run(module, descriptor.input, height, width)
        if isinstance(output, Exception):
            raise _cause(module, descriptor, height, width, output)
        _check(module, descriptor, output, height, width)
    return Behaviour(any_size, activation)


def _odd(multiple: int, least: int) -> int:
    """The first odd multiple from ``least`` up: a network that needs an even one shows it."""
    count = max(1, -(-least // multiple))
    return multiple * (count + 1 - count % 2)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _scaled(scale: int, height: int, width: int) -> Pair:
    return scale * height, scale * width


def _run(module: nn.Module, planes: Planes, height: int, width: int) -> object:
    """The output, or what went wrong."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, CHANNELS[planes], height, width, generator=generator)
    try:
        with torch.inference_mode():
            return module(image)
    except Exception as error:  # whatever a stranger's code may raise
        return error


def _check(module: nn.Module, descriptor: Descriptor, output: object, height: int, width: int) -> None:
    """Refuse an output that is not the picture the descriptor promises."""
    if not isinstance(output, Tensor) or output.dim() != 4:
        shown = f"a tensor of {output.dim()} axes" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        hint = "wrap the module so that it gives the picture alone"
        raise ArtifactError("network.output", shown, "one tensor [N, C, H, W]", hint)
    if (channels := output.shape[1]) != CHANNELS[descriptor.output]:
        raise ArtifactError("network.output", f"{channels} planes", _planes(descriptor.output), EDITED)
    if not torch.isfinite(output).all():
        raise ArtifactError("network", "NaN or infinite values for noise between 0 and 1", "finite ones")
    found = tuple(output.shape[2:])
    if found == _scaled(descriptor.scale, height, width):
        return
    for scale in range(1, MAX_SCALE + 1):
        if found == _scaled(scale, height, width):
            raise ArtifactError("network.scale", scale, descriptor.scale, EDITED)
    if (multiple := _multiple_that_fits(module, descriptor)) is not None:
        raise ArtifactError(
            "network.multiple", f"{multiple}, since {_change(found, height, width)}", _declared(descriptor)
        )
    needed = f"{descriptor.scale} times the input's size"
    raise ArtifactError("network.scale", _change(found, height, width), needed, EDITED)


def _cause(module: nn.Module, descriptor: Descriptor, height: int, width: int, error: Exception) -> ArtifactError:
    """Why a network does not run as described: other planes, a larger multiple, or nothing that helps."""
    for planes in CHANNELS:
        if planes != descriptor.input and _is_tensor(_run(module, planes, height, width)):
            return ArtifactError("network.input", _planes(planes), _planes(descriptor.input), EDITED)
    if (multiple := _multiple_that_fits(module, descriptor)) is not None:
        return ArtifactError("network.multiple", multiple, _declared(descriptor), EDITED)
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ArtifactError("network", f"one that fails on {height} x {width} pixels ({reason[0]})", "one that runs")


def _multiple_that_fits(module: nn.Module, descriptor: Descriptor) -> int | None:
    """The least multiple beyond the declared one with which the network gives the promised size."""
    for multiple in MULTIPLES:
        if multiple > max(descriptor.multiple):
            height = _odd(multiple, max(LEAST))
            width = height + 2 * multiple
            output = _run(module, descriptor.input, height, width)
            if isinstance(output, Tensor) and tuple(output.shape[2:]) == _scaled(descriptor.scale, height, width):
                return multiple
    return None


def _planes(planes: Planes) -> str:
    return f"{planes} ({CHANNELS[planes]})"


def _declared(descriptor: Descriptor) -> str:
    return " x ".join(map(str, dict.fromkeys(descriptor.multiple)))


def _change(found: tuple[int, ...], height: int, width: int) -> str:
    return f"{height} x {width} pixels become {' x '.join(map(str, found))}"
