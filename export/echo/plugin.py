"""EchoUpsample as a TensorRT plugin whose kernel lies in the engine: TensorRT 10.9 and later.

Importing this module registers the plugin. The engine then runs from trtexec, C++ or DeepStream with
no library beside it, for it holds the PTX; this module is needed while it is built. Older versions:
:mod:`echoir.runtime.cuda.plugin_class`.

TensorRT reads the annotations themselves, so this file cannot postpone them. The two attributes are arrays of
one number, since TensorRT 10.9 makes an ``int`` of them in a way that numpy 2.4 refuses.
"""

from typing import Any, Tuple, Union  # noqa: UP035  # TensorRT compares with typing's own

import numpy as np
import numpy.typing as npt
import tensorrt.plugin as trtp

from echoir.export.echo.plugin_code import compile_for, target_for

_target = 80


def aim(capability: str) -> None:
    """Compile for this compute capability ("8.7") from now on; 8.0 before."""
    global _target
    _target = target_for(capability)


@trtp.register("echoir::EchoUpsample")  # type: ignore[untyped-decorator]
def echo_upsample(
    down: trtp.TensorDesc,
    guide: trtp.TensorDesc,
    sigma_spatial: trtp.TensorDesc,
    sigma_range: trtp.TensorDesc,
    radius: npt.NDArray[np.int32],
    combine: npt.NDArray[np.int32],
) -> trtp.TensorDesc:
    """down [N, C, h, w], guide [N, K, 2h, 2w] -> [N, C, 2h, 2w] of down's type."""
    output = down.like()
    output.shape_expr[2] = down.shape_expr[2] * 2
    output.shape_expr[3] = down.shape_expr[3] * 2
    return output


@trtp.aot_impl("echoir::EchoUpsample")  # type: ignore[untyped-decorator]
def echo_upsample_ptx(
    down: trtp.TensorDesc,
    guide: trtp.TensorDesc,
    sigma_spatial: trtp.TensorDesc,
    sigma_range: trtp.TensorDesc,
    radius: npt.NDArray[np.int32],
    combine: npt.NDArray[np.int32],
    outputs: Tuple[trtp.TensorDesc],  # noqa: UP006
    tactic: int,
) -> Tuple[Union[str, bytes], Union[str, bytes], trtp.KernelLaunchParams, trtp.SymExprs]:  # noqa: UP006, UP007
    """Kernel name, PTX, launch, and the scalars between the input and output pointers: h and w."""
    types = (down.dtype, guide.dtype, sigma_spatial.dtype)
    kernel = compile_for(_target, _sizes(down), _sizes(guide), types, int(radius[0]), int(combine[0]))
    batch, _, height, width = (down.shape_expr[axis] for axis in range(4))
    launch = trtp.KernelLaunchParams(
        grid_x=trtp.cdiv(width, kernel.tiling.columns),
        grid_y=trtp.cdiv(height, kernel.tiling.rows),
        grid_z=batch,
        block_x=kernel.threads,
        shared_mem=kernel.shared,
    )
    scalars = trtp.SymIntExprs.from_tuple((trtp.SymInt32(height), trtp.SymInt32(width)))
    return kernel.name, kernel.ptx, launch, scalars


def _sizes(tensor: Any) -> Tuple[int, ...]:  # noqa: UP006
    shape = tensor.shape
    return tuple(shape.opt if shape.is_dynamic else shape)
