"""The forward kernel of EchoUpsample compiled ahead of time to PTX, for the TensorRT plugin.

PTX is compiled by the driver of the machine that loads it, so one text serves a GPU and its
successors; a driver refuses a PTX version newer than itself. :data:`TARGETS` holds the oldest
version that knows each GPU. Compiling needs Triton and no GPU, and takes seconds; Triton keeps
what it compiled by content hash in its cache folder (``TRITON_CACHE_DIR``, ``~/.triton/cache``).
"""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echoir.runtime.errors import BackendError, needs_extra

if TYPE_CHECKING:
    from echoir.networks.kernel import Tiling
    from echoir.networks.upsampler import Combine

Storage = Literal["fp32", "fp16", "bf16"]

# Compute capability: PTX version. CUDA 12.0 reads 8.0, 12.7 8.6, 12.8 8.7, 13.0 9.0.
TARGETS = {80: (8, 0), 86: (8, 0), 87: (8, 0), 89: (8, 0), 90: (8, 0), 100: (8, 6), 110: (9, 0), 120: (8, 7)}


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel and how to launch it.

    Its parameters, in order: pointers to down [N, C, h, w], guide [N, K, 2h, 2w], sigma_spatial [1]
    and sigma_range [1]; h and w as 32-bit integers; a pointer to the output [N, C, 2h, 2w]. Tensors
    are contiguous NCHW on the device; down, guide and output start at multiples of 16 bytes. C and
    K are compiled in; N, h and w are free, whatever plane the tiling was chosen for.

    Attributes:
        name: entry point in ``ptx``.
        ptx: the text, for ``cuModuleLoadData`` or TensorRT's ``aot_impl``. Triton's trailing
            pointers to scratch memory are taken out: the parameters are those above and no more.
        target: compute capability without the dot, a key of :data:`TARGETS`.
        ptx_version: (major, minor) that the driver must know.
        tiling: the cells of a program are ``rows`` x ``columns``.
        threads: of a block: launch with ``(threads, 1, 1)``.
        shared: bytes of dynamic shared memory to launch with; well below 48 KiB.
    """

    name: str
    ptx: str
    target: int
    ptx_version: tuple[int, int]
    tiling: Tiling
    threads: int
    shared: int

    def grid(self, n: int, height: int, width: int) -> tuple[int, int, int]:
        """Blocks along x, y, z: ``(ceil(width / columns), ceil(height / rows), n)``; size in low-resolution cells."""
        return self.tiling.grid(n, height, width)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of a multiprocessor, as the assembler counts it.

    Attributes:
        registers: of each thread.
        spills: bytes of registers that each thread writes to memory for want of room.
        shared: bytes of static shared memory of each block; what is launched with comes on top.
    """

    registers: int
    spills: int
    shared: int


