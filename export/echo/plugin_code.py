"""The kernel of EchoUpsample for a plugin: which PTX, for which tensors. Both kinds of plugin ask here."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from echoir.export.echo.function import COMBINES
from echoir.export.echo.ptx import TARGETS, CompiledKernel, compile_forward
from echoir.runtime.errors import BackendError

if TYPE_CHECKING:
    from echoir.runtime.cuda.plugin_class import Compile, KernelCode

_STORAGE = {"HALF": "fp16", "FLOAT": "fp32", "BF16": "bf16"}


def target_for(capability: str) -> int:
    """The latest target of :data:`~echoir.export.echo.ptx.TARGETS` that a GPU runs: its own, or the next older one.

    Raises:
        BackendError: a GPU older than all of them.
    """
    wanted = int(capability.replace(".", ""))
    fitting = [target for target in TARGETS if target <= wanted]
    if not fitting:
        raise BackendError(f"the plugin's kernel needs compute capability 8.0 or later, not {capability}")
    return max(fitting)


def compile_for(
    target: int, down: tuple[int, ...], guide: tuple[int, ...], types: tuple[Any, Any, Any], radius: int, combine: int
) -> CompiledKernel:
    """Compile the kernel for tensors as TensorRT describes them.

    Args:
        target: of :func:`target_for`.
        down, guide: shapes, [N, C, h, w] and [N, K, 2h, 2w]; any N where it is open.
        types: ``tensorrt.DataType`` of down, guide and the sigmas.
        radius, combine: what the node carries.

    Raises:
        ValueError: types or shapes that the kernel does not take.
    """
    names = [kind.name for kind in types]
    if names[0] not in _STORAGE or names[1] != names[0] or names[2] not in _STORAGE:
        raise ValueError(f"EchoUpsample takes down and guide of one floating type and floating sigmas, got {names}")
    if tuple(guide[2:]) != (2 * down[2], 2 * down[3]):
        raise ValueError(f"the guide must have twice the size of {tuple(down)}, got {tuple(guide)}")
    return _compile(target, tuple(down), guide[1], _STORAGE[names[0]], _STORAGE[names[2]], radius, combine)


@cache  # TensorRT asks several times for each node
def _compile(
    target: int, down: tuple[int, ...], guide_channels: int, storage: Any, sigma_storage: Any, radius: int, combine: int
) -> CompiledKernel:
    return compile_forward(
        target,
        down[1],
        guide_channels,
        radius=radius,
        combine=COMBINES[combine],
        storage=storage,
        sigma_storage=sigma_storage,
        plane=(max(down[0], 1), down[2], down[3]),
    )


def for_class(capability: str) -> Compile:
    """What :func:`echoir.runtime.cuda.plugin_class.register` asks for the code of a node."""
    from echoir.runtime.cuda.plugin_class import KernelCode

    target = target_for(capability)

    def compile_node(
        down: tuple[int, ...], guide: tuple[int, ...], types: tuple[Any, Any, Any], radius: int, combine: int
    ) -> KernelCode:
        kernel = compile_for(target, down, guide, types, radius, combine)
        tiling = kernel.tiling
        return KernelCode(kernel.name, kernel.ptx, kernel.threads, kernel.shared, tiling.rows, tiling.columns)

    return compile_node
