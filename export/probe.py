"""What a network was said to be, held to what it does: a few runs on noise before anything is exported.

What was not said is found the same way (:func:`describe`).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from echoir.export.declared import Declared
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


def probe(module: nn.Module, descriptor: Descriptor, *, fixed: bool = False) -> Behaviour:
    """Run a network in PyTorch on noise, and refuse a descriptor that says something else than it does.

    Args:
        module: [N, C, H, W] -> [N, C', scale * H, scale * W], in evaluation mode.
        descriptor: what was declared.
        fixed: the network takes pictures of ``descriptor.tile`` alone.

    Raises:
        ArtifactError: names the field of the descriptor that is wrong: exit code 4.
    """
    pairs = zip(descriptor.multiple, LEAST, strict=True)
    height, width = descriptor.tile if fixed else (_odd(multiple, least) for multiple, least in pairs)
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
    if fixed:
        return Behaviour(False, activation)
    if "phase" not in descriptor.measured:
        _check_phase(module, descriptor)
    other = _run(module, descriptor.input, height - 1, width - 1)  # padded by the network, no larger than before
    any_size = isinstance(other, Tensor) and other.shape[2:] == _scaled(descriptor.scale, height - 1, width - 1)
    if not any_size:
        height, width = height + 2 * descriptor.multiple[0], width + 2 * descriptor.multiple[1]
        output = _run(module, descriptor.input, height, width)
        if isinstance(output, Exception):
            raise _cause(module, descriptor, height, width, output)
        _check(module, descriptor, output, height, width)
    return Behaviour(any_size, activation)


def describe(module: nn.Module, said: Declared, *, hint: int = 1, parameters: int, fixed: bool = False) -> Descriptor:
    """A description of a network of which little is known: the rest is measured.

    Args:
        module: [N, C, H, W] -> [N, C', scale * H, scale * W], in evaluation mode.
        said: what is known for certain; ``tile`` too where ``fixed``.
        hint: what somebody says its sides are multiples of; it takes such sides in any case.
        parameters: trained numbers.
        fixed: it takes pictures of ``said.tile`` alone.

    Raises:
        ArtifactError: it does not run on any kind of picture, or gives no picture.
    """
    planes, multiple, given = _first_that_runs(module, said, hint, fixed)
    height, width = _sides(said, multiple, fixed)
    output = _require_picture(given)
    made = next((planes for planes in ("gray", "RGB") if CHANNELS[planes] == output.shape[1]), None)
    if made is None and said.output is None:
        raise ArtifactError("network.output", f"{output.shape[1]} planes", "1 (gray) or 3 (RGB)")
    found = tuple(output.shape[2:])
    scale = next((n for n in range(1, MAX_SCALE + 1) if found == _scaled(n, height, width)), None)
    if scale is None and said.scale is None:
        needed = f"a whole number of times as many, 1 to {MAX_SCALE}"
        raise ArtifactError("network.scale", _change(found, height, width), needed)
    values: dict[str, Any] = {
        "scale": said.scale or scale,
        "input": planes,
        "output": said.output or made,
        "multiple": multiple,
        "local": bool(said.local),
    }
    # What encloses a picture of four times the sides takes sixteen times the memory.
    side = 256 if values["scale"] <= 2 else 128
    tall, wide = (one * math.ceil(side / one) for one in multiple)
    known = Descriptor(
        said.architecture or type(module).__name__,
        said.task or ("sr" if values["scale"] > 1 else "restore"),
        parameters,
        variant=said.variant or "",
        overlap=said.overlap or 0,
        tile=said.tile or (tall, wide),
        phase=said.phase or (1, 1),
        measured=tuple(name for name in ("scale", "input", "output", "multiple") if getattr(said, name) is None),
        **values,
    )
    _check(module, known, output, height, width)
    if said.phase is None and not fixed:
        known = dataclasses.replace(known, phase=_phase(module, known), measured=(*known.measured, "phase"))
    return known


def _first_that_runs(module: nn.Module, said: Declared, hint: int, fixed: bool) -> tuple[Planes, Pair, object]:
    """The planes and the least multiple that a network takes, and what it gave."""
    kinds: list[Planes] = [said.input] if said.input else ["RGB", *(planes for planes in CHANNELS if planes != "RGB")]
    pairs = [said.multiple] if said.multiple else [(n * hint // math.gcd(n, hint),) * 2 for n in (1, *MULTIPLES)]
    reason: object = None
    for planes in kinds:
        for multiple in dict.fromkeys(pairs if not fixed else [said.tile]):
            assert multiple is not None
            height, width = _sides(said, multiple, fixed)
            output = _run(module, planes, height, width)
            if not isinstance(output, Exception):
                # One that merely rounds its sides down is no better than one that fails.
                last = fixed or said.multiple or multiple == pairs[-1]
                if last or not _is_tensor(output) or _whole_multiple(output, height, width):
                    return planes, multiple, output
            elif reason is None:
                reason = output
    height, width = _sides(said, pairs[-1], fixed)
    if isinstance(reason, Exception) and (said.input or said.multiple):
        declared = Descriptor("a network", "restore", 0, input=kinds[0], multiple=pairs[0])
        raise _cause(module, declared, height, width, reason)
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    hint_ = "say what it takes: --channels, --multiple"
    raise ArtifactError("network", f"one that fails on {height} x {width} pixels ({lines[0]})", "one that runs", hint_)


def _sides(said: Declared, multiple: Pair, fixed: bool) -> Pair:
    if fixed and said.tile:
        return said.tile
    height, width = (_odd(one, least) for one, least in zip(multiple, LEAST, strict=True))
    return height, width


def _whole_multiple(output: Any, height: int, width: int) -> bool:
    return any(tuple(output.shape[2:]) == _scaled(scale, height, width) for scale in range(1, MAX_SCALE + 1))


# Shifting a picture by the phase must shift the result; by how much it does, in dB for a peak of 1.
SHIFTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32)
LIE, CURE = 30.0, 20.0  # below this, and better by that with another phase, the declared one is wrong
CLEAR = 10.0  # by so much better than at other distances, a phase is one


def _check_phase(module: nn.Module, descriptor: Descriptor) -> None:
    """Refuse a phase at whose multiples the network does not do the same everywhere, where another's would do."""
    steadiness = _Steadiness(module, descriptor)
    for axis, declared in enumerate(descriptor.phase):
        steady = steadiness(axis, declared)
        if not steady < LIE:
            continue
        for other in SHIFTS:
            shift = math.lcm(declared, other)
            if shift != declared and steadiness(axis, shift) >= steady + CURE:
                needed = " x ".join(map(str, dict.fromkeys(descriptor.phase)))
                raise ArtifactError("network.phase", f"{shift} {('down', 'across')[axis]}", needed, EDITED)


def _phase(module: nn.Module, descriptor: Descriptor) -> Pair:
    """The least distance at which a network does the same everywhere; 1 where none stands out.

    What stands out is measured against the usual distance, not against that of one pixel: a grid of windows that moves
    by one changes less than one that moves by half of itself.
    """
    steadiness = _Steadiness(module, descriptor)

    def along(axis: int) -> int:
        steady = {shift: value for shift in SHIFTS if not math.isnan(value := steadiness(axis, shift))}
        # Statistics of the whole window drift with the distance: the least of those that are about as good.
        phase = next(shift for shift, value in steady.items() if value >= max(steady.values()) - CLEAR / 2)
        others = [value for shift, value in steady.items() if shift % phase]
        return phase if others and steady[phase] >= statistics.median(others) + CLEAR else 1

    return along(0), along(1)


class _Steadiness:
    """How alike a network does on two windows of a picture that lie some pixels apart.

    One of them is the same for all distances, and runs once.
    """

    def __init__(self, module: nn.Module, descriptor: Descriptor) -> None:
        self._module, self._scale = module, descriptor.scale
        self._height, self._width = (one * math.ceil(80 / one) for one in descriptor.multiple)
        generator = torch.Generator().manual_seed(0)
        sides = 2 * self._height, 2 * self._width
        coarse = torch.rand(1, CHANNELS[descriptor.input], *(-(-side // 8) for side in sides), generator=generator)
        smooth = nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
        self._picture = smooth + 0.02 * torch.randn(smooth.shape, generator=generator)
        self._first: Tensor | None = None

    def __call__(self, axis: int, shift: int) -> float:
        """In dB, away from their borders; NaN where they are too far apart to tell."""
        down, across = (shift, 0) if axis == 0 else (0, shift)
        edge, scale = 16, self._scale
        rows, columns = scale * (self._height - 2 * edge - down), scale * (self._width - 2 * edge - across)
        if rows <= 0 or columns <= 0:  # they have nothing in common
            return math.nan
        try:
            first = self._first = self._window(0, 0) if self._first is None else self._first
            second = self._window(down, across)
        except Exception:  # what fails here is told by the other runs
            return math.inf
        inner, other = (
            made[..., top : top + rows, left : left + columns]
            for made, top, left in (
                (first, scale * (edge + down), scale * (edge + across)),
                (second, scale * edge, scale * edge),
            )
        )
        error = float((inner - other).square().mean())
        return math.inf if error == 0 else -10 * math.log10(error)

    def _window(self, top: int, left: int) -> Tensor:
        with torch.inference_mode():
            window = self._picture[..., top : top + self._height, left : left + self._width]
            made: Tensor = self._module(window.contiguous())
            return made


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


def _require_picture(output: object) -> Tensor:
    if isinstance(output, Tensor) and output.dim() == 4:
        return output
    shown = f"a tensor of {output.dim()} axes" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    hint = "wrap the module so that it gives the picture alone"
    raise ArtifactError("network.output", shown, "one tensor [N, C, H, W]", hint)


def _check(module: nn.Module, descriptor: Descriptor, output: object, height: int, width: int) -> None:
    """Refuse an output that is not the picture the descriptor promises."""
    output = _require_picture(output)
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