def compile_forward(
    target: int,
    channels: int,
    guide_channels: int,
    *,
    radius: int = 1,
    combine: Combine = "sum",
    storage: Storage = "fp16",
    sigma_storage: Storage = "fp32",
    plane: tuple[int, int, int] = (1, 540, 960),
    tiling: Tiling | None = None,
) -> CompiledKernel:
    """Compile the forward kernel for one GPU.

    Args:
        target: compute capability without the dot, a key of :data:`TARGETS`.
        channels: C of ``down`` and of the output.
        guide_channels: K of the guide.
        radius: neighbourhood radius in cells, >= 0.
        combine: ``"sum"`` or ``"product"``; see :func:`echoir.networks.upsampler.echo_upsample`.
        storage: type of down, guide and output. Sums are float32 whatever it is.
        sigma_storage: type of both sigmas.
        plane: N, h and w that the kernel will mostly be launched with, to choose the tiling from.
        tiling: how cells are dealt out to programs, if not what suits ``plane``.

    Raises:
        BackendError: an unknown target, or a Triton that cannot compile for it.
        MissingExtraError: Triton is not installed.
    """
    with needs_extra("kernel"):
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.runtime.errors import PTXASError

        from echoir.networks.kernel import Tiling, compile_time, echo_upsample_forward
    if target not in TARGETS:
        raise BackendError(f"no PTX for sm_{target}; known are {', '.join(f'sm_{known}' for known in TARGETS)}")
    major, minor = TARGETS[target]
    tiling = tiling or Tiling.for_plane(*plane, radius)
    constants: dict[str, Any] = compile_time(channels, guide_channels, radius, combine, tiling, capability=target)
    tensor, sigma = f"*{storage}", f"*{sigma_storage}"
    signature = {"down": tensor, "guide": tensor, "sigma_spatial": sigma, "sigma_range": sigma}
    signature |= {"height": "i32", "width": "i32", "out": tensor} | dict.fromkeys(constants, "constexpr")
    aligned = {(list(signature).index(name),): [["tt.divisibility", 16]] for name in ("down", "guide", "out")}
    source = ASTSource(echo_upsample_forward, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": tiling.num_warps, "ptx_version": 10 * major + minor, "enable_fp_fusion": True}
    with triton.knobs.compilation.scope(), redirect_stdout(io.StringIO()):  # Triton prints what ptxas refuses
        triton.knobs.compilation.disable_line_info = True  # they hold paths of this machine
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
        except (RuntimeError, PTXASError) as error:
            lines = str(error).splitlines()
            reason = next((line for line in lines if "fatal" in line or "error" in line), lines[0])
            raise BackendError(f"Triton {triton.__version__} cannot compile for sm_{target}: {reason}") from error
    name = compiled.metadata.name
    return CompiledKernel(
        name=name,
        ptx=_portable(without_scratch(compiled.asm["ptx"], name), target),
        target=target,
        ptx_version=(major, minor),
        tiling=tiling,
        threads=32 * compiled.metadata.num_warps,
        shared=compiled.metadata.shared,
    )


def without_scratch(ptx: str, name: str) -> str:
    """Drop the two pointers to scratch memory that Triton appends to every entry point.

    Args:
        ptx: text of a module with the entry point ``name``.

    Raises:
        BackendError: the entry point does not end in two pointers that nothing reads.
    """
    entry = re.search(rf"\.entry {re.escape(name)}\(\n(.*?)\n\)", ptx, re.DOTALL)
    parameters = entry[1].split(",\n") if entry else []
    for parameter in parameters[-2:]:
        label = parameter.split()[-1]
        if ".ptr" not in parameter or len(re.findall(rf"\b{re.escape(label)}\b", ptx)) > 1:
            parameters = []
    if not entry or not parameters:
        raise BackendError(f"the PTX of {name} does not end its parameters with two unused scratch pointers")
    return ptx[: entry.start(1)] + ",\n".join(parameters[:-2]) + ptx[entry.end(1) :]


def _portable(ptx: str, target: int) -> str:
    """Name the plain architecture: Triton asks for ``sm_90a``, which no later GPU accepts."""
    return re.sub(rf"^\.target sm_{target}a?\b", f".target sm_{target}", ptx, flags=re.MULTILINE)


def assemble(kernel: CompiledKernel) -> Usage:
    """Assemble a kernel's final text with the ptxas that Triton ships.

    Raises:
        BackendError: ptxas refuses it.
        MissingExtraError: Triton is not installed.
    """
    with needs_extra("kernel"):
        import triton
    tool = triton.knobs.nvidia.ptxas_blackwell if kernel.target >= 100 else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "kernel.ptx")
        text.write_text(kernel.ptx)
        command = [tool.path, "-v", f"--gpu-name=sm_{kernel.target}", str(text), "-o", str(text.with_suffix(".cubin"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BackendError(f"ptxas refuses the kernel for sm_{kernel.target}: {done.stderr.strip()}")

    def count(pattern: str) -> int:
        found = re.search(rf"(\d+) {pattern}", done.stderr)
        return int(found[1]) if found else 0

    return Usage(registers=count("registers"), spills=count("bytes spill stores"), shared=count("bytes smem"))
